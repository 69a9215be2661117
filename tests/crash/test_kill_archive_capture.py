"""Programs die while archived rows are on their way: no tombstone is lost or doubled, none of them becomes a delete."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from lakehouse.archive.archive_table import open_archive, read_standing
from lakehouse.duck import connect, lake_relation
from tests.archiver import archive_rows, enable
from tests.support import Lakehouse, host_tables, insert_events, local_variables


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url, ("org-a",))
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    lakehouse.init()
    with lakehouse.hot() as hot:
        insert_events(hot, "org-a", 1, 20)
    lakehouse.backfill("events")
    lakehouse.sync_ok("events")
    enable(lakehouse)
    yield lakehouse
    lakehouse.close()


def killed(house: Lakehouse, failpoint: str, *arguments: str) -> None:
    done = house.run(*arguments, failpoints=f"{failpoint}=kill", check=None)
    assert done.returncode == -signal.SIGKILL, (done.returncode, done.stdout, done.stderr)


def keys(*numbers: int) -> list[str]:
    return [f"org-a-e{n}" for n in numbers]


WINDOW_POINTS = [
    "capture.before_read",
    "capture.chunk_staged",
    "landing.recorded",
    "landing.before_commit",
    "landing.after_commit",
    "landing.acknowledged",
]


@pytest.mark.parametrize("method", ["xmin", "trigger"])
@pytest.mark.parametrize("failpoint", WINDOW_POINTS)
def test_killed_in_the_window_after_the_archive(house: Lakehouse, failpoint: str, method: str) -> None:
    sync = ["sync", "--once", "--table", "events", *(["--reconcile"] if method == "xmin" else [])]
    if method == "trigger":
        house.run("source", "prepare", "--apply", "--table", "events")
        house.reopen(CAPTURE__METHODS='{"events": "trigger"}')
        house.sync_ok("events")
    archive_rows(house, "events", "org-a", keys(1, 2, 3))
    with house.hot() as hot:
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e9'")
        insert_events(hot, "org-a", 100, 1)
        killed(house, failpoint, *sync)
        # More goes, and something comes back, before anybody is there again.
        archive_rows(house, "events", "org-a", keys(4))
        insert_events(hot, "org-a", 2, 1)
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e8'")
    house.run(*sync)
    house.run(*sync)
    (comparison,) = house.compare("events")
    assert comparison.equal and comparison.archived == 3, (comparison, comparison.differences)
    deletes = [v["id"] for v in house.versions("events", "org-a", "id, _op, _sequence") if v["_op"] == "delete"]
    assert sorted(deletes) == keys(8, 9), "what the host deleted, once, and nothing that the archive took"


@pytest.mark.parametrize("method", ["xmin", "trigger"])
def test_killed_while_archiving(house: Lakehouse, method: str) -> None:
    if method == "trigger":
        house.run("source", "prepare", "--apply", "--table", "events")
        house.reopen(CAPTURE__METHODS='{"events": "trigger"}')
        house.sync_ok("events")
    # Not committed: the rows are here, and have no tombstone.
    with psycopg.connect(house.hot_url) as gone:
        assert archive_rows(house, "events", "org-a", keys(1, 2), connection=gone) == keys(1, 2)
        house.sync_ok("events", reconcile=True)
        gone.rollback()
    # Committed, and nobody is told.
    archive_rows(house, "events", "org-a", keys(3))
    house.sync_ok("events", reconcile=True if method == "xmin" else None)
    (comparison,) = house.compare("events")
    assert comparison.equal and comparison.archived == 1, (comparison, comparison.differences)


def exported(house: Lakehouse) -> list[str]:
    archive = open_archive(house.app.lake("org-a"))
    if archive is None or archive.current_snapshot() is None:
        return []
    with connect([house.app.address_of("org-a")]) as duck:
        rows = duck.execute(
            f"SELECT row_key FROM {lake_relation(archive.metadata_location)} ORDER BY _sequence"
        ).fetchall()
    return [key for (key,) in rows]


# In the middle of the file, and between the lake's commit and its note in the hot database.
@pytest.mark.parametrize(("failpoint", "there"), [("capture.file_begun", 0), ("archive.exported", 3)])
def test_killed_in_the_export(house: Lakehouse, failpoint: str, there: int) -> None:
    archive_rows(house, "events", "org-a", keys(1, 2))
    archive_rows(house, "events", "org-a", keys(3))
    killed(house, failpoint, "maintain", "--table", "_archive")
    assert exported(house) == keys(1, 2, 3)[:there]
    with house.hot() as hot:
        assert hot.execute("SELECT count(*) FROM lakehouse_archive.batches WHERE exported_at IS NULL").fetchone() == (
            2,
        )
    archive_rows(house, "events", "org-a", keys(4))
    done = house.run_json("maintain", "--table", "_archive")
    assert done["archive"]["batches_exported"] == (1 if there else 3)
    assert exported(house) == keys(1, 2, 3, 4)
    archive = open_archive(house.app.lake("org-a"))
    assert archive is not None
    assert read_standing(archive).number == 3
    with house.hot() as hot:
        assert hot.execute("SELECT count(*) FROM lakehouse_archive.batches WHERE exported_at IS NULL").fetchone() == (
            0,
        )
