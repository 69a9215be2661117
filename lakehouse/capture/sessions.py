"""Connections that a running program keeps between windows: opening them took half of a window that finds nothing.

A session is one connection: what the catalog says and what is read are of one server and of one transaction. It serves
one window at a time, is asked before it is used again, is closed after any error, and is never older than
`LONGEST_SECONDS`: after that, whoever answers at the source's address then is found, and judged, as ever. Nothing is
open in a transaction between windows.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adbc_driver_postgresql.dbapi import Connection as AdbcConnection

LONGEST_SECONDS = 30.0


@dataclass(frozen=True)
class Session:
    """A connection to the hot database."""

    reader: AdbcConnection
    opened: float
    close: Callable[[], None]

    def answers(self) -> bool:
        """Young enough, and alive."""
        from adbc_driver_manager import Error

        if time.monotonic() - self.opened > LONGEST_SECONDS:
            return False
        try:
            with self.reader.cursor() as cursor:
                cursor.execute("SELECT 1")
                cursor.fetchone()
        except (Error, OSError):
            # It ended while nobody used it: a new one says what is wrong, if anything is.
            return False
        return True


class Sessions:
    """Keeps at most `most` idle sessions."""

    def __init__(self, connect: Callable[[], AbstractContextManager[AdbcConnection]], most: int) -> None:
        self._connect = connect
        self._most = most
        self._idle: list[Session] = []
        self._lock = threading.Lock()

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A session for one window; kept for the next if the body ends well."""
        session = self._take() or self._new()
        try:
            yield session
        except BaseException:
            session.close()
            raise
        with self._lock:
            if keep := len(self._idle) < self._most:
                self._idle.append(session)
        if not keep:
            session.close()

    def close(self) -> None:
        """Close what is idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()

    def _take(self) -> Session | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                session = self._idle.pop()
            if session.answers():
                return session
            session.close()

    def _new(self) -> Session:
        with ExitStack() as stack:
            began = time.monotonic()
            reader = stack.enter_context(self._connect())
            held = stack.pop_all()
        return Session(reader, began, lambda: _close(held))


def _close(held: ExitStack) -> None:
    from adbc_driver_manager import Error

    from lakehouse.capture.source import SourceError

    # What is broken already may say so once more; what broke it is what matters.
    with contextlib.suppress(Error, OSError, SourceError):
        held.close()
