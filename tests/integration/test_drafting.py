"""Drafting contracts on a real PostgreSQL, from tables that the code was not designed for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from pyiceberg.schema import assign_fresh_schema_ids

import lakehouse
from lakehouse.drafting import Draft, draft_contract, format_contract
from schemas.contract import BUILT_IN, load_contract, load_contracts, parse_contract
from schemas.errors import LakehouseError
from schemas.lake_columns import iceberg_schema

HOT = Path(lakehouse.__file__).parent / "demo" / "hot.sql"

SHOP = """
CREATE SCHEMA shop;
CREATE TYPE shop."OrderState" AS ENUM ('open', 'paid', 'sent back');
CREATE DOMAIN shop.email AS text CHECK (VALUE LIKE '%@%');
CREATE DOMAIN shop.amount AS numeric(12,2);
CREATE DOMAIN shop.discount AS shop.amount CHECK (VALUE >= 0);
CREATE DOMAIN shop.labels AS text[];
CREATE TABLE shop.tenants (id uuid PRIMARY KEY);
CREATE TABLE shop.people (id bigint PRIMARY KEY, tenant_id uuid NOT NULL REFERENCES shop.tenants);
CREATE TABLE shop.api_keys (id bigint PRIMARY KEY, tenant_id uuid NOT NULL, key text, hash bytea, label text);
CREATE TABLE shop."Orders" (
    "tenantId" uuid NOT NULL REFERENCES shop.tenants,
    "orderNo" bigint NOT NULL,
    gone text,
    "customerId" bigint REFERENCES shop.people ON DELETE SET NULL,
    "order" integer,
    "group" varchar(10),
    "customerEmail" shop.email NOT NULL,
    "firstName" text,
    total shop.amount NOT NULL,
    discount shop.discount,
    "exactTotal" numeric,
    huge numeric(50,2),
    hundreds numeric(5,-2),
    tiny numeric(2,4),
    share numeric(3,3),
    rate double precision,
    ratio real,
    qty smallint,
    big bigint,
    paid boolean,
    state shop."OrderState" NOT NULL DEFAULT 'open',
    states shop."OrderState"[],
    tags text[],
    codes varchar(8)[],
    labels shop.labels,
    mails shop.email[],
    lines integer[],
    bigs bigint[],
    flags boolean[],
    weights real[],
    refs uuid[],
    prices numeric(8,2)[],
    matrix integer[][],
    docs jsonb[],
    fixed char(3),
    note text,
    meta jsonb,
    raw json,
    blob bytea,
    ip inet,
    span int4range,
    took interval,
    at_time time,
    born date,
    xid xid8,
    words tsvector,
    "placedAt" timestamptz NOT NULL DEFAULT now(),
    "updatedAt" timestamptz NOT NULL,
    "localTime" timestamp(3),
    "expiresAt" timestamptz,
    double_qty integer GENERATED ALWAYS AS (qty * 2) STORED,
    "passwordHash" text,
    api_key text,
    "accessToken" text,
    "encryptedCard" bytea,
    "sessionId" text,
    ssn char(11),
    salt bytea,
    "MFASecret" text,
    "pinCode" integer,
    "cardNumber" numeric(16,0),
    "webhookUrl" text,
    userpassword text,
    "requestHeaders" jsonb,
    comment_says text,
    token_key_version varchar(32),
    dedupe_key text,
    "contentHash" text,
    "passwordChangedAt" timestamptz,
    "hasPassword" boolean,
    token_count integer,
    "apiKeyId" bigint REFERENCES shop.api_keys,
    compass text,
    _op text,
    _xmin text,
    "2fa" text,
    "Größe" text,
    "名" text,
    "fooBar" text,
    foo_bar text,
    "a b%c""d" text,
    "imageURLs" text,
    PRIMARY KEY ("tenantId", "orderNo")
);
ALTER TABLE shop."Orders" DROP COLUMN gone;
CREATE INDEX ON shop."Orders" ("tenantId", "placedAt");
COMMENT ON TABLE shop."Orders" IS 'What customers
  ordered.';
COMMENT ON COLUMN shop."Orders".total IS 'Gross, in the tenant''s currency';
COMMENT ON COLUMN shop."Orders".comment_says IS 'AES-256 encrypted with the master key';
"""


@pytest.fixture
def connection(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def orders(connection: psycopg.Connection[Any]) -> Draft:
    connection.execute(SHOP)
    return draft_contract(connection, 'shop."Orders"')


def _types(draft: Draft) -> dict[str, str]:
    return {c["source"]: c["type"] for c in draft.contract["columns"]}


def _column(draft: Draft, source: str) -> dict[str, Any]:
    (column,) = [c for c in draft.contract["columns"] if c["source"] == source]
    return dict(column)


def _note(draft: Draft, start: str) -> str:
    (note,) = [n for n in draft.notes if n.startswith(start)]
    return note


def test_head(orders: Draft) -> None:
    contract = orders.contract
    assert (contract["table"], contract["title"]) == ("orders", "Orders")
    assert contract["description"] == "What customers ordered."
    assert contract["source"] == {"schema": "shop", "table": "Orders"}
    assert contract["tenant"] == "tenant_id"
    assert contract["primary_key"] == ["tenant_id", "order_no"]
    assert contract["event_time"] == "placed_at"
    assert contract["watermark"] == {"column": "updated_at", "every_change": True}
    assert contract["age_bounds"] == ["placed_at", "updated_at", "local_time", "password_changed_at"]
    assert contract["retention"] == "never"


def test_types(orders: Draft) -> None:
    expected = {
        "tenantId": "string",
        "orderNo": "long",
        "customerId": "long",
        "order": "integer",
        "group": "string",
        "customerEmail": "string",
        "total": "decimal(12,2)",
        "discount": "decimal(12,2)",
        "exactTotal": "string",
        "huge": "string",
        "hundreds": "string",
        "tiny": "string",
        "share": "decimal(3,3)",
        "rate": "double",
        "ratio": "double",
        "qty": "integer",
        "big": "long",
        "paid": "boolean",
        "state": "string",
        "states": "list<string>",
        "tags": "list<string>",
        "codes": "list<string>",
        "labels": "list<string>",
        "mails": "list<string>",
        "lines": "list<integer>",
        "bigs": "list<long>",
        "flags": "list<boolean>",
        "weights": "list<double>",
        "refs": "list<string>",
        "prices": "string",
        "matrix": "string",
        "docs": "string",
        "fixed": "string",
        "meta": "json",
        "raw": "json",
        "blob": "binary",
        "ip": "string",
        "span": "string",
        "took": "string",
        "at_time": "string",
        "born": "date",
        "xid": "string",
        "words": "string",
        "placedAt": "timestamptz",
        "localTime": "timestamptz",
        "double_qty": "integer",
    }
    types = _types(orders)
    assert {name: types[name] for name in expected} == expected
    cast = _note(orders, "Cast to text")
    assert 'state (shop."OrderState")' in cast
    assert "exactTotal (numeric)" in cast
    assert "prices (numeric(8,2)[])" in cast
    assert "tags" not in cast
    assert "fixed" not in cast
    assert _note(orders, "No time zone") == "No time zone, read as UTC: localTime."


def test_ids_count_as_iceberg_does(orders: Draft) -> None:
    columns = orders.contract["columns"]
    assert [c["id"] for c in columns] == list(range(6, 6 + len(columns)))
    elements = [c["element_id"] for c in columns if c["type"].startswith("list<")]
    assert elements == list(range(6 + len(columns), 6 + len(columns) + len(elements)))
    schema = iceberg_schema(parse_contract(orders.contract, where="test"))
    assert [str(f) for f in assign_fresh_schema_ids(schema).fields] == [str(f) for f in schema.fields]


def test_source_types_and_nullability_are_those_of_the_catalog(
    orders: Draft, connection: psycopg.Connection[Any]
) -> None:
    rows = connection.execute(
        "SELECT attname, format_type(atttypid, atttypmod), NOT attnotnull FROM pg_attribute "
        "WHERE attrelid = 'shop.\"Orders\"'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
    ).fetchall()
    exported = [(c["source"], c["source_type"], c["nullable"]) for c in orders.contract["columns"]]
    out = [n["column"] for n in orders.contract["not_exported"]]
    assert exported == [row for row in rows if row[0] not in out]
    assert set(out) < {row[0] for row in rows}
    assert "gone" not in _types(orders)


def test_secrets_stay_out_and_are_said(orders: Draft) -> None:
    out = {n["column"] for n in orders.contract["not_exported"]}
    assert out == {
        "passwordHash",
        "api_key",
        "accessToken",
        "encryptedCard",
        "sessionId",
        "ssn",
        "salt",
        "MFASecret",
        "pinCode",
        "cardNumber",
        "webhookUrl",
        "userpassword",
        "requestHeaders",
        "comment_says",
    }
    assert all(_note(orders, f"Not exported: {column}.") for column in out)
    assert "is not in the lake" in _note(orders, "What is not exported")


def test_what_only_sounds_secret_goes(orders: Draft) -> None:
    assert {
        "token_key_version",
        "dedupe_key",
        "contentHash",
        "passwordChangedAt",
        "hasPassword",
        "token_count",
        "apiKeyId",
        "compass",
    } < set(_types(orders))


def test_a_table_of_secrets_makes_its_columns_suspect(orders: Draft, connection: psycopg.Connection[Any]) -> None:
    draft = draft_contract(connection, "shop.api_keys")
    assert [n["column"] for n in draft.contract["not_exported"]] == ["key", "hash"]


def test_lake_names(orders: Draft) -> None:
    names = {c["source"]: c["name"] for c in orders.contract["columns"]}
    assert len(set(names.values())) == len(names)
    assert names["_op"] == "c_op"
    assert names["_xmin"] == "c_xmin"
    assert names["2fa"] == "c_2fa"
    assert names["Größe"] == "grosse"
    assert names["名"].startswith("column_")
    assert names["foo_bar"] == "foo_bar"
    assert names["fooBar"] == "foo_bar_2"
    assert names['a b%c"d'] == "a_b_c_d"
    assert names["imageURLs"] == "image_urls"
    assert names["order"] == "order"
    assert "fooBar → foo_bar_2" in _note(orders, "Renamed")


def test_sensitivity_and_descriptions(orders: Draft) -> None:
    sensitivity = {c["source"]: c["sensitivity"] for c in orders.contract["columns"]}
    assert {"customerEmail", "firstName", "ip", "born", "customerId"} <= {
        n for n, s in sensitivity.items() if s == "personal"
    }
    assert {"note", "meta", "raw", "blob", "words"} <= {n for n, s in sensitivity.items() if s == "confidential"}
    assert sensitivity["qty"] == sensitivity["state"] == sensitivity["placedAt"] == "internal"
    assert _column(orders, "total")["description"] == "Gross, in the tenant's currency."
    assert _column(orders, "state")["description"] == "State. One of: open, paid, sent back."
    assert _column(orders, "tenantId")["description"] == "The tenant: id of shop.tenants."
    assert _column(orders, "paid")["description"] == "True if paid."
    assert _column(orders, "token_count")["description"] == "Number of tokens."


def test_the_text_of_a_draft_is_a_contract_that_loads(orders: Draft, tmp_path: Path) -> None:
    path = tmp_path / "orders" / "v1.json"
    path.parent.mkdir()
    path.write_text(format_contract(orders.contract), "utf-8")
    assert load_contract(path) == parse_contract(orders.contract, where="test")
    assert load_contracts([tmp_path])["orders"].unknown_columns(["orderNo", "salt", "new"]) == ["new"]


def test_a_person_can_choose(orders: Draft, connection: psycopg.Connection[Any]) -> None:
    draft = draft_contract(connection, "shop.Orders", name="sales", tenant="customerEmail", event_time="updated_at")
    assert draft.contract["table"] == "sales"
    assert draft.contract["tenant"] == "customer_email"
    assert draft.contract["event_time"] == "updated_at"
    assert "sounds as if it changes" in _note(draft, "Event time")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tenant": "customerId"}, "cannot be the tenant: it must be NOT NULL"),
        ({"tenant": "total"}, "cannot be the tenant"),
        ({"tenant": "nobody"}, "has no column 'nobody'"),
        ({"event_time": "localTime"}, "cannot be the event time"),
        ({"event_time": "orderNo"}, "cannot be the event time"),
        ({"name": "Sales"}, "cannot be the name of a lake table"),
    ],
)
def test_a_choice_that_cannot_be(
    orders: Draft, connection: psycopg.Connection[Any], options: dict[str, str], message: str
) -> None:
    with pytest.raises(LakehouseError, match=message) as caught:
        draft_contract(connection, 'shop."Orders"', **options)
    assert caught.value.hint


@pytest.mark.parametrize("typed", ['shop."Orders"', "shop.Orders", '"shop"."Orders"', "SHOP.Orders"])
def test_a_table_is_found_as_people_type_it(orders: Draft, connection: psycopg.Connection[Any], typed: str) -> None:
    assert draft_contract(connection, typed).contract["source"]["table"] == "Orders"


def test_sql_folding_wins_over_what_was_typed(connection: psycopg.Connection[Any]) -> None:
    for name in ('"Things"', "things"):
        connection.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, org_id int NOT NULL)")
    assert draft_contract(connection, "Things").contract["source"]["table"] == "things"
    assert draft_contract(connection, '"Things"').contract["source"]["table"] == "Things"


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("shop.order", 'Did you mean shop."Orders"'),
        ("Orders", 'shop."Orders"'),
        ("shop.zzzzz", "The database has shop"),
        ("a.b.c", "Write schema.table"),
        ('shop."Orders', "Write schema.table"),
        ("", "Write schema.table"),
    ],
)
def test_a_table_that_is_not_there(orders: Draft, connection: psycopg.Connection[Any], typed: str, hint: str) -> None:
    with pytest.raises(LakehouseError) as caught:
        draft_contract(connection, typed)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("definition", "detail", "hint"),
    [
        ("CREATE VIEW v AS SELECT 1 AS id, 2 AS org_id", "public.v is a view", "tables that it reads"),
        ("CREATE MATERIALIZED VIEW v AS SELECT 1 AS org_id", "a materialized view", "tables that it reads"),
        ("CREATE TABLE v (org_id int NOT NULL)", "public.v has no primary key", "ALTER TABLE public.v ADD PRIMARY KEY"),
        (
            "CREATE TABLE v (a int NOT NULL, b int NOT NULL, c int UNIQUE, org_id int NOT NULL); "
            "CREATE UNIQUE INDEX v_ab ON v (a, b)",
            "no primary key",
            "ADD PRIMARY KEY USING INDEX v_ab",
        ),
        ("CREATE TABLE v (id int PRIMARY KEY, x int)", "no column tells which tenant", "--tenant COLUMN"),
        ("CREATE TABLE v (id int PRIMARY KEY, org_id int)", "org_id: may be null", "--tenant COLUMN"),
        ("CREATE TABLE v (token text PRIMARY KEY, org_id int NOT NULL)", "'token' may be a secret", "a key without it"),
    ],
)
def test_a_table_that_cannot_have_a_contract(
    connection: psycopg.Connection[Any], definition: str, detail: str, hint: str
) -> None:
    connection.execute(definition)
    with pytest.raises(LakehouseError) as caught:
        draft_contract(connection, "v")
    assert detail in caught.value.detail
    assert hint in caught.value.hint


def test_a_name_without_latin_letters_must_be_given(connection: psycopg.Connection[Any]) -> None:
    connection.execute('CREATE TABLE "名" (id int PRIMARY KEY, org_id int NOT NULL)')
    with pytest.raises(LakehouseError, match="--name"):
        draft_contract(connection, "名")
    assert draft_contract(connection, "名", name="names").contract["title"] == "names"


def test_long_names_stay_unique(connection: psycopg.Connection[Any]) -> None:
    long = "aB" * 31
    connection.execute(f'CREATE TABLE t (id int PRIMARY KEY, org_id int NOT NULL, "{long}" int, "{long}C" int)')
    names = [c["name"] for c in draft_contract(connection, "t").contract["columns"]]
    assert len(set(names)) == 4
    assert all(len(name) <= 63 for name in names)


def test_tenant_is_the_column_that_refers_to_a_table_of_tenants(connection: psycopg.Connection[Any]) -> None:
    connection.execute(
        """
        CREATE TABLE workspaces (id int PRIMARY KEY);
        CREATE TABLE customers (id int PRIMARY KEY);
        CREATE TABLE a (id int PRIMARY KEY, account_id int NOT NULL, workspace_id int NOT NULL REFERENCES workspaces);
        CREATE TABLE b (id int PRIMARY KEY, customer_id int NOT NULL REFERENCES customers, org_id int NOT NULL);
        CREATE TABLE c (id int PRIMARY KEY, customer_id int NOT NULL);
        """
    )
    drafts = {table: draft_contract(connection, table) for table in "abc"}
    assert [drafts[t].contract["tenant"] for t in "abc"] == ["workspace_id", "org_id", "customer_id"]
    assert "preferred to account_id" in _note(drafts["a"], "Tenant")
    assert not [n for n in drafts["c"].notes if n.startswith("Tenant")]


@pytest.mark.parametrize(
    ("columns", "event_time", "watermark"),
    [
        ("seen_at timestamptz NOT NULL DEFAULT now()", None, None),
        ("updated_at timestamptz NOT NULL DEFAULT now()", None, ("updated_at", True)),
        ("updated_at timestamptz", None, ("updated_at", False)),
        ("updated_on date NOT NULL", None, ("updated_on", False)),
        ("due_at timestamptz NOT NULL DEFAULT now(), started timestamptz NOT NULL", None, None),
        ("noted timestamptz NOT NULL DEFAULT now()", "noted", ("noted", False)),
        ("created_at timestamptz", None, ("created_at", False)),
        ("created_at timestamp NOT NULL, occurred_at timestamp NOT NULL", "occurred_at", ("created_at", False)),
        ("created_at date NOT NULL, modified_at timestamp NOT NULL", "created_at", ("modified_at", True)),
        ("day date NOT NULL, created_at timestamptz NOT NULL, UNIQUE (day)", "created_at", ("created_at", False)),
    ],
)
def test_event_time_never_moves_and_watermark_is_what_people_read(
    connection: psycopg.Connection[Any],
    columns: str,
    event_time: str | None,
    watermark: tuple[str, bool] | None,
) -> None:
    connection.execute(f"CREATE TABLE t (id int PRIMARY KEY, org_id int NOT NULL, {columns})")
    draft = draft_contract(connection, "t")
    found = draft.contract["watermark"]
    assert draft.contract["event_time"] == event_time
    assert (found and (found["column"], found["every_change"])) == watermark
    assert _note(draft, "Event time")
    assert _note(draft, "Watermark")


def test_a_time_in_the_key_is_the_event_time_of_a_partitioned_table(connection: psycopg.Connection[Any]) -> None:
    connection.execute(
        """
        CREATE TABLE readings (device int, at timestamptz, org_id int NOT NULL, created_at timestamptz NOT NULL,
                               PRIMARY KEY (at, device)) PARTITION BY RANGE (at);
        CREATE TABLE readings_old PARTITION OF readings FOR VALUES FROM (MINVALUE) TO ('2026-01-01');
        """
    )
    draft = draft_contract(connection, "readings")
    assert draft.contract["event_time"] == "at"
    assert draft.contract["primary_key"] == ["at", "device"]
    assert "public.readings would cover" in _note(draft_contract(connection, "readings_old"), "public.readings_old")


def test_a_trigger_is_evidence_for_the_watermark_and_a_foreign_key_against(
    connection: psycopg.Connection[Any],
) -> None:
    connection.execute(
        """
        CREATE TABLE other (id int PRIMARY KEY);
        CREATE TABLE t (id int PRIMARY KEY, org_id int NOT NULL, updated_at timestamptz NOT NULL DEFAULT now(),
                        other_id int REFERENCES other ON DELETE SET NULL);
        CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN NEW.updated_at := now(); RETURN NEW; END $$;
        """
    )
    assert "sets other_id to null unstamped" in _note(draft_contract(connection, "t"), "Watermark")
    connection.execute("CREATE TRIGGER stamps BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION stamp()")
    note = _note(draft_contract(connection, "t"), "Watermark")
    assert "trigger stamps seems to" in note
    assert "unstamped" not in note


def test_a_key_is_compared_exactly(connection: psycopg.Connection[Any]) -> None:
    connection.execute(
        "CREATE TABLE t (a double precision, b jsonb, c int[], d numeric, e timestamptz, org_id int NOT NULL, "
        "PRIMARY KEY (a, b, c, d, e))"
    )
    draft = draft_contract(connection, "t")
    assert _types(draft) == dict.fromkeys("abcd", "string") | {"e": "timestamptz", "org_id": "integer"}
    assert "a, b, c, d." in _note(draft, "In the key, compared as text")


def test_the_sessions_search_path_changes_nothing(orders: Draft, connection: psycopg.Connection[Any]) -> None:
    connection.execute("SET search_path = shop")
    assert draft_contract(connection, '"Orders"') == orders
    assert connection.execute("SHOW search_path").fetchall() == [("shop",)]


def test_a_draft_leaves_the_callers_connection_as_it_was(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, row_factory=dict_row) as connection:
        connection.execute("CREATE TABLE t (id int PRIMARY KEY, org_id int NOT NULL)")
        connection.execute("SET LOCAL search_path = public, pg_temp")
        draft_contract(connection, "t")
        with pytest.raises(LakehouseError):
            draft_contract(connection, "nowhere")
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        assert connection.execute("SHOW search_path").fetchall() == [{"search_path": "public, pg_temp"}]
        connection.rollback()


def test_a_lost_connection_is_an_error_of_ours(postgres_url: str) -> None:
    connection = psycopg.connect(postgres_url)
    connection.close()
    with pytest.raises(LakehouseError, match="the catalog cannot be read"):
        draft_contract(connection, "t")


def test_what_the_user_cannot_see_is_said(connection: psycopg.Connection[Any]) -> None:
    connection.execute(
        "CREATE TABLE t (id int PRIMARY KEY, org_id int NOT NULL); ALTER TABLE t ENABLE ROW LEVEL SECURITY; "
        "CREATE ROLE drafting_reader"
    )
    try:
        connection.execute("SET ROLE drafting_reader")
        draft = draft_contract(connection, "t")
        assert _note(draft, "This user may not read the table")
        assert "BYPASSRLS" in _note(draft, "Row security")
    finally:
        connection.execute("RESET ROLE; DROP ROLE drafting_reader")


@pytest.mark.parametrize("table", sorted(load_contracts([BUILT_IN])))
def test_built_in_contracts_are_what_the_host_has(connection: psycopg.Connection[Any], table: str) -> None:
    connection.execute(HOT.read_text("utf-8"))
    contract = load_contracts([BUILT_IN])[table]
    draft = draft_contract(connection, contract.source_name)
    hot = {c["source"]: c for c in draft.contract["columns"]}
    hidden = {n.column for n in contract.not_exported}
    assert not draft.contract["not_exported"]  # nothing that drafting takes for a secret
    assert [c.source for c in contract.columns] == [name for name in hot if name not in hidden]
    assert hidden <= set(hot)
    for column in contract.columns:
        found = hot[column.source]
        assert (str(column.type), column.source_type, column.nullable) == (
            found["type"],
            found["source_type"],
            found["nullable"],
        )
    labels = connection.execute(
        "SELECT attname, enumlabel FROM pg_attribute JOIN pg_enum ON enumtypid = atttypid "
        "WHERE attrelid = to_regclass(%s)",
        [contract.source_name],
    ).fetchall()
    missing = [(c, label) for c, label in labels if c not in hidden and label not in contract[c].description]
    assert missing == []
