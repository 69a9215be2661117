"""The latest view: the right version of each key, and a filter on the event time that reaches the scan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog

from lakehouse.duck import connect, lake_relation
from schemas.contract import BUILT_IN, Contract, load_contract
from schemas.lake_columns import arrow_schema, iceberg_schema, lake_fields, partition_spec
from schemas.views import history_columns, latest_columns, latest_view_sql

HISTORY = """
    SELECT id, d::TIMESTAMPTZ AS detected_at, _op, _sequence, c::TIMESTAMPTZ AS _captured_at, status
    FROM (VALUES
        ('kept',     '2026-01-01 10:00:00Z', 'upsert', 1, '2026-02-01 00:00:00Z', 'OPEN'),
        ('kept',     '2026-01-01 10:00:00Z', 'upsert', 7, '2026-02-03 00:00:00Z', 'RESOLVED'),
        ('kept',     '2026-01-01 10:00:00Z', 'upsert', 4, '2026-02-02 00:00:00Z', 'MUTED'),
        ('gone',     '2026-01-01 11:00:00Z', 'upsert', 2, '2026-02-01 00:00:00Z', 'OPEN'),
        ('gone',     '2026-01-01 11:00:00Z', 'delete', 5, '2026-02-02 00:00:00Z', NULL),
        ('back',     '2026-01-02 12:00:00Z', 'upsert', 3, '2026-02-01 00:00:00Z', 'OPEN'),
        ('back',     '2026-01-02 12:00:00Z', 'delete', 6, '2026-02-02 00:00:00Z', NULL),
        ('back',     '2026-01-02 12:00:00Z', 'upsert', 9, '2026-02-03 00:00:00Z', 'OPEN'),
        -- an id that came back with another event time: a delete there, then an upsert here
        ('moved',    '2026-01-01 13:00:00Z', 'upsert', 10, '2026-02-01 00:00:00Z', 'OPEN'),
        ('moved',    '2026-01-01 13:00:00Z', 'delete', 11, '2026-02-03 00:00:00Z', NULL),
        ('moved',    '2026-03-01 13:00:00Z', 'upsert', 12, '2026-02-03 00:00:00Z', 'RESOLVED')
    ) AS t(id, d, _op, _sequence, c, status)
"""


@pytest.fixture
def findings() -> Contract:
    """The columns of findings that the test's history has, in another order than their ids'."""
    contract = load_contract(BUILT_IN / "findings" / "v1.json")
    return replace(contract, columns=tuple(contract[name] for name in ("status", "id", "detected_at")))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB with `history`, a Parquet file of the versions above; no extension."""
    config = {"autoload_known_extensions": False, "autoinstall_known_extensions": False}
    with duckdb.connect(config=config) as connection:
        connection.execute(f"COPY ({HISTORY}) TO '{tmp_path}/h.parquet' (FORMAT parquet)")
        connection.execute(f"CREATE VIEW history AS SELECT * FROM read_parquet('{tmp_path}/h.parquet')")
        yield connection


def latest(engine: duckdb.DuckDBPyConnection, query: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    return dict(engine.execute(f"SELECT id, status FROM ({query})", parameters).fetchall())


def test_the_newest_version_unless_it_is_a_delete(engine: duckdb.DuckDBPyConnection, findings: Contract) -> None:
    view = latest_view_sql(findings, relation="history")
    assert latest(engine, view) == {"kept": "RESOLVED", "back": "OPEN", "moved": "RESOLVED"}


@pytest.mark.parametrize(
    ("as_of", "expected"),
    [
        ("2026-01-31", {}),
        ("2026-02-01", {"kept": "OPEN", "gone": "OPEN", "back": "OPEN", "moved": "OPEN"}),
        ("2026-02-02", {"kept": "MUTED", "moved": "OPEN"}),
        ("2026-02-03", {"kept": "RESOLVED", "back": "OPEN", "moved": "RESOLVED"}),
    ],
)
def test_as_of_reads_what_was_known_then(
    as_of: str, expected: dict[str, str], engine: duckdb.DuckDBPyConnection, findings: Contract
) -> None:
    literal = latest_view_sql(findings, relation="history", as_of=f"TIMESTAMPTZ '{as_of} 00:00:00Z'")
    parameter = latest_view_sql(findings, relation="history", as_of="$limit::TIMESTAMPTZ")
    assert latest(engine, literal) == expected
    assert latest(engine, parameter, {"limit": f"{as_of} 00:00:00Z"}) == expected


def test_columns_are_in_the_contracts_order(engine: duckdb.DuckDBPyConnection, findings: Contract) -> None:
    shown = engine.execute(f"DESCRIBE {latest_view_sql(findings, relation='history')}").fetchall()
    assert tuple(row[0] for row in shown) == latest_columns(findings)
    assert latest_columns(findings) == ("status", "id", "detected_at", "_sequence", "_captured_at")


def test_history_has_every_column_of_the_lake_table() -> None:
    contract = load_contract(BUILT_IN / "findings" / "v1.json")
    assert set(history_columns(contract)) == {column.name for column in lake_fields(contract)}
    assert history_columns(contract)[0] == contract.columns[0].name


def test_without_event_time_the_key_alone_identifies(engine: duckdb.DuckDBPyConnection, findings: Contract) -> None:
    view = latest_view_sql(replace(findings, event_time=None), relation="history")
    assert 'PARTITION BY "id" ' in view
    assert latest(engine, view) == {"kept": "RESOLVED", "back": "OPEN", "moved": "RESOLVED"}


def test_the_event_time_comes_first_even_inside_the_key(findings: Contract) -> None:
    contract = replace(findings, primary_key=("id", "detected_at"))
    assert 'PARTITION BY "detected_at", "id" ' in latest_view_sql(contract, relation="history")


def operators(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and detail of each operator of a plan, from the top."""
    yield plan["name"].strip(), json.dumps(plan["extra_info"])
    for child in plan["children"]:
        yield from operators(child)


@pytest.mark.parametrize("as_of", [None, "TIMESTAMPTZ '2026-02-02 00:00:00Z'"])
def test_a_filter_on_the_event_time_reaches_the_scan(
    as_of: str | None, engine: duckdb.DuckDBPyConnection, findings: Contract
) -> None:
    engine.execute(f"CREATE VIEW v AS {latest_view_sql(findings, relation='history', as_of=as_of)}")
    query = (
        "SELECT status FROM v WHERE detected_at >= TIMESTAMPTZ '2026-01-02 00:00:00Z' "
        "AND id = 'back' AND status = 'OPEN'"
    )
    (row,) = engine.execute(f"EXPLAIN (FORMAT json) {query}").fetchall()
    plan = list(operators(json.loads(row[1])[0]))
    window = next(n for n, (name, _) in enumerate(plan) if name == "WINDOW")
    scan, details = plan[-1]
    assert "PARQUET" in scan
    filters = json.loads(details)["Filters"]
    assert "detected_at>=" in str(filters)
    assert "id=" in str(filters)
    assert ("_captured_at<=" in str(filters)) == (as_of is not None)
    # What is no part of the identity must wait for the ranking: an older version must not pass for the latest.
    assert not any(
        "status=" in detail or "_op" in str(json.loads(detail).get("Filters")) for _, detail in plan[window:]
    )
    assert any("_op" in detail for name, detail in plan[:window] if name == "FILTER")


def test_over_iceberg_only_the_files_of_those_days_are_read(tmp_path: Path) -> None:
    contract = load_contract(BUILT_IN / "findings" / "v1.json")
    catalog = SqlCatalog("views", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}")
    catalog.create_namespace("org")
    table = catalog.create_table("org.findings", iceberg_schema(contract), partition_spec=partition_spec(contract))
    schema = arrow_schema(contract)
    at = [datetime(2026, 1, day, tzinfo=UTC) for day in range(1, 11)]
    own = {"_op": "upsert", "_captured_at": at[-1], "_window": "w", "organization_id": "o"}
    rows = [{**own, "_sequence": n, "id": f"id-{n}", "detected_at": moment} for n, moment in enumerate(at)]
    table.append(pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema))
    catalog.engine.dispose()
    with connect({}) as engine:
        view = latest_view_sql(contract, relation=lake_relation(table.metadata_location))
        query = (
            f"SELECT id FROM ({view}) WHERE detected_at BETWEEN TIMESTAMPTZ '2026-01-03' AND TIMESTAMPTZ '2026-01-04'"
        )
        assert sorted(engine.execute(query).fetchall()) == [("id-2",), ("id-3",)]
        ((_, plan),) = engine.execute(f"EXPLAIN ANALYZE {query}").fetchall()
        assert "Total Files Read: 2" in plan
