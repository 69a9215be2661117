"""Random rows of every type have one canonical text in PostgreSQL, in DuckDB over Parquet, and in Python.

PostgreSQL is the oracle; tests/integration/test_canonical.py holds the examples that a person can read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from schemas.canonical import python_hash, python_text
from schemas.contract import Contract
from tests.integration.test_canonical import contract_of, from_literal, in_duckdb, in_postgres


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=12)
JSON_NUMBER = st.from_regex(r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,10})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
JSON_STRING = st.builds(lambda s, ascii_only: json.dumps(s, ensure_ascii=ascii_only), TEXT, st.booleans())
# Few and short keys, so that some are doubled and lengths tie; spaces where JSON allows them.
JSON_KEY = st.one_of(st.sampled_from(['"a"', '"b"', '"é"', '"aa"', '""', '"\\u0061"']), JSON_STRING)
JSON = st.recursive(
    st.one_of(st.sampled_from(["null", "true", " false "]), JSON_NUMBER, JSON_STRING),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(st.tuples(JSON_KEY, inner), max_size=5).map(
            lambda items: "{" + ",".join(f"{key} :{value}" for key, value in items) + "}"
        ),
    ),
    max_leaves=8,
)
DOUBLE = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)


def decimals(precision: int, scale: int) -> st.SearchStrategy[str]:
    limit = 10**precision - 1
    # Built from its parts: arithmetic would round to the context's 28 digits.
    parts = st.integers(-limit, limit).map(lambda n: Decimal(n).as_tuple())
    return parts.map(lambda p: format(Decimal((p.sign, p.digits, -scale)), "f"))


MOMENT = st.datetimes().map(lambda d: d.isoformat(sep=" ") + "+00")
BOOLEAN = st.sampled_from("tf")
INTEGER = st.integers(-(2**31), 2**31 - 1).map(str)
LONG = st.integers(-(2**63), 2**63 - 1).map(str)
BITS = DOUBLE.map(repr)


def lists(element: st.SearchStrategy[str]) -> st.SearchStrategy[list[str | None]]:
    return st.lists(st.one_of(st.none(), element), max_size=4)


EVERY_TYPE: list[tuple[str, str, st.SearchStrategy[Any]]] = [
    ("string", "text", TEXT),
    ("string", "character varying(12)", TEXT),
    ("boolean", "boolean", BOOLEAN),
    ("integer", "integer", INTEGER),
    ("long", "bigint", LONG),
    ("double", "double precision", BITS),
    ("decimal(5,2)", "numeric(5,2)", decimals(5, 2)),
    ("decimal(38,10)", "numeric", decimals(38, 10)),
    ("decimal(38,38)", "numeric(38,38)", decimals(38, 38)),
    ("timestamptz", "timestamp(6) without time zone", MOMENT),
    ("timestamptz", "timestamp with time zone", MOMENT),
    ("date", "date", st.dates().map(str)),
    ("json", "jsonb", JSON),
    ("json", "json", JSON),
    ("binary", "bytea", st.binary(max_size=9).map(lambda b: "\\x" + b.hex())),
    ("list<string>", "text[]", lists(TEXT)),
    ("list<integer>", "integer[]", lists(INTEGER)),
    ("list<long>", "bigint[]", lists(LONG)),
    ("list<boolean>", "boolean[]", lists(BOOLEAN)),
    ("list<double>", "double precision[]", lists(BITS)),
]
EVERY = contract_of([{"type": kind, "source_type": source_type} for kind, source_type, _ in EVERY_TYPE])
ROWS = st.lists(st.tuples(*(st.one_of(st.none(), values) for *_, values in EVERY_TYPE)), min_size=1, max_size=8)


def exported(connection: psycopg.Connection[Any], contract: Contract) -> list[tuple[Any, ...]]:
    """The rows of `hot` as an export reads them."""
    items = [
        sql.SQL("{}::text" if c.type.name in ("string", "json") else "{}").format(sql.Identifier(c.source))
        for c in contract.columns
    ]
    connection.execute("SET TIME ZONE 'UTC'")  # psycopg's datetime ends with the year 9999 of the session's zone
    query = sql.SQL("SELECT {} FROM hot ORDER BY _n").format(sql.SQL(", ").join(items))
    return connection.execute(query).fetchall()


# Derandomized: the same examples each run, so that a failure can be repeated.
@settings(
    derandomize=True,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(literals=ROWS)
def test_random_rows_are_alike_everywhere(
    literals: list[tuple[Any, ...]], postgres: psycopg.Connection[Any], tmp_path: Path
) -> None:
    hot = in_postgres(postgres, EVERY, literals)
    rows = exported(postgres, EVERY)
    assert in_duckdb(tmp_path / "rows.parquet", EVERY, rows) == hot
    for literal, row, (text, digest) in zip(literals, rows, hot, strict=True):
        named = {c.name: value for c, value in zip(EVERY.columns, row, strict=True)}
        assert (python_text(EVERY, named), python_hash(EVERY, named)) == (text, digest)
        alone = {
            c.name: from_literal(c.type, value, c.source_type) for c, value in zip(EVERY.columns, literal, strict=True)
        }
        assert python_text(EVERY, alone) == text, "the reference alone, without what PostgreSQL made of the row"


TWO = contract_of([{"type": "string", "source_type": "text"}, {"type": "list<string>", "source_type": "text[]"}])
AMBIGUOUS = st.text("~,:[]12", max_size=5)
PAIR = st.fixed_dictionaries(
    {"c0": st.none() | AMBIGUOUS, "c1": st.none() | st.lists(st.none() | AMBIGUOUS, max_size=3)}
)


@settings(derandomize=True, max_examples=500)
@given(one=PAIR, other=PAIR)
def test_one_text_means_one_row(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (python_text(TWO, one) == python_text(TWO, other)) == (one == other)
