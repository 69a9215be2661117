"""A program that places a hold is killed: the hold is in force all the same, and the lake hears of it later."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lakehouse.archive import holds, mirror
from lakehouse.archive.installation import connect
from tests.support import Lakehouse, host_tables, insert_events, local_variables


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url, ("org-a",))
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


def test_killed_after_a_hold_was_placed(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 2)
        house.backfill("events")
        place = (
            "hold",
            "place",
            "--organization",
            "org-a",
            "--table",
            "events",
            "--reason",
            "litigation",
            "--by",
            "eva",
        )
        done = house.run(*place, failpoints="archive.hold_placed=kill", check=None)
        assert done.returncode == -signal.SIGKILL, (done.returncode, done.stdout, done.stderr)
        with connect(house.app) as connection:
            (hold,) = holds.active(connection, "org-a")
        assert hold.placed_by == "eva"
        assert hot.execute("SELECT actor, action, subject->>'hold' FROM lakehouse_archive.audit").fetchall() == [
            ("eva", "hold placed", str(hold.id))
        ]
    assert mirror.read_holds(house.app.lake("org-a")) == {}
    assert "main" in house.lake_table("events", "org-a").metadata.refs
    assert house.run_json("maintain", "--table", "events")["archive"]["holds_mirrored"] == 1
    assert mirror.read_holds(house.app.lake("org-a")) == {hold.id: hold}
    assert f"hold-{hold.id}" in house.lake_table("events", "org-a").metadata.refs
