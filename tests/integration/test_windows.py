"""Windows, exact reads, reconciliation and groups, on a real PostgreSQL, with a lake in local files."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from lakehouse.control import store
from lakehouse.landing.cursor import read_cursor
from tests.support import Lakehouse, host_tables, insert_events, local_variables


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


def test_backfill_then_windows_bring_each_version_once(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 50)
        insert_events(hot, "org-b", 1, 20)
        result = house.backfill("events")
        assert result.rows == {"org-a": 50, "org-b": 20, "org-c": 0}
        hot.execute("UPDATE ingested_events SET processing_status = 'PROCESSED' WHERE id = 'org-a-e7'")
        insert_events(hot, "org-c", 1, 5)
        first = house.sync_ok("events")
        assert first.upserts == {"org-a": 1, "org-c": 5}
        assert house.sync_ok("events").upserts == {}
    house.assert_equal("events")
    versions = house.versions("events", "org-a", "id, _op, _sequence, _xmin, processing_status")
    assert Counter(v["id"] for v in versions)["org-a-e7"] == 2
    assert [v["_sequence"] for v in versions] == sorted({v["_sequence"] for v in versions})


def test_a_transaction_that_commits_late_is_not_missed(house: Lakehouse) -> None:
    with house.hot() as hot, psycopg.connect(house.hot_url) as late:
        insert_events(hot, "org-a", 1, 3)
        house.backfill("events")
        insert_events(late, "org-a", 100, 2)
        insert_events(hot, "org-a", 4, 1)
        assert house.sync_ok("events").upserts == {"org-a": 1}
        late.commit()
        assert house.sync_ok("events").upserts == {"org-a": 2}
    house.assert_equal("events")


def test_a_transaction_that_was_open_during_the_backfill_is_not_missed(house: Lakehouse) -> None:
    with house.hot() as hot, psycopg.connect(house.hot_url) as late:
        insert_events(late, "org-a", 100, 2)
        insert_events(hot, "org-a", 1, 3)
        house.backfill("events")
        late.commit()
        assert house.sync_ok("events").upserts == {"org-a": 2}
    house.assert_equal("events")


def test_a_savepoint_hidden_from_the_snapshot_is_not_missed(house: Lakehouse) -> None:
    with house.hot() as hot, psycopg.connect(house.hot_url) as late:
        house.backfill("events")
        with late.transaction():
            insert_events(late, "org-a", 1, 1)
            with late.transaction():
                insert_events(late, "org-a", 2, 1)
            insert_events(hot, "org-a", 50, 1)
            assert house.sync_ok("events").upserts == {"org-a": 1}
        assert house.sync_ok("events").upserts == {"org-a": 2}
    house.assert_equal("events")


def test_a_deleted_row_is_a_delete_in_its_own_partition(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 4)
        house.backfill("events")
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e2'")
        assert house.sync_ok("events", reconcile=False).deletes == {}
        assert house.sync_ok("events", reconcile=True).deletes == {"org-a": 1}
        house.assert_equal("events")
        last = house.versions("events", "org-a")[-1]
        assert (last["_op"], last["id"], last["organization_id"], last["payload"]) == (
            "delete",
            "org-a-e2",
            "org-a",
            None,
        )
        assert last["occurred_at"].isoformat() == "2026-01-01T00:02:00+00:00"
        # The same id again, and gone again: history keeps all of it.
        insert_events(hot, "org-a", 2, 1)
        house.sync_ok("events", reconcile=True)
        house.assert_equal("events")
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e2'")
        house.sync_ok("events", reconcile=True)
        house.assert_equal("events")
        assert [v["_op"] for v in house.versions("events", "org-a") if v["id"] == "org-a-e2"] == [
            *("upsert", "delete", "upsert", "delete")
        ]


def test_the_inventory_shortens_reconciliation_and_changes_nothing(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 10)
        house.backfill("events")
        insert_events(hot, "org-a", 11, 1)
        house.sync_ok("events", reconcile=True)
        cursor = read_cursor(house.lake_table("events", "org-a"))
        assert cursor is not None and cursor.inventory is not None and cursor.inventory.sequence == cursor.sequence
        hot.execute("DELETE FROM ingested_events WHERE id IN ('org-a-e1', 'org-a-e11')")
        insert_events(hot, "org-a", 12, 1)
        house.sync_ok("events", reconcile=False)
        hot.execute("DELETE FROM ingested_events WHERE id = 'org-a-e12'")
        assert house.sync_ok("events", reconcile=True).deletes == {"org-a": 3}
    house.assert_equal("events")


def test_truncate_is_seen_when_keys_are_compared(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 10)
        insert_events(hot, "org-b", 1, 10)
        house.backfill("events")
        hot.execute("TRUNCATE ingested_events CASCADE")
        insert_events(hot, "org-b", 1, 2)
        assert house.sync_ok("events", reconcile=True).deletes == {"org-a": 10, "org-b": 8}
    house.assert_equal("events")


def test_a_row_that_moves_to_another_organization_or_day(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 3)
        house.backfill("events")
        hot.execute("UPDATE ingested_events SET organization_id = 'org-b' WHERE id = 'org-a-e1'")
        hot.execute("UPDATE ingested_events SET occurred_at = '2026-02-02' WHERE id = 'org-a-e2'")
        result = house.sync_ok("events", reconcile=True)
        assert (result.upserts, result.deletes) == ({"org-a": 1, "org-b": 1}, {"org-a": 2, "org-b": 0})
    house.assert_equal("events")


def test_organizations_that_stand_apart_join_again(house: Lakehouse) -> None:
    with house.hot() as hot:
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 1, 3)
        house.backfill("events", organizations=("org-a",))
        insert_events(hot, "org-a", 10, 1)
        house.sync_ok("events")
        house.backfill("events")
        insert_events(hot, "org-b", 10, 1)
        insert_events(hot, "org-a", 20, 1)
        assert house.sync_ok("events").upserts == {"org-a": 1, "org-b": 1}
        positions = {o: c.position for o, c in store.cursors(house.app.engine, "events").items()}
        assert len(set(positions.values())) == 1
        insert_events(hot, "org-b", 30, 1)
        house.sync_ok("events")
    house.assert_equal("events")


def test_what_one_has_seen_hides_nothing_from_a_straggler(house: Lakehouse) -> None:
    with house.hot() as hot, psycopg.connect(house.hot_url) as late:
        house.backfill("events")
        house.sync_ok("events")
        store.stop_lake(house.app.engine, "org-b", "apart")
        # While an older transaction is open, ids stay in the list of who has seen them.
        insert_events(late, "org-a", 500, 1)
        with hot.transaction():
            insert_events(hot, "org-a", 100, 1)
            insert_events(hot, "org-b", 100, 1)
        assert house.sync_ok("events").upserts == {"org-a": 1}
        store.resume_lake(house.app.engine, "org-b")
        insert_events(hot, "org-a", 200, 1)
        assert house.sync_ok("events").upserts == {"org-a": 1, "org-b": 1}
        late.commit()
        assert house.sync_ok("events").upserts == {"org-a": 1}
    house.assert_equal("events")


def test_a_pruned_table_misses_nothing_after_its_exact_read(house: Lakehouse) -> None:
    with house.hot() as hot:
        hot.execute("CREATE INDEX ON siem_deliveries (updated_at)")
        insert = (
            "INSERT INTO siem_deliveries (id, organization_id, stream, payload, updated_at) "
            "SELECT 'd' || n, 'org-a', 'EVENTS', '{}', %s FROM generate_series(%s::int, %s::int) n"
        )
        hot.execute(insert, ["2026-01-01", 1, 5])
        house.backfill("siem_deliveries")
        house.sync_ok("siem_deliveries", reconcile=True)
        # Stamped long ago: the prune hides it. Stamped now: seen, and its transaction is in the seen list.
        with hot.transaction():
            hot.execute(insert, ["2026-01-01", 6, 6])
            hot.execute(
                "INSERT INTO siem_deliveries (id, organization_id, stream, payload, updated_at) "
                "VALUES ('d7', 'org-a', 'EVENTS', '{}', timezone('utc', now()))"
            )
        assert house.sync_ok("siem_deliveries", reconcile=False).upserts == {"org-a": 1}
        assert house.sync_ok("siem_deliveries", reconcile=True).upserts == {"org-a": 1}
        assert house.sync_ok("siem_deliveries", reconcile=True).upserts == {}
    house.assert_equal("siem_deliveries")


def test_a_seen_list_over_its_cap_asks_the_lake(house: Lakehouse) -> None:
    house.reopen(CAPTURE__MAX_SEEN="2")
    with house.hot() as hot, psycopg.connect(house.hot_url) as old:
        house.backfill("events")
        old.execute("SELECT pg_current_xact_id()")  # holds the snapshot's xmin, so nothing leaves the list
        for n in range(6):
            insert_events(hot, "org-a", n, 1)
            house.sync_ok("events")
        assert house.sync_ok("events").upserts == {}
        old.rollback()
    house.assert_equal("events")


def test_what_changes_without_touching_a_row_is_captured_again(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 5)
        house.backfill("events")
        house.sync_ok("events")
        hot.execute("ALTER TYPE \"Severity\" ADD VALUE 'NONE'")
        assert house.sync_ok("events").upserts == {}, "a new label changes no row"
        hot.execute("ALTER TYPE \"Severity\" RENAME VALUE 'INFO' TO 'NOTICE'")
        assert house.sync_ok("events").upserts == {"org-a": 5}
        house.assert_equal("events")
        assert house.sync_ok("events").upserts == {}


def test_a_window_in_parts_stays_under_the_cap_on_partitions(house: Lakehouse) -> None:
    house.reopen(LANDING__MAX_PARTITIONS="2")
    with house.hot() as hot:
        house.backfill("events")
        for day in range(1, 6):
            insert_events(hot, "org-a", day * 10, 2, day=f"2026-03-0{day}")
        assert house.sync_ok("events").upserts == {"org-a": 10}
    table = house.lake_table("events", "org-a")
    summaries = [s.summary for s in table.snapshots()]
    assert [s["lakehouse.part"] for s in summaries if s] == ["1/3", "2/3", "3/3"]
    assert all(int(s["changed-partition-count"]) <= 2 for s in summaries if s)
    house.assert_equal("events")
    assert house.sync_ok("events").upserts == {}


def test_two_programs_on_one_table_do_not_land_twice(house: Lakehouse) -> None:
    other = Lakehouse(house.hot_url, house.variables)
    with closing(other), house.hot() as hot:
        insert_events(hot, "org-a", 1, 2)
        house.backfill("events")
        for n in range(10):
            insert_events(hot, "org-a", 100 + n, 1)
            results = []
            threads = [threading.Thread(target=lambda h=h: results.append(h.sync("events"))) for h in (house, other)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            assert all(r.busy or not r.errors for r in results)
        house.sync_ok("events")
    house.assert_equal("events")


def test_a_stale_cursor_is_fenced_and_mended_from_the_lake(house: Lakehouse) -> None:
    from sqlalchemy import text

    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 2)
        house.backfill("events")
        with house.app.engine.connect() as control:
            old = control.execute(
                text("SELECT position::text, fence, sequence FROM cursors WHERE organization_id = 'org-a'")
            ).one()
        insert_events(hot, "org-a", 10, 1)
        house.sync_ok("events")
        with house.app.engine.begin() as control:  # the control database was restored from a backup
            control.execute(
                text(
                    "UPDATE cursors SET position = CAST(:p AS jsonb), fence = :f, sequence = :s "
                    "WHERE organization_id = 'org-a'"
                ),
                {"p": old[0], "f": old[1], "s": old[2]},
            )
        insert_events(hot, "org-a", 20, 1)
        before = len(house.lake_table("events", "org-a").snapshots())
        assert "another program landed" in str(house.sync("events").errors["org-a"])
        assert len(house.lake_table("events", "org-a").snapshots()) == before
        assert house.sync_ok("events").upserts == {"org-a": 1}
    house.assert_equal("events")


def test_the_lake_alone_rebuilds_every_cursor(house: Lakehouse) -> None:
    from sqlalchemy import text

    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 5)
        house.backfill("events")
        insert_events(hot, "org-a", 10, 2)
        house.sync_ok("events")
        with house.app.engine.begin() as control:
            control.execute(text("TRUNCATE cursors, landings, windows, backfills CASCADE"))
        insert_events(hot, "org-a", 20, 1)
        result = house.backfill("events")
        assert (result.adopted, result.read_rows) == (["org-a"], 0)
        assert house.sync_ok("events").upserts == {"org-a": 1}
    house.assert_equal("events")
