"""A worker: a few units of work at a time, each under its lease, until it is told to stop.

What goes wrong with a unit is written where it belongs (the delivery, the organization's cursor, the task), with
the time of the next attempt; the worker goes on with the next. A control database that does not answer is asked
again, ever more slowly.
"""

from __future__ import annotations

import threading
import time
import traceback
from typing import TYPE_CHECKING

from federation.config import COPYING
from federation.kinds import DestinationKind
from lakehouse.backfill.run import BackfillResult, run_backfill
from lakehouse.backfill.worker import LIBRARIES
from lakehouse.capture.source import SourceTableMissing
from lakehouse.control.database import control_broke_off
from lakehouse.executor import LocalProcesses
from lakehouse.observe.events import describe
from lakehouse.outbox import deliveries, tasks
from lakehouse.outbox.retry import decide
from lakehouse.outbox.tasks import ARCHIVE, BACKFILL, CAPTURE, MAINTAIN, PARITY, PRUNE
from lakehouse.result import TableResult
from lakehouse.sync import LakeTables, capture_table, land_claimed

if TYPE_CHECKING:
    import uuid

    from lakehouse.app import App
    from lakehouse.outbox.deliveries import ClaimedDelivery
    from lakehouse.outbox.tasks import ClaimedTask

KINDS = (DestinationKind.ICEBERG_S3, *COPYING)
LONG = (BACKFILL, MAINTAIN, PRUNE, PARITY, ARCHIVE)
"""Kinds of task that may take long: one place is kept free of them where there is more than one."""
NOT_THERE_SECONDS = 300.0
"""How often a provisional table that the host does not have yet is looked for."""
LONGEST_PAUSE = 30.0


class Worker:
    """Runs until `stop` is set and what is under way is finished."""

    def __init__(self, app: App, stop: threading.Event) -> None:
        self.app = app
        self.stop = stop
        self._lock = threading.Lock()
        self._long = 0
        self._delivering: set[uuid.UUID] = set()
        """Destinations that are delivered to: each takes one place at most, and all of them leave one free."""
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to work, in threads of its own."""
        self.app.source.keep_sessions(self.app.settings.work.concurrency)
        for number in range(self.app.settings.work.concurrency):
            thread = threading.Thread(target=self._slot, name=f"worker {number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def join(self, until: float) -> bool:
        """Wait for what is under way, until that monotonic time. False: something is not finished."""
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _slot(self) -> None:
        pause = self.app.settings.work.poll_seconds
        while not self.stop.is_set():
            try:
                worked = self.once()
                pause = self.app.settings.work.poll_seconds
            except Exception as error:  # noqa: BLE001 - claiming failed: nothing is held, and it is tried again
                self._unexpected("claim", error)
                worked, pause = False, min(LONGEST_PAUSE, pause * 2)
            if not worked:
                self.stop.wait(pause)

    def once(self) -> bool:
        """Do one unit of work, if there is any: first what was staged and waits, then what is due."""
        work = self.app.settings.work
        owner = self.app.leases.owner
        known = list(self.app.contracts)
        with self._lock:
            # Together with what is noted below: two slots must not both take the last place.
            busy = list(self._delivering)
            kinds = KINDS if len(busy) < max(1, work.concurrency - 1) else KINDS[:1]
            claimed = deliveries.claim(self.app.engine, owner, work.lease_seconds, kinds=kinds, tables=known, but=busy)
            self._delivering |= {c.destination for c in claimed if c.kind in COPYING}
        if claimed:
            if claimed[0].kind is DestinationKind.ICEBERG_S3:
                self._land(claimed)
            else:
                self._deliver(claimed[0])
            return True
        wanted = [CAPTURE, *(LONG if self._may_take_long() else ())]
        task = tasks.claim(self.app.engine, owner, work.lease_seconds, kinds=wanted)
        if task is None:
            return False
        self._do(task)
        return True

    def _may_take_long(self) -> bool:
        with self._lock:
            return self._long < max(1, self.app.settings.work.concurrency - 1)

    def _do(self, task: ClaimedTask) -> None:
        long = task.kind in LONG
        with self._lock:
            self._long += long
        try:
            if task.kind == PRUNE:
                self._prune(task)
            elif task.kind == ARCHIVE:
                self._archive(task)
            elif task.kind == PARITY:
                self._prove(task)
            elif task.kind == MAINTAIN:
                self._maintain(task)
            elif task.table not in self.app.contracts:
                # A newer program planned it; this one does not know the table.
                tasks.finish(self.app.engine, task.lease)
            elif task.kind == CAPTURE:
                result = TableResult(task.table)
                capture_table(self.app, self.app.contracts[task.table], task, result, due=True)
                self._not_there_yet(task, result.errors.get(""))
            else:
                self._backfill(task, task.table)
        except Exception as error:  # noqa: BLE001 - noted with the task; the worker goes on
            # Where the work has given the task back already, this changes nothing.
            self._give_back(task, error)
            self._unexpected(f"{task.kind}:{task.table}", error)
        finally:
            with self._lock:
                self._long -= long

    def _land(self, claimed: list[ClaimedDelivery]) -> None:
        contract = self.app.contracts[claimed[0].table]
        try:
            result = TableResult(contract.table)
            land_claimed(self.app, contract, LakeTables(self.app, contract), claimed, result)
        except Exception as error:  # noqa: BLE001 - noted with the delivery by now; the worker goes on
            self._unexpected(f"landing:{contract.table}", error)

    def _deliver(self, claimed: ClaimedDelivery) -> None:
        from lakehouse.deliver.run import deliver_claimed

        try:
            deliver_claimed(self.app, claimed)
        except Exception as error:  # noqa: BLE001 - noted with the delivery by now; the worker goes on
            self._unexpected(f"delivery:{claimed.table}", error)
        finally:
            with self._lock:
                self._delivering.discard(claimed.destination)

    def _backfill(self, task: ClaimedTask, table: str) -> None:
        contract = self.app.contracts[table]
        result = BackfillResult(table)
        with LocalProcesses(self.app.settings.backfill.workers, libraries=LIBRARIES) as executor:
            run_backfill(self.app, contract, executor, task, result, stopping=self.stop.is_set)
        self._not_there_yet(task, result.errors.get(""))

    def _maintain(self, task: ClaimedTask) -> None:
        from lakehouse.maintenance.run import maintain_all, maintained

        known = maintained(self.app)
        if task.table not in known:
            # A newer program planned it; this one does not know the table.
            tasks.finish(self.app.engine, task.lease)
            return
        with self.app.leases.holding(task.lease):
            results = maintain_all(
                self.app,
                known[task.table],
                should_stop=lambda: self.stop.is_set() or task.lease.lost,
            )
        self._give_back(task, next((e for r in results for e in r.errors), None))

    def _prune(self, task: ClaimedTask) -> None:
        from lakehouse.capture.tombstones import prune_tombstones
        from lakehouse.maintenance.archive import keep_archive
        from lakehouse.maintenance.outbox import prune_outbox

        with self.app.leases.holding(task.lease), self.app.events.unit(PRUNE) as event:
            event.update(prune_outbox(self.app) | prune_tombstones(self.app))
            kept, errors = keep_archive(self.app)
            event.update(kept)
            if errors:
                event.update(outcome="error", error=describe(errors[0]))
        self._give_back(task, next(iter(errors), None))

    def _archive(self, task: ClaimedTask) -> None:
        from lakehouse.archive.run import archive_all

        with self.app.leases.holding(task.lease):
            result = archive_all(self.app, should_stop=lambda: self.stop.is_set() or task.lease.lost)
        self._give_back(task, result.first_error)

    def _prove(self, task: ClaimedTask) -> None:
        from lakehouse.deliver.prove import prove

        with self.app.leases.holding(task.lease):
            prove(self.app, should_stop=lambda: self.stop.is_set() or task.lease.lost)
        self._give_back(task, None)

    def _give_back(self, task: ClaimedTask, error: Exception | None) -> None:
        work = self.app.settings.work
        if error is None:
            tasks.finish(self.app.engine, task.lease)
        else:
            tasks.fail(self.app.engine, task.lease, decide(error, task.attempts + 1, work), work.retry_max_seconds)

    def _not_there_yet(self, task: ClaimedTask, error: Exception | None) -> None:
        """A provisional table that the host does not have yet is no fault: look again later."""
        assert task.table is not None  # noqa: S101 - asked only of tasks for a table
        if isinstance(error, SourceTableMissing) and self.app.contracts[task.table].provisional:
            tasks.put_off(self.app.engine, task.lease, NOT_THERE_SECONDS)

    def _unexpected(self, what: str, error: Exception) -> None:
        from sqlalchemy.exc import DBAPIError

        if isinstance(error, DBAPIError) and error.connection_invalidated:
            # What was under way keeps its lease until that runs out.
            self.app.events.emit(what, outcome="error", error=describe(control_broke_off(what, error)))
            return
        # The error's own place shows it too; the traceback is only here.
        self.app.events.emit(
            "unexpected",
            unit=what,
            outcome="error",
            error=describe(error),
            traceback="".join(traceback.format_exception(error))[-4000:],
        )
