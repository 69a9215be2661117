"""The scheduler: several may run, one leads. It makes tasks due and does nothing else.

The leader holds the task `schedule`; when it dies another takes that over after its lease. APScheduler triggers
the jobs. It goes by the wall clock, so a clock that jumps back would stop it for as long: a jump is noticed
against the monotonic clock and every job is set anew.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lakehouse.archive.policy import any_enabled
from lakehouse.deliver.plan import plan_deliveries
from lakehouse.observe.events import describe
from lakehouse.outbox import tasks
from lakehouse.outbox.tasks import SCHEDULE
from lakehouse.worker import plan
from lakehouse.worker.discover import discover

if TYPE_CHECKING:
    from lakehouse.app import App
    from lakehouse.outbox.lease import Lease

JUMP_SECONDS = 2.0
MAINTENANCE_LOOK_SECONDS = 10.0
ARCHIVE_LOOK_SECONDS = 60.0
"""How often the hot database is asked whether anybody has archiving enabled, while nothing is due."""


class Scheduler:
    """Runs until `stop` is set."""

    def __init__(self, app: App, stop: threading.Event) -> None:
        self.app = app
        self.stop = stop
        self._lease: Lease | None = None
        self._errors: dict[str, str] = {}

    def run(self) -> None:
        """Trigger the jobs; returns when `stop` is set, having given up the lead."""
        from apscheduler.executors.pool import ThreadPoolExecutor
        from apscheduler.schedulers.background import BackgroundScheduler

        schedule = self.app.settings.schedule
        engine = BackgroundScheduler(
            timezone=UTC,
            executors={"default": ThreadPoolExecutor(4)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
        for name, job, every in (
            ("plan", self._plan, schedule.tick_seconds),
            ("discover", self._discover, schedule.discover_every_seconds),
            ("maintenance", self._maintenance, min(schedule.maintain_every_seconds, MAINTENANCE_LOOK_SECONDS)),
            ("archive", self._archive, min(self.app.settings.archive.every_seconds, ARCHIVE_LOOK_SECONDS)),
        ):
            engine.add_job(
                self._guarded,
                "interval",
                (name, job),
                id=name,
                seconds=every,
                next_run_time=datetime.now(UTC),
            )
        tasks.make_due(self.app.engine, [(SCHEDULE, None)])
        self._lead()
        engine.start()
        try:
            self._watch(engine)
        finally:
            engine.shutdown(wait=True)
            if (lease := self._lease) is not None:
                self._lease = None
                self.app.leases.drop([lease])
                # At once due for whoever waits to lead.
                tasks.finish(self.app.engine, lease, again_in=0)

    @property
    def leading(self) -> bool:
        """Whether this one's jobs do anything."""
        return self._lease is not None and self._lease.alive

    def _watch(self, engine: Any) -> None:
        offset = time.time() - time.monotonic()
        while not self.stop.wait(min(1.0, self.app.settings.schedule.tick_seconds)):
            now = time.time() - time.monotonic()
            if abs(now - offset) > JUMP_SECONDS:
                self.app.events.emit("clock_jumped", seconds=round(now - offset, 1))
                for job in engine.get_jobs():
                    job.modify(next_run_time=datetime.now(UTC))
            offset = now
            self._guarded("lead", self._lead, always=True)

    def _lead(self) -> None:
        """Take the lead if nobody has it."""
        if self.leading:
            return
        if self._lease is not None:
            self.app.leases.drop([self._lease])
            self._lease = None
        work = self.app.settings.work
        claimed = tasks.claim(self.app.engine, self.app.leases.owner, work.lease_seconds, kinds=[SCHEDULE])
        if claimed is not None:
            self.app.leases.hold([claimed.lease])
            self._lease = claimed.lease
            self.app.events.emit("leading", owner=self.app.leases.owner)

    def _plan(self) -> None:
        tables = list(self.app.contracts)
        plan.plan_windows(self.app.engine, tables)
        plan.plan_backfills(self.app.engine, tables)
        plan_deliveries(self.app.engine, tables, behind=self.app.settings.deliver.fill_behind)

    def _maintenance(self) -> None:
        from lakehouse.maintenance.run import maintained

        plan.plan_maintenance(
            self.app.engine, list(maintained(self.app)), self.app.settings.schedule.maintain_every_seconds
        )
        plan.plan_parity(self.app.engine, self.app.settings.schedule.parity_every_seconds)

    def _archive(self) -> None:
        every = self.app.settings.archive.every_seconds
        # The hot database is asked last: of most installations nobody has archiving enabled.
        if plan.waits_for_archive(self.app.engine, every) and any_enabled(self.app):
            plan.make_due_again(self.app.engine, tasks.ARCHIVE, every)

    def _discover(self) -> None:
        found = discover(self.app)
        for outcome, organizations in (
            ("enrolled", found.enrolled),
            ("stopped", found.stopped),
            ("resumed", found.resumed),
        ):
            for organization in organizations:
                self.app.events.emit("organization", organization=organization, outcome=outcome)
        for error in found.errors.values():
            raise error

    def _guarded(self, name: str, job: Callable[[], None], always: bool = False) -> None:
        """Run a job if this one leads; what goes wrong stands with the task `schedule` until the job is well again."""
        from sqlalchemy.exc import DBAPIError

        if not (always or self.leading):
            return
        try:
            job()
            if self._errors.pop(name, None) is not None:
                plan.note_planning(self.app.engine, next(iter(self._errors.values()), None))
        except Exception as error:  # noqa: BLE001 - shown by `status` and as an event; the next run tries again
            text = f"{name}: {describe(error)}"
            if self._errors.get(name) != text:
                self._errors[name] = text
                self.app.events.emit(SCHEDULE, job=name, outcome="error", error=text)
                try:
                    plan.note_planning(self.app.engine, text)
                except DBAPIError:
                    # The control database is what does not answer: the event has said so.
                    return
