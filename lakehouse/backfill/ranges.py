"""Cuts a table into ranges of its first key column, of about equal numbers of rows."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

from lakehouse.capture.source import HotTable
from schemas.contract import Contract

SAMPLE_ROWS_PER_RANGE = 200
ROW_BYTES_GUESS = 200  # for a table that was never analysed

Range = tuple[str | None, str | None]
"""[lower, upper) as the key column's text; None at the ends."""


def estimated_rows(hot: HotTable) -> int:
    """About how many rows the table has: the planner's number, or a guess from its size."""
    return hot.rows or hot.bytes // ROW_BYTES_GUESS


def key_ranges(
    connection: psycopg.Connection[Any], contract: Contract, hot: HotTable, rows_per_range: int
) -> list[Range]:
    """Ranges that together cover every possible key, once.

    Bounds are quantiles of a sample, sorted by the database in the column's own order and collation.
    """
    rows = estimated_rows(hot)
    count = max(1, -(-rows // rows_per_range))
    if count == 1:
        return [(None, None)]
    key = sql.Identifier(contract[contract.primary_key[0]].source)
    share = min(100.0, 100.0 * count * SAMPLE_ROWS_PER_RANGE / rows)
    row = connection.execute(
        sql.SQL(
            "SELECT (percentile_disc({fractions}::float8[]) WITHIN GROUP (ORDER BY {key}))::text[] "
            "FROM {table} TABLESAMPLE SYSTEM ({share})"
        ).format(
            fractions=sql.Literal([i / count for i in range(1, count)]),
            key=key,
            table=sql.Identifier(contract.source_schema, contract.source_table),
            share=sql.Literal(share),
        )
    ).fetchone()
    bounds = list(dict.fromkeys(b for b in (row[0] if row and row[0] else []) if b is not None))
    return list(zip([None, *bounds], [*bounds, None], strict=True))


def range_condition(contract: Contract, hot_type: str, bounds: Range) -> list[sql.Composable]:
    """Conditions that select the range; compared in the column's own type, so that its index serves."""
    key = sql.Identifier("t", contract[contract.primary_key[0]].source)
    return [
        sql.SQL("{} {} {}::{}").format(key, sql.SQL(operator), sql.Literal(bound), sql.SQL(hot_type))
        for operator, bound in ((">=", bounds[0]), ("<", bounds[1]))
        if bound is not None
    ]
