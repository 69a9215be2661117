"""Where a program's time goes, by step: the program's own functions are wrapped for as long as a profile is taken.

A step's seconds are its own: what a step within it took is that step's. Processor seconds are those of the thread that
took the step; what a library's own threads spend is left over, and shown as such. A name that is not in the program any
more fails at once (and in tests/unit/test_bench.py).
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

READ, TYPES, SORT, CUT = "reading from PostgreSQL", "to the lake's types", "sorting", "cutting by organization and day"
OWN, PARQUET, UPLOAD = "the lake's own columns", "Parquet", "SHA-256 and upload"
IMPORTS, OPEN, CONTROL = "imports", "opening the window: connect, snapshot, plan", "control tables"
LAKE, METADATA, COMMIT = "opening the lake table", "reading the lake table again", "manifests and commit"
RANGE, REST = "a range around that: connect, numbers, wait", "the rest of the program"
FUNCTION, ITERATOR, CONTEXT = "function", "iterator", "context"

POINTS = [
    ("lakehouse.backfill.worker", "stream", READ, ITERATOR),
    ("lakehouse.capture.xmin", "stream", READ, ITERATOR),
    ("lakehouse.capture.trigger", "stream", READ, ITERATOR),
    ("lakehouse.backfill.worker", "to_lake", TYPES, FUNCTION),
    ("lakehouse.capture.xmin", "to_lake", TYPES, FUNCTION),
    ("lakehouse.capture.trigger", "to_lake", TYPES, FUNCTION),
    ("lakehouse.landing.staging", "Stager._sorted", SORT, FUNCTION),
    ("lakehouse.landing.staging", "Stager._add_chunk", CUT, FUNCTION),
    ("lakehouse.landing.staging", "Stager._drain", "waiting for uploads", FUNCTION),
    ("lakehouse.landing.staging", "lake_rows", OWN, FUNCTION),
    ("lakehouse.landing.staging", "write_data_file", PARQUET, FUNCTION),
    ("lakehouse.landing.parquet", "HashingStream.write", UPLOAD, FUNCTION),
    ("lakehouse.capture.xmin", "XminCapture.open_window", OPEN, CONTEXT),
    ("lakehouse.capture.trigger", "TriggerCapture.open_window", OPEN, CONTEXT),
    ("lakehouse.control.landings", "record_window", CONTROL, FUNCTION),
    ("lakehouse.control.landings", "acknowledge", CONTROL, FUNCTION),
    ("lakehouse.control.landings", "acknowledge_backfill", CONTROL, FUNCTION),
    ("lakehouse.control.store", "members", CONTROL, FUNCTION),
    ("lakehouse.control.store", "without_cursor", CONTROL, FUNCTION),
    ("lakehouse.outbox.tasks", "claim", CONTROL, FUNCTION),
    ("lakehouse.outbox.tasks", "claim_named", CONTROL, FUNCTION),
    ("lakehouse.outbox.tasks", "finish", CONTROL, FUNCTION),
    ("lakehouse.outbox.deliveries", "claim", CONTROL, FUNCTION),
    ("lakehouse.sync", "ensure_table", LAKE, FUNCTION),
    ("lakehouse.landing.commit", "_append", COMMIT, FUNCTION),
    ("lakehouse.landing.commit", "_commit", METADATA, FUNCTION),
    ("lakehouse.landing.commit", "describe_data_file", "describing files to Iceberg", FUNCTION),
    ("lakehouse.backfill.run", "key_ranges", "cutting into ranges", FUNCTION),
    ("lakehouse.backfill.run", "_Run._read_ranges", "waiting for the ranges", FUNCTION),
]
"""Module, name, step, and how a call of it takes time."""


@dataclass
class Spent:
    """Seconds of one step, of all threads together."""

    calls: int = 0
    seconds: float = 0.0
    processor: float = 0.0


@dataclass
class Steps:
    """Adds up seconds by step."""

    spent: dict[str, Spent] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.Lock)
    _own: Any = field(default_factory=threading.local)

    def step(self, name: str) -> _Step:
        """A context: the body is this step, but for the steps within it."""
        within: list[_Step] = self._own.__dict__.setdefault("within", [])
        return _Step(self, name, within)

    def add(self, name: str, seconds: float, processor: float) -> None:
        """One more call of a step."""
        with self._lock:
            total = self.spent.setdefault(name, Spent())
            total.calls += 1
            total.seconds += seconds
            total.processor += processor

    def since(self, before: dict[str, Spent]) -> dict[str, Spent]:
        """What was added since an earlier `copy`."""
        none = Spent()
        return {
            name: Spent(
                now.calls - before.get(name, none).calls,
                now.seconds - before.get(name, none).seconds,
                now.processor - before.get(name, none).processor,
            )
            for name, now in self.copy().items()
        }

    def copy(self) -> dict[str, Spent]:
        with self._lock:
            return {name: Spent(**vars(spent)) for name, spent in self.spent.items()}

    def write(self, path: Path) -> None:
        """As JSON, with the processor time of the whole process."""
        path.write_text(
            json.dumps(
                {"processor": time.process_time(), "steps": {name: vars(spent) for name, spent in self.copy().items()}}
            )
        )


class _Step:
    """One call of a step. What it costs itself, about a microsecond, is the surrounding step's."""

    __slots__ = ("began", "inner", "inner_used", "name", "steps", "used", "within")

    def __init__(self, steps: Steps, name: str, within: list[_Step]) -> None:
        self.steps, self.name, self.within = steps, name, within
        self.inner = self.inner_used = 0.0

    def __enter__(self) -> None:
        self.within.append(self)
        self.began, self.used = time.perf_counter(), time.thread_time()

    def __exit__(self, *_: object) -> None:
        seconds, processor = time.perf_counter() - self.began, time.thread_time() - self.used
        self.within.pop()
        if self.within:
            self.within[-1].inner += seconds
            self.within[-1].inner_used += processor
        self.steps.add(self.name, seconds - self.inner, processor - self.inner_used)


def wrapped(steps: Steps, name: str, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, its time added to the step."""

    def call(*arguments: Any, **options: Any) -> Any:
        with steps.step(name):
            return function(*arguments, **options)

    def iterate(*arguments: Any, **options: Any) -> Iterator[Any]:
        rest = iter(function(*arguments, **options))
        while True:
            with steps.step(name):
                try:
                    item = next(rest)
                except StopIteration:
                    return
            yield item

    @contextlib.contextmanager
    def enter(*arguments: Any, **options: Any) -> Iterator[Any]:
        with contextlib.ExitStack() as stack:
            with steps.step(name):
                inside = stack.enter_context(function(*arguments, **options))
            yield inside

    return {FUNCTION: call, ITERATOR: iterate, CONTEXT: enter}[kind]


@contextlib.contextmanager
def watching(*, imports: bool = False) -> Iterator[Steps]:
    """Every point is wrapped while the body runs. `imports`: what is imported is a step too."""
    steps = Steps()
    with contextlib.ExitStack() as undo:
        if imports:
            _watch_imports(steps, undo)
        for module, name, step, kind in POINTS:
            owner, attribute, function = resolve(module, name)
            setattr(owner, attribute, wrapped(steps, step, kind, function))
            undo.callback(setattr, owner, attribute, function)
        yield steps


def resolve(module: str, name: str) -> tuple[Any, str, Callable[..., Any]]:
    """Where a point is, what it is called there, and what stands there now.

    Raises:
        ImportError, AttributeError: the program has no such name.
    """
    owner: Any = importlib.import_module(module)
    *path, attribute = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    function = owner.__dict__[attribute] if attribute in owner.__dict__ else getattr(owner, attribute)
    return owner, attribute, function


def _watch_imports(steps: Steps, undo: contextlib.ExitStack) -> None:
    plain = builtins.__import__
    own = threading.local()

    def imported(name: str, *rest: Any, **options: Any) -> Any:
        wanted = rest[2] if len(rest) > 2 else options.get("fromlist")
        loaded = getattr(sys.modules.get(name), "__dict__", None)
        known = loaded is not None and all(one in loaded for one in wanted or ())
        if known or getattr(own, "inside", False):
            return plain(name, *rest, **options)
        own.inside = True
        try:
            with steps.step(IMPORTS):
                return plain(name, *rest, **options)
        finally:
            own.inside = False

    builtins.__import__ = imported
    undo.callback(setattr, builtins, "__import__", plain)


def folder() -> Path:
    """Where the processes of a profiled program write their steps."""
    return Path(os.environ["BENCH_STEPS"])
