"""Every engine prints a row alike: PostgreSQL, DuckDB over Parquet, and the Python reference.

The vectors are worked examples that a person can read; tests/property/test_canonical_random.py looks where nobody
thought to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from psycopg import sql

from federation.postgres.layout import native_type
from schemas.canonical import (
    canonical_json,
    decode_json,
    duckdb_field_text,
    duckdb_hash,
    duckdb_text,
    postgres_field_text,
    postgres_hash,
    postgres_text,
    python_hash,
    python_text,
)
from schemas.contract import BUILT_IN, Column, Contract
from schemas.types import LogicalType, arrow_type, parse_type

VECTORS: list[dict[str, Any]] = json.loads((BUILT_IN / "canonical_vectors.json").read_text("utf-8"))["vectors"]
Row = Sequence[Any]


def contract_of(columns: Sequence[dict[str, Any]]) -> Contract:
    """A contract of just these columns; the hot names need quoting on purpose."""
    return Contract(
        table="vectors",
        version="1.0",
        title="Vectors",
        description="Vectors.",
        provisional=False,
        source_schema="public",
        source_table="vectors",
        tenant="c0",
        primary_key=("c0",),
        event_time=None,
        watermark=None,
        age_bounds=(),
        retention="never",
        columns=tuple(
            Column(
                id=column.get("id", 6 + index),
                name=f"c{index}",
                type=parse_type(column["type"]),
                nullable=True,
                source=f'Order "x" {index}',
                source_type=column["source_type"],
                description="A column.",
                sensitivity="internal",
                since="1.0",
            )
            for index, column in enumerate(columns)
        ),
        not_exported=(),
    )


def create_table(connection: psycopg.Connection[Any], contract: Contract, rows: Sequence[Row]) -> None:
    """A temporary table `hot` with the contract's hot columns, filled from literals in order `_n`."""
    columns = [sql.SQL("{} {}").format(sql.Identifier(c.source), sql.SQL(c.source_type)) for c in contract.columns]
    connection.execute("DROP TABLE IF EXISTS hot")
    connection.execute(sql.SQL("CREATE TEMPORARY TABLE hot (_n integer, {})").format(sql.SQL(", ").join(columns)))
    casts = [
        sql.SQL("{}{}::{}").format(
            sql.Placeholder(), sql.SQL("::text[]" if c.type.is_list else "::text"), sql.SQL(c.source_type)
        )
        for c in contract.columns
    ]
    insert = sql.SQL("INSERT INTO hot VALUES (%s, {})").format(sql.SQL(", ").join(casts))
    with connection.cursor() as cursor:
        cursor.execute("SET TIME ZONE 'UTC'")  # the literals' business; the expressions are read in another zone
        cursor.executemany(insert, [(n, *row) for n, row in enumerate(rows)])
        cursor.execute("SET TIME ZONE 'Asia/Kolkata'")


def in_postgres(connection: psycopg.Connection[Any], contract: Contract, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Text and hash of each row, as PostgreSQL computes them."""
    create_table(connection, contract, rows)
    query = f"SELECT {postgres_text(contract)}, {postgres_hash(contract, alias='h')} FROM hot AS h ORDER BY _n"
    return connection.execute(query.encode()).fetchall()


def lake(path: Path, contract: Contract, rows: Sequence[Row]) -> duckdb.DuckDBPyConnection:
    """DuckDB without any extension, and a view `lake` over the rows as pyarrow writes them to Parquet."""
    arrays = {
        column.name: pa.array([row[index] for row in rows], arrow_type(column.type))
        for index, column in enumerate(contract.columns)
    }
    pq.write_table(pa.table({"_n": pa.array(range(len(rows)), pa.int32()), **arrays}), path)
    engine = duckdb.connect(config={"autoload_known_extensions": False, "autoinstall_known_extensions": False})
    engine.execute(f"CREATE VIEW lake AS SELECT * FROM read_parquet('{path}')")
    return engine


def in_duckdb(path: Path, contract: Contract, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Text and hash of each row, as DuckDB computes them from a Parquet file."""
    with lake(path, contract, rows) as engine:
        query = f"SELECT {duckdb_text(contract)}, {duckdb_hash(contract, alias='l')} FROM lake AS l ORDER BY _n"
        return engine.execute(query).fetchall()


def from_literal(kind: LogicalType, literal: Any, source_type: str) -> Any:
    """What the lake would hold of a literal, read without PostgreSQL."""
    if literal is None:
        return None
    match kind.name:
        case "list":
            return [from_literal(LogicalType(kind.element), item, "") for item in literal]
        case "boolean":
            return literal == "t"
        case "integer" | "long":
            return int(literal)
        case "double":
            value = float(literal)
            return float(pa.scalar(value, pa.float32()).as_py()) if source_type == "real" else value
        case "decimal":
            return Decimal(literal)
        case "timestamptz":
            return datetime.fromisoformat(literal).astimezone(UTC)
        case "date":
            return date.fromisoformat(literal)
        case "binary":
            return bytes.fromhex(literal.removeprefix("\\x"))
        case "json" if source_type == "jsonb":
            return canonical_json(decode_json(literal))
        case _:
            return literal


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


def test_vectors_have_distinct_names_and_texts() -> None:
    assert len({v["name"] for v in VECTORS}) == len({v["text"] for v in VECTORS}) == len(VECTORS)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["name"])
def test_vector_in_python_and_duckdb(vector: dict[str, Any], tmp_path: Path) -> None:
    contract = contract_of(vector["columns"])
    row = [from_literal(c.type, v, c.source_type) for c, v in zip(contract.columns, vector["values"], strict=True)]
    named = {c.name: value for c, value in zip(contract.columns, row, strict=True)}
    expected = (vector["text"], vector["sha256"])
    assert (python_text(contract, named), python_hash(contract, named)) == expected
    assert in_duckdb(tmp_path / "v.parquet", contract, [row]) == [expected]


def test_vectors_in_postgres(postgres: psycopg.Connection[Any]) -> None:
    for vector in VECTORS:
        found = in_postgres(postgres, contract_of(vector["columns"]), [vector["values"]])
        assert found == [(vector["text"], vector["sha256"])], vector["name"]


def test_fields_make_up_the_row(postgres: psycopg.Connection[Any], tmp_path: Path) -> None:
    vector = next(v for v in VECTORS if v["name"] == "field-order")
    contract = contract_of(vector["columns"])
    create_table(postgres, contract, [vector["values"]])
    hot = [f"({postgres_field_text(c)})" for c in contract.columns]
    assert postgres.execute(f"SELECT {', '.join(hot)} FROM hot".encode()).fetchone() == ("4:last,", "1:1,", "1:t,")
    with lake(tmp_path / "v.parquet", contract, [["last", 1, True]]) as engine:
        cold = [duckdb_field_text(c, "l") for c in contract.columns]
        assert engine.execute(f"SELECT {', '.join(cold)} FROM lake AS l").fetchone() == ("4:last,", "1:1,", "1:t,")


def test_a_table_with_the_lakes_names(postgres: psycopg.Connection[Any]) -> None:
    """A replica carries the lake's names and types; JSON there is the text itself."""
    vector = next(v for v in VECTORS if v["name"] == "whole-row")
    contract = contract_of(vector["columns"])
    kinds = {"list": "text[]", "timestamptz": "timestamptz"}
    columns = ", ".join(f"{c.name} {kinds.get(c.type.name, 'text')}" for c in contract.columns)
    postgres.execute(f"CREATE TABLE replica ({columns})".encode())
    row = [from_literal(c.type, v, c.source_type) for c, v in zip(contract.columns, vector["values"], strict=True)]
    postgres.execute(f"INSERT INTO replica VALUES ({', '.join(['%s'] * len(row))})".encode(), row)
    query = f"SELECT {postgres_text(contract, columns_source=False, alias='r')} FROM replica AS r"
    assert postgres.execute(query.encode()).fetchone() == (vector["text"],)


def test_vectors_in_a_replica(postgres: psycopg.Connection[Any]) -> None:
    """Every vector over the native types of a replica, from values as the lake holds them."""
    for vector in VECTORS:
        contract = contract_of(vector["columns"])
        columns = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(c.name), sql.SQL(native_type(c))) for c in contract.columns
        )
        postgres.execute("DROP TABLE IF EXISTS replica")
        postgres.execute(sql.SQL("CREATE TEMPORARY TABLE replica ({})").format(columns))
        row = [from_literal(c.type, v, c.source_type) for c, v in zip(contract.columns, vector["values"], strict=True)]
        casts = sql.SQL(", ").join(
            sql.SQL("{}::{}").format(sql.Placeholder(), sql.SQL(native_type(c))) for c in contract.columns
        )
        postgres.execute(sql.SQL("INSERT INTO replica VALUES ({})").format(casts), row)
        query = (
            f"SELECT {postgres_text(contract, columns_source=False, alias='r')}, "
            f"{postgres_hash(contract, columns_source=False, alias='r')} FROM replica AS r"
        )
        found = postgres.execute(query.encode()).fetchone()
        assert found == (vector["text"], vector["sha256"]), vector["name"]


UNHOLDABLE = [
    # type, source type, literal, what a careless exporter would have put into the lake
    ("list<string>", "text[]", "{{a,b},{c,d}}", ["a", "b", "c", "d"]),
    ("list<string>", "text[]", "[5:6]={a,b}", ["a", "b"]),
    ("timestamptz", "timestamp(3) without time zone", "infinity", None),
    ("timestamptz", "timestamp with time zone", "-infinity", None),
    ("date", "date", "infinity", None),
    ("decimal(10,2)", "numeric", "1.005", Decimal("1.01")),
    ("decimal(10,2)", "numeric", "NaN", None),
    ("decimal(10,2)", "numeric(10,2)", "NaN", None),
]


@pytest.mark.parametrize(("kind", "source_type", "literal", "landed"), UNHOLDABLE, ids=str)
def test_what_the_lake_cannot_hold_is_unequal_and_no_error(
    kind: str, source_type: str, literal: str, landed: Any, postgres: psycopg.Connection[Any], tmp_path: Path
) -> None:
    contract = contract_of([{"type": kind, "source_type": source_type}])
    postgres.execute(f'CREATE TEMPORARY TABLE hot AS SELECT \'{literal}\'::{source_type} AS "Order ""x"" 0"'.encode())
    hot = postgres.execute(f"SELECT {postgres_text(contract)} FROM hot".encode()).fetchone()
    assert hot is not None
    assert hot[0] is not None
    assert hot[0] != in_duckdb(tmp_path / "v.parquet", contract, [[landed]])[0][0]


def test_an_infinite_timestamp_in_the_lake_is_not_a_null() -> None:
    """DuckDB's epoch_us() is NULL there."""
    column = contract_of([{"type": "timestamptz", "source_type": "timestamp with time zone"}]).columns[0]
    query = f"SELECT {duckdb_field_text(column)} FROM (SELECT 'infinity'::TIMESTAMPTZ AS c0)"
    assert duckdb.sql(query).fetchone() == ("!,",)


def test_many_columns(postgres: psycopg.Connection[Any], tmp_path: Path) -> None:
    """More than the hundred arguments that a PostgreSQL function takes."""
    contract = contract_of([{"type": "string", "source_type": "text"}] * 300)
    row = ["x"] * 300
    assert in_postgres(postgres, contract, [row]) == in_duckdb(tmp_path / "v.parquet", contract, [row])


@pytest.mark.parametrize("text", ['"\\u0000"', '"\\ud800"', "1e131072", "1e-16384", "NaN", "-Infinity", "1e999999999"])
def test_json_that_jsonb_refuses_is_refused(text: str, postgres: psycopg.Connection[Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        canonical_json(decode_json(text))
    with pytest.raises(psycopg.DataError):
        postgres.execute("SELECT %s::text::jsonb", [text])


def fields(text: str) -> list[bytes | None]:
    """A text taken apart again."""
    found: list[bytes | None] = []
    rest = text.encode()
    while rest:
        if rest.startswith(b"~,"):
            found, rest = [*found, None], rest[2:]
            continue
        length, _, rest = rest.partition(b":")
        assert rest[int(length) : int(length) + 1] == b","
        found, rest = [*found, rest[: int(length)]], rest[int(length) + 1 :]
    return found


def test_the_texts_of_the_documentation_are_well_formed() -> None:
    page = (BUILT_IN.parent / "docs" / "canonical-row.md").read_text("utf-8")
    texts = re.findall(r"\| `([^|]+)` \|$", page.split("## Some vectors")[1].split("\n## ")[0], re.MULTILINE)
    assert len(texts) == 12
    assert all(fields(text) for text in texts)
    assert all(len(fields(vector["text"])) == len(vector["columns"]) for vector in VECTORS)
