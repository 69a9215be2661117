"""Servers that were stopped: the kernel accepts and acknowledges for them, and no answer ever comes."""

from __future__ import annotations

import os
import secrets
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import pytest

from federation.kinds import DestinationKind
from federation.protocol import Delivery, DestinationError
from lakehouse import destinations
from lakehouse.deliver.parity import parity
from lakehouse.deliver.ranges import open_lake_table, range_reader
from lakehouse.deliver.run import deliver_now
from lakehouse.deliver.targets import adapter_of
from lakehouse.embedded.postgres import EmbeddedPostgres
from lakehouse.embedded.s3 import EmbeddedS3
from schemas.errors import Retry
from tests.conformance.places import Target, add_there, new_target
from tests.support import Lakehouse, insert_events


@contextmanager
def stopped(server: EmbeddedPostgres) -> Iterator[None]:
    """All of it, the sessions' processes too."""
    postmaster = psutil.Process(server.pid)
    family = [postmaster, *postmaster.children()]
    for process in family:
        os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in family:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)


def add(house: Lakehouse, name: str, kind: DestinationKind, target: Target) -> destinations.Destination:
    return add_there(house, kind, target.config, target.credentials, name=name)


def test_servers_that_are_stopped_hold_up_nobody(house: Lakehouse, s3_server: EmbeddedS3) -> None:
    house.reopen(DELIVER__ANSWER_SECONDS="1", DELIVER__STATEMENT_SECONDS="20")
    with EmbeddedPostgres() as postgres, EmbeddedS3() as s3:
        replica = new_target(DestinationKind.POSTGRES_REPLICA, postgres, s3_server)
        files = new_target(DestinationKind.PARQUET_S3, postgres, s3)
        lines = new_target(DestinationKind.JSONL_S3, postgres, s3_server)
        # The good one comes last.
        all_three = [
            add(house, "a replica", DestinationKind.POSTGRES_REPLICA, replica),
            add(house, "b files", DestinationKind.PARQUET_S3, files),
            add(house, "c lines", DestinationKind.JSONL_S3, lines),
        ]
        assert [r.error for r in deliver_now(house.app, all_three, ["events"])] == [None] * 3
        with house.hot() as hot:
            insert_events(hot, "org-a", 70, 3)
        house.sync_ok("events")
        a_statement_is_given_up(house, postgres, replica)
        with stopped(postgres):
            s3.pause()
            results = {r.destination: r.error for r in deliver_now(house.app, all_three, ["events"])}
            s3.resume()
        assert results.pop("c lines") is None
        assert {name: e.retry if e else None for name, e in results.items()} == {
            "a replica": Retry.TIMED,
            "b files": Retry.TIMED,
        }
        assert [r.error for r in deliver_now(house.app, all_three, ["events"])] == [None] * 2
        for found in parity(house.app, all_three, ["events"]):
            assert found.equal and (found.lag, found.rows) == (0, 13), (found, str(found.error))


def a_statement_is_given_up(house: Lakehouse, postgres: EmbeddedPostgres, target: Target) -> None:
    """Stopped while rows are loaded: what was sent is acknowledged, and the answer does not come."""
    app, kind = house.app, DestinationKind.POSTGRES_REPLICA
    contract = app.contract("events")
    (one,) = [d for d in destinations.destinations(app) if d.kind == kind.value]
    adapter = adapter_of(app, "org-a", kind, target.config, target.credentials, destination=one.id)
    with range_reader(app, open_lake_table(app, contract, "org-a")) as rows:
        stop = stopped(postgres)

        def stopping(after: int, upto: int) -> Iterator[Any]:
            yield from rows(after, upto)
            stop.__enter__()

        with pytest.raises(DestinationError, match="hangs") as caught:
            adapter.deliver(Delivery("d", contract, 10, 13, 1), stopping)
        assert caught.value.retry is Retry.TIMED
        stop.__exit__(None, None, None)
        assert adapter.standing(contract) == 10, "it goes on over another connection"
    adapter.close()


def test_a_server_that_works_is_waited_for(house: Lakehouse, postgres_server: EmbeddedPostgres) -> None:
    """A statement that says nothing for long is no silence of the server; but it has a bound too."""
    schema = f"s{secrets.token_hex(4)}"
    target = {"url": postgres_server.create_database(schema)}

    def sleep(seconds: int) -> None:
        kind = DestinationKind.POSTGRES_REPLICA
        adapter = adapter_of(house.app, "org-a", kind, {"schema": schema}, target, destination=None)
        try:
            with adapter._session.transaction() as cursor:  # type: ignore[attr-defined]
                cursor.execute(f"SELECT pg_sleep({seconds})")
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", adapter._session._line.port))  # type: ignore[attr-defined]
        finally:
            adapter.close()

    house.reopen(DELIVER__ANSWER_SECONDS="0.3")
    sleep(2)
    house.reopen(DELIVER__STATEMENT_SECONDS="1")
    with pytest.raises(DestinationError, match="did not answer within 1 s") as caught:
        sleep(60)
    assert caught.value.retry is Retry.TIMED
