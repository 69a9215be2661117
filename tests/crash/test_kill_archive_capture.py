"""Programs die while archived rows are on their way: no tombstone is lost or doubled, none of them becomes a delete."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lakehouse.archive.archive_table import open_archive, read_standing
from lakehouse.duck import connect, lake_relation
from tests.archiver import archive_rows, enable
from tests.support import Lakehouse, host_tables, insert_events, local_variables


@pytest.fixture
def house(postgres_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(postgres_url, ("org-a",))
    lakehouse = Lakehouse(postgres_url, local_variables(postgres_url, tmp_path))
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
