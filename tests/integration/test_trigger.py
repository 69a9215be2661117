"""Windows by triggers on a real PostgreSQL: what they see, what they survive, and what switches back to comparing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lakehouse.capture import installation
from lakehouse.capture.tombstones import prune_tombstones
from lakehouse.control import store
from tests.support import Lakehouse, host_tables, insert_events, local_variables


def log_rows(house: Lakehouse, table: str = "events") -> list[Any]:
    log = installation.log_table(house.app.contract(table)).as_string(None)
    with house.hot() as hot:
        return hot.execute(f"SELECT lakehouse_what, id FROM {log} ORDER BY lakehouse_number").fetchall()


def position(house: Lakehouse, organization: str = "org-a", table: str = "events") -> Any:
    return store.cursors(house.app.engine, table)[organization].position


def ops(house: Lakehouse, key: str, organization: str = "org-a") -> list[str]:
    return [v["_op"] for v in house.versions("events", organization) if v["id"] == key]


@pytest.fixture
def raw_house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


@pytest.fixture
def house(raw_house: Lakehouse) -> Lakehouse:
    """Events are prepared, backfilled with ten rows of two organizations, and one window was taken."""
    raw_house.prepare("events")
    raw_house.reopen(CAPTURE__METHOD="trigger")
    with raw_house.hot() as hot:
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 1, 10)
    raw_house.backfill("events")
    assert raw_house.sync_ok("events").upserts == {}
    assert position(raw_house).method == "trigger"
    return raw_house


def test_inserts_updates_and_deletes_come_once_each(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 20, 2)
        hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = 'org-a-e1'")
        hot.execute("DELETE FROM ingested_events WHERE id IN ('org-a-e2', 'org-b-e3')")
        result = house.sync_ok("events")
        assert (result.upserts, result.deletes) == ({"org-a": 3, "org-b": 0}, {"org-a": 1, "org-b": 1})
        assert not result.reconciled
        assert house.sync_ok("events").snapshots == {}
    house.assert_equal("events")
    (deleted,) = [v for v in house.versions("events", "org-a") if v["_op"] == "delete"]
    assert (deleted["id"], deleted["_xmin"], deleted["payload"]) == ("org-a-e2", None, None)
    assert deleted["occurred_at"].isoformat() == "2026-01-01T00:02:00+00:00"


def test_a_delete_that_cascades_is_seen(house: Lakehouse) -> None:
    with house.hot() as hot:
        hot.execute("DELETE FROM integration_connections WHERE id = 'int-org-b'")
        assert house.sync_ok("events").deletes == {"org-b": 10}
    house.assert_equal("events")


def test_late_commits_savepoints_and_prepared_transactions(house: Lakehouse) -> None:
    with house.hot() as hot, psycopg.connect(house.hot_url) as late:
        insert_events(late, "org-a", 100, 1)
        with late.transaction():
            insert_events(late, "org-a", 101, 1)
            late.execute("DELETE FROM ingested_events WHERE id = 'org-a-e1'")
        insert_events(hot, "org-a", 50, 1)
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e2'")
        hot.execute("BEGIN")
        insert_events(hot, "org-a", 60, 1)
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e3'")
        hot.execute("PREPARE TRANSACTION 'kept'")
        for _ in range(2):
            result = house.sync_ok("events")
            assert (result.upserts, result.deletes) in (({"org-a": 1}, {"org-a": 1}), ({}, {}))
        assert result.upserts == {}, "what was landed is in the seen list"
        assert position(house).seen
        late.commit()
        result = house.sync_ok("events")
        assert (result.upserts, result.deletes) == ({"org-a": 2}, {"org-a": 1})
        hot.execute("COMMIT PREPARED 'kept'")
        result = house.sync_ok("events")
        assert (result.upserts, result.deletes) == ({"org-a": 1}, {"org-a": 1})
    house.assert_equal("events")


def test_rollback_leaves_nothing(house: Lakehouse) -> None:
    with house.hot() as hot:
        hot.execute("BEGIN")
        insert_events(hot, "org-a", 20, 1)
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e1'")
        hot.execute("SAVEPOINT s")
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e2'")
        hot.execute("ROLLBACK TO s")
        hot.execute("ROLLBACK")
        assert house.sync_ok("events").snapshots == {}
    house.assert_equal("events")


def test_copy_and_on_conflict_with_a_foreign_change_xid(house: Lakehouse) -> None:
    columns = "id, organization_id, integration_id, provider, event_type, source, payload, occurred_at"
    row = "'org-a', 'int-org-a', 'GITHUB', 'push', 'audit', '{}', '2026-01-01'"
    with house.hot() as hot:
        with (
            hot.cursor() as cursor,
            cursor.copy(f"COPY ingested_events ({columns}, change_xid) FROM STDIN") as copy,
        ):
            # As a restored dump would have it: the id of another time.
            copy.write_row(["c1", "org-a", "int-org-a", "GITHUB", "push", "audit", "{}", "2026-01-01", "3"])
        hot.execute(f"INSERT INTO ingested_events ({columns}, change_xid) VALUES ('c2', {row}, NULL)")
        hot.execute(
            f"INSERT INTO ingested_events ({columns}) VALUES ('org-a-e1', {row}) "
            "ON CONFLICT (id) DO UPDATE SET severity = 'HIGH'"
        )
        hot.execute("SET session_replication_role = replica")
        hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = 'org-a-e2'")
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e3'")
        hot.execute("RESET session_replication_role")
        result = house.sync_ok("events")
        assert (result.upserts, result.deletes) == ({"org-a": 4}, {"org-a": 1})
    house.assert_equal("events")


def test_a_row_that_moves_leaves_a_tombstone_of_what_it_was(house: Lakehouse) -> None:
    with house.hot() as hot:
        hot.execute("UPDATE ingested_events SET organization_id = 'org-b' WHERE id = 'org-a-e1'")
        hot.execute("UPDATE ingested_events SET occurred_at = '2026-02-02' WHERE id = 'org-a-e2'")
        hot.execute("UPDATE ingested_events SET id = 'renamed' WHERE id = 'org-a-e3'")
        hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = 'org-a-e4'")
        result = house.sync_ok("events")
        assert (result.upserts, result.deletes) == ({"org-a": 3, "org-b": 1}, {"org-a": 3, "org-b": 0})
    house.assert_equal("events")


def test_an_id_that_comes_back(house: Lakehouse) -> None:
    with house.hot() as hot:
        # Within one window, in one transaction and in two; and across windows.
        with hot.transaction():
            hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e1'")
            insert_events(hot, "org-a", 1, 1)
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e2'")
        insert_events(hot, "org-a", 2, 1)
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e2'")
        insert_events(hot, "org-a", 2, 1)
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e3'")
        result = house.sync_ok("events")
        assert (result.upserts, result.deletes) == ({"org-a": 2}, {"org-a": 3})
        house.assert_equal("events")
        insert_events(hot, "org-a", 3, 1)
        house.sync_ok("events")
    house.assert_equal("events")
    assert [ops(house, f"org-a-e{n}") for n in (1, 2, 3)] == [["upsert", "delete", "upsert"]] * 3


def test_truncate_makes_the_next_window_compare_keys(house: Lakehouse) -> None:
    with house.hot() as hot:
        hot.execute("TRUNCATE ingested_events CASCADE")
        insert_events(hot, "org-b", 1, 2)
        result = house.sync_ok("events")
        assert (result.upserts, result.deletes) == ({"org-a": 0, "org-b": 2}, {"org-a": 10, "org-b": 8})
        assert result.reconciled
        insert_events(hot, "org-b", 50, 1)
        assert not house.sync_ok("events").reconciled, "once"
    house.assert_equal("events")


def test_over_the_cap_the_lake_is_asked(house: Lakehouse) -> None:
    house.reopen(CAPTURE__MAX_SEEN="2")
    with house.hot() as hot, psycopg.connect(house.hot_url) as old:
        old.execute("SELECT pg_current_xact_id()")  # holds the snapshot's xmin, so nothing leaves the list
        for n in range(4):
            insert_events(hot, "org-a", 100 + n, 1)
            hot.execute("DELETE FROM ingested_events WHERE id = %s", [f"org-a-e{n + 1}"])
            result = house.sync_ok("events", reconcile=False)
            assert (result.upserts, result.deletes) == ({"org-a": 1}, {"org-a": 1})
        insert_events(hot, "org-a", 1, 1)
        house.sync_ok("events")
        assert position(house).repeats
        assert house.sync_ok("events").snapshots == {}
        old.rollback()
    house.assert_equal("events")
    assert ops(house, "org-a-e1") == ["upsert", "delete", "upsert"]


def test_a_backfill_sees_what_was_deleted_and_open_meanwhile(raw_house: Lakehouse) -> None:
    house = raw_house
    house.prepare("events")
    house.reopen(CAPTURE__METHODS=json.dumps({"events": "trigger"}), BACKFILL__RANGE_ROWS="5")
    with house.hot() as hot, psycopg.connect(house.hot_url) as late:
        insert_events(hot, "org-a", 1, 30)
        hot.execute("ANALYZE ingested_events")
        insert_events(late, "org-a", 100, 2)
        late.execute("DELETE FROM ingested_events WHERE id = 'org-a-e7'")
        house.backfill("events")
        late.commit()
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e8'")
        result = house.sync_ok("events", reconcile=False)
        assert (result.upserts, result.deletes) == ({"org-a": 2}, {"org-a": 2})
        assert house.sync_ok("events").snapshots == {}
    house.assert_equal("events")


def test_a_window_over_a_big_table_uses_the_index(house: Lakehouse) -> None:
    from lakehouse.capture.protocol import Group
    from lakehouse.capture.trigger import TriggerCapture

    with house.hot() as hot:
        insert_events(hot, "org-a", 1000, 30_000)
        house.sync_ok("events")
        hot.execute("ANALYZE ingested_events")
        insert_events(hot, "org-a", 50, 3)
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e1'")
        contract = house.app.contract("events")
        capture = house.app.method(contract)
        assert isinstance(capture, TriggerCapture)
        log = installation.log_table(contract).as_string(None)
        hot.execute(f"ANALYZE {log}")
        with capture.open_window(contract, [Group(position(house), ("org-a", "org-b", "org-c"))]) as window:
            (plan,) = window.plans
            explained = []
            for stream in (window.deletes, window.rows):
                statements: list[str] = []
                run_it = window.cursor.execute
                window.cursor.execute = lambda q, s=statements, e=run_it: (s.append(q), e(q))  # type: ignore[method-assign]
                assert sum(b.num_rows for b in stream(plan)) in (1, 3)
                window.cursor.execute = run_it  # type: ignore[method-assign]
                explained.append("\n".join(r[0] for r in hot.execute(f"EXPLAIN {statements[0]}".encode())))
    assert "ingested_events_change_xid_idx" in explained[1] and "Seq Scan" not in explained[1], explained[1]


CHANGES = [
    *(
        change.format(trigger)
        for trigger in (installation.STAMP, installation.DELETED)
        for change in (
            "ALTER TABLE ingested_events DISABLE TRIGGER {}",
            "ALTER TABLE ingested_events ENABLE TRIGGER {}",
            "ALTER TABLE ingested_events ENABLE REPLICA TRIGGER {}",
            "DROP TRIGGER {} ON ingested_events",
        )
    ),
    "ALTER TABLE ingested_events DISABLE TRIGGER USER",
    "DROP INDEX ingested_events_change_xid_idx",
    "ALTER TABLE ingested_events DROP COLUMN change_xid CASCADE",
    "DROP TABLE lakehouse_capture.progress",
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_table_that_is_no_longer_prepared_lands_nothing_until_it_is(house: Lakehouse, change: str) -> None:
    before = position(house)
    with house.hot() as hot:
        hot.execute(change.encode())
        # Unseen by the triggers, some of it.
        hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = 'org-a-e1'")
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e2'")
        insert_events(hot, "org-a", 20, 1)
        result = house.sync("events")
        assert "lakehouse source prepare --apply --table events" in result.errors[""].hint
        assert (result.snapshots, position(house)) == ({}, before)
        house.prepare("events")
        result = house.sync_ok("events")
        assert (result.upserts, result.deletes) == ({"org-a": 2}, {"org-a": 1})
    house.assert_equal("events")


@pytest.mark.parametrize("way", ["DISABLE TRIGGER {0}; ENABLE ALWAYS TRIGGER {0}", "replaced", "prepared again"])
@pytest.mark.parametrize("trigger", installation.TRIGGERS)
def test_a_gap_that_was_closed_again_is_read_exactly(house: Lakehouse, trigger: str, way: str) -> None:
    with house.hot() as hot:
        if way.startswith("DISABLE"):
            off, on = (f"ALTER TABLE ingested_events {part.format(trigger)}" for part in way.split("; "))
        else:
            off = f"DROP TRIGGER {trigger} ON ingested_events"
            (definition,) = hot.execute(
                "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname = %s", [trigger]
            ).fetchone() or ("",)
            on = f"{definition}; ALTER TABLE ingested_events ENABLE ALWAYS TRIGGER {trigger}"
        hot.execute(off.encode())
        hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = 'org-a-e1'")
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e2'")
        hot.execute("UPDATE ingested_events SET occurred_at = '2026-02-02' WHERE id = 'org-a-e3'")
        if way == "prepared again":
            house.prepare("events")
        else:
            hot.execute(on.encode())
        result = house.sync_ok("events")
        assert (result.upserts, result.deletes) == ({"org-a": 2}, {"org-a": 2})
        assert house.sync_ok("events").snapshots == {}
    house.assert_equal("events")


@pytest.mark.parametrize("reconcile", [None, False])
def test_changing_the_method_to_and_fro(raw_house: Lakehouse, reconcile: bool | None) -> None:
    house = raw_house

    def change(n: int) -> None:
        insert_events(hot, "org-a", n, 2)
        insert_events(hot, "org-b", n, 1)
        hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = %s", [f"org-a-e{n + 1}"])
        hot.execute("UPDATE ingested_events SET severity = 'HIGH' WHERE id = 'org-b-e1'")
        hot.execute("DELETE FROM ingested_events WHERE id IN (%s, %s)", [f"org-a-e{n}", f"org-a-e{2000 + n}"])

    with house.hot() as hot, psycopg.connect(house.hot_url) as late, psycopg.connect(house.hot_url) as old:
        old.execute("SELECT pg_current_xact_id()")  # no snapshot's xmin moves: only seen lists and the lake tell
        insert_events(hot, "org-a", 2000, 200)
        insert_events(hot, "org-a", 1, 3)
        insert_events(hot, "org-b", 1, 3)
        # At different positions: b was backfilled later, and has had no window yet.
        house.backfill("events", organizations=("org-a",))
        change(10)
        house.sync_ok("events")
        house.backfill("events")
        insert_events(late, "org-b", 500, 1)
        for n, name in enumerate(["trigger", "xmin", "trigger", "trigger", "xmin"]):
            change(20 + 10 * n)
            if n == 0:
                with hot.transaction():
                    # Stamped by nobody, and invisible to the position: the table is prepared only now.
                    insert_events(hot, "org-a", 900, 1)
                late.commit()
                house.prepare("events")
            house.reopen(CAPTURE__METHOD=name)
            change(100 + 10 * n)
            result = house.sync_ok("events", reconcile=reconcile)
            assert {position(house, o).method for o in ("org-a", "org-b")} == {name}
            if n != 3:
                house.assert_equal("events")
            assert house.sync_ok("events", reconcile=reconcile).snapshots == {}
            house.assert_equal("events")
            assert result.errors == {}
        old.rollback()


def test_a_pruned_timestamp_hides_nothing_from_the_switch(raw_house: Lakehouse) -> None:
    house = raw_house
    insert = (
        "INSERT INTO siem_deliveries (id, organization_id, stream, payload, updated_at) "
        "SELECT 'd' || n, 'org-a', 'EVENTS', '{}', %s FROM generate_series(%s::int, %s::int) n"
    )
    with house.hot() as hot:
        hot.execute("CREATE INDEX ON siem_deliveries (updated_at)")
        hot.execute(insert, ["2026-01-01", 1, 5])
        house.backfill("siem_deliveries")
        house.sync_ok("siem_deliveries", reconcile=True)
        hot.execute(insert, ["2026-01-01", 6, 6])
        assert house.sync_ok("siem_deliveries", reconcile=False).upserts == {}, "hidden by its stamp"
        house.prepare("siem_deliveries")
        house.reopen(CAPTURE__METHOD="trigger")
        assert house.sync_ok("siem_deliveries", reconcile=False).upserts == {"org-a": 1}
        # And stamped long ago is no hiding place any more.
        hot.execute(insert, ["2025-01-01", 7, 7])
        assert house.sync_ok("siem_deliveries", reconcile=False).upserts == {"org-a": 1}
    house.assert_equal("siem_deliveries")


def test_tombstones_are_pruned_behind_every_position(house: Lakehouse) -> None:
    from sqlalchemy import text

    with house.hot() as hot:
        hot.execute("DELETE FROM ingested_events WHERE id IN ('org-a-e1', 'org-b-e1')")
        assert prune_tombstones(house.app)["events"] == 0, "nobody has read them"
        house.sync_ok("events")
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e2'")
        with house.app.engine.connect() as control:
            kept = control.execute(text("SELECT organization_id, position::text FROM cursors")).all()
        house.sync_ok("events")
        insert_events(hot, "org-a", 30, 1)
        house.sync_ok("events")
        assert prune_tombstones(house.app)["events"] == 3
        assert log_rows(house) == []
        # A cursor from a backup of the control tables: its tombstones are gone, so keys are compared.
        with house.app.engine.begin() as control:
            for organization, old in kept:
                if organization == "org-c":
                    control.execute(
                        text("UPDATE cursors SET position = CAST(:p AS jsonb) WHERE organization_id = :o"),
                        {"p": old, "o": organization},
                    )
        assert house.sync_ok("events").reconciled
    house.assert_equal("events")


def test_a_missing_right_to_prune_is_said(house: Lakehouse, hot_url: str) -> None:
    with house.hot() as hot:
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e1'")
        house.sync_ok("events")
        insert_events(hot, "org-a", 30, 1)
        house.sync_ok("events")
        log = installation.log_table(house.app.contract("events")).as_string(None)
        reader = "reader_" + hot_url.rpartition("_")[2]
        hot.execute(f"CREATE ROLE {reader} LOGIN PASSWORD 'x'".encode())
        try:
            hot.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {reader}".encode())
            hot.execute(f"GRANT USAGE ON SCHEMA lakehouse_capture TO {reader}".encode())
            hot.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA lakehouse_capture TO {reader}".encode())
            rest = hot_url.rpartition("@")[2]
            house.reopen(SOURCE__URL=f"postgresql://{reader}:x@{rest}", CONTROL__URL=hot_url)
            house.sync_ok("events")
            with pytest.raises(Exception, match="no right to prune"):
                prune_tombstones(house.app)
            assert len(log_rows(house)) == 1
            assert log
        finally:
            house.close()
            hot.execute(f"DROP OWNED BY {reader}; DROP ROLE {reader}".encode())


def test_whoever_may_delete_leaves_a_tombstone_and_gets_no_right_to_the_log(house: Lakehouse, hot_url: str) -> None:
    writer = "writer_" + hot_url.rpartition("_")[2]
    with house.hot() as hot:
        hot.execute(f"CREATE ROLE {writer}".encode())
        hot.execute(f"GRANT SELECT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO {writer}".encode())
        hot.execute(f"SET ROLE {writer}".encode())
        hot.execute("CREATE TEMP TABLE pg_class (x int)")  # a search_path of his own making changes nothing
        hot.execute("SET search_path = pg_temp, public")
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e1'")
        hot.execute("UPDATE ingested_events SET organization_id = 'org-b' WHERE id = 'org-a-e2'")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            hot.execute("SELECT * FROM lakehouse_capture.progress")
        hot.execute("RESET ROLE; RESET search_path")
        assert house.sync_ok("events").deletes == {"org-a": 2, "org-b": 0}
        house.assert_equal("events")
        hot.execute(f"DROP OWNED BY {writer} CASCADE; DROP ROLE {writer}".encode())


def test_rows_from_another_databases_future_are_refused(house: Lakehouse) -> None:
    before = position(house)
    with house.hot() as hot:
        hot.execute(f"ALTER TABLE ingested_events DISABLE TRIGGER {installation.STAMP}".encode())
        hot.execute("UPDATE ingested_events SET change_xid = '9000000000' WHERE id = 'org-a-e1'")
        hot.execute(f"ALTER TABLE ingested_events ENABLE ALWAYS TRIGGER {installation.STAMP}".encode())
        assert "--remove" in house.sync("events").errors[""].hint
        assert position(house) == before
        hot.execute("UPDATE ingested_events SET severity = 'LOW' WHERE id = 'org-a-e1'")
        house.sync_ok("events")
    house.assert_equal("events")


def test_one_organizations_bad_value_does_not_stop_it_for_good(house: Lakehouse) -> None:
    with house.hot() as hot:
        hot.execute("UPDATE ingested_events SET occurred_at = 'infinity' WHERE id = 'org-a-e1'")
        house.reopen(CAPTURE__MAX_QUARANTINED="0")
        assert "infinit" in house.sync("events").errors["org-a"].detail
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e1'")
        house.sync_ok("events")
    house.assert_equal("events")
