"""Runs and resumes backfills; commits what their ranges wrote."""

from __future__ import annotations

import functools
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from catalog.objects import ObjectWriter
from lakehouse.app import App
from lakehouse.backfill import record
from lakehouse.backfill.ranges import estimated_rows, key_ranges
from lakehouse.backfill.record import BackfillState, FirstPosition, RangeState
from lakehouse.backfill.worker import RangeResult, RangeTask, read_range
from lakehouse.capture.fence import same_source
from lakehouse.capture.position import Snapshot
from lakehouse.capture.source import HotTable, check_table, describe, identify
from lakehouse.capture.xmin import prune_bound
from lakehouse.control import landings, store
from lakehouse.control.database import control_broke_off
from lakehouse.executor import Executor
from lakehouse.failpoints import failpoint
from lakehouse.landing.commit import land, reset_incomplete
from lakehouse.landing.cursor import LakeCursor, read_cursor
from lakehouse.landing.parquet import StagedFile, StagedFileError, check_staged
from lakehouse.landing.quarantine import gather
from lakehouse.observe import events
from lakehouse.outbox import tasks
from lakehouse.outbox.lease import Lease, LeaseLostError
from lakehouse.outbox.retry import decide
from lakehouse.outbox.tasks import BACKFILL, ClaimedTask
from lakehouse.sync import LakeTables
from schemas.contract import Contract
from schemas.errors import ContractViolation, LakehouseError, Retry

if TYPE_CHECKING:
    import psycopg
    from pyiceberg.table import Table

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
    quarantined: dict[str, int] = field(default_factory=dict)
    """Rows that the lake cannot hold, of organizations that have any."""
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
    from sqlalchemy.exc import DBAPIError

    result = BackfillResult(contract.table)
    try:
        owner, seconds = app.leases.owner, app.settings.work.lease_seconds
        task = tasks.claim_named(app.engine, owner, seconds, BACKFILL, contract.table)
        if task is None:
            result.busy = True
            return result
        run_backfill(app, contract, executor, task, result, organizations=organizations, progress=progress)
    except DBAPIError as error:
        result.errors[""] = control_broke_off(contract.table, error)
    return result


def run_backfill(
    app: App,
    contract: Contract,
    executor: Executor,
    task: ClaimedTask,
    result: BackfillResult,
    *,
    organizations: tuple[str, ...] | None = None,
    progress: Progress = lambda *_: None,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Backfill under a claimed task, and give it back. `stopping`: asked between ranges; what is left waits."""
    try:
        with (
            app.leases.holding(task.lease),
            app.events.unit("backfill", table=contract.table) as event,
        ):
            run = _Run(app, contract, executor, task.lease, progress, stopping, result)
            # A backfill that was interrupted is finished first; it may be of other organizations.
            while run.once(organizations):
                continue
            event |= {
                "rows": sum(result.rows.values()),
                "organizations": len(result.rows),
                "errors": len(result.errors),
            }
    except LeaseLostError as error:
        result.errors[""] = error
        return
    except Exception as error:
        _give_back(app, task, error)
        if not isinstance(error, LakehouseError):
            raise
        result.errors[""] = error
        return
    _give_back(app, task, result.errors.get(""), result.errors, unfinished=stopping())


def _give_back(
    app: App,
    task: ClaimedTask,
    error: Exception | None,
    organizations: Mapping[str, LakehouseError] | None = None,
    *,
    unfinished: bool = False,
) -> None:
    work = app.settings.work
    if error is None and not organizations:
        tasks.finish(app.engine, task.lease, again_in=0 if unfinished else None)
        return
    of_each = None
    if error is None and organizations:
        of_each = {o: events.describe(e) for o, e in organizations.items()}
        error = BackfillError(f"{task.table}: {len(of_each)} organizations could not be backfilled")
    assert error is not None  # noqa: S101 - one of the two is there
    decision = decide(error, task.attempts + 1, work)
    tasks.fail(app.engine, task.lease, decision, work.retry_max_seconds, organizations=of_each)


@dataclass(frozen=True)
class _Run:
    """One program's work on one table's backfills."""

    app: App
    contract: Contract
    executor: Executor
    lease: Lease
    progress: Progress
    stopping: Callable[[], bool]
    result: BackfillResult

    def once(self, organizations: tuple[str, ...] | None) -> bool:
        """One backfill: the interrupted one, or a new one. True if there may be another to do."""
        app, contract, result = self.app, self.contract, self.result
        tables = LakeTables(app, contract)
        app.enrolled()
        known = store.cursors(app.engine, contract.table)
        wanted = organizations or tuple(store.without_cursor(app.engine, contract.table))
        with app.source.catalog() as catalog:
            hot = describe(catalog, contract)
            check_table(contract, hot)
            state = record.running(app.engine, contract.table)
            present = identify(catalog, hot, app.settings.source.address)
            if state is not None and (
                state.first.fingerprint != hot.fingerprint(contract)[0] or not same_source(state.first.source, present)
            ):
                # What the table looks like changed, or whose it is: what was read so far cannot stand beside the rest.
                record.abandon(app.engine, state.id)
                state = None
            resumed = state is not None
            if state is None:
                ready = self._ready(tables, [o for o in wanted if o not in known])
                if not ready:
                    return False
                for organization in ready:
                    # What befell it in the backfill before is over: it is read anew.
                    result.errors.pop(organization, None)
                state = _begin(app, contract, catalog, hot, ready)
            else:
                captured = store.captured(app.engine, contract.table)
                ready = self._ready(tables, [o for o in state.organizations if o in captured], resuming=True)
                if any(not r.done for r in state.ranges) or not captured.issuperset(state.organizations):
                    # Ranges read from now on will lack the others: they must not be landed by this backfill.
                    record.leave_out(app.engine, state.id, set(state.organizations) - set(ready))
        result.resumed_ranges = sum(r.done for r in state.ranges)
        footers = self._read_ranges(hot, tables, state)
        if footers is None:
            return False
        failpoint("backfill.before_commit")
        failed = self._land(tables, state.id, footers)
        newcomers = set(store.without_cursor(app.engine, contract.table)) - set(state.organizations)
        if failed and not newcomers:
            # What was read waits for its lake; nobody else waits for it.
            return False
        record.leave_out(app.engine, state.id, failed)
        record.finish(app.engine, state.id, app.clock())
        return resumed or bool(failed)

    def _ready(self, tables: LakeTables, organizations: list[str], *, resuming: bool = False) -> list[str]:
        """Open or make each lake table; leave out those that fail and those that have a cursor already."""
        ready = []
        for organization in organizations:
            try:
                table = tables(organization)
                cursor = read_cursor(table)
                if cursor is not None and not cursor.complete and not resuming:
                    # Part of a backfill that was given up: nothing goes on from there, and all of it is read again.
                    reset_incomplete(table)
                    cursor = None
                if cursor is None or resuming:
                    ready.append(organization)
                    continue
            except LakehouseError as error:
                self.result.errors[organization] = error
                continue
            # The lake knows where it stands, and the control tables had forgotten.
            snapshot = table.current_snapshot()
            assert snapshot is not None  # noqa: S101 - a cursor is written only with a snapshot
            store.save_cursor(
                self.app.engine,
                organization,
                self.contract.table,
                cursor,
                snapshot_id=snapshot.snapshot_id,
                landed_at=self.app.clock(),
            )
            self.result.adopted.append(organization)
        return ready

    def _read_ranges(self, hot: HotTable, tables: LakeTables, state: BackfillState) -> dict[str, StagedFile] | None:
        """Read what is left; returns the files written by this run, whose footers need not be read back.

        None: this program is stopping, and ranges are left.
        """
        app, contract, result = self.app, self.contract, self.result
        written: dict[str, StagedFile] = {}
        pending = [r for r in state.ranges if not r.done]
        done_rows = sum(r.rows for r in state.ranges if r.done)
        organizations = tuple(o for o in state.organizations if o not in result.errors)
        if pending:
            # Whoever is not read by every range must not be landed as if it had been.
            record.leave_out(app.engine, state.id, set(state.organizations) - set(organizations))
        writers = _writers(app, tables, organizations) if pending else {}
        running: dict[Future[RangeResult], _Exported] = {}
        with _snapshots(app) as snapshots:
            while pending or running:
                while pending and len(running) < self.executor.workers and not self.stopping():
                    exported = snapshots.current({e.name for e in running.values()})
                    task = _task(app, contract, hot, state, pending.pop(0), organizations, writers, exported)
                    running[self.executor.submit(read_range, task)] = exported
                if not running:
                    return None
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    exported = running.pop(future)
                    range_result = _result(future)
                    record.range_done(
                        app.engine,
                        self.lease,
                        state.id,
                        range_result,
                        exported.snapshot,
                        exported.captured_at,
                        app.clock(),
                    )
                    failpoint("backfill.range_done")
                    written |= {f.path: f for f in range_result.files}
                    result.read_ranges += 1
                    result.read_rows += range_result.rows
                    for organization, violation in range_result.violations.items():
                        result.errors.setdefault(organization, violation.error(contract))
                    for organization, message in range_result.failures.items():
                        result.errors.setdefault(organization, BackfillError(message))
                    self.progress(done_rows + result.read_rows, max(state.estimated_rows, done_rows + result.read_rows))
        return written

    def _land(self, tables: LakeTables, backfill: uuid.UUID, written: dict[str, StagedFile]) -> set[str]:
        """One commit (or numbered parts) per organization; where that is done already, only the cursor is written.

        Returns those that could not be landed and may be later. One whose staged files are gone or changed leaves
        the backfill: the next one reads it again.
        """
        failed: set[str] = set()
        landed = store.cursors(self.app.engine, self.contract.table)
        state = record.load(self.app.engine, backfill)
        files: dict[str, list[StagedFile]] = defaultdict(list)
        quarantined: dict[str, list[StagedFile]] = defaultdict(list)
        for part in state.ranges:
            for file in part.quarantined:
                quarantined[file.organization].append(file)
            for file in part.files:
                files[file.organization].append(written.get(file.path, file))
        for organization in state.organizations:
            if organization in landed:
                continue
            try:
                self._land_one(tables, state, organization, files[organization], quarantined[organization], written)
            except LeaseLostError:
                raise
            except (StagedFileError, ContractViolation) as error:
                self.result.errors[organization] = error
                record.leave_out(self.app.engine, backfill, [organization])
            except LakehouseError as error:
                self.result.errors[organization] = error
                failed.add(organization)
        return failed

    def _check(self, table: Table, foreign: list[StagedFile]) -> None:
        """Right before a commit: is the backfill still ours, and is what another run staged what lies there?"""
        self.lease.check()
        for file in foreign:
            check_staged(table.io, file)
            self.lease.check()

    def _land_one(
        self,
        tables: LakeTables,
        state: BackfillState,
        organization: str,
        files: list[StagedFile],
        quarantined: list[StagedFile],
        written: dict[str, StagedFile],
    ) -> None:
        app, table = self.app, self.contract.table
        log = None
        if quarantined:
            opened = tables(organization)
            for part in quarantined:
                check_staged(opened.io, part)
            log = gather(
                opened.io,
                opened.location(),
                self.contract,
                organization,
                str(state.id),
                quarantined,
                app.settings.capture.max_quarantined,
            )
        cursor = LakeCursor(
            position=state.position(),
            fence=None,
            sequence=state.sequences[organization] - 1,
            captured_at=max(r.captured_at for r in state.ranges if r.captured_at),
            watermark=None,
            inventory=None,
            quarantine=log,
        )
        rows = sum(f.rows for f in files)
        snapshot_id = None
        if files or log is not None:
            landed = land(
                tables(organization),
                str(state.id),
                sorted(files, key=lambda f: f.first_sequence),
                None,
                cursor,
                most_partitions=app.settings.landing.max_partitions,
                guard=functools.partial(self._check, tables(organization), [f for f in files if f.path not in written]),
            )
            cursor, snapshot_id = landed.cursor, landed.snapshot_id
            failpoint("backfill.after_commit")
        landings.acknowledge_backfill(
            app.engine,
            self.lease,
            state.id,
            organization,
            table,
            cursor,
            rows=rows,
            snapshot_id=snapshot_id,
            now=app.clock(),
        )
        self.result.rows[organization] = rows
        if log is not None:
            self.result.quarantined[organization] = log.open
        # It may have been left out of the backfill before this one.
        self.result.errors.pop(organization, None)


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
        source=identify(catalog, hot, app.settings.source.address),
        # Before the first snapshot, or a transaction that is open now could be missed.
        bound=prune_bound(catalog) if watermarked else None,
    )
    ranges = key_ranges(catalog, contract, hot, app.settings.backfill.range_rows)
    return record.begin(app.engine, uuid.uuid4(), contract.table, organizations, first, ranges, estimated_rows(hot))


def _result(future: Future[RangeResult]) -> RangeResult:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise BackfillError(
            "a process that read a range died (killed, or out of memory)",
            "Run `lakehouse backfill` again: finished ranges are not read again. "
            "Out of memory? Lower LAKEHOUSE_BACKFILL__WORKERS or LAKEHOUSE_CAPTURE__CHUNK_BYTES.",
        ) from error


def _writers(app: App, tables: LakeTables, organizations: Iterable[str]) -> dict[str, ObjectWriter]:
    from catalog.storage import object_writer

    return {o: object_writer(dict(app.address_of(o).storage), tables(o).location()) for o in organizations}


def _task(
    app: App,
    contract: Contract,
    hot: HotTable,
    state: BackfillState,
    part: RangeState,
    organizations: tuple[str, ...],
    writers: dict[str, ObjectWriter],
    exported: _Exported,
) -> RangeTask:
    return RangeTask(
        settings=app.settings,
        writers=writers,
        contract=contract,
        backfill=str(state.id),
        number=part.number,
        bounds=part.bounds,
        organizations=organizations,
        tenant_type=hot.columns[contract[contract.tenant].source].type,
        key_types=hot.key_types(contract),
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
