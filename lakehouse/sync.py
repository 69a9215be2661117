"""One round of one table: land what waits, capture a window, stage, record, land, acknowledge.

Capture runs under the table's task lease, one window at a time. Once a window is recorded the table is given back:
each share then has a delivery of its own, whose lease is this worker's, and the next window may begin while they
land. An organization with an unsettled delivery is read by no window, so its chain stays serial.

A row that the lake cannot hold is quarantined: written whole into the log that the organization's cursor names, in the
same commit as the rest of its share. Faults are kept apart: what breaks one organization (its lake, a contract that
too many of its rows break) leaves it at its old position, where it is read alone next time; what breaks the table
(the source, its contract) leaves every organization of it where it was. Nothing is caught that is not understood.
"""

from __future__ import annotations

import functools
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from catalog.tables import ensure_table
from federation.kinds import DestinationKind
from lakehouse.adopt import note_reconciled
from lakehouse.app import App
from lakehouse.archive.archive_table import open_archive
from lakehouse.capture.protocol import Group, OpenWindow, group_positions
from lakehouse.capture.source import SourceError
from lakehouse.control import landings, store
from lakehouse.control.database import control_broke_off
from lakehouse.control.landings import IdleMove, StagedShare, staged_share
from lakehouse.failpoints import failpoint
from lakehouse.landing.commit import FencedError, land
from lakehouse.landing.cursor import Inventory, LakeCursor, Quarantine, needs_comparison, read_cursor
from lakehouse.landing.held import KeyReconciliation
from lakehouse.landing.parquet import StagedFileError, check_staged
from lakehouse.landing.quarantine import Known, Moment, advance, open_keys, staged
from lakehouse.landing.staging import Share, Stager, Target
from lakehouse.outbox import deliveries, tasks
from lakehouse.outbox.deliveries import ClaimedDelivery
from lakehouse.outbox.lease import Lease, LeaseLostError
from lakehouse.outbox.retry import decide
from lakehouse.outbox.tasks import CAPTURE, ClaimedTask
from lakehouse.result import TableResult
from lakehouse.window import opened_window, read_group
from schemas.contract import Contract
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from pyiceberg.table import Table


MANY_ARCHIVED = 5_000
"""Archived keys of one organization that a comparison finds, above which an inventory lands although nothing else does:
else they would all be asked for again by the next one."""


class LakeTables:
    """The lake tables of one table's organizations, opened when first asked for, once a round."""

    def __init__(self, app: App, contract: Contract) -> None:
        self.app = app
        self.contract = contract
        self._lock = threading.Lock()
        self._open: dict[str, Table] = {}
        self._archives: dict[str, Table | None] = {}
        self._failed: dict[str, LakehouseError] = {}

    def __call__(self, organization: str) -> Table:
        with self._lock:
            if organization in self._failed:
                # A lake that does not answer costs one time-out a round, not one a question.
                raise self._failed[organization]
            if organization not in self._open:
                try:
                    self._open[organization] = ensure_table(self.app.lake(organization), self.contract)
                except LakehouseError as error:
                    self._failed[organization] = error
                    raise
            return self._open[organization]

    def archive(self, organization: str) -> Table | None:
        """The lake's `_archive` of an organization, as it was when first asked for; None where there is none."""
        with self._lock:
            if organization not in self._archives:
                self._archives[organization] = open_archive(self.app.lake(organization))
            return self._archives[organization]

    def target(self, organization: str) -> Target:
        table = self(organization)
        return Target(table.io, table.location())


def sync_table(app: App, contract: Contract, *, reconcile: bool | None = None) -> TableResult:
    """By hand: land what waits, then one window for every organization that was backfilled, due or not.

    `reconcile`: True compares keys now, False never, None by the configured period. Errors that are understood
    are in the result; anything else is raised.
    """
    from sqlalchemy.exc import DBAPIError

    result = TableResult(contract.table)
    try:
        land_waiting(app, contract, result)
        owner, seconds = app.leases.owner, app.settings.work.lease_seconds
        task = tasks.claim_named(app.engine, owner, seconds, CAPTURE, contract.table)
        if task is None:
            result.busy = True
        else:
            capture_table(app, contract, task, result, reconcile=reconcile)
    except DBAPIError as error:
        result.errors[""] = control_broke_off(contract.table, error)
    return result


def capture_table(
    app: App,
    contract: Contract,
    task: ClaimedTask,
    result: TableResult,
    *,
    reconcile: bool | None = None,
    due: bool = False,
) -> None:
    """One window under a claimed task, which is given back as soon as the window is recorded; then land its shares.

    `due`: only for organizations whose cadence has passed.
    """
    tables = LakeTables(app, contract)
    staged: list[StagedShare] = []
    try:
        with app.leases.holding(task.lease):
            failpoint("work.claimed")
            # Settings that name another warehouse or catalog than the lakes are in: nothing is begun anew there.
            app.enrolled()
            result.waiting = store.without_cursor(app.engine, contract.table)
            found = store.members(app.engine, contract.table, due=due)
            result.landing = [m.organization for m in found if m.open]
            members = {m.organization: m for m in found if not m.open}
            if members:
                staged = _window(app, contract, tables, members, task.lease, result, reconcile)
    except LeaseLostError as error:
        # Whoever has the table now reads it again; what was staged belongs to nobody.
        app.events.emit("lease_lost", task=str(task.lease.id), generation=task.lease.generation)
        result.errors[""] = error
        return
    except Exception as error:
        decision = decide(error, task.attempts + 1, app.settings.work)
        tasks.fail(app.engine, task.lease, decision, app.settings.work.retry_max_seconds)
        if not isinstance(error, LakehouseError):
            raise
        result.errors[""] = error
        return
    tasks.finish(app.engine, task.lease)
    land_all(app, contract, tables, staged, result)
    note_reconciled(app, [contract.table])


def land_waiting(app: App, contract: Contract, result: TableResult) -> None:
    """By hand: land the shares of this table that wait for a retry, due or not, and those of dead workers.

    A dead worker cannot say that it is: its leases are waited for. What is renewed meanwhile is left to who lives.
    """
    tables = LakeTables(app, contract)
    _land_claimable(app, contract, tables, result, early=True)
    held = deliveries.held_for(app.engine, contract.table)
    if not held:
        return
    pause = threading.Event()
    until = time.monotonic() + held + 0.05
    while time.monotonic() < until and deliveries.held_for(app.engine, contract.table):
        pause.wait(0.1)
    _land_claimable(app, contract, tables, result, early=False)


def _land_claimable(app: App, contract: Contract, tables: LakeTables, result: TableResult, *, early: bool) -> None:
    while claimed := deliveries.claim(
        app.engine,
        app.leases.owner,
        app.settings.work.lease_seconds,
        kinds=[DestinationKind.ICEBERG_S3],
        limit=100,
        tables=[contract.table],
        early=early,
    ):
        land_claimed(app, contract, tables, claimed, result)
        if early:
            # What failed again waits again, and is not asked for a second time in this round.
            return


def land_claimed(
    app: App, contract: Contract, tables: LakeTables, claimed: Sequence[ClaimedDelivery], result: TableResult
) -> None:
    """Land shares that other workers, or earlier attempts, left behind."""
    staged = []
    for one in claimed:
        assert one.window is not None  # noqa: S101 - a landing's delivery names its window
        item = staged_share(app.engine, one.lease, one.window, one.organization)
        if item is None:
            landings.abandon(app.engine, one.lease, one.window, one.organization, contract.table, None)
        else:
            staged.append(item)
    land_all(app, contract, tables, staged, result)


def group_by_position(cursors: Mapping[str, LakeCursor], without: Iterable[str] = ()) -> list[Group]:
    """Organizations that stand at the same position, largest group first."""
    skipped = set(without)
    return group_positions({o: c.position for o, c in cursors.items() if o not in skipped})


def _window(
    app: App,
    contract: Contract,
    tables: LakeTables,
    members: Mapping[str, store.Member],
    lease: Lease,
    result: TableResult,
    reconcile: bool | None,
) -> list[StagedShare]:
    """Capture, stage and record one window; returns what is to be landed."""
    cursors = {o: m.cursor for o, m in members.items()}
    groups = group_by_position(cursors)
    window_id = uuid.uuid4()
    method = app.method(contract)
    failures: dict[str, LakehouseError] = {}
    with (
        app.events.unit("window", table=contract.table, window=str(window_id), organizations=len(cursors)) as event,
        opened_window(method, contract, groups, tables, failures, _compare(method.name, cursors, reconcile)) as window,
    ):
        captured_at = max([window.captured_at, *(c.captured_at for c in cursors.values())])
        result.window, result.captured_at = str(window_id), captured_at
        result.reconciled = any(plan.reconcile for plan in window.plans)
        result.notes = sorted({plan.because for plan in window.plans if plan.because})
        for plan in window.plans:
            if plan.because:
                app.events.emit(
                    "recapture", table=contract.table, organizations=len(plan.group.organizations), because=plan.because
                )
        counter = _SequenceCounter({o: c.sequence for o, c in cursors.items()})
        stager = Stager(
            contract,
            tables.target,
            counter.take,
            window=str(window_id),
            captured_at=captured_at,
            chunk_bytes=app.settings.capture.chunk_bytes,
            threads=app.settings.landing.threads,
        )
        inventories: dict[str, Inventory] = {}
        with stager, ExitStack() as stack:
            comparing = [
                (plan, read_group(app, contract, window, plan, tables, cursors, stager, failures, stack))
                for plan in window.plans
            ]
            quarantines = _quarantine(app, contract, window, tables, cursors, failures, counter, str(window_id))
            shares = stager.finish()
            for organization, log in quarantines.items():
                if log != cursors[organization].quarantine and organization not in stager.failures:
                    # A log that changed lands with the rest, or alone.
                    shares.setdefault(organization, Share())
                    result.quarantined[organization] = log.open
            for plan, keys in comparing:
                if keys is not None:
                    mine = [o for o in plan.group.organizations if o not in window.violations and o not in failures]
                    inventories |= _inventories(keys, mine, shares, tables, counter, cursors)
        positions = {o: window.next_position(plan) for plan in window.plans for o in plan.group.organizations}
        failures |= {o: v.error(contract) for o, v in window.violations.items()}
        failures |= window.refused
        failures |= stager.failures
        event |= {
            "read": window.plans[0].kind.value if window.plans else "refused",
            "groups": len(groups),
            "reconciled": result.reconciled,
            "rows": sum(s.rows for s in shares.values()),
            "deletes": sum(s.deletes for s in shares.values()),
            "bytes": sum(s.bytes for s in shares.values()),
            "quarantined": sum(result.quarantined.values()),
            "failed_organizations": len(failures),
        }
    result.errors |= failures
    staged = [
        StagedShare(
            window=window_id,
            organization=organization,
            destination=members[organization].destination,
            share=share,
            before=cursors[organization],
            after=LakeCursor(
                position=positions[organization],
                fence=None,
                sequence=counter.last(organization),
                captured_at=captured_at,
                watermark=share.watermark_end or cursors[organization].watermark,
                inventory=inventories.get(organization, cursors[organization].inventory),
                quarantine=quarantines.get(organization, cursors[organization].quarantine),
            ),
            lease=Lease(uuid.uuid4(), lease.owner, 1, lease.seconds),
        )
        for organization, share in shares.items()
        if organization not in failures
    ]
    idle: dict[object, list[str]] = {}
    for organization, position in positions.items():
        if organization not in shares and organization not in failures:
            idle.setdefault(position, []).append(organization)
    lease.check()
    recorded = landings.record_window(
        app.engine,
        lease,
        window_id,
        contract.table,
        method=method.name,
        kind=window.plans[0].kind.value if window.plans else "refused",
        snapshot=str(window.snapshot),
        captured_at=captured_at,
        changes=window.changes,
        shares=staged,
        idle=[IdleMove(found, positions[found[0]]) for found in idle.values()],
        failed={o: decide(e, members[o].attempts + 1, app.settings.work, endless=True) for o, e in failures.items()},
    )
    failpoint("landing.recorded")
    for item in staged:
        if item not in recorded:
            result.errors[item.organization] = _believe_lake(app, contract, tables, item)
    return recorded


def _inventories(
    keys: KeyReconciliation,
    organizations: Sequence[str],
    shares: dict[str, Share],
    tables: LakeTables,
    counter: _SequenceCounter,
    cursors: Mapping[str, LakeCursor],
) -> dict[str, Inventory]:
    """Write the present keys of those that land something."""
    written: dict[str, Inventory] = {}
    for organization in organizations:
        if organization not in shares:
            if keys.archived.get(organization, 0) <= MANY_ARCHIVED:
                continue
            # Without them: they are not asked for again. A landing has a number of its own, with rows or without.
            counter.take(organization, 1)
            shares[organization] = Share()
        written[organization] = keys.write_inventory(
            tables(organization), organization, counter.last(organization), cursors[organization]
        )
    return written


def _compare(method: str, cursors: Mapping[str, LakeCursor], wanted: bool | None) -> bool | None:
    """Whether keys must be compared: under `trigger` also once rows left the quarantine.

    A tombstone is passed over while its row is quarantined; what the lake has under its former event time goes now.
    """
    if method != "trigger":
        return wanted
    return True if any(needs_comparison(c.quarantine, c.position) for c in cursors.values()) else wanted


def _quarantine(
    app: App,
    contract: Contract,
    window: OpenWindow,
    tables: LakeTables,
    cursors: Mapping[str, LakeCursor],
    failures: dict[str, LakehouseError],
    counter: _SequenceCounter,
    window_id: str,
) -> dict[str, Quarantine]:
    """The logs of organizations that have one or get one; who has neither costs nothing."""
    logs: dict[str, Quarantine] = {}
    for organization in [o for plan in window.plans for o in plan.group.organizations]:
        before = cursors[organization].quarantine
        if organization not in window.flagged and (before is None or not before.open):
            continue
        if organization in failures or organization in window.violations:
            continue
        try:
            table = tables(organization)
            known = Known(table.io, before, open_keys(table.io, before)) if before else None
            log = advance(
                table.io,
                table.location(),
                contract,
                organization,
                known,
                window.examine(organization, list(known.open) if known else []),
                Moment(window_id, window.captured_at, functools.partial(counter.take, organization)),
                app.settings.capture.max_quarantined,
            )
        except SourceError:
            raise
        except LakehouseError as error:
            failures[organization] = error
        else:
            if log is not None:
                logs[organization] = log
    return logs


def _believe_lake(app: App, contract: Contract, tables: LakeTables, item: StagedShare) -> LakehouseError:
    """The control tables remember less than they delivered: go on from what the lake says."""
    table = tables(item.organization)
    table.refresh()
    cursor, snapshot = read_cursor(table), table.current_snapshot()
    if cursor is not None and snapshot is not None and cursor.complete:
        store.save_cursor(
            app.engine,
            item.organization,
            contract.table,
            cursor,
            snapshot_id=snapshot.snapshot_id,
            landed_at=app.clock(),
        )
    return FencedError(
        f"{contract.table}: the control tables stand before a range that was delivered already: "
        "another program landed between, or they were restored; nothing was written",
        "The next window starts from where the lake stands.",
    )


def land_all(
    app: App, contract: Contract, tables: LakeTables, staged: Sequence[StagedShare], result: TableResult
) -> None:
    """Commit and acknowledge every share; one organization's fault is its own. The small ones are not kept waiting."""
    from sqlalchemy.exc import DBAPIError

    if not staged:
        return
    leases = [item.lease for item in staged]
    one = functools.partial(_land_one, app, contract, tables)
    unknown: list[Exception] = []
    with (
        app.leases.holding(*leases),
        ThreadPoolExecutor(app.settings.landing.threads, thread_name_prefix="land") as pool,
    ):
        ordered = sorted(staged, key=lambda item: len(item.share.files))
        futures = [(item, pool.submit(one, item)) for item in ordered]
        for item, future in futures:
            try:
                snapshot = future.result()
            except LakehouseError as error:
                result.errors[item.organization] = error
            except DBAPIError as error:
                # Nobody can be told: the share keeps its lease until that runs out, and is then asked for in the lake.
                what = f"{contract.table} of organization {item.organization}"
                result.errors[item.organization] = control_broke_off(what, error)
            except Exception as error:  # noqa: BLE001 - noted with the delivery; raised when the others are done
                error.add_note(f"while landing {contract.table} of organization {item.organization}")
                unknown.append(error)
            else:
                _count(result, item, snapshot)
    if unknown:
        raise ExceptionGroup("errors that this program does not know", unknown)


def _land_one(app: App, contract: Contract, tables: LakeTables, item: StagedShare) -> int:
    with app.events.unit(
        "landing",
        table=contract.table,
        organization=item.organization,
        window=str(item.window),
        attempt=item.attempts,
        rows=item.share.rows,
        deletes=item.share.deletes,
        bytes=item.share.bytes,
        files=len(item.share.files),
    ) as event:
        try:
            landed = land(
                tables(item.organization),
                str(item.window),
                item.share.files,
                item.before,
                item.after,
                most_partitions=app.settings.landing.max_partitions,
                guard=functools.partial(_check_share, app, tables, item),
            )
            # Renewed no more, or a renewal that comes just after would find a row that is nobody's.
            app.leases.drop([item.lease])
            landings.acknowledge(
                app.engine, item, contract.table, landed.cursor, snapshot_id=landed.snapshot_id, now=app.clock()
            )
        except LeaseLostError:
            app.events.emit("lease_lost", delivery=str(item.lease.id), generation=item.lease.generation)
            raise
        except (FencedError, StagedFileError):
            # Somebody else moved the table, or its files: believe the lake, and read from there next time.
            app.leases.drop([item.lease])
            adopt(app, contract, tables, item)
            raise
        except Exception as error:
            # Whether it was committed may not be known: whoever lands it next asks the table first.
            decision = decide(error, item.attempts, app.settings.work, endless=True)
            app.leases.drop([item.lease])
            deliveries.fail(app.engine, item.lease, decision)
            event["retry_in_seconds"] = decision.wait_seconds
            raise
        event["snapshot"] = landed.snapshot_id
    failpoint("landing.acknowledged")
    return landed.snapshot_id


def _check_share(app: App, tables: LakeTables, item: StagedShare) -> None:
    """Right before a commit: is the share still ours, and is what lies there what was staged?"""
    item.lease.check()
    if item.foreign:
        io = tables(item.organization).io
        log = item.after.quarantine
        files = [*item.share.files, *([staged(item.organization, log)] if log else [])]
        with ThreadPoolExecutor(app.settings.landing.threads, thread_name_prefix="check") as pool:
            for _ in pool.map(functools.partial(check_staged, io), files):
                item.lease.check()


def adopt(app: App, contract: Contract, tables: LakeTables, item: StagedShare) -> None:
    """Give a share up and stand where the lake table's own cursor says; where it has none, nowhere."""
    table = tables(item.organization)
    table.refresh()
    cursor = read_cursor(table)
    stands = cursor if cursor is not None and cursor.complete else None
    landings.abandon(app.engine, item.lease, item.window, item.organization, contract.table, stands)
    if stands is None:
        store.forget_cursor(app.engine, item.organization, contract.table)


def _count(result: TableResult, item: StagedShare, snapshot: int) -> None:
    organization, share = item.organization, item.share
    if item.foreign:
        result.settled.append(organization)
    result.upserts[organization] = result.upserts.get(organization, 0) + share.rows
    result.deletes[organization] = result.deletes.get(organization, 0) + share.deletes
    result.bytes += share.bytes
    result.files += len(share.files)
    result.snapshots[organization] = snapshot


@dataclass
class _SequenceCounter:
    """Hands out `_sequence` numbers, from where each organization's cursor stands."""

    next_after: dict[str, int]

    def take(self, organization: str, count: int) -> int:
        first = self.next_after[organization] + 1
        self.next_after = {**self.next_after, organization: first + count - 1}
        return first

    def last(self, organization: str) -> int:
        return self.next_after[organization]
