"""The text by which one row of a table is named: in tombstones, holds, recalls, and on a command line.

A key of one text column is that text, as people know it. Any other key is the canonical fields of its columns, one
after the other (docs/canonical-row.md), so two keys have one text only if they are the same. Every engine prints it
alike; no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.canonical import duckdb_field_text, postgres_field_text, python_field_text
from schemas.contract import Column, Contract


def postgres_key(contract: Contract, alias: str = "") -> str:
    """The SQL expression of a row's key text in PostgreSQL, over the hot table's columns."""
    if (only := _plain(contract)) is not None:
        return f"({_named(only.source, alias)})::text"
    return " || ".join(postgres_field_text(contract[k], alias=alias) for k in contract.primary_key)


def duckdb_key(contract: Contract, alias: str = "") -> str:
    """The SQL expression of a row's key text in DuckDB, over the lake's columns."""
    if (only := _plain(contract)) is not None:
        return _named(only.name, alias)
    return f"concat({', '.join(duckdb_field_text(contract[k], alias) for k in contract.primary_key)})"


def python_key(contract: Contract, row: Mapping[str, Any]) -> str:
    """The key text of a row given by lake names; values as for `schemas.canonical.python_text`."""
    if (only := _plain(contract)) is not None:
        return str(row[only.name])
    return "".join(python_field_text(contract[k], row[k]) for k in contract.primary_key)


def _plain(contract: Contract) -> Column | None:
    if len(contract.primary_key) == 1 and (column := contract[contract.primary_key[0]]).type.name == "string":
        return column
    return None


def _named(name: str, alias: str) -> str:
    quoted = '"' + name.replace('"', '""') + '"'
    return f'"{alias}".{quoted}' if alias else quoted
