"""`lakehouse run`, `worker` and `scheduler`: the programs that are left running."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import typer

from lakehouse.cli.capture import open_app
from lakehouse.cli.output import stderr

if TYPE_CHECKING:
    from lakehouse.worker.program import Roles


def register(app: typer.Typer) -> None:
    app.command("run")(run)
    app.command("worker")(worker)
    app.command("scheduler")(scheduler)


def run() -> None:
    """Scheduler, workers and metrics in one program, until SIGTERM. One JSON line an event on stderr."""
    from lakehouse.worker.program import RUN

    _run(RUN)


def worker() -> None:
    """Only work: any number of these on any number of machines, beside at least one scheduler."""
    from lakehouse.worker.program import WORKER

    _run(WORKER)


def scheduler() -> None:
    """Only plan: several may run, one leads."""
    from lakehouse.worker.program import SCHEDULER

    _run(SCHEDULER)


def _run(roles: Roles) -> None:
    from lakehouse.observe.events import json_lines
    from lakehouse.observe.metrics import serve
    from lakehouse.worker.program import run_program

    app = open_app()
    # What no later round can mend (settings, control tables) ends the program now.
    _ = app.engine
    app.events.add(json_lines)
    url = None
    if roles.name == "run" and app.settings.metrics.listen:
        url, _server = serve(app.settings.metrics.listen, app.engine, app.events, app.settings.work.lease_seconds)

    def started() -> None:
        stderr.print(
            f"lakehouse {roles.name} {app.leases.owner}: Ctrl-C or SIGTERM to stop" + (f"; {url}" if url else ""),
            markup=False,
            soft_wrap=True,
        )

    finished = run_program(app, roles, started=started)
    sys.stderr.flush()
    if not finished:
        # A unit of work hangs: its thread must not keep the process. Its lease runs out, others go on.
        os._exit(1)
    app.close()
