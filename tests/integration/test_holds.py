"""Legal holds on a real database and lake: what they name, when they are in force, and what outlives the database."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from lakehouse.archive import holds
from lakehouse.archive.installation import connect
from tests.support import Lakehouse, host_tables, insert_events, local_variables


@pytest.fixture
def lakehouse(postgres_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(postgres_url)
    made = Lakehouse(postgres_url, local_variables(postgres_url, tmp_path))
    made.init("org-a", "org-b")
    yield made
    made.close()


def named(lakehouse: Lakehouse, table: str, columns: str = "id") -> list[Any]:
    """The rows of a hot table that `held` says are held, as a delete batch would ask."""
    contract = lakehouse.app.contract(table)
    statement = sql.SQL("SELECT {} FROM {} AS t WHERE {} AND {} ORDER BY 1").format(
        sql.SQL(columns),  # type: ignore[arg-type]
        sql.Identifier(contract.source_schema, contract.source_table),
        holds.held(contract, "t"),
        sql.SQL("%s"),
    )
    with lakehouse.hot() as connection:
        return [row[0] for row in connection.execute(statement, [True]).fetchall()]


def audit(lakehouse: Lakehouse) -> list[tuple[Any, ...]]:
    with lakehouse.hot() as connection:
        return connection.execute(
            "SELECT actor, action, organization_id, subject->>'hold', reason FROM lakehouse_archive.audit ORDER BY id"
        ).fetchall()


def test_a_hold_names_an_organization_a_table_ids_or_a_range_of_time(lakehouse: Lakehouse) -> None:
    with lakehouse.hot() as connection:
        for organization in ("org-a", "org-b"):
            insert_events(connection, organization, 1, 3, day="2026-01-01")
            insert_events(connection, organization, 11, 2, day="2026-01-02")
    app = lakehouse.app
    everything = [f"org-a-e{n}" for n in (1, 11, 12, 2, 3)]

    def only(hold: Any) -> list[Any]:
        found = named(lakehouse, "events")
        holds.release(app, hold.id, reason="done")
        return found

    assert only(holds.place(app, "org-a", reason="all")) == everything
    assert only(holds.place(app, "org-a-slug", reason="by slug", table_name="events")) == everything
    assert only(holds.place(app, "org-a", reason="other table", table_name="findings")) == []
    assert only(holds.place(app, "org-a", reason="ids", table_name="events", row_keys=["org-a-e2", "org-b-e1"])) == [
        "org-a-e2"
    ]
    # The first event is a minute after midnight; the end is exclusive.
    first = datetime(2026, 1, 1, 0, 2, tzinfo=UTC)
    day = datetime(2026, 1, 2, tzinfo=UTC)
    assert only(holds.place(app, "org-a", reason="range", table_name="events", event_from=first, event_upto=day)) == [
        "org-a-e2",
        "org-a-e3",
    ]
    assert only(holds.place(app, "org-a", reason="until", event_upto=first)) == ["org-a-e1"]
    assert only(holds.place(app, "org-a", reason="from", event_from=day + timedelta(minutes=12))) == ["org-a-e12"]
    elsewhere = first.astimezone(datetime.strptime("+0200", "%z").tzinfo)
    assert only(holds.place(app, "org-a", reason="zone", table_name="events", event_upto=elsewhere)) == ["org-a-e1"]
    # Two at once: what either names is held.
    holds.place(app, "org-a", reason="one", table_name="events", row_keys=["org-a-e1"])
    holds.place(app, "org-b", reason="two", table_name="events", row_keys=["org-b-e3"])
    assert named(lakehouse, "events") == ["org-a-e1", "org-b-e3"]
    assert [h.reason for h in _active(lakehouse, "org-a")] == ["one"]
    assert holds.concerns(_active(lakehouse, "org-a")[0], "events")
    assert not holds.concerns(_active(lakehouse, "org-a")[0], "findings")


def _active(lakehouse: Lakehouse, organization: str) -> list[Any]:
    with connect(lakehouse.app) as connection:
        return holds.active(connection, organization)
