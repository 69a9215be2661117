"""The one door to tenants' endpoints: a forward proxy on loopback that resolves, checks and pins.

The S3 clients of pyarrow and DuckDB are given its address; they follow redirects by themselves, and every hop of
theirs comes through here again. Each lake has a name and password of its own at the proxy and is let through to its
own endpoint only: a redirect leads nowhere else, whether or not it is public. A name is resolved here and once, every
answer is checked, and the connection goes to an address that was checked: what the name answers a moment later does
not matter.

Invariants: nothing is connected to before it was checked; a refusal says 403 and no more; bodies are never looked at
(https stays encrypted from end to end, `CONNECT`). Bounds: heads of 32 KiB in 10 s, 256 connections, 10 s to connect,
120 s without a byte. It ends with the process: connections under way are cut, and the callers' own retries apply.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import secrets
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from lakehouse.egress.guard import EgressError, Guard
from lakehouse.observe.redact import remember
from schemas.errors import LakehouseError, Retry

HEAD_BYTES = 32 * 1024
HEAD_SECONDS = 10.0
CONNECT_SECONDS = 10.0
IDLE_SECONDS = 120.0
MOST_CONNECTIONS = 256
_HOP = {b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization"}


@dataclass(frozen=True)
class Passage:
    """One connection that was asked for, and what became of it (`passed`, `refused`, `failed`)."""

    client: str
    host: str
    port: int
    outcome: str
    detail: str = ""


@dataclass(frozen=True)
class _Request:
    method: bytes
    host: str
    port: int
    forward: bytes
    """What the server is sent before the rest: nothing for CONNECT."""
    credential: bytes


class _Refused(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class EgressProxy:
    """A running proxy. Start it once a process; `close` ends it."""

    def __init__(self, guard: Guard, notify: Callable[[Passage], None] = lambda _: None) -> None:
        self.guard = guard
        self.passages: deque[Passage] = deque(maxlen=1000)
        self.counts: Counter[str] = Counter()
        self._notify = notify
        self._clients: dict[str, tuple[str, frozenset[tuple[str, int]]]] = {}
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True, name="egress proxy")
        self._thread.start()
        if not ready.wait(10):
            raise LakehouseError("the egress proxy does not start", retry=Retry.TIMED)

    def admit(self, client: str, endpoints: Iterable[tuple[str, int]]) -> str:
        """Let `client` through to these hosts and names below them, and to nothing else; returns its proxy URL.

        Repeating it replaces the endpoints and keeps the URL.
        """
        known = self._clients.get(client)
        password = known[0] if known else secrets.token_urlsafe(24)
        remember(password)
        self._clients[client] = (password, frozenset((h.lower().rstrip("."), p) for h, p in endpoints))
        return f"http://{client}:{password}@127.0.0.1:{self.port}"

    def close(self) -> None:
        """Stop listening and cut what is under way. Idempotent."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, sock=self._listener, limit=HEAD_BYTES))
        ready.set()
        try:
            self._loop.run_forever()
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - start_server makes one for each connection
        self._tasks.add(task)
        try:
            if len(self._tasks) > MOST_CONNECTIONS:
                await _answer(writer, 503)
            else:
                await self._pass(reader, writer)
        except _Refused as refusal:
            await _answer(writer, refusal.status)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
            # A peer went away or was too slow: its client sees a cut connection and tries again.
            pass
        finally:
            self._tasks.discard(task)
            with suppress(OSError):
                writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(HEAD_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
        request = _parse(head)
        client = self._client(request.credential)
        server_reader, server_writer = await self._connect(client, request)
        try:
            if request.method == b"CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                server_writer.write(request.forward)
            await asyncio.gather(_pump(reader, server_writer), _pump(server_reader, writer))
        finally:
            with suppress(OSError):
                server_writer.close()

    def _client(self, credential: bytes) -> str:
        try:
            name, _, password = base64.b64decode(credential.split(b" ", 1)[-1], validate=True).decode().partition(":")
        except (ValueError, binascii.Error):
            raise _Refused(407, "credentials") from None
        known = self._clients.get(name)
        if known is None or not hmac.compare_digest(known[0].encode(), password.encode()):
            raise _Refused(407, "credentials")
        return name

    async def _connect(self, client: str, request: _Request) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = request.host, request.port
        admitted = self._clients[client][1]
        if not any(port == p and (host == h or host.endswith(f".{h}")) for h, p in admitted):
            self._note(client, host, port, "refused", "not this lake's endpoint")
            raise _Refused(403, "not this lake's endpoint")
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                addresses = await asyncio.to_thread(self.guard.resolve, host, port)
        except EgressError as error:
            self._note(client, host, port, "refused", error.detail)
            raise _Refused(403, "not allowed") from error
        except TimeoutError:
            self._note(client, host, port, "failed", "its name is not resolved in time")
            raise _Refused(504, "name") from None
        for address in addresses:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    # The checked address itself: the name is not resolved again.
                    opened = await asyncio.open_connection(address, port, limit=HEAD_BYTES)
            except (OSError, TimeoutError) as error:
                self._note(client, host, port, "failed", f"{address}: {error or 'does not answer'}")
                continue
            self._note(client, host, port, "passed", address)
            return opened
        raise _Refused(502, "does not answer")

    def _note(self, client: str, host: str, port: int, outcome: str, detail: str) -> None:
        passage = Passage(client, host, port, outcome, detail)
        self.passages.append(passage)
        self.counts[outcome] += 1
        self._notify(passage)


def _parse(head: bytes) -> _Request:
    line, _, rest = head.partition(b"\r\n")
    parts = line.split(b" ")
    if len(parts) != 3 or parts[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise _Refused(400, "request line")
    method, target, version = parts
    headers = [h for h in rest.removesuffix(b"\r\n\r\n").split(b"\r\n") if h]
    credential = next(
        (h.partition(b":")[2].strip() for h in headers if h.lower().startswith(b"proxy-authorization:")), b""
    )
    try:
        parsed = urlsplit(f"//{target.decode('ascii')}" if method == b"CONNECT" else target.decode("ascii"))
        host, port = (parsed.hostname or "").rstrip("."), parsed.port
    except ValueError:
        raise _Refused(400, "target") from None
    if not host or parsed.username or (method == b"CONNECT" and port is None):
        raise _Refused(400, "target")
    if method == b"CONNECT":
        return _Request(method, host, port or 443, b"", credential)
    if parsed.scheme != "http":
        raise _Refused(400, "scheme")
    # One request a connection: another one could be for another host, which was not checked.
    kept = [h for h in headers if h.partition(b":")[0].strip().lower() not in _HOP | {b"host"}]
    path = target.split(b"//", 1)[1].partition(b"/")[2]
    authority = target.split(b"//", 1)[1].partition(b"/")[0]
    lines = [method + b" /" + path + b" " + version, b"Host: " + authority, *kept, b"Connection: close"]
    return _Request(method, host, port or 80, b"\r\n".join(lines) + b"\r\n\r\n", credential)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        async with asyncio.timeout(IDLE_SECONDS):
            data = await reader.read(256 * 1024)
        if not data:
            break
        writer.write(data)
        async with asyncio.timeout(IDLE_SECONDS):
            await writer.drain()
    if writer.can_write_eof():
        with suppress(OSError):
            writer.write_eof()


_REASONS = {400: "Bad Request", 403: "Forbidden", 407: "Proxy Authentication Required", 502: "Bad Gateway",
            503: "Service Unavailable", 504: "Gateway Timeout"}  # fmt: skip


async def _answer(writer: asyncio.StreamWriter, status: int) -> None:
    more = b'Proxy-Authenticate: Basic realm="lakehouse"\r\n' if status == 407 else b""
    writer.write(
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Length: 0\r\nConnection: close\r\n".encode() + more + b"\r\n"
    )
    with suppress(OSError):
        async with asyncio.timeout(HEAD_SECONDS):
            await writer.drain()
