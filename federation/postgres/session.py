"""A session with a replica's server: opened when it is first needed, one transaction at a time, given up when it hangs.

Before anything else is asked of it, the database is compared with those that it must never be. What goes wrong is
translated here, and without what the driver puts before the server's own words: statements hold rows. After any error
of the connection's the next transaction opens one anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from federation.postgres.line import Line, Patience
from federation.protocol import DestinationError
from schemas.errors import Retry

if TYPE_CHECKING:
    import pyarrow as pa
    from adbc_driver_postgresql.dbapi import Connection, Cursor

_SESSION = (
    "-csearch_path=pg_catalog,pg_temp -cTimeZone=UTC -cDateStyle=ISO,YMD -cextra_float_digits=1 -clock_timeout=10s "
    # A statement of a line that was cut ends, and with it what it has locked.
    "-cclient_connection_check_interval=10s"
)
_MISSING = {"3F000", "42P01", "42703", "42804", "42809", "42P10", "42P16", "42704"}
_REFUSED = {"28000", "28P01", "42501", "3D000"}
_REFUSALS = (
    "authentication failed", "no pg_hba.conf entry", "does not exist", "not permitted to log in",
    "no password supplied", "does not support SSL", "certificate",
)  # fmt: skip
"""In what libpq says of a connection that was not made; no SQLSTATE comes with it."""


class Session:
    """One connection to one database, by a line that is cut when nobody is there any more."""

    def __init__(
        self,
        url: str,
        where: str,
        server: tuple[str, int],
        patience: Patience,
        never: Callable[[], Set[tuple[str, str]]],
    ) -> None:
        """`where` names it in errors, without credentials; `server` is the address that is connected to.

        `never`: what it must not be (`identity`), asked at each opening: where an address leads can change.
        """
        self.where = where
        self._url = url
        self._server = server
        self._patience = patience
        self._never = never
        self._line: Line | None = None
        self._open: Connection | None = None

    @contextmanager
    def transaction(self, *, repeatable: bool = False) -> Iterator[Cursor]:
        """Committed at the end, rolled back after an error. `repeatable`: one snapshot for all of it.

        Raises:
            DestinationError: what does not work, and what to do.
        """
        from adbc_driver_manager import Error

        try:
            connection, line = self._connect()
            with line.asking(), connection.cursor() as cursor:
                if repeatable:
                    cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                try:
                    yield cursor
                except BaseException:
                    with suppress(Error):
                        connection.rollback()
                    raise
                connection.commit()
        except (Error, OSError) as error:
            cut = self._line.fault if self._line is not None else None
            # What broke may be the connection: the next transaction opens one anew.
            self.close()
            raise self._fault(error, cut) from error

    def resting(self, rows: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The same rows; while one is waited for, no answer of the server's is."""
        iterator = iter(rows)
        while True:
            with self._line.asking(resting=True) if self._line else nullcontext():
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    def identity(self) -> tuple[str, str]:
        """When the server was started, and the database's oid: what tells two databases apart."""
        with self.transaction() as cursor:
            return _identity(cursor)

    def close(self) -> None:
        """Release the connection. Idempotent; never raises."""
        from adbc_driver_manager import Error

        if self._open is not None:
            with suppress(Error):
                self._open.close()
            self._open = None
        if self._line is not None:
            self._line.close()
            self._line = None

    def _connect(self) -> tuple[Connection, Line]:
        from adbc_driver_postgresql import dbapi

        never = self._never() if self._open is None else frozenset[tuple[str, str]]()
        if self._line is None:
            self._line = Line(self._server, self._patience)
        line = self._line
        if self._open is None:
            with line.asking():
                self._open = dbapi.connect(connection_url(self._url, line.port), autocommit=False)
            line.connected()
            with line.asking():
                with self._open.cursor() as cursor:
                    found = _identity(cursor)
                self._open.rollback()
            if found in never:
                self.close()
                raise DestinationError(
                    f"{self.where}: the replica is the hot database itself",
                    "Give it a database of its own, on any server. Nothing was written. Where its address leads to the "
                    "hot database since it was added, mend that, then `lakehouse deliveries retry`.",
                    retry=Retry.NEVER,
                )
        return self._open, line

    def _fault(self, error: Exception, cut: str | None) -> DestinationError:
        if cut is not None:
            return DestinationError(f"{self.where}: {cut}", "It is tried again.", retry=Retry.TIMED)
        state = str(getattr(error, "sqlstate", "") or "")
        # The server's own words, without the statement that the driver puts before them.
        said = re.search(r"\b(?:ERROR|FATAL|PANIC):\s+(.+)", str(error))
        text = (
            said[1] if said else next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        )
        text = text[:300]
        if state in _REFUSED or (not state and any(word in text for word in _REFUSALS)):
            return DestinationError(
                f"{self.where}: refused: {text}",
                "Check user, password, database and rights of the replica; it needs CREATE on its schema, and "
                "owns what it made there.",
                retry=Retry.MANUAL,
            )
        if state in _MISSING:
            return DestinationError(
                f"{self.where}: something is missing or changed there: {text}",
                "Somebody removed or changed a table of the replica. Run `lakehouse destinations resync` for it; where "
                "that does not help, drop what it names first.",
                retry=Retry.MANUAL,
            )
        if state[:2] in ("22", "42", "23", "0A"):
            return DestinationError(
                f"{self.where}: {text}",
                "If nobody put a constraint or trigger there, this is a fault of the program's.",
                retry=Retry.MANUAL,
            )
        return DestinationError(f"{self.where}: {text}", "Nothing was delivered; it is tried again.", retry=Retry.TIMED)


def _identity(cursor: Cursor) -> tuple[str, str]:
    cursor.execute(
        "SELECT extract(epoch FROM pg_postmaster_start_time())::text, oid::text "
        "FROM pg_database WHERE datname = current_database()"
    )
    started, oid = cursor.fetchone()
    return str(started), str(oid)


def connection_url(url: str, port: int) -> str:
    """A URL for libpq with our session's settings, through a port of this machine; TLS is with the url's host."""
    from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query)) | {
        "application_name": "lakehouse replica",
        "options": _SESSION,
        "hostaddr": "127.0.0.1",
    }
    query.setdefault("connect_timeout", "10")
    user, at, host = parts.netloc.rpartition("@")
    netloc = f"{user}{at}{re.sub(r':[0-9]*$', '', host)}:{port}"
    # libpq decodes %20 but not +.
    return urlunsplit(parts._replace(netloc=netloc, query=urlencode(query).replace("+", "%20")))
