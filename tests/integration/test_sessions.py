"""A running program keeps its connection between windows, one each, and never longer than it can trust it."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lakehouse.capture import sessions
from lakehouse.capture.xmin import transaction
from schemas.contract import Contract
from tests.support import Lakehouse, host_tables, insert_events, local_variables


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    """Events of one organization, one window taken; the program keeps one session."""
    host_tables(hot_url, ("org-a",))
    house = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 20)
    house.init()
    house.backfill("events")
    house.sync_ok("events")
    assert kept(house) == set()
    house.app.source.keep_sessions(1)
    house.sync_ok("events")
    try:
        yield house
    finally:
        house.close()


def kept(house: Lakehouse, state: str = "%") -> set[int]:
    """The source's backends that belong to windows."""
    with house.hot() as hot:
        rows = hot.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND state LIKE %s "
            "AND application_name IN ('lakehouse catalog', 'lakehouse capture')",
            [state],
        )
        return {pid for (pid,) in rows}


def window(house: Lakehouse, first: int) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", first, 3)
    assert house.sync_ok("events").upserts == {"org-a": 3}


def test_windows_share_one_connection_that_is_in_no_transaction(house: Lakehouse) -> None:
    one = kept(house)
    assert len(one) == 1
    for first in (100, 200, 300):
        window(house, first)
        assert kept(house, "idle") == one
    house.app.source.close()
    assert kept(house) == set()
    window(house, 400)
    assert kept(house) == set()


def test_one_that_ended_meanwhile_is_replaced(house: Lakehouse) -> None:
    before = kept(house)
    with house.hot() as hot:
        hot.execute("SELECT pg_terminate_backend(pid, 5000) FROM unnest(%s::int[]) AS pid", [list(before)])
    window(house, 100)
    assert len(kept(house)) == 1
    assert not kept(house) & before


@pytest.mark.parametrize("method", ["xmin", "trigger"])
def test_who_waits_for_the_windows_lock_is_not_waited_for(house: Lakehouse, method: str) -> None:
    """TRUNCATE waits for a window that has read nothing yet: what the window asks next must not wait for TRUNCATE."""
    if method == "trigger":
        house.run("source", "prepare", "--apply", "--table", "events")
    house.reopen(CAPTURE__METHODS=json.dumps({"events": method}), SOURCE__LOCK_TIMEOUT_SECONDS="5")
    waiting = threading.Thread(target=truncate, args=[house.hot_url])

    def locked(cursor: Any, contract: Contract, **more: Any) -> Any:
        @contextmanager
        def within() -> Iterator[None]:
            with transaction(cursor, contract, **more):
                waiting.start()
                until_it_waits(house)
                yield

        return within()

    module = sys.modules[type(house.app.method(house.app.contract("events"))).__module__]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "transaction", locked)
        house.sync_ok("events")
    waiting.join()
    house.sync_ok("events", reconcile=True)
    house.assert_equal("events")


def truncate(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("TRUNCATE ingested_events CASCADE")


def until_it_waits(house: Lakehouse) -> None:
    with house.hot() as hot:
        for _ in range(500):
            if hot.execute("SELECT 1 FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'").fetchone():
                return
            time.sleep(0.01)
    raise AssertionError("TRUNCATE does not wait")


def test_an_old_one_is_opened_anew(house: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    before = kept(house)
    monkeypatch.setattr(sessions, "LONGEST_SECONDS", 0.0)
    window(house, 100)
    assert not kept(house) & before


def test_a_window_that_failed_keeps_nothing(house: Lakehouse) -> None:
    with house.hot() as hot:
        hot.execute("ALTER TABLE ingested_events RENAME COLUMN actor TO who")
    assert house.sync("events").errors
    assert kept(house) == set()
    with house.hot() as hot:
        hot.execute("ALTER TABLE ingested_events RENAME COLUMN who TO actor")
    window(house, 100)
    house.assert_equal("events")
