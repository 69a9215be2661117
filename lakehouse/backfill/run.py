"""Runs and resumes backfills; commits what their ranges wrote."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from lakehouse.app import App
from lakehouse.backfill import record
from lakehouse.backfill.ranges import estimated_rows, key_ranges
from lakehouse.backfill.record import BackfillState, FirstPosition, RangeState
from lakehouse.backfill.worker import RangeResult, RangeTask, read_range
from lakehouse.capture.position import Snapshot
from lakehouse.capture.source import HotTable, check_table, describe, identify
from lakehouse.capture.xmin import prune_bound
from lakehouse.control import store
from lakehouse.executor import Executor
from lakehouse.failpoints import failpoint
from lakehouse.landing.commit import land
from lakehouse.landing.cursor import LakeCursor, read_cursor
from lakehouse.landing.parquet import StagedFile
from lakehouse.sync import LakeTables, adopt
from schemas.contract import Contract
from schemas.errors import LakehouseError, Retry

if TYPE_CHECKING:
    import psycopg

Progress = Callable[[int, int], None]
"""Called with rows read by this run so far and rows expected in all."""


class BackfillError(LakehouseError):
    """A backfill stopped. What its ranges have written is kept; run it again to go on."""

    retry = Retry.MANUAL


@dataclass
class BackfillResult:
    """What one run did."""

    table: str
    rows: dict[str, int] = field(default_factory=dict)
    read_rows: int = 0
    resumed_ranges: int = 0
    read_ranges: int = 0
    adopted: list[str] = field(default_factory=list)
    """Organizations whose lake table already had a cursor: nothing was read for them."""
    busy: bool = False
    errors: dict[str, LakehouseError] = field(default_factory=dict)


@dataclass(frozen=True)
class _Exported:
    """A snapshot that other connections can take over while `connection` holds it."""

    connection: psycopg.Connection[Any]
    name: str
    snapshot: str
    captured_at: datetime


def backfill_table(
    app: App,
    contract: Contract,
    executor: Executor,
    *,
    organizations: tuple[str, ...] | None = None,
    progress: Progress = lambda *_: None,
) -> BackfillResult:
    """Read a table for every enrolled organization that has no cursor (or for those named).

    Resumes a backfill that was interrupted. Errors that are understood are in the result.
    """
    result = BackfillResult(contract.table)
    with store.table_lock(app.engine, contract.table) as free:
        if not free:
            result.busy = True
            return result
        try:
            # A backfill that was interrupted is finished first; it may be of other organizations.
            while _backfill(app, contract, executor, organizations, progress, result):
                continue
        except LakehouseError as error:
            result.errors[""] = error
    return result


def _backfill(
    app: App,
    contract: Contract,
    executor: Executor,
    organizations: tuple[str, ...] | None,
    progress: Progress,
    result: BackfillResult,
) -> bool:
    """One backfill: the interrupted one, or a new one. True if there may be another to do."""
    tables = LakeTables(app, contract)
    known = store.cursors(app.engine, contract.table)

    wanted = organizations or tuple(app.enrolled())
    with app.source.catalog() as catalog:
        hot = describe(catalog, contract)
        check_table(contract, hot)
        state = record.running(app.engine, contract.table)
        if state is not None and state.first.fingerprint != hot.fingerprint(contract)[0]:
            # What the table looks like changed: what was read so far is of another shape.
            record.abandon(app.engine, state.id)
            state = None
        if state is None:
            ready = _ready(app, contract, tables, [o for o in wanted if o not in known], result)
            if not ready:
                return False
            resumed = False
            state = _begin(app, contract, catalog, hot, ready)
        else:
            resumed = True
            ready = _ready(app, contract, tables, list(state.organizations), result, resuming=True)
            # Ranges read from now on will lack the others: they must not be landed by this backfill.
            record.leave_out(app.engine, state.id, set(state.organizations) - set(ready))
    result.resumed_ranges = sum(r.done for r in state.ranges)
    footers = _read_ranges(app, contract, hot, tables, executor, state, progress, result)
    failpoint("backfill.before_commit")
    if _land(app, contract, tables, state.id, footers, result):
        record.finish(app.engine, state.id, app.clock())
        return resumed
    return False


def _ready(
    app: App,
    contract: Contract,
    tables: LakeTables,
    organizations: list[str],
    result: BackfillResult,
    *,
    resuming: bool = False,
) -> list[str]:
    """Open or make each lake table; leave out those that fail and those that have a cursor already."""
    ready = []
    for organization in organizations:
        try:
            cursor = read_cursor(tables(organization))
            if cursor is None or not cursor.complete or resuming:
                ready.append(organization)
            elif adopt(app, contract, tables, organization) is not None:
                result.adopted.append(organization)
        except LakehouseError as error:
            result.errors[organization] = error
    return ready


def _begin(
    app: App,
    contract: Contract,
    catalog: psycopg.Connection[Any],
    hot: HotTable,
    organizations: list[str],
) -> BackfillState:
    watermarked = contract.watermark is not None and contract.watermark.every_change
    columns, labels = hot.fingerprint(contract)
    first = FirstPosition(
        fingerprint=columns,
        labels=labels,
        source=identify(catalog, hot),
        # Before the first snapshot, or a transaction that is open now could be missed.
        bound=prune_bound(catalog) if watermarked else None,
    )
    ranges = key_ranges(catalog, contract, hot, app.settings.backfill.range_rows)
    return record.begin(app.engine, uuid.uuid4(), contract.table, organizations, first, ranges, estimated_rows(hot))


def _read_ranges(
    app: App,
    contract: Contract,
    hot: HotTable,
    tables: LakeTables,
    executor: Executor,
    state: BackfillState,
    progress: Progress,
    result: BackfillResult,
) -> dict[str, StagedFile]:
    """Read what is left; returns the files written by this run, whose footers need not be read back."""
    written: dict[str, StagedFile] = {}
    pending = [r for r in state.ranges if not r.done]
    done_rows = sum(r.rows for r in state.ranges if r.done)
    organizations = tuple(o for o in state.organizations if o not in result.errors)
    locations = {o: tables(o).location() for o in organizations}
    running: dict[Future[RangeResult], _Exported] = {}
    with _snapshots(app) as snapshots:
        while pending or running:
            while pending and len(running) < executor.workers:
                exported = snapshots.current({e.name for e in running.values()})
                task = _task(app, contract, hot, state, pending.pop(0), organizations, locations, exported)
                running[executor.submit(read_range, task)] = exported
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                exported = running.pop(future)
                range_result = _result(future)
                record.range_done(
                    app.engine, state.id, range_result, exported.snapshot, exported.captured_at, app.clock()
                )
                failpoint("backfill.range_done")
                written |= {f.path: f for f in range_result.files}
                result.read_ranges += 1
                result.read_rows += range_result.rows
                for organization, violation in range_result.violations.items():
                    result.errors.setdefault(organization, violation.error(contract))
                for organization, message in range_result.failures.items():
                    result.errors.setdefault(organization, BackfillError(message))
                progress(done_rows + result.read_rows, max(state.estimated_rows, done_rows + result.read_rows))
    return written


def _result(future: Future[RangeResult]) -> RangeResult:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise BackfillError(
            "a process that read a range died (killed, or out of memory)",
            "Run `lakehouse backfill` again: finished ranges are not read again. "
            "Out of memory? Lower LAKEHOUSE_BACKFILL__WORKERS or LAKEHOUSE_CAPTURE__CHUNK_BYTES.",
        ) from error


def _task(
    app: App,
    contract: Contract,
    hot: HotTable,
    state: BackfillState,
    part: RangeState,
    organizations: tuple[str, ...],
    locations: dict[str, str],
    exported: _Exported,
) -> RangeTask:
    return RangeTask(
        settings=app.settings,
        storages={o: dict(app.address_of(o).storage) for o in organizations},
        contract=contract,
        backfill=str(state.id),
        number=part.number,
        bounds=part.bounds,
        organizations=organizations,
        locations=locations,
        tenant_type=hot.columns[contract[contract.tenant].source].type,
        key_type=hot.columns[contract[contract.primary_key[0]].source].type,
        exported=exported.name,
        snapshot=exported.snapshot,
        captured_at=exported.captured_at,
    )


class _Snapshots:
    """Exported snapshots: one at a time is given out, an old one is held until nobody starts from it."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._held: list[_Exported] = []

    def current(self, in_use: set[str]) -> _Exported:
        limit = self._app.settings.backfill.snapshot_seconds
        newest = self._held[-1] if self._held else None
        if newest is None or (self._app.clock() - newest.captured_at).total_seconds() >= limit:
            newest = self._export()
            self._held.append(newest)
        for old in [e for e in self._held if e is not newest and e.name not in in_use]:
            old.connection.close()
            self._held.remove(old)
        return newest

    def _export(self) -> _Exported:
        import psycopg

        settings = self._app.settings.source
        connection = psycopg.connect(
            settings.url.get_secret_value(), autocommit=True, application_name="lakehouse backfill"
        )
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        row = connection.execute("SELECT pg_export_snapshot(), pg_current_snapshot()::text").fetchone()
        assert row is not None  # noqa: S101 - the query has no FROM
        return _Exported(connection, row[0], str(Snapshot.parse(row[1])), self._app.clock())

    def close(self) -> None:
        for exported in self._held:
            exported.connection.close()


@contextmanager
def _snapshots(app: App) -> Iterator[_Snapshots]:
    snapshots = _Snapshots(app)
    try:
        yield snapshots
    finally:
        snapshots.close()


def _land(
    app: App,
    contract: Contract,
    tables: LakeTables,
    backfill: uuid.UUID,
    written: dict[str, StagedFile],
    result: BackfillResult,
) -> bool:
    """One commit (or numbered parts) per organization; where that is done already, only the cursor is written.

    True if nothing is left to land.
    """
    complete = True
    landed = store.cursors(app.engine, contract.table)
    state = record.load(app.engine, backfill)
    files: dict[str, list[StagedFile]] = defaultdict(list)
    for part in state.ranges:
        for file in part.files:
            files[file.organization].append(written.get(file.path, file))
    for organization in state.organizations:
        if organization in landed:
            continue
        try:
            _land_one(app, contract, tables, state, organization, files[organization], result)
        except LakehouseError as error:
            result.errors[organization] = error
            complete = False
    return complete


def _land_one(
    app: App,
    contract: Contract,
    tables: LakeTables,
    state: BackfillState,
    organization: str,
    files: list[StagedFile],
    result: BackfillResult,
) -> None:
    cursor = LakeCursor(
        position=state.position(),
        fence=None,
        sequence=state.sequences[organization] - 1,
        captured_at=max(r.captured_at for r in state.ranges if r.captured_at),
        watermark=None,
        inventory=None,
    )
    result.rows[organization] = sum(f.rows for f in files)
    if not files:
        store.save_cursor(app.engine, organization, contract.table, cursor, snapshot_id=None, landed_at=None)
        return
    landed = land(
        tables(organization),
        str(state.id),
        sorted(files, key=lambda f: f.first_sequence),
        None,
        cursor,
        most_partitions=app.settings.landing.max_partitions,
    )
    failpoint("backfill.after_commit")
    store.acknowledge_backfill(
        app.engine,
        state.id,
        organization,
        contract.table,
        landed.cursor,
        rows=result.rows[organization],
        snapshot_id=landed.snapshot_id,
        now=app.clock(),
    )
