"""The `lakehouse` program with its steps watched: `python -c "from tests.bench.profiled import main; main()" …`.

Every process of it writes what it spent to the folder that `BENCH_STEPS` names: this one when it ends, the ones that
read ranges after every range. Watching costs a few microseconds a step, so the figures of a profile are for comparing
steps with each other; what is compared with goals is measured without.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from tests.bench import steps as watched

_undo = contextlib.ExitStack()
_steps: watched.Steps | None = None


def _watch() -> watched.Steps:
    global _steps  # noqa: PLW0603 - one a process
    if _steps is None:
        _steps = _undo.enter_context(watched.watching(imports=True))
    return _steps


def prepare_process() -> None:
    """In place of the program's own: what is loaded beforehand is a step."""
    steps = _watch()
    from lakehouse.backfill import worker

    with steps.step(watched.IMPORTS):
        worker.prepare_process()
    steps.write(watched.folder() / f"{os.getpid()}.json")


def read_range(task: Any) -> Any:
    """In place of the program's own."""
    steps = _watch()
    from lakehouse.backfill import worker

    with steps.step(watched.RANGE):
        result = worker.read_range(task)
    steps.write(watched.folder() / f"{os.getpid()}.json")
    return result


def main() -> None:
    """Entry point."""
    steps = _watch()
    from lakehouse.backfill import run, worker
    from lakehouse.cli import main as program

    # Functions of this module, so that the processes that unpickle them find them here.
    run.read_range, worker.prepare_process = read_range, prepare_process
    try:
        with steps.step(watched.REST):
            program()
    finally:
        steps.write(watched.folder() / "program.json")
