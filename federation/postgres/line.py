"""The line to a PostgreSQL server: cut when nobody is there any more, so that a program never waits for ever.

libpq waits for an answer as long as the kernel at the other end acknowledges what it was sent, and that it does for a
server that was stopped or hangs, too; neither keepalives nor `statement_timeout` end that. So libpq is given a port of
this process, from which bytes are passed on, and the server is watched: where it said nothing for `answer_seconds`
while something was asked of it, it is asked over a connection of its own whether it speaks at all. The line is cut
where it does not, or where one statement has said nothing for `statement_seconds`.

What is passed is not looked at (TLS stays encrypted from end to end). The port is open while libpq connects and no
longer. Cut, libpq reports a broken connection, and `fault` says why.
Source: postgresql.org/docs/current/protocol-message-formats.html, "SSLRequest".
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

CONNECT_SECONDS = 10.0
_READ_BYTES = 256 * 1024
_MOST_BYTES = 1024 * 1024
"""Read and not passed on yet: above it, whoever sends has to wait."""
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)


@dataclass(frozen=True)
class Patience:
    """How long a server may say nothing: while it answers to nobody, and while it is there but works on."""

    answer_seconds: float = 60.0
    statement_seconds: float = 6 * 3600.0


@dataclass
class _End:
    socket: socket.socket
    is_server: bool
    other: _End | None = None
    waiting: bytearray = field(default_factory=bytearray)
    """To be sent to this end."""
    ended: bool = False
    """It sends no more."""


class Line:
    """A line to one server. `close` ends it; what is under way is cut."""

    def __init__(self, server: tuple[str, int], patience: Patience) -> None:
        self._server = server
        self._patience = patience
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._listener: socket.socket | None = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.fault: str | None = None
        """Why it was cut."""
        self._lock = threading.Lock()
        self._asked_at: float | None = None
        """Since when an answer is waited for; None while nothing is asked."""
        self._heard_at = self._looked_at = time.monotonic()
        self._closing = self._connected = False
        self._ends: list[_End] = []
        self._thread = threading.Thread(target=self._run, name="line to a replica", daemon=True)
        self._thread.start()

    def connected(self) -> None:
        """libpq has its connection: nobody else gets one."""
        self._connected = True
        self._waker.send(b"x")

    @contextmanager
    def asking(self, *, resting: bool = False) -> Iterator[None]:
        """During the body an answer of the server is waited for; or, `resting`, nothing is."""
        before = self._asked_at
        self._ask(not resting)
        try:
            yield
        finally:
            self._ask(before is not None)

    def _ask(self, asked: bool) -> None:
        with self._lock:
            self._asked_at = time.monotonic() if asked else None

    def close(self) -> None:
        """Cut it. Idempotent."""
        if self._thread.is_alive():
            self._closing = True
            with suppress(OSError):
                self._waker.send(b"x")
            self._thread.join()

    def _run(self) -> None:
        assert self._listener is not None  # noqa: S101 - closed by this thread
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        tick = min(1.0, self._patience.answer_seconds / 4)
        try:
            while not self._closing and self.fault is None:
                for key, events in self._selector.select(tick):
                    if key.fileobj is self._listener:
                        self._accept(self._listener)
                    elif key.fileobj is self._wake:
                        self._wake.recv(64)
                    else:
                        self._pass(key.data, events)
                if self._connected and self._listener is not None:
                    self._selector.unregister(self._listener)
                    self._listener.close()
                    self._listener = None
                self._watch()
        finally:
            for end in list(self._ends):
                self._drop(end)
            for one in (self._listener, self._wake, self._waker):
                if one is not None:
                    one.close()
            self._selector.close()

    def _accept(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        try:
            server = socket.create_connection(self._server, timeout=min(CONNECT_SECONDS, self._patience.answer_seconds))
        except OSError as error:
            client.close()
            self.fault = f"cannot be reached: {error}"
            return
        self._heard_at = time.monotonic()
        ends = _End(client, False), _End(server, True)
        ends[0].other, ends[1].other = ends[1], ends[0]
        for end in ends:
            end.socket.setblocking(False)
            end.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(end.socket, selectors.EVENT_READ, end)
            self._ends.append(end)

    def _pass(self, end: _End, events: int) -> None:
        other = end.other
        if end not in self._ends or other is None:
            return
        try:
            if events & selectors.EVENT_WRITE and end.waiting:
                sent = end.socket.send(end.waiting)
                del end.waiting[:sent]
                self._note(end)
            if events & selectors.EVENT_READ and not end.ended:
                data = end.socket.recv(_READ_BYTES)
                end.ended = not data
                other.waiting += data
                self._note(end)
        except BlockingIOError:
            return
        except OSError:
            end.ended = True
            end.waiting.clear()
        if (end.ended and not other.waiting) or (other.ended and not end.waiting):
            self._drop(end)
            self._drop(other)
            return
        for one in (end, other):
            self._listen(one)

    def _note(self, end: _End) -> None:
        if end.is_server:
            self._heard_at = time.monotonic()

    def _listen(self, end: _End) -> None:
        """Wait for what this end may do next."""
        other = end.other
        reads = not end.ended and other is not None and len(other.waiting) < _MOST_BYTES
        events = (selectors.EVENT_READ if reads else 0) | (selectors.EVENT_WRITE if end.waiting else 0)
        known = end.socket in self._selector.get_map()
        if events and known:
            self._selector.modify(end.socket, events, end)
        elif events:
            self._selector.register(end.socket, events, end)
        elif known:
            self._selector.unregister(end.socket)

    def _drop(self, end: _End) -> None:
        if end in self._ends:
            self._ends.remove(end)
            if end.socket in self._selector.get_map():
                self._selector.unregister(end.socket)
            end.socket.close()

    def _watch(self) -> None:
        """Cut the line where the server is silent for too long while it is asked something."""
        with self._lock:
            asked_at = self._asked_at
        if asked_at is None or not self._ends:
            return
        now = time.monotonic()
        silent = now - max(asked_at, self._heard_at)
        if silent >= self._patience.statement_seconds:
            self.fault = f"did not answer within {self._patience.statement_seconds:g} s"
        elif now - max(asked_at, self._heard_at, self._looked_at) >= self._patience.answer_seconds:
            if self._speaks():
                self._looked_at = time.monotonic()
            else:
                self.fault = f"hangs: it accepts connections and has not answered for {silent:.0f} s"

    def _speaks(self) -> bool:
        """Whether the server answers to anybody: whether it has TLS is asked before everything else."""
        patience = min(CONNECT_SECONDS, self._patience.answer_seconds)
        with suppress(OSError), socket.create_connection(self._server, timeout=patience) as probe:
            probe.sendall(_SSL_REQUEST)
            return bool(probe.recv(1))
        return False
