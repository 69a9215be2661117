"""`lakehouse query`: joins over S3, the latest state, and the state as of a time whatever snapshots were kept."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from lakehouse.query import run_query
from schemas.errors import LakehouseError
from tests.support import Lakehouse, host_tables, insert_events, s3_variables

JOIN = (
    "SELECT f.id, f.status, f.risk_score, e.event_type FROM findings f JOIN events e ON e.id = f.event_id ORDER BY f.id"
)


@pytest.fixture
def house(hot_url: str, s3: Any, bucket: str) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    lakehouse = Lakehouse(hot_url, s3_variables(hot_url, s3, bucket))
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


def insert_finding(hot: Any, organization: str, number: int, event: int) -> None:
    hot.execute(
        "INSERT INTO security_findings (id, organization_id, integration_id, event_id, dedupe_key, title, description, "
        "severity, risk_score, evidence, detected_at) VALUES (%s, %s, %s, %s, %s, 't', 'd', 'HIGH', 10, '{}', "
        "'2026-01-01 10:00')",
        [f"f{number}", organization, f"int-{organization}", f"{organization}-e{event}", f"k{number}"],
    )


def test_a_join_now_and_as_of_a_time(house: Lakehouse) -> None:
    def at(hour: int) -> datetime:
        return datetime(2026, 6, 1, hour, tzinfo=UTC)

    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
        insert_finding(hot, "org-a", 1, 1)
        house.clock.fixed = at(1)
        house.backfill("events")
        house.backfill("findings")
        hot.execute("UPDATE security_findings SET status = 'RESOLVED', resolved_at = now(), risk_score = 20")
        insert_finding(hot, "org-a", 2, 2)
        house.clock.fixed = at(2)
        house.sync_ok("events", reconcile=True)
        house.sync_ok("findings", reconcile=True)
        hot.execute("DELETE FROM security_findings WHERE id = 'f1'")
        # Re-opened: the hot row forgets that it was ever resolved, the lake does not.
        hot.execute("UPDATE security_findings SET risk_score = 30 WHERE id = 'f2'")
        house.clock.fixed = at(3)
        house.sync_ok("findings", reconcile=True)

    def rows(moment: datetime | None) -> list[tuple[Any, ...]]:
        table = run_query(house.app, JOIN, organization="org-a-slug", as_of=moment)
        return [tuple(r.values()) for r in table.to_pylist()]

    assert rows(None) == [("f2", "OPEN", 30, "push")]
    assert rows(at(3)) == rows(None)
    assert rows(at(2)) == [("f1", "RESOLVED", 20, "push"), ("f2", "OPEN", 10, "push")]
    assert rows(datetime(2026, 6, 1, 2, 59, 59, tzinfo=UTC)) == rows(at(2))
    assert rows(at(1)) == [("f1", "OPEN", 10, "push")]
    assert rows(at(0)) == []
    versions = "SELECT count(*) AS n FROM findings_history"
    for hour, count in ((0, 0), (1, 1), (2, 3), (3, 5)):
        (known,) = run_query(house.app, versions, organization="org-a-slug", as_of=at(hour)).to_pylist()
        assert known["n"] == count, hour

    # Whatever snapshots are kept: expire all but the last.
    for name in ("events", "findings"):
        table = house.lake_table(name, "org-a")
        kept = table.current_snapshot().snapshot_id
        old = [s.snapshot_id for s in table.snapshots() if s.snapshot_id != kept]
        table.maintenance.expire_snapshots().by_ids(old).commit()
        assert len(house.lake_table(name, "org-a").snapshots()) == 1
    assert rows(at(1)) == [("f1", "OPEN", 10, "push")]
    assert rows(at(2)) == [("f1", "RESOLVED", 20, "push"), ("f2", "OPEN", 10, "push")]
    # The cursor is a table property: it survived, and capture goes on from it.
    house.sync_ok("findings", reconcile=True)
    house.assert_equal("findings")

    # The program says the same.
    out = house.run_json("query", JOIN, "--organization", "org-a", "--as-of", "2026-06-01T02:00:00Z")
    assert [r["id"] for r in out] == ["f1", "f2"]
    history = house.run_json("query", "SELECT _op, id FROM findings_history ORDER BY _sequence", "-o", "org-a")
    assert [(r["_op"], r["id"]) for r in history] == [
        ("upsert", "f1"), ("upsert", "f1"), ("upsert", "f2"), ("delete", "f1"), ("upsert", "f2"),
    ]  # fmt: skip


def test_organizations_are_schemas_and_stay_apart(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
        insert_events(hot, "org-b", 1, 5)
    house.backfill("events")
    both = 'SELECT (SELECT count(*) FROM "org-a-slug".events) AS a, (SELECT count(*) FROM org_org_2db.events) AS b'
    assert run_query(house.app, both).to_pylist() == [{"a": 3, "b": 5}]
    assert run_query(house.app, "SELECT count(*) AS n FROM events", organization="org-b").to_pylist() == [{"n": 5}]
    assert run_query(house.app, "SELECT count(*) AS n FROM events", organization="org-c").to_pylist() == [{"n": 0}]
    with pytest.raises(LakehouseError, match="--organization"):
        run_query(house.app, "SELECT count(*) FROM events")
    with pytest.raises(LakehouseError, match="no organization 'nobody'"):
        run_query(house.app, "SELECT 1", organization="nobody")


def test_a_slug_that_is_anothers_id_names_nobody(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
        insert_events(hot, "org-b", 1, 5)
        hot.execute("UPDATE organizations SET slug = 'org-a' WHERE id = 'org-b'")
    house.backfill("events")
    count = 'SELECT count(*) AS n FROM "org-a".events'
    assert run_query(house.app, count, organization="org-b").to_pylist() == [{"n": 3}]
    assert run_query(house.app, "SELECT count(*) AS n FROM events", organization="org-a").to_pylist() == [{"n": 3}]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("SELEC 1", "-o", "org-a"), "syntax error"),
        (("  ", "-o", "org-a"), "empty"),
        (("SELECT 1", "--as-of", "yesterday", "-o", "org-a"), "not a time"),
        (("SELECT * FROM nothing", "-o", "org-a"), "nothing"),
    ],
)
def test_bad_queries_say_what_is_wrong(house: Lakehouse, arguments: tuple[str, ...], said: str) -> None:
    done = house.run("query", *arguments, check=2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
