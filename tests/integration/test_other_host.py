"""Another host's table, which the code was not made for, from `contract draft` to equality."""

from __future__ import annotations

from pathlib import Path

import psycopg

from tests.support import Lakehouse, local_variables

DDL = """
CREATE SCHEMA "Sales";
CREATE TYPE "Sales".mood AS ENUM ('happy', 'so "so"', 'sad');
CREATE DOMAIN "Sales".cents AS bigint CHECK (VALUE >= 0);
CREATE TABLE "Sales"."Line Items" (
    tenant_id bigint NOT NULL,
    order_no  uuid NOT NULL,
    "lineNo"  smallint NOT NULL,
    "Placed At" timestamptz NOT NULL DEFAULT now(),
    changed   timestamptz NOT NULL DEFAULT now(),
    price     "Sales".cents NOT NULL,
    rate      numeric(12,4),
    exact     numeric,
    weight    double precision,
    tags      text[],
    counts    integer[],
    how       "Sales".mood,
    "select"  jsonb,
    raw       json,
    photo     bytea,
    due       date,
    took      interval,
    "from IP" inet,
    api_token text,
    PRIMARY KEY (tenant_id, order_no, "lineNo")
);
COMMENT ON TABLE "Sales"."Line Items" IS 'What was ordered.';
INSERT INTO "Sales"."Line Items"
SELECT t, gen_random_uuid(), n, timestamptz '2026-02-01 12:00+02' + n * interval '7 hours', now(), n * 100,
       n / 3.0, n / 7.0, CASE n WHEN 3 THEN 'NaN' WHEN 4 THEN '-0' ELSE n / 9.0 END, ARRAY['a', NULL, 'ü,"'],
       ARRAY[1, NULL, n], (ARRAY['happy', 'so "so"', NULL])[1 + n % 3]::"Sales".mood,
       '{"b": 1, "aa": 1.10}', '{ "x" : 1 }',
       '\\xdeadbeef', date '2026-01-01' + n, n * interval '1 day 2 hours', '10.0.0.1', 'secret-token'
FROM generate_series(1, 2) t, generate_series(1, 30) n;
"""


def test_any_table_from_draft_to_equality(postgres_url: str, tmp_path: Path) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as hot:
        hot.execute(DDL)
    contracts = tmp_path / "contracts"
    variables = local_variables(postgres_url, tmp_path) | {"LAKEHOUSE_CONTRACTS": f'["{contracts}"]'}
    drafting = Lakehouse.__new__(Lakehouse)
    drafting.variables = {"LAKEHOUSE_SOURCE__URL": postgres_url}
    said = drafting.run("contract", "draft", "--table", '"Sales"."Line Items"', "-o", str(contracts))
    assert "api_token" in said.stderr, "what looks secret is left out, and said"

    variables["LAKEHOUSE_SOURCE__ORGANIZATIONS_TABLE"] = ""
    house = Lakehouse.__new__(Lakehouse)
    house.variables = variables
    house.run("init", "--organization", "1", "--organization", "2")
    house.run("source", "check")
    house.run("backfill")
    with psycopg.connect(postgres_url, autocommit=True) as hot:
        hot.execute("""UPDATE "Sales"."Line Items" SET price = 7, counts = '{}' WHERE "lineNo" = 5""")
        hot.execute("""DELETE FROM "Sales"."Line Items" WHERE "lineNo" = 6 AND tenant_id = 2""")
    (window,) = house.run_json("sync", "--once", "--reconcile")
    assert (window["upserts"], window["deletes"]) == ({"1": 1, "2": 1}, {"1": 0, "2": 1})
    result = house.run_json("verify")
    assert result["equal"], result
    assert {t["organization"]: t["lake_rows"] for t in result["tables"]} == {"1": 30, "2": 29}
    rows = house.run_json("query", "SELECT * FROM line_items WHERE line_no = 3", "--organization", "1")
    assert rows[0]["select"] == '{"b": 1, "aa": 1.10}'
    assert "secret-token" not in str(rows)
    with psycopg.connect(postgres_url, autocommit=True) as hot:
        hot.execute("""UPDATE "Sales"."Line Items" SET "select" = '{"b": 2}' WHERE "lineNo" = 8 AND tenant_id = 1""")
    result = house.run_json("verify", check=1)
    (difference,) = [d for t in result["tables"] for d in t["differences"]]
    assert difference["columns"] == ["select"]
