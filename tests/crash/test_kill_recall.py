"""A recall is killed: with its rows in their table and not yet proven, or with a file that has no name yet.

Of the first nothing is there, and the next works. Of the second the record knows every row, for it may have been seen.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lakehouse.archive.installation import SCHEMA
from lakehouse.recall.run import expire_recalls, recalls
from tests.integration.test_recall import bring
from tests.support import Lakehouse, host_tables, insert_events, local_variables


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url, ("org-a",))
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    lakehouse.init()
    with lakehouse.hot() as hot:
        insert_events(hot, "org-a", 1, 5)
    lakehouse.backfill("events")
    yield lakehouse
    lakehouse.close()


@pytest.mark.parametrize("there", [False, True], ids=["its table is new", "beside another recall"])
def test_killed_with_the_table_filled(house: Lakehouse, there: bool) -> None:
    kept = [bring(house, ids=("org-a-e1",)).id] if there else []
    asked = ("recall", "-o", "org-a", "--table", "events", "--where", "true", "--reason", "r", "--to", "table")
    done = house.run(*asked, failpoints="recall.table_filled=kill", check=None)
    assert done.returncode == -signal.SIGKILL, (done.stdout, done.stderr)

    with house.hot() as hot:
        found = hot.execute("SELECT to_regclass(%s)::text", [f"{SCHEMA}.recalled_events"]).fetchone()
        assert found == ((f"{SCHEMA}.recalled_events" if there else None),)
        if there:
            rows = hot.execute(f"SELECT recall_id, id FROM {SCHEMA}.recalled_events").fetchall()  # type: ignore[arg-type]
            assert rows == [(kept[0], "org-a-e1")]
    assert [r.state for r in recalls(house.app)] == ["unfinished", *["done" for _ in kept]]
    expire_recalls(house.app)

    again = house.run_json(*asked)
    with house.hot() as hot:
        rows = hot.execute(f"SELECT recall_id::text, id FROM {SCHEMA}.recalled_events ORDER BY 2").fetchall()  # type: ignore[arg-type]
    mine = [key for recall, key in rows if recall == again["id"]]
    assert mine == [f"org-a-e{n}" for n in range(1, 6)]
    assert len(rows) == 5 + len(kept)


def test_killed_before_its_file_is_seen(house: Lakehouse, tmp_path: Path) -> None:
    """The record is ahead of what anybody sees, and never behind it."""
    out = tmp_path / "out"
    out.mkdir()
    asked = ("recall", "-o", "org-a", "--table", "events", "--where", "true", "--reason", "r", "--to", "csv")
    done = house.run(*asked, "--output", str(out / "a.csv"), failpoints="recall.recorded=kill", check=None)
    assert done.returncode == -signal.SIGKILL, (done.stdout, done.stderr)
    assert not [p.name for p in out.iterdir() if not p.name.startswith(".")], "nobody has seen a row"
    (found,) = recalls(house.app)
    assert (found.state, found.row_count, found.target) == ("done", 5, f"csv {out / 'a.csv'}")

    again = house.run_json(*asked, "--output", str(out / "a.csv"))
    assert again["content_sha256"] == found.content_sha256
    manifest = json.loads((out / "a.csv.manifest.json").read_text())
    assert (manifest["recall"], manifest["content_sha256"]) == (again["id"], found.content_sha256)
