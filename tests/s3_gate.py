"""A door before an S3 server: it lets connections through, or answers every request with one error."""

from __future__ import annotations

import re
import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_REQUEST = re.compile(rb"^(GET|HEAD|PUT|POST|DELETE) (\S+) HTTP/1\.1\r$", re.M)


class S3Gate:
    """Listens on 127.0.0.1. Requests are signed for this address, and the server believes the Host header."""

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        self._upstream = (parts.hostname or "", parts.port or 80)
        self._answer: tuple[int, str] | None = None
        self._open: set[socket.socket] = set()
        self.requests: list[str] = []
        """`METHOD path` of every request that was let through."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True, name="s3 gate").start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        self._cut()

    def refuse(self, status: int, code: str) -> None:
        """From now on every request is answered with this error; what is under way is cut."""
        self._answer = (status, code)
        self._cut()

    def let_through(self) -> None:
        """From now on the server answers."""
        self._answer = None
        self._cut()

    def _cut(self) -> None:
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True, name="s3 gate").start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            self._open.add(connection)
            try:
                if self._answer is not None:
                    self._refuse(connection, *self._answer)
                    return
                with socket.create_connection(self._upstream) as server:
                    self._open.add(server)
                    back = threading.Thread(target=_pump, args=(server, connection), daemon=True, name="s3 gate")
                    back.start()
                    _pump(connection, server, self.requests)
                    back.join()
                    self._open.discard(server)
            finally:
                self._open.discard(connection)

    def _refuse(self, connection: socket.socket, status: int, code: str) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (more := connection.recv(65536)):
                return
            head += more
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>refused by a test</Message></Error>".encode()
        answer = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(f"{answer}Connection: close\r\n\r\n".encode() + (b"" if head.startswith(b"HEAD") else body))
        # Read what is still sent, or the answer may be lost with a reset.
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(1)
        while connection.recv(65536):
            pass


def _pump(source: socket.socket, target: socket.socket, requests: list[str] | None = None) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            if requests is not None:
                requests += [f"{m[1].decode()} {m[2].decode()}" for m in _REQUEST.finditer(data)]
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
