"""Tenants' storage is reached through the proxy and nothing else; real clients, a real S3 server behind it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import duckdb
import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq
import pytest

from catalog.lake import LakeAddress
from lakehouse.duck import connect
from lakehouse.egress import proxy as proxy_module
from lakehouse.egress.guard import Guard
from lakehouse.egress.proxy import EgressProxy
from lakehouse.embedded.s3 import EmbeddedS3


@pytest.fixture
def answers() -> dict[str, list[list[str]]]:
    """What names resolve to, answer by answer; the last one stays."""
    return {}


@pytest.fixture
def proxy(answers: dict[str, list[list[str]]], s3: EmbeddedS3) -> Iterator[EgressProxy]:
    """A proxy for which the S3 server's own address is allowed, and nothing else of this machine."""

    def resolve(host: str, port: int) -> list[str]:
        known = answers[host]
        return known.pop(0) if len(known) > 1 else known[0]

    opened = EgressProxy(Guard((urlsplit(s3.endpoint).netloc, "storage.test"), resolve))
    yield opened
    opened.close()


def port(s3: EmbeddedS3) -> int:
    found = urlsplit(s3.endpoint).port
    assert found is not None
    return found


def filesystem(s3: EmbeddedS3, proxy_uri: str, endpoint: str | None = None) -> fs.S3FileSystem:
    return fs.S3FileSystem(
        access_key=s3.access_key,
        secret_key=s3.secret_key,
        endpoint_override=endpoint or s3.endpoint,
        region=s3.region,
        proxy_options=proxy_uri,
        connect_timeout=5,
        request_timeout=5,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
    )


def address(s3: EmbeddedS3, bucket: str, proxy_uri: str, endpoint: str | None = None) -> LakeAddress:
    storage = s3.storage_options() | {"s3.proxy-uri": proxy_uri, "s3.endpoint": endpoint or s3.endpoint}
    return LakeAddress("sql", "x", "", f"s3://{bucket}/lake", storage)


class Trap:
    """A server on another address of this machine that nobody may reach."""

    def __init__(self) -> None:
        self.hits = 0
        self._listener = socket.create_server(("127.0.0.2", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.hits += 1
                connection.close()

    def close(self) -> None:
        self._listener.close()


class Redirecting:
    """A tenant's endpoint that answers every request with a redirect."""

    def __init__(self, target: str) -> None:
        self.hits = 0
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    connection.settimeout(5)
                    connection.recv(65536)
                    self.hits += 1
                    answer = f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {self._target}\r\nContent-Length: 0\r\n"
                    connection.sendall(f"{answer}Connection: close\r\n\r\n".encode())

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def trap() -> Iterator[Trap]:
    opened = Trap()
    yield opened
    opened.close()


def test_pyarrow_and_duckdb_go_through_it(proxy: EgressProxy, s3: EmbeddedS3, bucket: str) -> None:
    uri = proxy.admit("org_a", [("127.0.0.1", port(s3))])
    files = filesystem(s3, uri)
    table = pa.table({"n": list(range(100_000))})
    pq.write_table(table, f"{bucket}/lake/one.parquet", filesystem=files)
    assert pq.read_table(f"{bucket}/lake/one.parquet", filesystem=files).num_rows == 100_000
    by_arrow = proxy.counts["passed"]
    assert by_arrow >= 2
    with connect([address(s3, bucket, uri)]) as duck:
        read = f"SELECT count(*), sum(n) FROM read_parquet('s3://{bucket}/lake/one.parquet')"
        assert duck.execute(read).fetchall() == [(100_000, 4_999_950_000)]
        duck.execute(f"COPY (SELECT 1 AS n) TO 's3://{bucket}/lake/two.parquet'")
    assert proxy.counts["passed"] > by_arrow and proxy.counts["refused"] == 0
    assert pq.read_table(f"{bucket}/lake/two.parquet", filesystem=files).num_rows == 1
    assert {(p.client, p.host, p.detail) for p in proxy.passages} == {("org_a", "127.0.0.1", "127.0.0.1")}
    # Without it there is no other way: the same clients do nothing when it is closed.
    proxy.close()
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        files.get_file_info(f"{bucket}/lake/one.parquet")
    with connect([address(s3, bucket, uri)]) as duck, pytest.raises(duckdb.Error):
        duck.execute(read)


def test_one_engine_keeps_lakes_apart(proxy: EgressProxy, s3: EmbeddedS3, bucket: str) -> None:
    """Keys are scoped to a warehouse: a neighbour whose name only begins alike is not read with them."""
    uri = proxy.admit("org_a", [("127.0.0.1", port(s3))])
    for folder in ("lake", "lake-of-another"):
        pq.write_table(pa.table({"n": [1]}), f"{bucket}/{folder}/x.parquet", filesystem=filesystem(s3, uri))
    with connect([address(s3, bucket, uri)]) as duck:
        assert duck.execute(f"FROM 's3://{bucket}/lake/x.parquet'").fetchall() == [(1,)]
        which = f"SELECT name FROM which_secret('s3://{bucket}/lake-of-another/x.parquet', 's3')"
        assert duck.execute(which).fetchall() == []
        (limit,) = duck.execute("SELECT current_setting('memory_limit')").fetchall()[0]
    with connect([]) as other:
        assert other.execute("SELECT current_setting('memory_limit')").fetchall() == [(limit,)]
        assert other.execute(f"FROM 's3://{bucket}/lake/x.parquet'").fetchall() == [(1,)], "one engine"


def test_iceberg_files_are_read_through_it_by_duckdb(proxy: EgressProxy, s3: EmbeddedS3, bucket: str) -> None:
    """Metadata, manifest lists, manifests and data: no client of the extension goes another way."""
    from pyiceberg.catalog.sql import SqlCatalog

    from lakehouse.duck import lake_relation

    uri = proxy.admit("org_a", [("127.0.0.1", port(s3))])
    lake = address(s3, bucket, uri)
    catalog = SqlCatalog("c", uri="sqlite://", warehouse=lake.warehouse, **lake.storage)
    catalog.create_namespace("n")
    table = catalog.create_table("n.t", pa.schema([("n", pa.int64())]))
    table.append(pa.table({"n": [1, 2, 3]}))
    with connect([lake]) as duck:
        query = f"SELECT sum(n) FROM {lake_relation(table.metadata_location)}"
        assert duck.execute(query).fetchall() == [(6,)]
        proxy.close()
        with pytest.raises(duckdb.Error):
            duck.execute(query)
    catalog.engine.dispose()


def test_an_answer_that_changes_between_check_and_connect(
    proxy: EgressProxy, s3: EmbeddedS3, trap: Trap, answers: dict[str, list[list[str]]]
) -> None:
    """A name that is public when it is saved and leads home when it is used; and one that changes in between."""
    answers["rebinding.test"] = [["8.8.8.8"], ["127.0.0.2"]]
    assert proxy.guard.resolve("rebinding.test", trap.port) == ["8.8.8.8"], "as it was saved"
    uri = proxy.admit("org_a", [("rebinding.test", trap.port)])
    with pytest.raises(OSError, match=r"403|ACCESS_DENIED"):
        filesystem(s3, uri, f"http://rebinding.test:{trap.port}").get_file_info("b/x")
    assert trap.hits == 0 and proxy.counts["refused"] >= 1 and proxy.counts["passed"] == 0
    assert "127.0.0.2, which is loopback" in proxy.passages[0].detail


def test_the_address_that_was_checked_is_the_one_that_is_used(
    proxy: EgressProxy, s3: EmbeddedS3, bucket: str, trap: Trap, answers: dict[str, list[list[str]]]
) -> None:
    """The first answer is the S3 server, every later one the trap: one question a connection is asked, and kept."""
    answers["storage.test"] = [["127.0.0.1"], ["127.0.0.2"]]
    uri = proxy.admit("org_a", [("storage.test", port(s3))])
    found = filesystem(s3, uri, f"http://storage.test:{port(s3)}").get_file_info(fs.FileSelector(bucket))
    assert found == [] and trap.hits == 0
    assert [p.detail for p in proxy.passages] == ["127.0.0.1"]


@pytest.mark.parametrize("target", ["http://127.0.0.2:{trap}/b/x", "http://127.0.0.1:{s3}/b/x", "http://public.test/x"])
def test_a_redirect_leads_nowhere(
    proxy: EgressProxy, s3: EmbeddedS3, bucket: str, trap: Trap, answers: dict[str, list[list[str]]], target: str
) -> None:
    """Nor to what the operator allows, nor to another public host: a lake is let through to its own endpoint only."""
    answers["public.test"] = [["8.8.8.8"]]
    redirecting = Redirecting(target.format(trap=trap.port, s3=port(s3)))
    answers["storage.test"] = [["127.0.0.1"]]
    uri = proxy.admit("org_a", [("storage.test", redirecting.port)])
    endpoint = f"http://storage.test:{redirecting.port}"
    try:
        with pytest.raises(OSError, match=r"403|ACCESS_DENIED|307"):
            filesystem(s3, uri, endpoint).get_file_info("b/x")
        with connect([address(s3, bucket, uri, endpoint)]) as duck, pytest.raises(duckdb.Error):
            duck.execute(f"FROM read_parquet('s3://{bucket}/lake/x.parquet')")
    finally:
        redirecting.close()
    assert redirecting.hits > 0 and trap.hits == 0
    assert {p.host for p in proxy.passages if p.outcome == "passed"} == {"storage.test"}
    assert [p for p in proxy.passages if p.outcome == "refused" and p.host in target]


def raw(proxy: EgressProxy, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
        connection.sendall(request)
        said = b""
        while more := connection.recv(65536):
            said += more
    return said.split(b"\r\n", 1)[0]


def test_nobody_without_a_credential_is_served(proxy: EgressProxy, s3: EmbeddedS3, trap: Trap) -> None:
    proxy.admit("org_a", [("127.0.0.1", port(s3))])
    target = f"127.0.0.1:{port(s3)}".encode()
    for credential in (b"", b"Proxy-Authorization: Basic b3JnX2E6d3Jvbmc=\r\n", b"Proxy-Authorization: x\r\n"):
        assert b" 407 " in raw(proxy, b"CONNECT " + target + b" HTTP/1.1\r\n" + credential + b"\r\n")
    assert not proxy.passages


def test_odd_requests_are_refused_and_the_proxy_goes_on(
    proxy: EgressProxy, s3: EmbeddedS3, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import base64

    monkeypatch.setattr(proxy_module, "HEAD_SECONDS", 0.2)
    uri = proxy.admit("org_a", [("127.0.0.1", port(s3))])
    parts = urlsplit(uri)
    token = base64.b64encode(f"{parts.username}:{parts.password}".encode())
    credential = b"Proxy-Authorization: Basic " + token + b"\r\n\r\n"
    for line in (
        b"CONNECT 127.0.0.1 HTTP/1.1",
        b"GET / HTTP/1.1",
        b"GET ftp://x/ HTTP/1.1",
        b"CONNECT x:99999 HTTP/1.1",
    ):
        assert b" 400 " in raw(proxy, line + b"\r\n" + credential)
    assert b" 403 " in raw(proxy, b"CONNECT 169.254.169.254:80 HTTP/1.1\r\n" + credential)
    # One that never ends its head, and one whose head has no end.
    assert raw(proxy, b"CONNECT ") == b""
    assert raw(proxy, b"GET http://x/ HTTP/1.1\r\nX: " + b"a" * 100_000) == b""
    assert filesystem(s3, uri).get_file_info(bucket).type == fs.FileType.Directory
