"""`lakehouse run`, `worker` and `scheduler` as programs: start, wait for a signal, stop inside a bound."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakehouse.worker.scheduler import Scheduler
from lakehouse.worker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from lakehouse.app import App


@dataclass(frozen=True)
class Roles:
    """What this program does."""

    name: str
    schedules: bool
    works: bool


RUN = Roles("run", schedules=True, works=True)
WORKER = Roles("worker", schedules=False, works=True)
SCHEDULER = Roles("scheduler", schedules=True, works=False)


def run_program(app: App, roles: Roles, *, started: Callable[[], None] = lambda: None) -> bool:
    """Run until SIGTERM or SIGINT, then finish what is under way. A second signal ends the process at once.

    False: the bound (`work.stop_seconds`) was not enough. What was not finished keeps its lease until that runs
    out, and is gone on with by others.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stopper(stop))
    app.leases.enlist(roles.name)
    app.events.emit("started", role=roles.name, owner=app.leases.owner)
    worker = Worker(app, stop) if roles.works else None
    scheduling = threading.Thread(target=Scheduler(app, stop).run, name="scheduler", daemon=True)
    if roles.schedules:
        scheduling.start()
    if worker is not None:
        worker.start()
    started()
    # In slices: a signal handler runs only between two of the main thread's steps.
    while not stop.wait(1.0):
        if roles.schedules and not scheduling.is_alive():
            stop.set()
    until = time.monotonic() + app.settings.work.stop_seconds
    finished = worker is None or worker.join(until)
    if roles.schedules:
        scheduling.join(max(0.1, until - time.monotonic()))
        finished = finished and not scheduling.is_alive()
    app.events.emit("stopped", role=roles.name, owner=app.leases.owner, outcome="ok" if finished else "bound exceeded")
    return finished


def _stopper(stop: threading.Event) -> Callable[[int, object], None]:
    def handle(number: int, frame: object) -> None:
        del frame
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    return handle
