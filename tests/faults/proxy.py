"""Proxies that stand before a real server and do to one request what networks and busy servers do.

A fault is armed for requests of a kind and acts a given number of times: it cuts the connection after some bytes,
delays, answers an error in the server's place, forwards and drops the reply, or holds the request until the test
lets it go. Everything else passes unchanged. `Fault.hits` says how often it acted: a test whose fault never did
proves nothing.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

Kind = Literal["cut_request", "cut_reply", "delay", "answer", "drop_reply", "hold"]


@dataclass
class Request:
    """What a fault is chosen by. HTTP: method and path; PostgreSQL: the statement, and those before it since BEGIN."""

    text: str
    before: tuple[str, ...] = ()


@dataclass
class Fault:
    """One fault. `after`: bytes that still pass before a cut; `answer`: what is sent in the server's place."""

    kind: Kind
    where: Callable[[Request], bool]
    times: int | None = 1
    after: int = 0
    seconds: float = 0.0
    answer: tuple[int, str] = (503, "ServiceUnavailable")
    hits: int = 0
    held: threading.Event = field(default_factory=threading.Event)
    """Set once a request is held; the test sets `go` to let it on."""
    go: threading.Event = field(default_factory=threading.Event)

    @property
    def spent(self) -> bool:
        return self.times is not None and self.hits >= self.times


class CutError(Exception):
    """This connection ends here."""


class Proxy:
    """Listens on 127.0.0.1 before a server. Use as a context manager."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True, name="proxy").start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        self.calm()
        self.cut()

    def arm(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def calm(self) -> None:
        """From now on everything passes; what is held goes on."""
        with self._lock:
            faults, self._faults = self._faults, []
        for fault in faults:
            fault.go.set()

    def cut(self) -> None:
        """Cut every connection."""
        for connection in list(self._open):
            _shut(connection)

    def choose(self, request: Request) -> Fault | None:
        """The armed fault for this request, counted as one hit."""
        with self._lock:
            for fault in self._faults:
                if not fault.spent and fault.where(request):
                    fault.hits += 1
                    return fault
        return None

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._one, args=(connection,), daemon=True, name="proxy").start()

    def _one(self, client: socket.socket) -> None:
        with suppress(OSError, CutError), client, socket.create_connection(self._upstream) as server:
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open |= {client, server}
            try:
                self.talk(client, server)
            finally:
                self._open -= {client, server}
                _shut(client)
                _shut(server)

    def talk(self, client: socket.socket, server: socket.socket) -> None:
        raise NotImplementedError


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def wait(fault: Fault) -> None:
    """What `delay` and `hold` do before a request goes on."""
    if fault.kind == "delay":
        threading.Event().wait(fault.seconds)
    elif fault.kind == "hold":
        fault.held.set()
        fault.go.wait(120)


class HttpProxy(Proxy):
    """Before an S3 server or a REST catalog. Requests are signed for this address; the server believes the Host."""

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        super().__init__(parts.hostname or "", parts.port or 80)
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def talk(self, client: socket.socket, server: socket.socket) -> None:
        requests, replies = client.makefile("rb"), server.makefile("rb")
        with requests, replies:
            while head := _head(requests):
                if _header(head, "expect"):
                    head = b"\r\n".join(h for h in head.split(b"\r\n") if not h.lower().startswith(b"expect:"))
                    client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                method, path = head.split(b" ", 2)[:2]
                body = _body(requests, head, method)
                fault = self.choose(Request(f"{method.decode()} {path.decode()}"))
                kind = fault.kind if fault else None
                if fault and kind == "answer":
                    _refuse(client, method, *fault.answer)
                    raise CutError
                if fault and kind == "cut_request":
                    server.sendall((head + body)[: len(head) + fault.after])
                    raise CutError
                if fault and kind == "hold":
                    # The server has half of it.
                    half = len(body) // 2
                    server.sendall(head + body[:half])
                    wait(fault)
                    server.sendall(body[half:])
                else:
                    if fault:
                        wait(fault)
                    server.sendall(head + body)
                answered = _head(replies)
                if kind == "drop_reply":
                    _body(replies, answered, method, reply=True)
                    raise CutError
                content = _body(replies, answered, method, reply=True)
                if fault and kind == "cut_reply":
                    client.sendall((answered + content)[: len(answered) + fault.after])
                    raise CutError
                client.sendall(answered + content)


def _head(stream: object) -> bytes:
    lines = []
    while line := stream.readline():  # type: ignore[attr-defined]
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    return b""


def _header(head: bytes, name: str) -> str | None:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower().decode() == name:
            return value.strip().decode()
    return None


def _body(stream: object, head: bytes, method: bytes, *, reply: bool = False) -> bytes:
    read = stream.read  # type: ignore[attr-defined]
    if not head:
        raise CutError
    if reply and (method == b"HEAD" or head.split(b" ", 2)[1] in (b"204", b"304")):
        return b""
    if (length := _header(head, "content-length")) is not None:
        return bytes(read(int(length)))
    if "chunked" in (_header(head, "transfer-encoding") or ""):
        parts = []
        while True:
            size = stream.readline()  # type: ignore[attr-defined]
            parts.append(size)
            count = int(size.split(b";")[0] or b"0", 16)
            if count == 0:
                while (line := stream.readline()) not in (b"\r\n", b""):  # type: ignore[attr-defined]
                    parts.append(line)
                return b"".join([*parts, b"\r\n"])
            parts.append(read(count + 2))
    return b""


def _refuse(client: socket.socket, method: bytes, status: int, code: str) -> None:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>said by a test's proxy</Message></Error>".encode()
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    client.sendall(f"{head}Connection: close\r\n\r\n".encode() + (b"" if method == b"HEAD" else body))


class PostgresProxy(Proxy):
    """Before a PostgreSQL server, without TLS. It knows each message of the client's, and the end of each answer."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        super().__init__(parts.hostname or "", parts.port or 5432)
        self.url = url.replace(f"{parts.hostname}:{parts.port}", f"127.0.0.1:{self.port}", 1)

    def talk(self, client: socket.socket, server: socket.socket) -> None:
        asks = client.makefile("rb")
        with asks:
            while True:
                start = _message(asks, typed=False)
                if struct.unpack("!i", start[4:8])[0] not in (80877103, 80877104):
                    break
                client.sendall(b"N")  # no TLS, no GSS
            self._conversation(client, server, asks, start)

    def _conversation(self, client: socket.socket, server: socket.socket, asks: object, start: bytes) -> None:
        state = _Replies(client, server)
        statements: dict[bytes, str] = {}
        before: list[str] = []
        self._forward(client, server, state, start, self.choose(Request("(connect)")))
        threading.Thread(target=state.pump, daemon=True, name="proxy replies").start()
        while True:
            message = _message(asks, typed=True)
            kind, body = message[:1], message[5:]
            text = None
            if kind == b"Q":
                text = body[:-1].decode(errors="replace")
            elif kind == b"P":
                name, query = body.split(b"\0", 2)[:2]
                statements[name] = query.decode(errors="replace")
            elif kind == b"B":
                text = statements.get(body.split(b"\0", 2)[1])
            if text is None:
                server.sendall(message)
                continue
            first = text.strip().split(" ", 1)[0].rstrip(";").upper()
            fault = self.choose(Request(text, tuple(before)))
            if first in ("BEGIN", "COMMIT", "ROLLBACK"):
                before.clear()
            before.append(text)
            self._forward(client, server, state, message, fault)

    @staticmethod
    def _forward(
        client: socket.socket, server: socket.socket, state: _Replies, message: bytes, fault: Fault | None
    ) -> None:
        if fault is not None:
            if fault.kind == "cut_request":
                server.sendall(message[: fault.after])
                raise CutError
            if fault.kind == "answer":
                text = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"
                client.sendall(b"E" + struct.pack("!i", len(text) + 4) + text)
                raise CutError
            if fault.kind == "cut_reply":
                state.left = fault.after
            state.dropping = fault.kind == "drop_reply"
            wait(fault)
        server.sendall(message)


class _Replies:
    """What the server says, on its way to the client."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.left: int | None = None
        """Bytes that still pass before the cut."""
        self.dropping = False
        """The answer is read to its end and not passed on; then the connection is cut."""

    def pump(self) -> None:
        swallowed = b""
        with suppress(OSError):
            while data := self.server.recv(65536):
                if self.dropping:
                    swallowed += data
                    if _ended(swallowed):
                        break
                elif self.left is not None:
                    self.client.sendall(data[: self.left])
                    self.left -= len(data)
                    if self.left <= 0:
                        break
                else:
                    self.client.sendall(data)
        _shut(self.client)
        _shut(self.server)


def _message(stream: object, *, typed: bool) -> bytes:
    read = stream.read  # type: ignore[attr-defined]
    head = read(5 if typed else 4)
    if len(head) < (5 if typed else 4):
        raise CutError
    length = struct.unpack("!i", head[-4:])[0]
    return bytes(head + read(length - 4))


def _ended(data: bytes) -> bool:
    """Whether the server's messages end with one that says that it is ready for the next query."""
    at = 0
    while at + 5 <= len(data):
        if data[at : at + 1] == b"Z":
            return True
        at += 1 + struct.unpack("!i", data[at + 1 : at + 5])[0]
    return False
