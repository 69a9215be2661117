"""The `lakehouse` program with its steps watched: `python -c "from tests.bench.profiled import main; main()" …`.

Every process of it writes what it spent to the folder that `BENCH_STEPS` names: this one when it ends, the ones that
read ranges after every range. What those load before they are forked is in no profile. Watching costs a few
microseconds a step, so the figures of a profile are for comparing steps with each other; what is compared with goals
is measured without.
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
    from lakehouse.backfill import run
    from lakehouse.cli import main as program

    # A function of this module, so that the processes that unpickle it find it here.
    run.read_range = read_range
    try:
        with steps.step(watched.REST):
            program()
    finally:
        steps.write(watched.folder() / "program.json")
