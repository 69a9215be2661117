"""Planning, cadences, groups and the host's list of organizations, on a real PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import event, text

from lakehouse.control import store
from lakehouse.outbox import tasks
from lakehouse.worker import plan
from lakehouse.worker.discover import discover
from lakehouse.worker.scheduler import Scheduler
from lakehouse.worker.worker import Worker
from schemas.errors import LakehouseError
from tests.support import Lakehouse, host_tables, insert_events, local_variables


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    variables = local_variables(hot_url, tmp_path) | {"LAKEHOUSE_SCHEDULE__CADENCE_SECONDS": "600"}
    lakehouse = Lakehouse(hot_url, variables)
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


def pass_time(house: Lakehouse, seconds: int, *organizations: str) -> None:
    """As if so many seconds had passed since the last window of these organizations (default: all)."""
    with house.app.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE cursors SET polled_at = polled_at - :s * interval '1 second' "
                "WHERE organization_id = ANY(:o) OR :o = '{}'"
            ),
            {"s": seconds, "o": list(organizations)},
        )


def work(house: Lakehouse) -> int:
    """Do everything that is due, as one worker with one place would; returns how many units it did."""
    worker = Worker(house.app, threading.Event())
    done = 0
    while worker.once():
        done += 1
    return done


def test_a_window_is_due_when_the_cadence_has_passed_and_once(house: Lakehouse) -> None:
    with house.hot() as hot:
        house.backfill("events")
        insert_events(hot, "org-a", 1, 3)
        assert plan.plan_windows(house.app.engine, ["events"]) == ["capture:events"]
        assert plan.plan_windows(house.app.engine, ["events"]) == [], "it is due already"
        assert work(house) == 1
        assert plan.plan_windows(house.app.engine, ["events"]) == []
        insert_events(hot, "org-a", 10, 3)
        pass_time(house, 599)
        assert plan.plan_windows(house.app.engine, ["events"]) == []
        pass_time(house, 1)
        assert plan.plan_windows(house.app.engine, ["events"]) == ["capture:events"]
        assert work(house) == 1
    house.assert_equal("events")


def test_a_cadence_of_its_own_for_an_organization_and_for_a_table(house: Lakehouse) -> None:
    house.backfill("events")
    house.backfill("audit_log")
    house.sync_ok("events")
    house.sync_ok("audit_log")
    house.run("destinations", "edit", "lake", "--organization", "org-b", "--table-cadence", "events=5s")
    pass_time(house, 6)
    assert plan.plan_windows(house.app.engine, ["events", "audit_log"]) == ["capture:events"]
    due = [m.organization for m in store.members(house.app.engine, "events", due=True)]
    assert due == ["org-b"], "the others wait for their own cadence"
    house.run("destinations", "edit", "lake", "--organization", "org-b", "--table-cadence", "events=default")
    assert store.members(house.app.engine, "events", due=True) == []
    # Nearly due joins the others' window: the group stays one.
    pass_time(house, 560, "org-a", "org-c")
    pass_time(house, 600, "org-b")
    assert [m.organization for m in store.members(house.app.engine, "events", due=True)] == ["org-a", "org-b", "org-c"]


def test_planning_costs_the_same_for_one_organization_and_for_many(house: Lakehouse) -> None:
    statements: list[str] = []

    @event.listens_for(house.app.engine, "before_cursor_execute")
    def count(connection: object, cursor: object, statement: str, *rest: object) -> None:
        statements.append(statement)

    house.backfill("events")
    tables = list(house.app.contracts)

    def planned() -> int:
        statements.clear()
        plan.plan_windows(house.app.engine, tables)
        plan.plan_backfills(house.app.engine, tables)
        return len([s for s in statements if not s.startswith("SELECT pg_catalog")])

    few = planned()
    with house.app.engine.begin() as connection:
        for n in range(300):
            name = f"many-{n:03}"
            connection.execute(
                text(
                    "WITH l AS (INSERT INTO lakes (id, organization_id, namespace, catalog_kind, warehouse) "
                    "VALUES (gen_random_uuid(), :o, :o, 'sql', 'x') RETURNING id), "
                    "d AS (INSERT INTO warehouse_destinations "
                    "(id, organization_id, kind, name, enabled_tables, lake_id) "
                    "SELECT gen_random_uuid(), :o, 'ICEBERG_S3', 'lake', '{*}', id FROM l) "
                    "INSERT INTO cursors (organization_id, table_name, position, sequence, captured_at) "
                    "SELECT :o, 'events', position, 0, captured_at FROM cursors WHERE organization_id = 'org-a'"
                ),
                {"o": name},
            )
    assert planned() == few == 2
    statements.clear()
    assert len(store.members(house.app.engine, "events", due=True)) == 303
    assert len(statements) == 1


def test_a_new_organization_is_enrolled_backfilled_and_joins_the_group(house: Lakehouse) -> None:
    with house.hot() as hot:
        house.backfill("events")
        insert_events(hot, "org-a", 1, 3)
        hot.execute("INSERT INTO organizations (id, name, slug, updated_at) VALUES ('org-n', 'N', 'n', now())")
        hot.execute(
            "INSERT INTO integration_connections (id, organization_id, provider, display_name, external_account_id, "
            "encrypted_access_token, updated_at) VALUES ('int-org-n', 'org-n', 'GITHUB', 'x', 'x', 'x', now())"
        )
        insert_events(hot, "org-n", 1, 5)
        assert discover(house.app).enrolled == ["org-n"]
        assert discover(house.app).enrolled == []
        plan.plan_windows(house.app.engine, ["events"])
        assert plan.plan_backfills(house.app.engine, ["events"]) == ["backfill:events"]
        assert work(house) == 2
        insert_events(hot, "org-n", 50, 1)
        house.sync_ok("events")
    house.assert_equal("events")
    positions = {c.position for c in store.cursors(house.app.engine, "events").values()}
    assert len(positions) == 1, "one scan serves all of them from now on"


def test_a_renamed_slug_changes_nothing(house: Lakehouse) -> None:
    with house.hot() as hot:
        house.backfill("events")
        hot.execute("UPDATE organizations SET slug = 'renamed' WHERE id = 'org-a'")
        found = discover(house.app)
        assert not (found.enrolled or found.stopped or found.resumed)
        insert_events(hot, "org-a", 1, 3)
        assert house.sync_ok("events").upserts == {"org-a": 3}
    assert house.run_json("query", "--organization", "renamed", "SELECT count(*) AS n FROM events")[0]["n"] == 3


def test_a_deleted_organization_is_stopped_and_its_lake_is_kept(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
        insert_events(hot, "org-b", 1, 3)
        house.backfill("events")
        hot.execute("DELETE FROM organizations WHERE id = 'org-b'")
        assert discover(house.app).stopped == ["org-b"]
        assert discover(house.app).stopped == []
        result = house.sync_ok("events", reconcile=True)
        assert "org-b" not in result.deletes, "what was its lake stays as it was"
        assert plan.plan_backfills(house.app.engine, ["events"]) == []
    assert len(house.versions("events", "org-b")) == 3
    with house.hot() as hot:
        hot.execute("INSERT INTO organizations (id, name, slug, updated_at) VALUES ('org-b', 'B', 'b', now())")
        assert discover(house.app).resumed == ["org-b"]
        house.sync_ok("events", reconcile=True)
    house.assert_equal("events")


def test_an_empty_list_of_organizations_stops_nobody(house: Lakehouse) -> None:
    with house.hot() as hot:
        hot.execute("DELETE FROM organizations")
    with pytest.raises(LakehouseError, match="is empty, and 3 organizations have a lake"):
        discover(house.app)
    assert all(lake.stopped_at is None for lake in store.lakes(house.app.engine))


def test_one_that_fails_leaves_the_group_is_tried_alone_and_joins_again(house: Lakehouse) -> None:
    house.reopen(WORK__RETRY_BASE_SECONDS="1000", CAPTURE__MAX_QUARANTINED="0")
    with house.hot() as hot:
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 1, 3)
        house.backfill("events")
        insert_events(hot, "org-a", 10, 1)
        hot.execute("UPDATE ingested_events SET occurred_at = 'infinity' WHERE id = 'org-b-e1'")
        assert set(house.sync("events").errors) == {"org-b"}
        hot.execute("UPDATE ingested_events SET occurred_at = '2026-01-01 00:01' WHERE id = 'org-b-e1'")
        insert_events(hot, "org-a", 20, 1)
        pass_time(house, 700)
        assert [m.organization for m in store.members(house.app.engine, "events", due=True)] == ["org-a", "org-c"]
        plan.plan_windows(house.app.engine, ["events"])
        assert work(house) == 1
        done = house.run_json("deliveries", "retry", "--organization", "org-b")
        assert done["captures"] == [{"organization": "org-b", "table": "events"}]
        plan.plan_windows(house.app.engine, ["events"])
        assert work(house) == 1
        insert_events(hot, "org-b", 30, 1)
        house.sync_ok("events", reconcile=True)
    house.assert_equal("events")
    assert len({c.position for c in store.cursors(house.app.engine, "events").values()}) == 1


def test_several_schedulers_run_and_one_leads(house: Lakehouse) -> None:
    first, second = threading.Event(), threading.Event()
    house.app.leases.owner = "first"
    one = Scheduler(house.app, first)
    other_house = Lakehouse(house.hot_url, dict(house.variables))
    other = Scheduler(other_house.app, second)
    threads = [threading.Thread(target=s.run) for s in (one, other)]
    until = threading.Event()
    try:
        for thread in threads:
            thread.start()
        while not (one.leading or other.leading):
            until.wait(0.05)
        assert one.leading != other.leading
        leader, follower, stop = (one, other, first) if one.leading else (other, one, second)
        stop.set()
        while not follower.leading:
            until.wait(0.05)
        assert not leader.leading
    finally:
        first.set()
        second.set()
        for thread in threads:
            thread.join()
        other_house.close()


def test_a_table_that_waits_for_its_retry_is_not_planned_anew(house: Lakehouse) -> None:
    house.backfill("events")
    with house.hot() as hot:
        hot.execute("ALTER TABLE ingested_events RENAME TO away")
        plan.plan_windows(house.app.engine, ["events"])
        assert work(house) == 1
        assert plan.plan_windows(house.app.engine, ["events"]) == []
        with house.app.engine.connect() as connection:
            row = connection.execute(
                text("SELECT attempts, last_error, due_at > now() FROM tasks WHERE id = 'capture:events'")
            ).one()
        assert row[0] == 1 and "does not exist" in row[1] and row[2]
        hot.execute("ALTER TABLE away RENAME TO ingested_events")
    house.sync_ok("events")
    with house.app.engine.connect() as connection:
        assert connection.execute(text("SELECT attempts, last_error FROM tasks WHERE id = 'capture:events'")).one() == (
            0,
            None,
        )


def test_a_provisional_table_that_is_not_there_is_looked_for_later(house: Lakehouse) -> None:
    with house.hot() as hot:
        hot.execute("DROP TABLE rule_runs CASCADE")
    plan.plan_backfills(house.app.engine, ["rule_runs"])
    assert work(house) == 1
    with house.app.engine.connect() as connection:
        row = connection.execute(text("SELECT attempts, last_error, due_at > now() FROM tasks")).one()
    assert tuple(row) == (0, None, True)


def test_making_a_task_due_does_not_disturb_who_works_on_it(house: Lakehouse) -> None:
    tasks.make_due(house.app.engine, [("capture", "events")])
    assert tasks.claim(house.app.engine, "w", 30, kinds=["capture"]) is not None
    tasks.make_due(house.app.engine, [("capture", "events")])
    assert tasks.claim(house.app.engine, "x", 30, kinds=["capture"]) is None
