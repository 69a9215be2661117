"""What a backfill that was killed left behind: files that changed or went, parts, lakes that do not answer."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.support import Lakehouse, host_tables, insert_events, local_variables


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


def killed_backfill(house: Lakehouse, failpoint: str) -> None:
    done = house.run("backfill", "--table", "events", failpoints=f"{failpoint}=kill", check=None)
    assert done.returncode == -signal.SIGKILL, done.stderr


def staged_file(house: Lakehouse, organization: str) -> Path:
    with house.app.engine.connect() as connection:
        files = connection.scalars(text("SELECT jsonb_array_elements(files) FROM backfill_ranges")).all()
    path = next(f["path"] for f in files if f["organization"] == organization)
    return Path(path.removeprefix("file://"))


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_staged_file_that_is_changed_or_gone_is_read_again_and_holds_up_nobody(house: Lakehouse, damage: str) -> None:
    with house.hot() as hot:
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 1, 30)
        killed_backfill(house, "backfill.before_commit")
        path = staged_file(house, "org-a")
        if damage == "gone":
            path.unlink()
        else:
            content = bytearray(path.read_bytes())
            content[100:140] = bytes(40)
            path.write_bytes(content)
        result = house.backfill("events")
        assert not result.errors and result.rows == {"org-a": 30, "org-b": 30, "org-c": 0}
        assert (result.read_rows, result.resumed_ranges) == (30, 0), "its rows are read again, the others' are not"
    house.sync_ok("events")
    house.assert_equal("events")


def test_a_part_of_a_backfill_that_was_given_up_is_emptied_and_read_again(house: Lakehouse) -> None:
    house.reopen(LANDING__MAX_PARTITIONS="1")
    with house.hot() as hot:
        for day in (1, 2, 3):
            insert_events(hot, "org-a", day * 10, 2, day=f"2026-03-0{day}")
        killed_backfill(house, "landing.after_part")
        with house.app.engine.begin() as connection:
            connection.execute(text("UPDATE backfills SET status = 'abandoned'"))
        assert not house.backfill("events").errors
        house.sync_ok("events", reconcile=True)
    house.assert_equal("events")
    assert len(house.versions("events", "org-a")) == 6


def test_an_organization_that_was_paused_meanwhile_is_not_read_on(house: Lakehouse) -> None:
    with house.hot() as hot:
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 1, 30)
        killed_backfill(house, "backfill.before_commit")
        house.run("destinations", "pause", "lake", "--organization", "org-a")
        assert set(house.backfill("events").rows) == {"org-b", "org-c"}
        house.run("destinations", "resume", "lake", "--organization", "org-a")
        assert house.backfill("events").rows == {"org-a": 30}
    house.sync_ok("events")
    house.assert_equal("events")


def test_a_fault_of_one_organization_is_shown_as_its_own(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
        hot.execute("UPDATE ingested_events SET occurred_at = 'infinity' WHERE id = 'org-a-e1'")
        # More such rows than are allowed are a fault of the contract, and stop the organization.
        house.reopen(CAPTURE__MAX_QUARANTINED="0")
        house.run("backfill", "--table", "events", check=1)
    rows = {t["organization"]: t for t in house.run_json("status", check=1)["tables"] if t["table"] == "events"}
    assert "infinit" in rows["org-a"]["error"] and rows["org-a"]["state"] == "error"
    assert rows["org-b"]["error"] is None and rows["org-b"]["state"] == "current"
