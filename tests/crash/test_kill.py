"""A real process is killed at each failpoint; afterwards the lake equals the table and no version landed twice."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lakehouse.failpoints import NAMES
from tests.support import Lakehouse, host_tables, insert_events, local_variables

WINDOW_POINTS = [n for n in NAMES if n.startswith(("capture.", "landing.")) and n != "landing.after_part"]
BACKFILL_POINTS = [n for n in NAMES if n.startswith("backfill.")]


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


def killed(house: Lakehouse, failpoint: str, *arguments: str) -> None:
    done = house.run(*arguments, failpoints=f"{failpoint}=kill", check=None)
    assert done.returncode == -signal.SIGKILL, (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("failpoint", WINDOW_POINTS)
def test_killed_in_a_window_by_triggers(house: Lakehouse, failpoint: str) -> None:
    house.run("source", "prepare", "--apply", "--table", "events")
    house.reopen(CAPTURE__METHODS='{"events": "trigger"}')
    with house.hot() as hot:
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 1, 10)
        house.backfill("events")
        house.sync_ok("events")
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 100, 5)
        hot.execute("DELETE FROM ingested_events WHERE id IN ('org-a-e3', 'org-b-e4')")
        killed(house, failpoint, "sync", "--once", "--table", "events")
        # What was deleted comes back before anybody does.
        insert_events(hot, "org-a", 3, 1)
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e100'")
    house.run("sync", "--once", "--table", "events")
    house.assert_equal("events")
    house.run("sync", "--once", "--table", "events")
    house.assert_equal("events")


@pytest.mark.parametrize("failpoint", WINDOW_POINTS)
def test_killed_in_a_window(house: Lakehouse, failpoint: str) -> None:
    with house.hot() as hot:
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 1, 10)
        house.backfill("events")
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 100, 5)
        hot.execute("DELETE FROM ingested_events WHERE id IN ('org-a-e3', 'org-b-e4')")
        killed(house, failpoint, "sync", "--once", "--table", "events", "--reconcile")
        # Rows move on before anybody comes back.
        hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = 'org-a-e100'")
        insert_events(hot, "org-a", 200, 1)
    house.run("sync", "--once", "--table", "events", "--reconcile")
    house.assert_equal("events")
    house.run("sync", "--once", "--table", "events", "--reconcile")
    house.assert_equal("events")


def test_killed_between_two_parts(house: Lakehouse) -> None:
    house.reopen(LANDING__MAX_PARTITIONS="1")
    with house.hot() as hot:
        house.backfill("events")
        for day in (1, 2, 3):
            insert_events(hot, "org-a", day * 10, 2, day=f"2026-03-0{day}")
        killed(house, "landing.after_part", "sync", "--once", "--table", "events")
        hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = 'org-a-e10'")
    house.run("sync", "--once", "--table", "events")
    house.assert_equal("events")
    assert len(house.versions("events", "org-a")) == 7


@pytest.mark.parametrize("failpoint", BACKFILL_POINTS)
def test_killed_in_a_backfill(house: Lakehouse, failpoint: str) -> None:
    house.reopen(BACKFILL__RANGE_ROWS="100")
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 500)
        insert_events(hot, "org-b", 1, 100)
        hot.execute("ANALYZE ingested_events")
        # A worker's death ends the run with an error, the program's own with a signal.
        done = house.run("backfill", "--table", "events", failpoints=f"{failpoint}=kill", check=None)
        assert done.returncode in (-signal.SIGKILL, 1), (done.returncode, done.stdout, done.stderr)
        hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id LIKE '%%e7'")
        hot.execute("DELETE FROM ingested_events WHERE id LIKE '%%e9'")
        insert_events(hot, "org-a", 1000, 5)
    (result,) = house.run_json("backfill", "--table", "events")
    assert not result["errors"]
    if failpoint in ("backfill.range_done", "backfill.before_commit", "backfill.after_commit"):
        assert result["resumed_ranges"] > 0, "what was read is not read again"
    house.run("sync", "--once", "--table", "events", "--reconcile")
    house.assert_equal("events")
