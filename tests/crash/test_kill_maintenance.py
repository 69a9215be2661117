"""Maintenance is killed at each of its failpoints: nothing is lost, and the next run takes what was left."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from lakehouse.failpoints import NAMES
from lakehouse.maintenance.garbage import list_files
from lakehouse.maintenance.references import References
from tests.support import Lakehouse, host_tables, insert_events, local_variables

POINTS = [n for n in NAMES if n.startswith("maintain.")]


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url, ("org-a",))
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    lakehouse.init()
    lakehouse.reopen(
        MAINTENANCE__KEEP_SNAPSHOTS="2",
        MAINTENANCE__KEEP_DAILY="0",
        MAINTENANCE__SETTLED_HOURS="0",
        MAINTENANCE__GRACE_MINUTES="0",
        MAINTENANCE__ORPHAN_HOURS="0",
    )
    yield lakehouse
    lakehouse.close()


@pytest.mark.parametrize("failpoint", POINTS)
def test_killed_in_maintenance(house: Lakehouse, failpoint: str) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 10)
        house.backfill("events")
        for number in range(5):
            insert_events(hot, "org-a", 100 + number, 1)
            hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = 'org-a-e3'")
            house.sync_ok("events", reconcile=number == 2)
        before = house.versions("events", "org-a")
        done = house.run("maintain", "--table", "events", failpoints=f"{failpoint}=kill", check=None)
        assert done.returncode == -signal.SIGKILL, (done.returncode, done.stdout, done.stderr)
        assert house.versions("events", "org-a") == before
        hot.execute("DELETE FROM ingested_events WHERE id IN ('org-a-e4', 'org-a-e101')")
        insert_events(hot, "org-a", 200, 1)
        house.sync_ok("events", reconcile=True)
    for _ in range(3):
        house.run("maintain", "--table", "events")
    table = house.lake_table("events", "org-a")
    # Nothing that is named is gone, and nothing is left that is not named.
    assert {f.path for f in list_files(table)} == References(table).everything()
    assert len(References(table).live()) == 1
    assert len(table.snapshots()) <= 3
    house.assert_equal("events")
    assert len(house.versions("events", "org-a")) == len(before) + 3


def test_a_compaction_between_two_parts_of_a_landing_does_not_make_it_whole(house: Lakehouse) -> None:
    house.reopen(LANDING__MAX_PARTITIONS="1")
    with house.hot() as hot:
        house.backfill("events")
        for number in range(3):
            insert_events(hot, "org-a", 10 + number, 1, day="2026-03-01")
            house.sync_ok("events", reconcile=False)
        for day in (1, 2, 3):
            insert_events(hot, "org-a", day * 100, 2, day=f"2026-03-0{day}")
        done = house.run("sync", "--once", "--table", "events", failpoints="landing.after_part=kill@1", check=None)
        assert done.returncode == -signal.SIGKILL, (done.returncode, done.stdout, done.stderr)
        house.run("maintain", "--table", "events")
        summary = house.lake_table("events", "org-a").current_snapshot().summary.additional_properties
        assert summary["lakehouse.compacted-part"] == "1/3"
    house.run("sync", "--once", "--table", "events")
    with house.app.engine.connect() as connection:
        statuses = connection.scalars(text("SELECT status FROM landings ORDER BY created_at")).all()
    assert statuses == ["landed"] * 4, "the two parts that were left are landed from where they were staged"
    house.assert_equal("events")
    assert len(house.versions("events", "org-a")) == 9
