"""Rows with edge values in every column of every contract, and PostgreSQL as the judge of what came back.

Foreign keys are out of the way and only primary keys are unique, so that each value may stand in each row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import psycopg
from psycopg import sql

from schemas.contract import Contract
from tests.integration.test_types import JSONB, TEXTS

LISTS = ("{}", "{NULL}", '{"",NULL," ","NULL","a,b","{}","\\"","\\\\"}', "{é,\U0001f680}")
MOMENTS = ("0001-01-01 00:00:00", "9999-12-31 23:59:59.999", "1969-12-31 23:59:59.999", "2026-03-29 02:30:00.001")
KEYS = (
    "plain",
    'it\'s "quoted", \\ and\na line',
    "\U0001f469\U0001f3fd\u200d\U0001f680",
    " ",
    "\\.",
    "NULL",
    "é\u0301",
)
ROWS = 30

Connection = psycopg.Connection[Any]


def only_primary_keys(hot: Connection) -> None:
    """Drop every other unique index of the host's."""
    for (name,) in hot.execute(
        "SELECT indexrelid::regclass::text FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid "
        "WHERE c.relnamespace = 'public'::regnamespace AND i.indisunique AND NOT i.indisprimary"
    ).fetchall():
        hot.execute(f"DROP INDEX {name}")  # type: ignore[arg-type]


def hot_types(hot: Connection, contract: Contract) -> dict[str, str]:
    """The hot table's columns with their types."""
    rows = hot.execute(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = %s::regclass "
        "AND attnum > 0 AND NOT attisdropped",
        [f"{contract.source_schema}.{contract.source_table}"],
    ).fetchall()
    return dict(rows)


def fill(hot: Connection, contract: Contract, organization: str) -> int:
    """Insert `ROWS` rows of an organization, the n-th value of each column's list in the n-th row."""
    types = hot_types(hot, contract)
    values: dict[str, list[str | None]] = {}
    for column in contract.columns:
        kind = types[column.source]
        found: list[str | None] = list(_edges(hot, kind))
        if column.name in contract.primary_key:
            found = [f"{KEYS[n % len(KEYS)]}{n // len(KEYS) or ''}" for n in range(ROWS)]
        elif column.name == contract.tenant:
            found = [organization]
        elif column.nullable:
            found.append(None)
        values[column.source] = found
    with hot.transaction():
        hot.execute("SET LOCAL session_replication_role = replica")
        for n in range(ROWS):
            row = {name: found[(n + place) % len(found)] for place, (name, found) in enumerate(values.items())}
            row |= {contract[k].source: values[contract[k].source][n] for k in contract.primary_key}
            hot.execute(
                sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
                    sql.Identifier(contract.source_schema, contract.source_table),
                    sql.SQL(", ").join(map(sql.Identifier, row)),
                    sql.SQL(", ").join(
                        sql.SQL("{}::text::{}").format(sql.Placeholder(), sql.SQL(types[name])) for name in row
                    ),
                ),
                list(row.values()),
            )
    return ROWS


def _edges(hot: Connection, kind: str) -> Iterable[str]:
    if kind == "text":
        return TEXTS
    if kind.startswith("character varying"):
        return [text[: int(kind.partition("(")[2].rstrip(")"))] for text in TEXTS]
    if kind.startswith("timestamp"):
        return MOMENTS
    if kind == "jsonb":
        return JSONB
    if kind == "text[]":
        return LISTS
    if kind == "boolean":
        return ("t", "f")
    if kind == "integer":
        return ("-2147483648", "2147483647", "0")
    if kind == "numeric(5,2)":
        return ("999.99", "-999.99", "0.00", "0.5")
    labels = hot.execute(f"SELECT unnest(enum_range(NULL::{kind}))::text").fetchall()  # type: ignore[arg-type]
    return [label for (label,) in labels]


def keep(hot: Connection, contract: Contract) -> None:
    """Copy the hot table as it is into `kept_<table>`."""
    hot.execute(
        sql.SQL("CREATE TABLE {} AS TABLE {}").format(
            sql.Identifier(f"kept_{contract.table}"), sql.Identifier(contract.source_schema, contract.source_table)
        )
    )


def differences(
    hot: Connection, contract: Contract, rows: Iterable[Mapping[str, str | None]], read: Mapping[str, str]
) -> list[Any]:
    """Where rows of texts (by lake name) are not those that were kept, to the last character and type.

    `read`: for a logical type, how PostgreSQL makes the value of the text `v` of type `{t}`; `v::{t}` otherwise.
    """
    types = hot_types(hot, contract)
    names = [c.name for c in contract.columns]
    texts = sql.SQL(", ").join(sql.SQL("{} text").format(sql.Identifier(n)) for n in names)
    hot.execute("DROP TABLE IF EXISTS came_back")
    hot.execute(sql.SQL("CREATE TEMP TABLE came_back ({})").format(texts))
    with hot.cursor() as cursor, cursor.copy("COPY came_back FROM STDIN") as copy:
        for row in rows:
            copy.write_row([row[n] for n in names])
    values = []
    for column in contract.columns:
        kind = "list" if column.type.is_list else column.type.name
        how = read.get(kind, "v::{t}").replace("{t}", types[column.source])
        values.append(
            sql.SQL("(SELECT ({}) FROM (SELECT {} AS v) AS x)::text AS {}").format(
                sql.SQL(how), sql.Identifier(column.name), sql.Identifier(column.source)
            )
        )
    kept = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(c.source)) for c in contract.columns)
    ours = sql.SQL("SELECT {} FROM came_back").format(sql.SQL(", ").join(values))
    theirs = sql.SQL("SELECT {} FROM {}").format(kept, sql.Identifier(f"kept_{contract.table}"))
    return hot.execute(
        sql.SQL(
            "(SELECT 'not kept', x.* FROM ({o} EXCEPT ALL {t}) x) "
            "UNION ALL (SELECT 'missing', x.* FROM ({t} EXCEPT ALL {o}) x)"
        ).format(o=ours, t=theirs)
    ).fetchall()
