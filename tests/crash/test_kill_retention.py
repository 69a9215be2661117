"""The lake's end of life is killed: before its commit nothing has left; after it, the next makes the audit good."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lakehouse.archive.installation import SCHEMA
from lakehouse.landing.ended import read_endings
from lakehouse.query import run_query
from lakehouse.retention.policy import set_retention
from lakehouse.retention.records import read_days
from tests.support import Lakehouse, host_tables, insert_events, local_variables


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url, ("org-a",))
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    lakehouse.init()
    with lakehouse.hot() as hot:
        insert_events(hot, "org-a", 1, 2, day="2016-01-01")
        insert_events(hot, "org-a", 11, 2, day="2026-01-01")
        lakehouse.backfill("events")
        lakehouse.sync_ok("events", reconcile=True)
        hot.execute("DELETE FROM ingested_events WHERE occurred_at < '2017-01-01'")
    set_retention(lakehouse.app, "org-a", 7, reason="r", by="me")
    yield lakehouse
    lakehouse.close()


@pytest.mark.parametrize(("where", "left"), [("retention.recorded", False), ("retention.committed", True)])
def test_killed_while_days_leave(house: Lakehouse, where: str, left: bool) -> None:
    def there() -> list[str]:
        rows = run_query(house.app, "SELECT id FROM events ORDER BY id", organization="org-a").to_pylist()
        return [row["id"] for row in rows]

    def noted() -> list[str]:
        with house.hot() as hot:
            query = f"SELECT subject->>'ending' FROM {SCHEMA}.audit WHERE action = 'lake days ended'"
            return [ending for (ending,) in hot.execute(query).fetchall()]  # type: ignore[arg-type]

    asked = ("lake", "retention", "apply", "-o", "org-a", "--reason", "yearly")
    done = house.run(*asked, failpoints=f"{where}=kill", check=None)
    assert done.returncode == -signal.SIGKILL, (done.stdout, done.stderr)
    young, old = ["org-a-e11", "org-a-e12"], ["org-a-e1", "org-a-e2"]
    assert there() == (young if left else [*old[:1], *young, *old[1:]])
    assert noted() == []

    house.run(*asked)
    assert there() == young
    (ending,) = read_endings(house.lake_table("events", "org-a"))
    assert noted() == [ending.id]
    days = read_days(house.app.lake("org-a"))
    assert [(d.rows, d.versions) for d in days if d.ending == ending.id] == [(2, 2)]
    assert len(days) == (1 if left else 2), "what was prepared and given up counts for nothing"
    assert house.sync_ok("events", reconcile=True).deletes == {}
    house.assert_equal("events")
