"""What lets a row leave the hot database, and what keeps it: on the host's own tables and keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cold import REFERENCES, allow, archive_once, archive_variables, old_events, old_findings
from tests.support import Lakehouse, host_tables, local_variables


@pytest.fixture
def house(postgres_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(postgres_url)
    lakehouse = Lakehouse(postgres_url, local_variables(postgres_url, tmp_path) | archive_variables(tmp_path))
    lakehouse.init()
    with lakehouse.hot() as hot:
        for statement in REFERENCES:
            hot.execute(statement)
    yield lakehouse
    lakehouse.close()


def ids(house: Lakehouse, table: str) -> set[str]:
    with house.hot() as hot:
        return {row[0] for row in hot.execute(f"SELECT id FROM {table}").fetchall()}


def test_old_rows_go_with_a_tombstone(house: Lakehouse) -> None:
    allow(house, "org-a")
    with house.hot() as hot:
        old_events(hot, "org-a", 1, 50)
        old_events(hot, "org-b", 1, 5)
        old_events(hot, "org-a", 100, 5, day="2099-01-01")
        old_findings(hot, "org-a", 1, 3, event=10)
    house.backfill("events")
    done = archive_once(house, "events", "org-a", batch_rows=20)
    assert done.rows == 47
    assert not done.unproven
    with house.hot() as hot:
        assert hot.execute("SELECT count(*) FROM ingested_events WHERE organization_id = 'org-a'").fetchone() == (8,)
        assert hot.execute("SELECT count(*), max(batch) FROM lakehouse_archive.cold_storage_archive").fetchone() == (
            47,
            3,
        )
        assert hot.execute("SELECT count(*) FROM security_findings WHERE event_id IS NULL").fetchone() == (0,)
