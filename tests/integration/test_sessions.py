"""A running program keeps its connections between windows, as a pair, and never longer than it can trust them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lakehouse.capture import sessions
from tests.support import Lakehouse, host_tables, insert_events, local_variables


@pytest.fixture
def house(postgres_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    """Events of one organization, one window taken; the program keeps one session."""
    host_tables(postgres_url, ("org-a",))
    house = Lakehouse(postgres_url, local_variables(postgres_url, tmp_path))
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


def test_windows_share_one_pair_that_is_in_no_transaction(house: Lakehouse) -> None:
    pair = kept(house)
    assert len(pair) == 2
    for first in (100, 200, 300):
        window(house, first)
        assert kept(house, "idle") == pair
    house.app.source.close()
    assert kept(house) == set()
    window(house, 400)
    assert kept(house) == set()


@pytest.mark.parametrize("which", ["lakehouse catalog", "lakehouse capture"])
def test_one_that_ended_meanwhile_takes_the_other_along(house: Lakehouse, which: str) -> None:
    pair = kept(house)
    with house.hot() as hot:
        hot.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = %s "
            "AND datname = current_database()",
            [which],
        )
    window(house, 100)
    assert len(kept(house)) == 2
    assert not kept(house) & pair


def test_an_old_pair_is_opened_anew(house: Lakehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = kept(house)
    monkeypatch.setattr(sessions, "LONGEST_SECONDS", 0.0)
    window(house, 100)
    assert not kept(house) & pair


def test_a_window_that_failed_keeps_nothing(house: Lakehouse) -> None:
    with house.hot() as hot:
        hot.execute("ALTER TABLE ingested_events RENAME COLUMN actor TO who")
    assert house.sync("events").errors
    assert kept(house) == set()
    with house.hot() as hot:
        hot.execute("ALTER TABLE ingested_events RENAME COLUMN who TO actor")
    window(house, 100)
    house.assert_equal("events")
