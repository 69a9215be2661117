"""Rows that the lake cannot hold: told apart in SQL, and read whole as PostgreSQL's own text.

`projection.to_lake` finds such rows in what a window or a range reads, at no cost to the others. Then, in the same
snapshot, `examine` reads them once more by their keys: what is wrong with each column, and the text of every exported
column, from which the row can be made again. The two are compared: a row that only one of them finds is an error.

Bounded: of one organization at most `most` such rows are remembered in one read. More than that is no bad row but a
bad contract, and stops the organization.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from psycopg import sql

from lakehouse.capture.projection import (
    BAD_SHAPE,
    IS_NULL,
    NOT_A_NUMBER,
    OUT_OF_TIME,
    Violation,
    convert,
    select_list,
    too_many_digits,
    well_shaped,
)
from schemas.contract import Column, Contract
from schemas.lake_columns import XMIN

if TYPE_CHECKING:
    import pyarrow as pa

FORBIDDEN = "_forbidden"
"""A boolean column: the lake cannot hold this row."""
_KEY, _FAULTS, _CONTENT = "_key", "_faults", "_content"
_BATCH = 500
"""Keys that one statement asks for."""

Key = tuple[str, ...]
"""A primary key as PostgreSQL's text of each of its columns."""


@dataclass(frozen=True)
class Examined:
    """A row as it is in the hot table. `faults`: (column, reason), empty where the lake can hold it."""

    key: Key
    values: tuple[Any, ...]
    """The primary key as Python values; None where it holds what the lake cannot."""
    xmin: int
    faults: tuple[tuple[str, str], ...]
    content: str | None
    """Where there are faults: a JSON object of the exported columns' texts, null where a value is."""


@dataclass
class Flagged:
    """Rows of one organization that were left out of what was read."""

    first: Violation
    keys: dict[tuple[Any, ...], None] = field(default_factory=dict)
    odd: bool = False
    """Of some the primary key itself holds what the lake cannot: they are not in `keys`."""


class Flags:
    """Collects the rows that `to_lake` left out, by organization; those with too many are in `violations`."""

    def __init__(self, contract: Contract, most: int) -> None:
        self.contract = contract
        self.most = most
        self.of: dict[str, Flagged] = {}
        self.violations: dict[str, Violation] = {}

    def add(self, found: Iterable[Violation]) -> None:
        """Remember rows that were left out."""
        for violation in found:
            flagged = self.of.setdefault(violation.organization, Flagged(violation))
            values = tuple(violation.key[k] for k in self.contract.primary_key)
            if None in values:
                flagged.odd = True
            elif len(flagged.keys) <= self.most:
                flagged.keys[values] = None
            if len(flagged.keys) > self.most:
                self.stop(violation.organization, f"and more than {self.most} rows hold what the lake cannot")

    def stop(self, organization: str, why: str) -> None:
        """This organization's rows must not be landed."""
        first = self.of[organization].first
        stopped = dataclasses.replace(first, reason=f"{first.reason}; {why}")
        self.violations.setdefault(organization, stopped)


def _conditions(column: Column, table: sql.Identifier) -> Iterator[tuple[sql.Composable, str]]:
    """What the lake cannot hold of a column, as SQL, with the reason; the first that is true counts."""
    value = sql.SQL("{}.{}").format(table, sql.Identifier(column.source))
    kind = column.type
    if kind.name in ("timestamptz", "date"):
        yield sql.SQL("NOT ({v} >= '0001-01-01' AND {v} < '10000-01-01')").format(v=value), OUT_OF_TIME
    elif kind.name == "decimal":
        yield sql.SQL("{} IN ('NaN', 'Infinity', '-Infinity')").format(value), NOT_A_NUMBER
        declared = column.source_type == f"numeric({kind.precision},{kind.scale})"
        if not declared:
            yield (
                sql.SQL(
                    "CASE WHEN {v} NOT IN ('NaN', 'Infinity', '-Infinity') "
                    "THEN abs({v}) >= 1{zeros} OR {v} <> round({v}, {scale}) END"
                ).format(
                    v=value,
                    zeros=sql.SQL("0" * (kind.precision - kind.scale) + "::numeric"),
                    scale=sql.Literal(kind.scale),
                ),
                too_many_digits(column),
            )
    elif kind.is_list:
        yield sql.SQL("NOT {}").format(well_shaped(column, table)), BAD_SHAPE
    if not column.nullable:
        yield sql.SQL("{} IS NULL").format(value), IS_NULL


def predicate(contract: Contract, *, alias: str = "t", only: Sequence[str] | None = None) -> sql.Composable:
    """SQL that is true for a row that the lake cannot hold, false for others. `only`: looks at these columns."""
    table = sql.Identifier(alias)
    parts = [
        condition
        for column in contract.columns
        if only is None or column.name in only
        for condition, _ in _conditions(column, table)
    ]
    return sql.SQL("(({}) IS TRUE)").format(sql.SQL(" OR ").join(parts)) if parts else sql.SQL("false")


def _faults(contract: Contract, table: sql.Identifier) -> sql.Composable:
    """SQL for a JSON array of [column, reason], in the order of the contract."""
    cases = []
    for column in contract.columns:
        whens = [
            sql.SQL("WHEN {} THEN json_build_array({}::text, {}::text)").format(
                condition, sql.Literal(column.name), sql.Literal(reason)
            )
            for condition, reason in _conditions(column, table)
        ]
        if whens:
            cases.append(sql.SQL("CASE {} END").format(sql.SQL(" ").join(whens)))
    return sql.SQL("array_to_json(array_remove(ARRAY[{}]::text[], NULL)::json[])::text").format(
        sql.SQL(", ").join(cases)
    )


def _content(contract: Contract, table: sql.Identifier) -> sql.Composable:
    """SQL for a JSON object: by lake name, the text of every exported column."""
    return sql.SQL("json_object(ARRAY[{}]::text[], ARRAY[{}]::text[])::text").format(
        sql.SQL(", ").join(sql.Literal(c.name) for c in contract.columns),
        sql.SQL(", ").join(sql.SQL("{}.{}::text").format(table, sql.Identifier(c.source)) for c in contract.columns),
    )


def examine(
    run: Any,
    contract: Contract,
    tenant: sql.Composable,
    key_types: Mapping[str, str],
    *,
    keys: Iterable[Key] = (),
    flagged: Flagged | None = None,
) -> Iterator[Examined]:
    """What the hot table has now at `keys` and at the rows that were flagged; a row may come twice.

    `run` streams a query's batches; `tenant` is the condition on the tenant column; `key_types` the hot types of the
    primary key's columns.
    """
    wanted: list[Sequence[Any]] = [*keys, *(flagged.keys if flagged else ())]
    for begin in range(0, len(wanted), _BATCH):
        yield from _read(run, contract, tenant, _at(contract, key_types, wanted[begin : begin + _BATCH]))
    if flagged is not None and flagged.odd:
        yield from _read(run, contract, tenant, predicate(contract, only=contract.primary_key))


def _at(contract: Contract, key_types: Mapping[str, str], keys: Sequence[Sequence[Any]]) -> sql.Composable:
    """The primary key is one of these; each in its column's own type, so that its index serves."""
    arrays = [
        sql.SQL("ARRAY[{}]").format(
            sql.SQL(", ").join(
                sql.SQL("({})::{}").format(sql.Literal(key[n]), sql.SQL(key_types[name])) for key in keys
            )
        )
        for n, name in enumerate(contract.primary_key)
    ]
    columns = sql.SQL(", ").join(sql.Identifier("t", contract[k].source) for k in contract.primary_key)
    return sql.SQL("({}) IN (SELECT * FROM unnest({}))").format(columns, sql.SQL(", ").join(arrays))


def _read(run: Any, contract: Contract, tenant: sql.Composable, where: sql.Composable) -> Iterator[Examined]:
    table = sql.Identifier("t")
    bad = predicate(contract)
    own = [contract[k].source for k in contract.primary_key]
    query = sql.SQL(
        "SELECT {columns}, array_to_json(ARRAY[{key}]::text[])::text AS {_key}, "
        "CASE WHEN {bad} THEN {faults} END AS {_faults}, CASE WHEN {bad} THEN {content} END AS {_content} "
        "FROM {hot} AS t WHERE {tenant} AND {where}"
    ).format(
        columns=select_list(contract, only=tuple(contract.primary_key)),
        key=sql.SQL(", ").join(sql.SQL("{}.{}::text").format(table, sql.Identifier(s)) for s in own),
        bad=bad,
        faults=_faults(contract, table),
        content=_content(contract, table),
        hot=sql.Identifier(contract.source_schema, contract.source_table),
        tenant=tenant,
        where=where,
        _key=sql.Identifier(_KEY),
        _faults=sql.Identifier(_FAULTS),
        _content=sql.Identifier(_CONTENT),
    )
    for raw in run(query):
        yield from _rows(raw, contract)


def _rows(raw: pa.RecordBatch, contract: Contract) -> Iterator[Examined]:
    batch, _ = convert(raw, contract, extra=(_KEY, _FAULTS, _CONTENT))
    for row in range(batch.num_rows):
        faults = batch.column(_FAULTS)[row].as_py()
        yield Examined(
            key=tuple(json.loads(batch.column(_KEY)[row].as_py())),
            values=tuple(batch.column(k)[row].as_py() for k in contract.primary_key),
            xmin=batch.column(XMIN)[row].as_py(),
            faults=tuple((column, reason) for column, reason in json.loads(faults)) if faults else (),
            content=batch.column(_CONTENT)[row].as_py(),
        )


def check_flagged(flags: Flags, organization: str, examined: Iterable[Examined]) -> Iterator[Examined]:
    """Pass rows through, once each; an organization of which a flagged row was not found forbidden is stopped."""
    flagged = flags.of.get(organization)
    missing = dict(flagged.keys) if flagged else {}
    odd = flagged.odd if flagged else False
    done: set[Key] = set()
    for row in examined:
        if row.faults:
            missing.pop(row.values, None)
            odd = odd and None not in row.values
        if row.key not in done:
            done.add(row.key)
            yield row
    if missing or odd:
        flags.stop(organization, "reading it again by its key found nothing wrong: a defect, please report it")
