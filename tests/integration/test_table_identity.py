"""Rows that no transaction since the last window wrote, and that are new all the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import Lakehouse, host_tables, insert_events, local_variables

ORDERS = """
CREATE TABLE orders (id bigint NOT NULL, organization_id text NOT NULL, placed_at timestamptz NOT NULL, note text,
                     PRIMARY KEY (id, placed_at)) PARTITION BY RANGE (placed_at);
CREATE TABLE orders_1 PARTITION OF orders FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
INSERT INTO orders
SELECT n, 'org-a', timestamptz '2026-01-02' + n * interval '1 hour', 'x' FROM generate_series(1, 50) n;
"""


@pytest.fixture
def house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


def test_a_table_that_took_anothers_place(house: Lakehouse) -> None:
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 5)
        house.backfill("events")
        hot.execute("CREATE TABLE n (LIKE ingested_events INCLUDING ALL)")
        hot.execute("INSERT INTO n SELECT * FROM ingested_events")
        hot.execute("UPDATE n SET severity = 'HIGH' WHERE id = 'org-a-e2'")
        hot.execute(
            "INSERT INTO n SELECT (jsonb_populate_record(e, '{\"id\": \"new\"}')).* FROM n e WHERE id = 'org-a-e1'"
        )
        # The position moves past all of these transactions before the tables change places.
        insert_events(hot, "org-a", 50, 1)
        house.sync_ok("events", reconcile=True)
        with hot.transaction():
            hot.execute("ALTER TABLE ingested_events RENAME TO gone")
            hot.execute("ALTER TABLE n RENAME TO ingested_events")
        result = house.sync_ok("events")
        assert (result.upserts, result.deletes) == ({"org-a": 2}, {"org-a": 1}), "what differs, and nothing else"
    house.assert_equal("events")


def test_an_attached_partition(house: Lakehouse, tmp_path: Path) -> None:
    with house.hot() as hot:
        hot.execute(ORDERS)
    contracts = tmp_path / "contracts"
    house.run("contract", "draft", "--table", "public.orders", "-o", str(contracts))
    house.reopen(CONTRACTS=json.dumps([str(contracts)]))
    house.backfill("orders")
    house.sync_ok("orders", reconcile=True)
    with house.hot() as hot:
        hot.execute("CREATE TABLE orders_2 (LIKE orders INCLUDING ALL)")
        hot.execute(
            "INSERT INTO orders_2 SELECT id + 100, organization_id, placed_at + interval '31 days', note FROM orders"
        )
        house.sync_ok("orders")
        hot.execute("ALTER TABLE orders ATTACH PARTITION orders_2 FOR VALUES FROM ('2026-02-01') TO ('2026-03-01')")
        assert house.sync_ok("orders").upserts == {"org-a": 50}
        house.assert_equal("orders")
        (check,) = house.run_json("source", "check")["tables"]
        assert check["window_bytes"] > 0, "a partitioned table's size is its partitions'"
        hot.execute("ALTER TABLE orders DETACH PARTITION orders_1")
        assert house.sync_ok("orders", reconcile=True).deletes == {"org-a": 50}
    house.assert_equal("orders")


def test_one_organizations_lost_files_are_its_own_affair(house: Lakehouse, tmp_path: Path) -> None:
    with house.hot() as hot:
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 1, 5)
        house.backfill("events")
        insert_events(hot, "org-a", 10, 1)
        insert_events(hot, "org-b", 10, 1)
        house.sync_ok("events", reconcile=True)
        folder = tmp_path / "warehouse" / "org_org_2da" / "events"
        # The inventory is rebuilt from the lake: losing it costs nothing.
        for inventory in folder.glob("inventory/*.parquet"):
            inventory.unlink()
        hot.execute("DELETE FROM ingested_events WHERE id IN ('org-a-e1', 'org-b-e1')")
        assert house.sync_ok("events", reconcile=True).deletes == {"org-a": 1, "org-b": 1}
        lost = next(iter(folder.glob("data/**/*.parquet")))
        kept = lost.read_bytes()
        lost.unlink()
        for inventory in folder.glob("inventory/*.parquet"):
            inventory.unlink()
        insert_events(hot, "org-a", 20, 1)
        insert_events(hot, "org-b", 20, 1)
        result = house.sync("events", reconcile=True)
        assert "cannot be read" in str(result.errors.pop("org-a"))
        assert (result.errors, result.upserts) == ({}, {"org-b": 1})
        status = house.run_json("status", check=1)
        (row,) = [t for t in status["tables"] if (t["organization"], t["table"]) == ("org-a", "events")]
        assert (row["state"], "cannot be read" in row["error"]) == ("error", True)
        lost.write_bytes(kept)
        house.sync_ok("events", reconcile=True)
    house.assert_equal("events")


def test_landing_acknowledges_the_lakes_destination_without_a_hole(house: Lakehouse) -> None:
    from sqlalchemy import text

    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 5)
        house.backfill("events")
        for n in (10, 20):
            insert_events(hot, "org-a", n, 2)
            house.sync_ok("events")
    with house.app.engine.connect() as control:
        rows = control.execute(
            text(
                "SELECT sequence_after, sequence_upto, row_count, d.status, kind, last_delivery_at IS NOT NULL "
                "FROM warehouse_deliveries d JOIN warehouse_destinations t ON t.id = d.destination_id ORDER BY 1"
            )
        ).all()
    assert [tuple(r) for r in rows] == [
        (0, 5, 5, "DELIVERED", "ICEBERG_S3", True),
        (5, 7, 2, "DELIVERED", "ICEBERG_S3", True),
        (7, 9, 2, "DELIVERED", "ICEBERG_S3", True),
    ]


def test_an_organization_that_nobody_enrolled_is_named(house: Lakehouse) -> None:
    with house.hot() as hot:
        hot.execute("INSERT INTO organizations (id, name, slug, updated_at) VALUES ('org-new', 'N', 'n', now())")
        for command in (("sync", "--once", "--table", "events"), ("status",)):
            assert "org-new" in house.run(*command, check=None).stderr


def test_an_unfinished_backfill_of_one_does_not_keep_another_out(house: Lakehouse) -> None:
    house.reopen(BACKFILL__RANGE_ROWS="2")
    with house.hot() as hot:
        for organization in ("org-a", "org-b"):
            insert_events(hot, organization, 1, 5)
        hot.execute("ANALYZE ingested_events")
        house.run(
            "backfill", "--table", "events", "--organization", "org-a", failpoints="backfill.range_done=kill", check=-9
        )
        result = house.backfill("events", organizations=("org-b",))
    assert result.rows == {"org-a": 5, "org-b": 5}
    house.sync_ok("events", reconcile=True)
    house.assert_equal("events", "org-a", "org-b")


def test_a_wrong_password_is_one_clear_error(house: Lakehouse) -> None:
    user, _, rest = house.hot_url.rpartition("@")
    house.variables["LAKEHOUSE_SOURCE__URL"] = f"{user.rsplit(':', 1)[0]}:canary-password@{rest}"
    for command in (("sync", "--once"), ("sync", "--every", "1s"), ("backfill",), ("status",), ("source", "check")):
        done = house.run(*command, check=2)
        assert "password" in done.stderr
        assert "LAKEHOUSE_SOURCE__URL" in done.stderr
        assert "Traceback" not in done.stderr
        assert "canary-password" not in done.stderr + done.stdout
