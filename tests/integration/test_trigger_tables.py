"""The trigger method on tables of other shapes than the host's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support import Lakehouse, host_tables, insert_events, local_variables


@pytest.fixture
def raw_house(hot_url: str, tmp_path: Path) -> Iterator[Lakehouse]:
    host_tables(hot_url)
    lakehouse = Lakehouse(hot_url, local_variables(hot_url, tmp_path))
    lakehouse.init()
    yield lakehouse
    lakehouse.close()


ODD = """
CREATE SCHEMA "Odd";
CREATE TYPE "Odd".kind AS ENUM ('One', 'two');
CREATE TABLE "Odd"."Line {Items}" (
    tenant_id bigint NOT NULL,
    "Kind" "Odd".kind NOT NULL,
    "order No" uuid NOT NULL,
    amount numeric(8,2) NOT NULL,
    id date NOT NULL,
    half numeric GENERATED ALWAYS AS (amount / 2) STORED,
    "at" timestamptz NOT NULL DEFAULT '2026-01-01',
    note text,
    PRIMARY KEY ("Kind", "order No", amount, id)
);
"""


def test_quoted_names_composite_keys_and_other_types(postgres_url: str, tmp_path: Path) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as hot:
        hot.execute(ODD.encode())
        contracts = tmp_path / "contracts"
        variables = local_variables(postgres_url, tmp_path) | {
            "LAKEHOUSE_CONTRACTS": f'["{contracts}"]',
            "LAKEHOUSE_SOURCE__ORGANIZATIONS_TABLE": "",
            "LAKEHOUSE_CAPTURE__METHOD": "trigger",
        }
        drafting = Lakehouse.__new__(Lakehouse)
        drafting.variables = {"LAKEHOUSE_SOURCE__URL": postgres_url}
        draft = ("contract", "draft", "--table", '"Odd"."Line {Items}"', "--event-time", "at", "--name", "lines", "-o")
        drafting.run(*draft, str(contracts))
        house = Lakehouse(postgres_url, variables)
        house.init("1", "2")
        house.prepare("lines")
        drafting.run(*draft, str(tmp_path / "again"))
        drafted = [(f / "lines" / "v1.json").read_text() for f in (contracts, tmp_path / "again")]
        assert drafted[0] == drafted[1], "a prepared table drafts as before"
        insert = (
            'INSERT INTO "Odd"."Line {{Items}}" (tenant_id, "Kind", "order No", amount, id) '
            "SELECT 1 + n %% 2, 'One', gen_random_uuid(), {} + n, date '2026-01-01' + n FROM generate_series(1, 10) n"
        )
        hot.execute(insert.format(0).replace("%%", "%").encode())
        house.backfill("lines")
        house.sync_ok("lines")
        for change in (
            "SET note = 'x' WHERE amount = 1",
            "SET \"Kind\" = 'two' WHERE amount = 2",
            "SET tenant_id = 3 - tenant_id WHERE amount = 3",
            "SET \"at\" = '2026-03-03' WHERE amount = 4",
            "SET amount = 40.5 WHERE amount = 5",
        ):
            hot.execute(f'UPDATE "Odd"."Line {{Items}}" {change}'.encode())
        hot.execute('DELETE FROM "Odd"."Line {Items}" WHERE amount BETWEEN 6 AND 8')
        hot.execute(insert.format(50).replace("%%", "%").encode())
        result = house.sync_ok("lines")
        assert (sum(result.upserts.values()), sum(result.deletes.values())) == (15, 7)
        house.assert_equal("lines")
        # The host may drop a type that a key had: the log knows nothing of it.
        house.close()


ORDERS = """
CREATE TABLE orders (id bigint NOT NULL, organization_id text NOT NULL, placed_at timestamptz NOT NULL, note text,
                     PRIMARY KEY (id, placed_at)) PARTITION BY RANGE (placed_at);
CREATE TABLE orders_1 PARTITION OF orders FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE orders_2 PARTITION OF orders FOR VALUES FROM ('2026-02-01') TO ('2026-03-01') PARTITION BY HASH (id);
CREATE TABLE orders_2a PARTITION OF orders_2 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE orders_2b PARTITION OF orders_2 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO orders
SELECT n, 'org-a', timestamptz '2026-01-02' + n * interval '1 day', 'x' FROM generate_series(1, 50) n;
"""


def test_a_partitioned_table(raw_house: Lakehouse, tmp_path: Path) -> None:
    house = raw_house
    with house.hot() as hot:
        hot.execute(ORDERS)
        contracts = tmp_path / "contracts"
        house.run("contract", "draft", "--table", "public.orders", "-o", str(contracts))
        house.reopen(CONTRACTS=json.dumps([str(contracts)]), CAPTURE__METHOD="trigger")
        house.prepare("orders")
        house.backfill("orders")
        house.sync_ok("orders")
        # Through the parent, through a leaf, and from one partition to another.
        hot.execute("DELETE FROM orders WHERE id = 1")
        hot.execute("DELETE FROM orders_1 WHERE id = 2")
        hot.execute("DELETE FROM orders_2a")
        hot.execute("UPDATE orders SET placed_at = '2026-02-20' WHERE id = 3")
        hot.execute("UPDATE orders_1 SET note = 'y' WHERE id = 4")
        result = house.sync_ok("orders")
        assert result.upserts == {"org-a": 2} and not result.reconciled
        house.assert_equal("orders")
        hot.execute("TRUNCATE orders_2b")
        house.sync_ok("orders")
        house.assert_equal("orders")
        hot.execute("CREATE TABLE orders_3 PARTITION OF orders FOR VALUES FROM ('2026-03-01') TO ('2026-04-01')")
        hot.execute("INSERT INTO orders VALUES (99, 'org-a', '2026-03-03')")
        house.sync_ok("orders")
        hot.execute("DELETE FROM orders_3")
        assert house.sync_ok("orders").deletes == {"org-a": 1}
    house.assert_equal("orders")


def test_a_table_with_children_or_a_column_of_that_name_stays_with_xmin(raw_house: Lakehouse) -> None:
    house = raw_house
    house.reopen(CAPTURE__METHOD="trigger")
    with house.hot() as hot:
        insert_events(hot, "org-a", 1, 1)
        house.backfill("events")
        hot.execute("ALTER TABLE ingested_events ADD COLUMN change_xid bigint")
        error = house.sync("events").errors[""]
        assert "of its own" in error.detail and "xmin" in error.hint
        hot.execute("ALTER TABLE ingested_events DROP COLUMN change_xid")
        hot.execute("CREATE TABLE child () INHERITS (ingested_events)")
        assert "inheritance children" in house.sync("events").errors[""].detail
        house.reopen(CAPTURE__METHOD="xmin")
        house.sync_ok("events")
    house.assert_equal("events")


def test_a_table_that_no_contract_knows(raw_house: Lakehouse) -> None:
    raw_house.variables["LAKEHOUSE_CAPTURE__METHODS"] = json.dumps({"evnets": "trigger"})
    done = raw_house.run("sync", "--once", check=2)
    assert "evnets, which no contract knows" in done.stderr
