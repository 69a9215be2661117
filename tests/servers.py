"""What happens to database servers: copied folders, restores, standbys that are promoted, transaction ids moved on.

Each function works on an `EmbeddedPostgres` of the test's own, on its data folder, as its account.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import psycopg

from lakehouse.embedded.cluster import account_for, environment, keep_password
from lakehouse.embedded.host import identity
from lakehouse.embedded.postgres import EmbeddedPostgres


def cold_copy(server: EmbeddedPostgres, name: str) -> Path:
    """Stop the server, copy its data folder beside it, start it again; the copy's path. The copy knows its password."""
    server.stop(keep=True)
    copy = server._data.with_name(name)
    _copy(server._data, copy)
    server.start()
    with suppress(FileExistsError):
        keep_password(copy, server._password, account_for(copy))
    return copy


def restore(server: EmbeddedPostgres, copy: Path) -> None:
    """Put an older copy in the place of the server's data, and start on the same port."""
    server.stop(keep=True)
    shutil.rmtree(server._data)
    _copy(copy, server._data)
    server.start()


def clone(copy: Path) -> EmbeddedPostgres:
    """A running server that begins with what was copied, on a port of its own. The caller stops it."""
    folder = copy.with_name(f"server-{secrets.token_hex(4)}")
    folder.mkdir()
    _copy(copy, folder / "data")
    server = EmbeddedPostgres(folder / "data", settings={"autovacuum": "off", "fsync": "off"})
    server.start()
    return server


def standby(primary: EmbeddedPostgres) -> EmbeddedPostgres:
    """A streaming, asynchronous standby of a running server. The caller stops it."""
    copy = cold_copy(primary, "base")
    with (copy / "postgresql.auto.conf").open("a") as file:
        file.write(
            f"primary_conninfo = 'host=127.0.0.1 port={primary.port} user=postgres password={primary._password}'\n"
        )
    (copy / "standby.signal").touch()
    return clone(copy)


def promote(server: EmbeddedPostgres, port: int) -> None:
    """Make a standby a primary, and give it a (free) port."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        assert connection.execute("SELECT pg_promote(true, 60)").fetchone() == (True,)
    server.stop(keep=True)
    server._port = port
    server.start()


def caught_up(primary: EmbeddedPostgres, follower: EmbeddedPostgres) -> None:
    """Return when the standby has replayed all that the primary has written."""
    with psycopg.connect(primary.url(), autocommit=True) as connection:
        (lsn,) = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone() or ("",)
    with psycopg.connect(follower.url(), autocommit=True) as connection:
        for _ in range(3000):
            if connection.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [lsn]).fetchone() == (True,):
                return
            # There is no signal for a replayed position before version 19: the server itself waits.
            connection.execute("SELECT pg_sleep(0.01)")
    raise AssertionError("the standby does not follow")


def next_transaction(server: EmbeddedPostgres, xid: int, *, epoch: int = 0) -> None:
    """Stop the server, let its next transaction be `epoch` * 2^32 + `xid` (a multiple of 2^20), and start it.

    At the beginning of a segment of the commit log no file of it has to be there.
    """
    assert xid % 2**20 == 0
    server.stop(keep=True)
    program(server, "pg_resetwal", "-x", str(xid), "-e", str(epoch), "-D", str(server._data))
    server.start()


def freeze(server: EmbeddedPostgres) -> None:
    """Freeze every database, so that ids can move on by another half of their space."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("ALTER DATABASE template0 ALLOW_CONNECTIONS true")
        names = [row[0] for row in connection.execute("SELECT datname FROM pg_database").fetchall()]
    for name in names:
        with psycopg.connect(server.url(name), autocommit=True) as connection:
            connection.execute("VACUUM (FREEZE)")


def program(server: EmbeddedPostgres, name: str, *arguments: str) -> str:
    """Run one of PostgreSQL's programs as the server's account; what it printed."""
    account = account_for(None)
    done = subprocess.run(
        [str(server._binaries / "bin" / name), *arguments],
        capture_output=True,
        text=True,
        cwd=server._data.parent,
        env=environment(server._data.parent) | {"PGPASSWORD": server._password},
        timeout=120,
        **identity(account),
    )
    assert done.returncode == 0, (name, done.stdout, done.stderr)
    return done.stdout


def _copy(source: Path, target: Path) -> None:
    # As the system copies it: owners and modes are PostgreSQL's business.
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)
