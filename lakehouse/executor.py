"""Where heavy, divisible work runs: local processes here; a cluster can come in through the same interface."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
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

    def __init__(self, workers: int, *, prepare: Callable[[], None] | None = None) -> None:
        """`prepare`: run in each process before there is work, so that loading libraries keeps nobody waiting."""
        self.workers = workers
        # spawn: a fork would copy threads' locks and open connections.
        self._pool = ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), initializer=_die_with, initargs=(os.getpid(),)
        )
        if prepare is not None:
            for _ in range(workers):
                self._pool.submit(prepare)

    def submit(self, function: Callable[[T], R], task: T) -> Future[R]:
        """See `Executor.submit`."""
        return self._pool.submit(function, task)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)


def _die_with(parent: int) -> None:
    # A terminal and a service manager signal the whole group: the parent decides when the work ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            threading.Event().wait(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent watch").start()
