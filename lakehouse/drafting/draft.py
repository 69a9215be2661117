"""Putting a draft together: the choices, the columns with their ids, the notes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg

from lakehouse.drafting.catalog import HotColumn, HotTable, read_table
from lakehouse.drafting.choices import Subject, age_bounds, choose_event_time, choose_tenant, choose_watermark
from lakehouse.drafting.names import describe, is_lake_name, lake_name, words
from lakehouse.drafting.privacy import secret_reason, sensitivity
from schemas.contract import FIRST_COLUMN_ID, parse_contract
from schemas.errors import LakehouseError

_COMPARES_LOOSELY = ("numeric", "float4", "float8", "citext", "bpchar", "jsonb")


@dataclass(frozen=True)
class Draft:
    """A contract as its file would hold it, and what a person should know before publishing it."""

    contract: dict[str, Any]
    notes: list[str]


def draft_contract(
    connection: psycopg.Connection[Any],
    qualified_table: str,
    *,
    name: str | None = None,
    tenant: str | None = None,
    event_time: str | None = None,
) -> Draft:
    """Write a first contract for a table of any multi-tenant PostgreSQL.

    `name` is that of the lake table; `tenant` and `event_time` name columns, by their hot or lake name, where
    guessing does not do. Reads only the catalog and changes nothing.

    Raises:
        LakehouseError: no such table, a view, no primary key or one that may be a secret, no tenant column.
    """
    table = read_table(connection, qualified_table)
    subject = Subject(table)
    lake_table = _table_name(table, name)
    tenant_column = choose_tenant(subject, tenant)
    event_column = choose_event_time(subject, event_time)
    secrets = _secrets(table, keep=[c.name for c in (tenant_column, event_column) if c])
    exported = [c for c in table.columns if c.name not in secrets]
    title = " ".join(words(table.name)).capitalize() or lake_table
    contract = {
        "table": lake_table,
        "version": "1.0",
        "title": title,
        "description": " ".join((table.comment or "").split()) or f"{title}: the rows of {table.quoted}.",
        "source": {"schema": table.schema, "table": table.name},
        "tenant": subject.lake[tenant_column.name],
        "primary_key": [subject.lake[key] for key in table.primary_key],
        "event_time": subject.lake[event_column.name] if event_column else None,
        "watermark": choose_watermark(subject, exported, event_column),
        "age_bounds": [subject.lake[c.name] for c in age_bounds(subject, exported)],
        "retention": "never",
        "columns": list(_columns(subject, exported)),
        "not_exported": [{"column": column, "reason": reason} for column, reason in secrets.items()],
    }
    subject.notes.extend(_notes(subject, exported, secrets))
    parse_contract(contract, where=f"draft of {table.quoted}")
    return Draft(contract, subject.notes)


def format_contract(contract: dict[str, Any]) -> str:
    """A contract as the text of its file: one column a line, so that a change is one line of a diff."""
    fields = []
    for key, value in contract.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            items = ",\n".join(f"    {json.dumps(item, ensure_ascii=False)}" for item in value)
            text = f"[\n{items}\n  ]"
        fields.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _table_name(table: HotTable, name: str | None) -> str:
    chosen = name if name is not None else lake_name(table.name)
    if not is_lake_name(chosen):
        raise LakehouseError(
            f"{table.quoted}: {chosen!r} cannot be the name of a lake table",
            "Give one with --name: lower-case letters, digits and underscores, a letter first, 63 at most.",
        )
    return chosen


def _secrets(table: HotTable, keep: list[str]) -> dict[str, str]:
    """Why each column stays out. `keep` are columns that the contract cannot do without.

    Raises:
        LakehouseError: the primary key may be a secret.
    """
    reasons: dict[str, str] = {}
    for column in table.columns:
        reason = None if column.name in keep else secret_reason(column, table)
        if reason and column.name in table.primary_key:
            raise LakehouseError(
                f"{table.quoted}: {column.name!r} may be a secret, and is part of the primary key, "
                "which cannot be left out",
                "Give the table a key without it; if it is no secret, write the contract by hand.",
            )
        if reason:
            reasons[column.name] = reason
    return reasons


def _columns(subject: Subject, exported: list[HotColumn]) -> Iterator[dict[str, Any]]:
    """Ids as Iceberg's `create_table` gives them: the columns in order, then the lists' elements in order."""
    element_id = FIRST_COLUMN_ID + len(exported)
    for number, column in enumerate(exported, start=FIRST_COLUMN_ID):
        entry: dict[str, Any] = {"id": number}
        if subject.type_of(column).startswith("list<"):
            entry["element_id"] = element_id
            element_id += 1
        entry |= {
            "name": subject.lake[column.name],
            "type": subject.type_of(column),
            "nullable": not column.not_null,
            "source": column.name,
            "source_type": column.source_type,
            "description": describe(column),
            "sensitivity": sensitivity(column, subject.table),
        }
        yield entry


def _notes(subject: Subject, exported: list[HotColumn], secrets: dict[str, str]) -> Iterator[str]:
    """What holds for the whole table, and for kinds of columns."""
    table = subject.table
    for column, reason in secrets.items():
        yield f"Not exported: {column}. {reason}"
    if secrets:
        yield "What is not exported is not in the lake: if retention applied, it would go with the hot row."
    if cast := [c for c in exported if subject.types[c.name].cast]:
        yield f"Cast to text: {', '.join(f'{c.name} ({c.source_type})' for c in cast)}."
    text_keys = [c for c in exported if c.name in table.primary_key and subject.type_of(c) == "string"]
    if loose := [c for c in text_keys if c.base in _COMPARES_LOOSELY or c.is_array]:
        yield (
            f"In the key, compared as text: {_names(loose)}. "
            "Values that PostgreSQL holds equal may differ there, as 1.0 and 1.00 do."
        )
    if utc := [c for c in exported if c.base == "timestamp" and subject.is_time(c)]:
        yield f"No time zone, read as UTC: {_names(utc)}."
    if documents := [c for c in exported if subject.type_of(c) == "json"]:
        yield f"Exported whole; look for credentials inside: {_names(documents)}."
    if virtual := [c for c in exported if c.generated == "v"]:
        yield f"Virtual: when the expression changes, no row is written and no window sees it: {_names(virtual)}."
    if renamed := [f"{c.name} → {subject.lake[c.name]}" for c in exported if subject.lake[c.name] != c.name]:
        yield f"Renamed for the lake: {', '.join(renamed)}."
    if table.partition_of:
        yield f"{table.quoted} is a partition; a contract of {table.partition_of} would cover all of them."
    if not table.readable:
        yield f"This user may not read the table; the one that captures needs GRANT SELECT ON {table.quoted}."
    if table.row_security:
        yield "Row security hides rows from this user; the one that captures needs BYPASSRLS, or it misses rows."
    yield "Retention: never, until the contract says otherwise."


def _names(columns: Iterable[HotColumn]) -> str:
    return ", ".join(c.name for c in columns)
