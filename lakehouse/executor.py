"""Where heavy, divisible work runs: local processes here; a cluster can come in through the same interface."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import connection, forkserver, get_context, parent_process
from types import TracebackType
from typing import Protocol, Self, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Executor(Protocol):
    """Runs functions of one picklable argument somewhere else."""

    workers: int

    def submit(self, function: Callable[[T], R], task: T) -> Future[R]:
        """Start the work; the future carries its result or error."""
        ...


class LocalProcesses:
    """A pool of processes on this machine. Its processes end when this one does, however it ends."""

    def __init__(self, workers: int, *, libraries: Sequence[str] = ()) -> None:
        """`libraries`: modules that are imported once for all of them, from now on, while the caller does other things.
        Importing one must start no thread but those that survive a fork, as jemalloc's do."""
        self.workers = workers
        # A fork of this process would copy threads' locks and open connections. The server that is forked has neither:
        # it only imports, which takes a hundred times as long as a fork.
        context = get_context("forkserver")
        context.set_forkserver_preload(["lakehouse.forking", __name__, *libraries])
        forkserver.ensure_running()
        self._pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(dict(os.environ),))

    def submit(self, function: Callable[[T], R], task: T) -> Future[R]:
        """See `Executor.submit`."""
        return self._pool.submit(function, task)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)


def _begin(environment: Mapping[str, str]) -> None:
    # The server that forks may be older than the pool.
    os.environ.clear()
    os.environ.update(environment)
    # A terminal and a service manager signal the whole group: the parent decides when the work ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None  # noqa: S101 - only a pool calls this

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent watch").start()
