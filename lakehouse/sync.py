"""One round of one table: settle, capture a window, stage, land, acknowledge.

Faults are kept apart: what breaks one organization (its lake, a forbidden value in its rows) leaves it at its
old position, where it is read alone next time; what breaks the table (the source, its contract) leaves every
organization of it where it was. Nothing is caught that is not understood.
"""

from __future__ import annotations

import functools
import threading
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from catalog.tables import ensure_table
from lakehouse.app import App
from lakehouse.capture.position import Position
from lakehouse.capture.protocol import Group, OpenWindow, Plan, WindowKind
from lakehouse.control import store
from lakehouse.control.database import ControlError
from lakehouse.control.store import StagedShare
from lakehouse.failpoints import failpoint
from lakehouse.landing.commit import PART_SUMMARY, FencedError, land
from lakehouse.landing.cursor import Inventory, LakeCursor, read_cursor
from lakehouse.landing.held import KeyReconciliation, held_content, held_versions, key_reconciliation
from lakehouse.landing.staging import Share, Stager, Target
from schemas.contract import Contract
from schemas.errors import LakehouseError, Retry
from schemas.lake_columns import DELETE

if TYPE_CHECKING:
    from pyiceberg.table import Table


@dataclass
class TableResult:
    """What one round of one table did."""

    table: str
    window: str | None = None
    captured_at: datetime | None = None
    reconciled: bool = False
    busy: bool = False
    upserts: dict[str, int] = field(default_factory=dict)
    deletes: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    files: int = 0
    snapshots: dict[str, int] = field(default_factory=dict)
    settled: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    """Organizations that were never backfilled."""
    errors: dict[str, LakehouseError] = field(default_factory=dict)
    """By organization; the key "" is the whole table's."""


class LakeTables:
    """The lake tables of one table's organizations, opened when first asked for, once a round."""

    def __init__(self, app: App, contract: Contract) -> None:
        self.app = app
        self.contract = contract
        self._lock = threading.Lock()
        self._open: dict[str, Table] = {}
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

    def target(self, organization: str) -> Target:
        table = self(organization)
        return Target(table.io, table.location())


def sync_table(app: App, contract: Contract, *, reconcile: bool | None = None) -> TableResult:
    """Capture and land one window of one table, for every organization that was backfilled.

    `reconcile`: True compares keys now, False never, None by the configured period. Errors that are understood
    are in the result; anything else is raised.
    """
    from sqlalchemy.exc import DBAPIError

    result = TableResult(contract.table)
    try:
        with store.table_lock(app.engine, contract.table) as free:
            if not free:
                result.busy = True
                return result
            _sync(app, contract, result, reconcile)
    except DBAPIError as error:
        result.errors[""] = ControlError(
            f"{contract.table}: the control database broke off: {str(error.orig).strip().splitlines()[-1]}",
            "Nothing was lost: the next round asks the lake what landed.",
            retry=Retry.TIMED,
        )
    except LakehouseError as error:
        result.errors[""] = error
    return result


def _sync(app: App, contract: Contract, result: TableResult, reconcile: bool | None) -> None:
    noted: Exception | None = None
    try:
        tables = LakeTables(app, contract)
        settle(app, contract, tables, result)
        cursors = store.cursors(app.engine, contract.table)
        enrolled = set(app.enrolled())
        result.waiting = sorted(enrolled - set(cursors))
        active = {o: c for o, c in cursors.items() if o in enrolled}
        if active:
            _window(app, contract, tables, active, result, reconcile)
    except Exception as error:
        noted = error
        raise
    finally:
        # `status` shows it, whether or not this program knows the error.
        if noted is not None:
            detail = noted.detail if isinstance(noted, LakehouseError) else f"{type(noted).__name__}: {noted}"
            store.note_errors(app.engine, contract.table, dict.fromkeys(cursors_of(app, contract), detail))
        else:
            store.note_errors(app.engine, contract.table, {o: e.detail for o, e in result.errors.items()})


def cursors_of(app: App, contract: Contract) -> list[str]:
    """Organizations that have a cursor for the table."""
    return list(store.cursors(app.engine, contract.table))


def settle(app: App, contract: Contract, tables: LakeTables, result: TableResult) -> None:
    """Ask the lake what became of shares whose process died between staging and acknowledgement."""
    for landing in store.open_landings(app.engine, contract.table):
        organization = landing.organization_id
        try:
            table = tables(organization)
            cursor = read_cursor(table)
        except LakehouseError as error:
            # Not known yet: the share stays open, and its organization waits for the next round.
            result.errors[organization] = error
            continue
        if cursor is not None and cursor.fence is not None and cursor.fence.startswith(f"{landing.window_id}/"):
            snapshot = table.current_snapshot()
            assert snapshot is not None  # noqa: S101 - a cursor is written only with a snapshot
            properties = snapshot.summary.additional_properties if snapshot.summary else {}
            part, _, parts = properties.get(PART_SUMMARY, "").partition("/")
            if part == parts:
                store.acknowledge(
                    app.engine,
                    landing.window_id,
                    organization,
                    contract.table,
                    cursor,
                    snapshot_id=snapshot.snapshot_id,
                    now=app.clock(),
                )
                result.settled.append(organization)
                continue
            # Some parts of it: go on from what the lake says, and subtract them.
            store.save_cursor(
                app.engine,
                organization,
                contract.table,
                cursor,
                snapshot_id=snapshot.snapshot_id,
                landed_at=app.clock(),
            )
        store.abandon(app.engine, landing.window_id, organization)


def group_by_position(cursors: Mapping[str, LakeCursor], without: Iterable[str] = ()) -> list[Group]:
    """Organizations that stand at the same position, largest group first."""
    members: dict[object, list[str]] = {}
    skipped = set(without)
    for organization, cursor in cursors.items():
        if organization not in skipped:
            members.setdefault(cursor.position, []).append(organization)
    groups = [Group(_oldest([cursors[o].position for o in m]), tuple(sorted(m))) for m in members.values()]
    return sorted(groups, key=lambda g: -len(g.organizations))


def _oldest(positions: list[Position]) -> Position:
    """Equal positions as one: keys were compared when they were for the one that waits longest."""
    never = datetime.min.replace(tzinfo=UTC)
    return min(positions, key=lambda p: p.reconciled_at or never)


def _window(
    app: App,
    contract: Contract,
    tables: LakeTables,
    cursors: Mapping[str, LakeCursor],
    result: TableResult,
    reconcile: bool | None,
) -> None:
    groups = group_by_position(cursors, without=result.errors)
    if not groups:
        return
    window_id = uuid.uuid4()
    method = app.method()
    with method.open_window(contract, groups, reconcile=reconcile) as window:
        captured_at = max([window.captured_at, *(c.captured_at for c in cursors.values())])
        result.window, result.captured_at = str(window_id), captured_at
        result.reconciled = any(plan.reconcile for plan in window.plans)
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
                (plan, _read(app, contract, window, plan, tables, cursors, stager, result, stack))
                for plan in window.plans
            ]
            shares = stager.finish()
            for plan, keys in comparing:
                if keys is None:
                    continue
                for organization in plan.group.organizations:
                    if organization in shares and organization not in window.violations:
                        inventories[organization] = keys.write_inventory(
                            tables(organization), organization, counter.last(organization)
                        )
        positions = {o: window.next_position(plan) for plan in window.plans for o in plan.group.organizations}
    result.errors |= {o: v.error(contract) for o, v in window.violations.items()}
    result.errors |= stager.failures
    staged = [
        StagedShare(
            organization,
            share,
            before=cursors[organization],
            after=LakeCursor(
                position=positions[organization],
                fence=None,
                sequence=counter.last(organization),
                captured_at=captured_at,
                watermark=share.watermark_end or cursors[organization].watermark,
                inventory=inventories.get(organization, cursors[organization].inventory),
            ),
        )
        for organization, share in shares.items()
        if organization not in result.errors
    ]
    store.record_window(
        app.engine,
        window_id,
        contract.table,
        method=method.name,
        kind=window.plans[0].kind.value,
        snapshot=str(window.snapshot),
        captured_at=captured_at,
        shares=staged,
    )
    failpoint("landing.recorded")
    land_all(app, contract, tables, window_id, staged, result)
    idle: dict[object, list[str]] = {}
    for organization, position in positions.items():
        if organization not in shares and organization not in result.errors:
            idle.setdefault(position, []).append(organization)
    for members in idle.values():
        store.advance_empty(app.engine, contract.table, members, positions[members[0]], captured_at)


def _read(
    app: App,
    contract: Contract,
    window: OpenWindow,
    plan: Plan,
    tables: LakeTables,
    cursors: Mapping[str, LakeCursor],
    stager: Stager,
    result: TableResult,
    stack: ExitStack,
) -> KeyReconciliation | None:
    """Stage one group's share: deletes first, then new rows."""
    keys: KeyReconciliation | None = None
    held_by: dict[str, Table] = {}
    if plan.reconcile or plan.ask_lake or plan.kind is WindowKind.RECAPTURE:
        for organization in plan.group.organizations:
            try:
                held_by[organization] = tables(organization)
            except LakehouseError as error:
                result.errors[organization] = error
    lakes = app.addresses_of(held_by)
    if plan.reconcile:
        keys = stack.enter_context(key_reconciliation(contract, lakes, window.keys(plan)))
        for organization, table in held_by.items():
            try:
                stager.add(keys.deleted(table, cursors[organization]), op=DELETE)
            except LakehouseError as error:
                result.errors[organization] = error
    rows = window.rows(plan)
    if plan.kind is WindowKind.RECAPTURE:
        asked = held_content(contract, lakes, held_by)
    elif plan.ask_lake:
        assert plan.lower is not None  # noqa: S101 - only a recapture reads every row
        asked = held_versions(contract, lakes, held_by, plan.lower)
    else:
        stager.add(rows)
        return keys
    with asked as held:
        result.errors |= held.failures
        stager.add(held.subtract(rows))
    return keys


def land_all(
    app: App,
    contract: Contract,
    tables: LakeTables,
    window: uuid.UUID,
    staged: list[StagedShare],
    result: TableResult,
) -> None:
    """Commit and acknowledge every share; one organization's fault is its own."""
    one = functools.partial(_land_one, app, contract, tables, window)
    with ThreadPoolExecutor(app.settings.landing.threads, thread_name_prefix="land") as pool:
        futures = [(item, pool.submit(one, item)) for item in staged]
    for item, future in futures:
        try:
            snapshot = future.result()
        except FencedError as error:
            # Somebody else moved the table: believe the lake, and read from there next time.
            adopt(app, contract, tables, item.organization)
            store.abandon(app.engine, window, item.organization)
            result.errors[item.organization] = error
        except LakehouseError as error:
            # Whether it was committed may not be known: the share stays open, and `settle` asks next time.
            result.errors[item.organization] = error
        else:
            _count(result, item.organization, item.share, snapshot)


def _land_one(app: App, contract: Contract, tables: LakeTables, window: uuid.UUID, item: StagedShare) -> int:
    landed = land(
        tables(item.organization),
        str(window),
        item.share.files,
        item.before,
        item.after,
        most_partitions=app.settings.landing.max_partitions,
    )
    store.acknowledge(
        app.engine,
        window,
        item.organization,
        contract.table,
        landed.cursor,
        snapshot_id=landed.snapshot_id,
        now=app.clock(),
    )
    failpoint("landing.acknowledged")
    return landed.snapshot_id


def adopt(app: App, contract: Contract, tables: LakeTables, organization: str) -> LakeCursor | None:
    """Take over the cursor that the lake table holds; None where it holds none."""
    table = tables(organization)
    table.refresh()
    cursor = read_cursor(table)
    snapshot = table.current_snapshot()
    if cursor is None or snapshot is None or not cursor.complete:
        store.forget_cursor(app.engine, organization, contract.table)
        return None
    store.save_cursor(
        app.engine, organization, contract.table, cursor, snapshot_id=snapshot.snapshot_id, landed_at=app.clock()
    )
    return cursor


def _count(result: TableResult, organization: str, share: Share, snapshot: int) -> None:
    result.upserts[organization] = share.rows
    result.deletes[organization] = share.deletes
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
