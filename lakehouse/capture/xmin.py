"""Capture by `xmin`: no change to the source, nothing committed is missed.

A window reads, in one REPEATABLE READ transaction, rows whose xmin is at or after the xmin of the previous
snapshot and was not exported yet. Where the contract names a timestamp that every change stamps, and it is
indexed, rows stamped before the previous bound are not looked at; an exact read every reconciliation period
finds what such a stamp hid. Deletes and moves are seen by comparing keys, so as late as that period says.

Cannot see: a row that was inserted and deleted, or versions that came and went, between two windows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from psycopg import sql

from lakehouse.archive.tombstones import Tombstones
from lakehouse.capture.fence import SourceRefused, Verdict, judge, refusal
from lakehouse.capture.forbidden import FORBIDDEN, Examined, Flags, Key, check_flagged, examine, predicate
from lakehouse.capture.position import XID_SPACE, Position, Snapshot, SourceIdentity, new_ids, still_new
from lakehouse.capture.projection import Violation, convert, select_list, to_lake
from lakehouse.capture.protocol import CONTENT_HASH, Group, Plan, WindowKind
from lakehouse.capture.source import Reading, Source, SourceError, change_counts, check_table, describe, identify
from lakehouse.clock import Clock
from lakehouse.failpoints import failpoint
from lakehouse.settings import CaptureSettings
from schemas.canonical import postgres_hash
from schemas.contract import Contract
from schemas.errors import LakehouseError, Retry
from schemas.lake_columns import XMIN

if TYPE_CHECKING:
    import psycopg
    import pyarrow as pa
    from adbc_driver_postgresql.dbapi import Cursor as AdbcCursor

    from lakehouse.capture.source import Catalog, HotTable

PRUNE_MARGIN = timedelta(seconds=3)
"""Application clocks differ; what differs by more is found by the exact read."""
STAY = 10_000_000
"""Transactions after which a position is moved on by a window although nothing changed: ids wrap."""
CHANGED = "columns, defaults or enum labels changed, or partitions, or what the contract exports"


class XminCapture:
    """The default method. See the module."""

    name = "xmin"

    def __init__(self, source: Source, settings: CaptureSettings, clock: Clock) -> None:
        self.source = source
        self.settings = settings
        self.clock = clock

    @contextmanager
    def open_window(
        self, contract: Contract, groups: Sequence[Group], *, reconcile: bool | None = None
    ) -> Iterator[XminWindow]:
        """See `CaptureMethod.open_window`."""
        with self.source.session() as reader, reader.cursor() as cursor:
            catalog = Reading(cursor)
            bound = prune_bound(catalog) if contract.watermark and contract.watermark.every_change else None
            # Before the snapshot: what changes meanwhile is rather counted as not read yet.
            changes = change_counts(catalog, [contract]).get(contract.table)
            with transaction(cursor, contract):
                yield self._open(contract, groups, catalog, cursor, bound, changes, reconcile)

    def unchanged(
        self, catalog: psycopg.Connection[Any], contract: Contract, groups: Sequence[Group]
    ) -> datetime | None:
        """See `CaptureMethod.unchanged`."""
        cursor: Any = catalog.cursor()
        with transaction(cursor, contract):
            return self._open(contract, groups, catalog, cursor, None, None, None).unchanged()

    def _open(
        self,
        contract: Contract,
        groups: Sequence[Group],
        catalog: Catalog,
        cursor: AdbcCursor,
        bound: datetime | None,
        changes: int | None,
        reconcile: bool | None,
    ) -> XminWindow:
        hot = describe(catalog, contract)
        check_table(contract, hot)
        identity = identify(catalog, hot, self.source.settings.address)
        snapshot, captured_at = self._snapshot(cursor)
        failpoint("capture.before_read")
        refused, accepted = refuse_groups(contract, groups, identity, snapshot)
        prunable = self.settings.prune and prunable_by(catalog, contract, hot) is not None
        return XminWindow(
            contract=contract,
            snapshot=snapshot,
            captured_at=captured_at,
            plans=[
                self._plan(g, contract, hot, identity, snapshot, captured_at, prunable, reconcile) for g in accepted
            ],
            refused=refused,
            cursor=cursor,
            prune=prunable,
            bound=bound,
            max_seen=self.settings.max_seen,
            fingerprint=hot.fingerprint(contract),
            identity=identity,
            tenant_type=hot.columns[contract[contract.tenant].source].type,
            key_types=hot.key_types(contract),
            flags=Flags(contract, self.settings.max_quarantined),
            tombstones=Tombstones(catalog, contract),
            changes=changes,
        )

    def _snapshot(self, cursor: AdbcCursor) -> tuple[Snapshot, datetime]:
        cursor.execute("SELECT pg_current_snapshot()::text")
        row = cursor.fetchone()
        return Snapshot.parse(row[0]), self.clock()

    def _plan(
        self,
        group: Group,
        contract: Contract,
        hot: HotTable,
        identity: SourceIdentity,
        snapshot: Snapshot,
        now: datetime,
        prunable: bool,
        forced: bool | None,
    ) -> Plan:
        position = group.position
        judgement = judge(position, identity, snapshot)
        if judgement.verdict is not Verdict.SAME:
            return Plan(group, WindowKind.RECAPTURE, False, None, reconcile=True, because=judgement.detail)
        columns, labels = hot.fingerprint(contract)
        if columns != position.columns or not set(position.labels) <= set(labels):
            return Plan(group, WindowKind.RECAPTURE, False, None, reconcile=forced is not False, because=CHANGED)
        if position.method != self.name:
            # What another method saw is known by the lake's (key, xmin) pairs only; its deletes by comparing keys.
            return Plan(group, WindowKind.EXACT, ask_lake=True, lower=position.exact_xmin, reconcile=True)
        period = timedelta(seconds=self.settings.reconcile_every_seconds)
        # A clock that was set back must not put off the comparison for as long as it was ahead.
        due = position.reconciled_at is None or abs(now - position.reconciled_at) >= period
        reconcile = due if forced is None else forced
        if prunable and not reconcile and position.bound is not None:
            return Plan(group, WindowKind.WINDOW, ask_lake=position.repeats, lower=position.xmin, reconcile=False)
        pruned_before = position.exact_xmin != position.xmin
        return Plan(
            group,
            WindowKind.EXACT if reconcile or pruned_before else WindowKind.WINDOW,
            ask_lake=position.repeats or pruned_before,
            lower=position.exact_xmin if pruned_before else position.xmin,
            reconcile=reconcile,
        )


@dataclass
class XminWindow:
    """One snapshot of one table, being read."""

    contract: Contract
    snapshot: Snapshot
    captured_at: datetime
    plans: Sequence[Plan]
    cursor: AdbcCursor
    prune: bool
    bound: datetime | None
    max_seen: int
    fingerprint: tuple[str, tuple[tuple[str, str], ...]]
    identity: SourceIdentity
    tenant_type: str
    key_types: Mapping[str, str]
    flags: Flags
    tombstones: Tombstones
    changes: int | None = None
    refused: Mapping[str, LakehouseError] = field(default_factory=dict)
    _seen: set[int] = field(default_factory=set)

    def rows(self, plan: Plan) -> Iterator[pa.RecordBatch]:
        """See `OpenWindow.rows`."""
        # Read again in full: with its content's hash, so that what the lake shows already is not landed again.
        hashed = plan.kind is WindowKind.RECAPTURE
        if not hashed and plan.group.position.method == XminCapture.name:
            # What is read in full names every id anew; after a failover an old one may be another transaction's.
            self._seen |= still_new(plan.group.position.seen, self.snapshot)
        extra = sql.SQL(", {} AS {}").format(
            sql.SQL(postgres_hash(self.contract, alias="t")), sql.Identifier(CONTENT_HASH)
        )
        query = sql.SQL("SELECT {}{} FROM {} AS t WHERE {}").format(
            select_list(self.contract),
            extra if hashed else sql.SQL(""),
            self._table(),
            sql.SQL(" AND ").join(self._conditions(plan)),
        )
        for raw in stream(self.cursor, query, self.contract):
            if raw.num_rows:
                # Before anything is filtered: what the lake already holds, or cannot, was exported too.
                self._seen |= new_ids(raw.column(XMIN), self.snapshot)
            batch, forbidden = to_lake(raw, self.contract, extra=(CONTENT_HASH,) if hashed else ())
            self.flags.add(forbidden)
            if batch.num_rows:
                yield batch

    def deletes(self, plan: Plan) -> Iterator[pa.RecordBatch]:
        """See `OpenWindow.deletes`: only a comparison of keys sees any."""
        del plan
        return iter(())

    def returned(self, plan: Plan) -> Iterator[pa.RecordBatch]:
        """See `OpenWindow.returned`: deletes are as late as a comparison of keys, and these are deletes."""
        del plan
        return iter(())

    def keys(self, plan: Plan) -> Iterator[pa.RecordBatch]:
        """See `OpenWindow.keys`."""
        only = tuple(dict.fromkeys((self.contract.tenant, *self.contract.identity)))
        query = sql.SQL("SELECT {}, {} AS {} FROM {} AS t WHERE {}").format(
            select_list(self.contract, only=only),
            predicate(self.contract),
            sql.Identifier(FORBIDDEN),
            self._table(),
            self._tenants(plan),
        )
        for raw in stream(self.cursor, query, self.contract):
            # With the rows that are forbidden, whose keys may have nulls then.
            yield convert(raw, self.contract, extra=(FORBIDDEN,))[0].select([*only, FORBIDDEN])

    def examine(self, organization: str, keys: Sequence[Key]) -> Iterator[Examined]:
        """See `OpenWindow.examine`."""
        yield from check_flagged(
            self.flags,
            organization,
            examine(
                lambda query: stream(self.cursor, query, self.contract),
                self.contract,
                tenant_condition(self.contract, [organization], self.tenant_type),
                self.key_types,
                keys=keys,
                flagged=self.flags.of.get(organization),
            ),
        )

    @property
    def flagged(self) -> Set[str]:
        """See `OpenWindow.flagged`."""
        return self.flags.of.keys()

    @property
    def violations(self) -> Mapping[str, Violation]:
        """See `OpenWindow.violations`."""
        return self.flags.violations

    def unchanged(self) -> datetime | None:
        """When it was seen that no plan would read or compare anything; None where one would, or may."""
        if self.refused or any(
            p.kind is not WindowKind.WINDOW
            or p.reconcile
            or p.ask_lake
            or self.snapshot.xmax - p.group.position.xmin > STAY
            for p in self.plans
        ):
            return None
        for plan in self.plans:
            for query in self._signs(plan):
                self.cursor.execute(query.as_string(None))
                if self.cursor.fetchone() is not None:
                    return None
        return self.captured_at

    def _signs(self, plan: Plan) -> list[sql.Composed]:
        """Queries of which one returns a row if the plan would read any."""
        return [
            sql.SQL("SELECT 1 FROM {} AS t WHERE {} LIMIT 1").format(
                self._table(), sql.SQL(" AND ").join(self._conditions(plan))
            )
        ]

    def next_position(self, plan: Plan) -> Position:
        """See `OpenWindow.next_position`.

        All groups were read in one transaction, so an id seen by one was fully visible to all, and they share
        one list: that is how a straggler joins its group again.
        """
        old = plan.group.position
        exact = plan.kind is not WindowKind.WINDOW or not (self.prune and old.bound is not None)
        capped = len(self._seen) > self.max_seen
        return Position(
            xmin=self.snapshot.xmin,
            xmax=self.snapshot.xmax,
            seen=() if capped else tuple(sorted(self._seen)),
            exact_xmin=self.snapshot.xmin if exact else old.exact_xmin,
            bound=self.bound,
            repeats=capped,
            reconciled_at=self.captured_at if plan.reconcile else old.reconciled_at,
            columns=self.fingerprint[0],
            labels=self.fingerprint[1],
            source=self.identity,
        )

    def _table(self) -> sql.Identifier:
        return sql.Identifier(self.contract.source_schema, self.contract.source_table)

    def _tenants(self, plan: Plan) -> sql.Composable:
        return tenant_condition(self.contract, plan.group.organizations, self.tenant_type)

    def _conditions(self, plan: Plan) -> list[sql.Composable]:
        conditions = [self._tenants(plan)]
        if plan.lower is not None:
            # 32-bit ages: BETWEEN 0 leaves out rows that were frozen more than 2^31 transactions ago.
            conditions.append(
                sql.SQL("age(t.xmin) BETWEEN 0 AND age({}::text::xid)").format(sql.Literal(str(plan.lower % XID_SPACE)))
            )
            if not plan.ask_lake and plan.group.position.seen:
                conditions.append(
                    sql.SQL("t.xmin::text::bigint <> ALL({}::bigint[])").format(
                        sql.Literal("{" + ",".join(map(str, plan.group.position.seen)) + "}")
                    )
                )
        position = plan.group.position
        if plan.kind is WindowKind.WINDOW and self.prune and position.bound is not None and plan.lower is not None:
            assert self.contract.watermark is not None  # noqa: S101 - prunable says so
            conditions.append(
                sql.SQL("t.{} >= {}").format(
                    sql.Identifier(self.contract[self.contract.watermark.column].source),
                    sql.Literal((position.bound - PRUNE_MARGIN).replace(tzinfo=None).isoformat()),
                )
            )
        return conditions


def refuse_groups(
    contract: Contract, groups: Sequence[Group], identity: SourceIdentity, snapshot: Snapshot
) -> tuple[dict[str, SourceRefused], list[Group]]:
    """Errors by organization of the groups that were read from another source, and the groups that were not.

    Raises:
        SourceRefused: none is left.
    """
    judged = [(group, judge(group.position, identity, snapshot)) for group in groups]
    accepted = [group for group, found in judged if found.verdict is not Verdict.REFUSE]
    refused = {
        organization: refusal(contract.source_name, found)
        for group, found in judged
        if found.verdict is Verdict.REFUSE
        for organization in group.organizations
    }
    if not accepted and refused:
        raise next(iter(refused.values()))
    return refused, accepted


def tenant_condition(contract: Contract, organizations: Sequence[str], tenant_type: str) -> sql.Composable:
    """The tenant column is one of these; compared in its own type, so that an index can serve."""
    return sql.SQL("t.{} = ANY(ARRAY[{}]::{}[])").format(
        sql.Identifier(contract[contract.tenant].source),
        sql.SQL(", ").join(map(sql.Literal, organizations)),
        sql.SQL(tenant_type),
    )


@contextmanager
def transaction(cursor: AdbcCursor, contract: Contract, *, snapshot: str | None = None) -> Iterator[None]:
    """A REPEATABLE READ transaction with the table locked in ACCESS SHARE mode.

    The lock comes before the first snapshot: a concurrent TRUNCATE or ALTER TYPE would otherwise read as no
    rows at all. `snapshot` takes over an exported one.
    """
    from adbc_driver_manager import Error

    table = sql.Identifier(contract.source_schema, contract.source_table).as_string(None)
    cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        try:
            if snapshot is not None:
                cursor.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
            cursor.execute(f"LOCK TABLE {table} IN ACCESS SHARE MODE")
        except Error as error:
            raise read_error(contract, error) from error
        yield
    except BaseException:
        # A connection that is gone has no transaction to end; what broke it is what matters.
        with contextlib.suppress(Error):
            cursor.execute("ROLLBACK")
        raise
    # Read only: there is nothing to commit.
    cursor.execute("ROLLBACK")


def stream(cursor: AdbcCursor, query: sql.Composable, contract: Contract) -> Iterator[pa.RecordBatch]:
    """Run a query and yield its batches as they come (about 16 MB each).

    Raises:
        SourceError: the database broke off or refused.
    """
    from adbc_driver_manager import Error

    try:
        cursor.execute(query.as_string(None))
        yield from cursor.fetch_record_batch()
    except (Error, OSError) as error:
        raise read_error(contract, error) from error


def read_error(contract: Contract, error: Exception) -> SourceError:
    """Our error for the driver's."""
    state = str(getattr(error, "sqlstate", "") or "")
    text = next((line for line in str(error).splitlines() if line.strip()), "")[:400]
    hints = {
        "42P01": ("The table is not there: was it renamed? Mend `source` in the contract.", Retry.MANUAL),
        "42501": (f"GRANT SELECT ON {contract.source_name} to the user of LAKEHOUSE_SOURCE__URL.", Retry.MANUAL),
        "55P03": ("Another session holds a lock on it (LAKEHOUSE_SOURCE__LOCK_TIMEOUT_SECONDS).", Retry.TIMED),
        "57014": ("It ran into LAKEHOUSE_SOURCE__STATEMENT_TIMEOUT_SECONDS.", Retry.MANUAL),
    }
    hint, retry = hints.get(state, ("Nothing was lost: the next window starts at the same place.", Retry.TIMED))
    return SourceError(f"{contract.source_name}: reading failed: {text}", hint, retry=retry)


def prune_bound(catalog: Catalog) -> datetime | None:
    """A moment before which no transaction that is still open can have begun; None where that cannot be known.

    Read before the window's snapshot, for the *next* window. Not known on a standby, with prepared
    transactions about (they are in no activity view), or without the right to see others' activity.
    """
    row = catalog.execute(
        "SELECT least(clock_timestamp(), (SELECT min(xact_start) FROM pg_stat_activity "
        "WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid())), "
        "pg_is_in_recovery() OR NOT pg_has_role('pg_read_all_stats', 'USAGE')"
    ).fetchone()
    # After the activity: a transaction that is prepared between the two was still in the first.
    prepared = catalog.execute("SELECT count(*) FROM pg_prepared_xacts").fetchone()
    assert row is not None  # noqa: S101 - neither query can be empty
    assert prepared is not None  # noqa: S101
    return None if row[1] or prepared[0] else row[0].astimezone(UTC)


def prunable_by(catalog: Catalog, contract: Contract, hot: HotTable) -> str | None:
    """The index that lets a window be pruned by the contract's watermark; None if there is none."""
    if contract.watermark is None or not contract.watermark.every_change:
        return None
    source = hot.columns[contract[contract.watermark.column].source]
    row = catalog.execute(
        "SELECT i.indexrelid::regclass::text FROM pg_index i "
        "WHERE i.indrelid = %s AND i.indkey[0] = %s AND i.indisvalid AND i.indpred IS NULL LIMIT 1",
        [hot.oid, source.number],
    ).fetchone()
    return row[0] if row else None
