"""One run of the archive: for each organization that has it enabled, what is old and proven leaves, children first.

Per organization: holds that the database forgot are put back from the lake; then table after table, a slice of
candidates is read and proven in one read of the lake, and deleted batch by batch. A run can be killed anywhere and
begun again: a batch is whole or was not. Two runs beside each other do no harm. One organization's or table's fault is
its own; an export that fails leaves the tombstones in the hot database, and is made good later.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg

from lakehouse.archive.age import RetentionRefused, read_retention
from lakehouse.archive.batch import REFERRED, Batch, Prepared, delete_batch
from lakehouse.archive.candidates import Place, archive_source, read_slice
from lakehouse.archive.durable import Waiver, read_backing
from lakehouse.archive.export import export_batches, recover_batches
from lakehouse.archive.gate import Gate, TableRefused
from lakehouse.archive.holds import forgotten, restore_from_lake
from lakehouse.archive.installation import ArchiveError, connect_anyway, note
from lakehouse.archive.plan import Gates, open_gates
from lakehouse.archive.policy import Policy, PolicyOff, policies, wants
from lakehouse.archive.proof import Proof, Unproven, prove
from lakehouse.archive.readiness import not_ready
from lakehouse.archive.records import Hold
from lakehouse.archive.seal import Sealer
from lakehouse.archive.throttle import Throttle
from lakehouse.capture.source import Source
from lakehouse.operator import operator
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from lakehouse.app import App
    from schemas.contract import Contract

NAMED = 20
"""Rows that stay by a fault, of one table of one organization, that are named."""


@dataclass
class TableRun:
    """What a run did to one table of one organization; of a dry run, what it would do."""

    organization: str
    table: str
    state: str = "done"
    """done; refused, not ready, off: nothing may go now; stopped: asked to; error"""
    detail: str = ""
    """Why, where it is not done."""
    candidates: int = 0
    proven: int = 0
    rows: int = 0
    """That were deleted."""
    batches: int = 0
    first_batch: int | None = None
    last_batch: int | None = None
    kept: Counter[str] = field(default_factory=Counter)
    unproven: list[Unproven] = field(default_factory=list)
    files: int = 0
    slowest_batch_seconds: float = 0.0
    seconds: float = 0.0
    error: LakehouseError | None = None

    def fields(self) -> dict[str, Any]:
        """For an event or JSON."""
        kept = {k: v for k, v in vars(self).items() if k not in ("error", "unproven")}
        rounded = {"seconds": round(self.seconds, 3), "slowest_batch_seconds": round(self.slowest_batch_seconds, 3)}
        return kept | rounded | {"unproven": [vars(u) for u in self.unproven]}


@dataclass
class Result:
    """What a run did."""

    dry_run: bool
    organizations: list[str] = field(default_factory=list)
    """Those that it was for; none where nobody has archiving enabled."""
    tables: list[TableRun] = field(default_factory=list)
    exported: int = 0
    """Batches that were brought into the lake's own record."""
    holds_restored: int = 0
    errors: dict[str, LakehouseError] = field(default_factory=dict)
    """By organization: what kept it from being archived or exported at all."""

    @property
    def first_error(self) -> LakehouseError | None:
        """One of the errors, if there are any."""
        return next(iter([*self.errors.values(), *(t.error for t in self.tables if t.error is not None)]), None)

    @property
    def well(self) -> bool:
        """Whether nothing is in error; what may not go is no error."""
        return self.first_error is None


def _never() -> bool:
    return False


def archive_all(
    app: App,
    organizations: Sequence[str] = (),
    tables: Sequence[str] = (),
    *,
    dry_run: bool = False,
    waiver: Waiver | None = None,
    should_stop: Callable[[], bool] = _never,
) -> Result:
    """Archive these organizations (by id; default: all that have it enabled) and tables (default: all).

    `dry_run`: prove, and delete nothing; organizations that are named need not have it enabled then, nor need the
    archive be set up or have its keys. `waiver`: for this run no destination's receipt is asked for; the audit gets a
    line for each organization once nothing keeps the run from beginning.

    Raises:
        ArchiveError: a key is missing, or a named organization has not enabled it.
        SourceError: the hot database does not answer.
    """
    for name in tables:
        app.contract(name)
    result = Result(dry_run)
    with connect_anyway(app) as (connection, installed), archive_source(app) as source:
        known = policies(connection) if installed else {}
        chosen = _chosen(known, organizations, dry_run=dry_run)
        result.organizations = chosen
        if not chosen:
            return result
        sealer = None if dry_run else Sealer(app)
        gates = open_gates(connection, app.contracts.values())
        if waiver is not None and not dry_run:
            _note_waiver(connection, waiver, chosen)
        settings = app.settings.archive
        throttle = Throttle(settings.rows_per_second, settings.replica_lag_seconds, should_stop, app.events.emit)
        run = _Run(app, connection, installed, source, gates, sealer, throttle, result, should_stop, waiver)
        for organization in chosen:
            if should_stop():
                break
            run.organization(organization, known.get(organization), tables)
    return result


def waive(organizations: Sequence[str], reason: str, by: str | None = None) -> Waiver:
    """Somebody's word that a run of these organizations needs no destination's receipt; `archive_all` notes it.

    Raises:
        ArchiveError: no reason, or no organization is named.
    """
    reason = " ".join(reason.split())
    if not reason or not organizations:
        raise ArchiveError(
            "--no-destination needs " + ("a reason" if organizations else "an organization"),
            "Say whose rows may go without a destination's receipt, and why: --organization … --reason …",
        )
    return Waiver(operator(by), reason, standing=False)


def _note_waiver(connection: psycopg.Connection[Any], waiver: Waiver, organizations: Sequence[str]) -> None:
    with connection.transaction():
        for organization in organizations:
            note(
                connection,
                actor=waiver.by,
                action="destination waived for a run",
                organization=organization,
                subject={},
                reason=waiver.reason,
            )


def _chosen(known: dict[str, Policy], wanted: Sequence[str], *, dry_run: bool) -> list[str]:
    enabled = [o for o, policy in known.items() if policy.enabled]
    if not wanted:
        return enabled
    if not dry_run and (off := sorted(set(wanted) - set(enabled))):
        raise PolicyOff(
            f"archiving is not enabled for organization {', '.join(off)}",
            "`lakehouse archive enable --organization … --reason …` turns it on; `--dry-run` shows what would go.",
        )
    return list(dict.fromkeys(wanted))


@dataclass(frozen=True)
class _Opened:
    """A slice that was read: its proof, which is open until `stack` is closed, and where the slice ends."""

    proof: Proof | None
    last: Place | None
    stack: ExitStack


@dataclass
class _Run:
    app: App
    connection: psycopg.Connection[Any]
    installed: bool
    source: Source
    gates: Gates
    sealer: Sealer | None
    """None: a dry run, which seals nothing and deletes nothing."""
    throttle: Throttle
    result: Result
    should_stop: Callable[[], bool]
    waiver: Waiver | None
    forgotten: Sequence[Hold] = ()
    """In a dry run: the organization's holds that only the lake has."""

    @property
    def dry_run(self) -> bool:
        return self.sealer is None

    def organization(self, organization: str, policy: Policy | None, tables: Sequence[str]) -> None:
        """One organization; what is understood and goes wrong is in the result."""
        try:
            if self.dry_run:
                self.forgotten = forgotten(self.app, self.connection if self.installed else None, organization)
            else:
                self.result.holds_restored += len(restore_from_lake(self.app, organization))
                recover_batches(self.app, organization)
        except LakehouseError as error:
            # Not knowing every hold, or under which number a batch would come, nothing of it may go.
            self.result.errors[organization] = error
            return
        for name in tables:
            if why := self._not_covered(self.app.contract(name), policy):
                self.result.tables.append(TableRun(organization, name, "off", why))
        for name in self.gates.order:
            if (tables and name not in tables) or self.should_stop():
                continue
            if self._not_covered(self.app.contract(name), policy):
                continue
            self._table(organization, self.gates.by_table[name], policy)
        if not self.dry_run:
            self._export(organization)

    def _not_covered(self, contract: Contract, policy: Policy | None) -> str:
        """Why this run is not for the table, for whoever named it; empty where it is."""
        if contract.retention == "never":
            return "this table is never archived: its contract says so"
        if contract.table not in self.gates.by_table:
            return "the hot database has no such table"
        chosen = policy.optional_tables if policy is not None and policy.enabled else ()
        if not wants(contract, chosen):
            return f"archived only where it is chosen: `lakehouse archive enable … --optional-table {contract.table}`"
        return ""

    def _table(self, organization: str, gate: Gate, policy: Policy | None) -> None:
        done = TableRun(organization, gate.contract.table)
        self.result.tables.append(done)
        began = time.monotonic()
        with self.app.events.unit(
            "archive", table=done.table, organization=organization, dry_run=self.dry_run
        ) as event:
            try:
                self._work(organization, gate, policy, done)
            except (PolicyOff, RetentionRefused, TableRefused) as error:
                done.state, done.detail = ("off" if isinstance(error, PolicyOff) else "refused"), error.detail
            except LakehouseError as error:
                done.state, done.detail, done.error = "error", error.detail, error
            done.seconds = time.monotonic() - began
            event.update(done.fields(), outcome=done.state)

    def _work(self, organization: str, gate: Gate, policy: Policy | None, done: TableRun) -> None:
        gate.check()
        if why := not_ready(self.app, self.connection, gate, organization):
            done.state, done.detail = "not ready", why
            return
        waiver = self.waiver or (policy.waiver if policy is not None else None)
        while not self.should_stop():
            before, done.kept = done.rows, Counter()
            done.unproven = []
            self._pass(organization, gate, waiver, done)
            referred = any(reason.startswith(REFERRED) for reason in done.kept)
            if done.rows == before or not (gate.own and referred):
                break
            # Rows that others of their own table referred to may go now that those are gone.
        if self.should_stop():
            done.state = "stopped"

    def _pass(self, organization: str, gate: Gate, waiver: Waiver | None, done: TableRun) -> None:
        """Every candidate once, slice by slice: while one is deleted, the next is read and proven."""
        settings = self.app.settings.archive
        # A small slice first, so that its rows leave while the next one, twice as big, is proven.
        most = min(settings.batch_rows, settings.proof_rows)
        with connect_anyway(self.app) as (aside, _), ThreadPoolExecutor(1, thread_name_prefix="proof") as pool:

            def begin(after: Place | None) -> Future[_Opened]:
                return pool.submit(self._open, aside, organization, gate, waiver, after, most)

            following: Future[_Opened] | None = begin(None)
            try:
                while following is not None:
                    opened, following = following.result(), None
                    with opened.stack:
                        if opened.last is not None and not self.should_stop():
                            most = min(2 * most, settings.proof_rows)
                            following = begin(opened.last)
                        if opened.proof is not None:
                            self._slice(organization, gate, done, opened.proof)
            finally:
                if following is not None and following.exception() is None:
                    following.result().stack.close()

    def _open(
        self,
        connection: psycopg.Connection[Any],
        organization: str,
        gate: Gate,
        waiver: Waiver | None,
        after: Place | None,
        most: int,
    ) -> _Opened:
        """Read and prove one slice. In a thread of its own, so with a connection of its own."""
        settings = self.app.settings.archive
        cutoff = read_retention(connection, self.app.settings.source, organization).cutoff
        found = read_slice(
            self.source,
            gate,
            organization,
            cutoff,
            after=after,
            most=most,
            installed=self.installed,
            forgotten=self.forgotten,
        )
        with ExitStack() as stack:
            if not found.rows.num_rows:
                return _Opened(None, None, stack.pop_all())
            backing = read_backing(self.app.engine, organization, gate.contract.table, settings.receipt_kinds, waiver)
            proof = stack.enter_context(
                prove(self.app, connection, gate, found, organization, cutoff, backing, named=NAMED)
            )
            return _Opened(proof, found.last, stack.pop_all())

    def _slice(self, organization: str, gate: Gate, done: TableRun, proof: Proof) -> None:
        done.candidates += proof.candidates
        done.proven += proof.proven
        done.files += proof.files
        done.kept.update(proof.kept)
        done.unproven += proof.unproven[: NAMED - len(done.unproven)]
        if (sealer := self.sealer) is None:
            return
        # What can be computed before rows are locked is computed while the batch before is at work.
        parts = (Prepared(part, sealer) for part in proof.batches(self.app.settings.archive.batch_rows))
        with ThreadPoolExecutor(1, thread_name_prefix="prepare") as pool:
            following = pool.submit(next, parts, None)
            while (part := following.result()) is not None and not self.should_stop():
                following = pool.submit(next, parts, None)
                batch = delete_batch(self.app, self.connection, gate.contract, organization, part, sealer)
                self._count(done, batch)
                self.throttle.after(self.connection, batch.rows)

    def _count(self, done: TableRun, batch: Batch) -> None:
        done.kept.update(batch.kept)
        done.slowest_batch_seconds = max(done.slowest_batch_seconds, batch.seconds)
        if batch.number is not None:
            done.rows += batch.rows
            done.batches += 1
            done.first_batch = done.first_batch or batch.number
            done.last_batch = batch.number
        self.app.events.emit(
            "archive_batch",
            organization=batch.organization,
            table=done.table,
            batch=batch.number,
            rows=batch.rows,
            kept=dict(batch.kept),
            done=done.rows,
            proven=done.proven,
            milliseconds=round(batch.seconds * 1000, 1),
        )

    def _export(self, organization: str) -> None:
        try:
            self.result.exported += export_batches(self.app, organization)
        except LakehouseError as error:
            self.result.errors[organization] = ArchiveError(
                f"organization {organization}: batches are not in the lake's own record yet: {error.detail}",
                "Nothing is lost: they stand in the hot database, and the next run or maintenance brings them.",
                retry=error.retry,
            )
