"""From a contract to the SELECT list, and from what the driver returns to the lake's Arrow types.

All work is columnar. A value that the contract forbids is found here, before anything is written: nulls
where it promises none, infinite or far-away times, NaN in a decimal, arrays of other shapes than one
dimension from 1 (the driver flattens the one and aborts on the other, so SQL looks for them).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from schemas.contract import Column, Contract
from schemas.errors import ContractViolation
from schemas.lake_columns import XMIN
from schemas.types import arrow_type

if TYPE_CHECKING:
    import pyarrow as pa

_CASTS = {"integer": "integer", "long": "bigint", "double": "double precision"}
_FIRST_US = -62_135_596_800_000_000  # 0001-01-01: no engine that we feed reads further back
_LAST_US = 253_402_300_799_999_999  # 9999-12-31
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896
_SHAPE = "_shape_"


@dataclass(frozen=True)
class Violation:
    """A forbidden value: whose, which row, which column, why."""

    organization: str
    key: dict[str, object]
    column: str
    reason: str

    def error(self, contract: Contract) -> ContractViolation:
        key = ", ".join(f"{k}={v!r}" for k, v in self.key.items())
        return ContractViolation(
            f"{contract.source_name}: organization {self.organization}: row {key}: {self.column}: {self.reason}",
            "Mend the value in the source or the contract; the next round reads it again.",
        )


def base_type(source_type: str) -> str:
    """A type's name without its modifiers: `timestamp(3) without time zone` is `timestamp without time zone`."""
    return re.sub(r"\(\d+(,\d+)?\)", "", source_type)


def select_list(contract: Contract, *, alias: str = "t", only: tuple[str, ...] | None = None) -> sql.Composed:
    """Expressions for the contract's columns (or `only` some), in order, then `_xmin`, then array checks."""
    table = sql.Identifier(alias)
    chosen = [c for c in contract.columns if only is None or c.name in only]
    items = [sql.SQL("{} AS {}").format(_expression(c, table), sql.Identifier(c.name)) for c in chosen]
    items.append(sql.SQL("{}.xmin::text::bigint AS {}").format(table, sql.Identifier(XMIN)))
    items += [
        sql.SQL("NOT {} AS {}").format(_well_shaped(c, table), sql.Identifier(_SHAPE + c.name))
        for c in chosen
        if c.type.is_list
    ]
    return sql.SQL(", ").join(items)


def _expression(column: Column, table: sql.Identifier) -> sql.Composable:
    source = sql.SQL("{}.{}").format(table, sql.Identifier(column.source))
    if column.type.is_list:
        element = _CASTS.get(column.type.element, "boolean" if column.type.element == "boolean" else "text")
        return sql.SQL("CASE WHEN {} THEN {}::{}[] END").format(_well_shaped(column, table), source, sql.SQL(element))
    if column.type.name in ("string", "json", "decimal"):
        return sql.SQL("{}::text").format(source)
    if column.type.name in _CASTS:
        return sql.SQL("{}::{}").format(source, sql.SQL(_CASTS[column.type.name]))
    return source


def _well_shaped(column: Column, table: sql.Identifier) -> sql.Composed:
    source = sql.SQL("{}.{}").format(table, sql.Identifier(column.source))
    return sql.SQL("(coalesce(array_ndims({s}), 1) = 1 AND coalesce(array_lower({s}, 1), 1) = 1)").format(s=source)


def to_lake(
    batch: pa.RecordBatch, contract: Contract, *, extra: tuple[str, ...] = ()
) -> tuple[pa.RecordBatch, list[Violation]]:
    """Convert a batch of `select_list` to the lake's types; `extra` columns come through as they are, last.

    Returns the batch without the rows of organizations that broke the contract, and the first violation of
    each of those. Columns: the contract's, then `_xmin` (int64).
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    arrays: dict[str, pa.Array] = {}
    bad: dict[str, tuple[pa.Array, str]] = {}
    for column in contract.columns:
        if column.name not in batch.schema.names:
            continue
        raw = _storage(batch.column(column.name))
        arrays[column.name], fault = _convert(raw, column)
        if fault is not None:
            bad[column.name] = fault
        if not column.nullable and raw.null_count:
            bad.setdefault(column.name, (pc.is_null(raw), "is null, the contract says it never is"))
        shape = _SHAPE + column.name
        if shape in batch.schema.names and pc.any(batch.column(shape)).as_py():
            bad[column.name] = (
                batch.column(shape),
                "is an array of several dimensions or with another lower bound than 1",
            )
    arrays |= {name: batch.column(name) for name in (XMIN, *extra)}
    converted = pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))
    if not bad:
        return converted, []
    return _without_violators(converted, contract, bad)


def _without_violators(
    batch: pa.RecordBatch, contract: Contract, bad: dict[str, tuple[pa.Array, str]]
) -> tuple[pa.RecordBatch, list[Violation]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    tenants = batch.column(contract.tenant).cast(pa.string())
    first: dict[str, Violation] = {}
    for name, (mask, reason) in bad.items():
        # One offending row for each organization is enough for the error; the loop is over those.
        rows = pc.indices_nonzero(pc.fill_null(mask, False))
        table = pa.table({"row": rows, "tenant": tenants.take(rows)}).group_by("tenant").aggregate([("row", "min")])
        for tenant, row in zip(table["tenant"].to_pylist(), table["row_min"].to_pylist(), strict=True):
            key = {k: batch.column(k)[row].as_py() for k in contract.primary_key}
            first.setdefault(str(tenant), Violation(str(tenant), key, name, reason))
    keep = pc.invert(pc.is_in(tenants, pa.array(list(first), pa.string())))
    return batch.filter(keep), list(first.values())


def _storage(array: pa.Array) -> pa.Array:
    import pyarrow as pa

    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _convert(raw: pa.Array, column: Column) -> tuple[pa.Array, tuple[pa.Array, str] | None]:
    import pyarrow as pa
    import pyarrow.compute as pc

    target = arrow_type(column.type, column.element_id)
    name = column.type.name
    if name == "timestamptz":
        ticks = raw.cast(pa.timestamp("us")) if pa.types.is_timestamp(raw.type) and raw.type.tz is None else raw
        ticks = ticks.view(pa.int64()) if pa.types.is_timestamp(ticks.type) else ticks
        outside = _outside(ticks, _FIRST_US, _LAST_US)
        array = (
            ticks.view(target)
            if outside is None
            else pc.if_else(outside, pa.scalar(None, pa.int64()), ticks).view(target)
        )
        return array, outside if outside is None else (outside, "is infinite, or not in the years 1 to 9999")
    if name == "date":
        days = raw.view(pa.int32())
        outside = _outside(days, _FIRST_DAY, _LAST_DAY)
        array = (
            days.view(target)
            if outside is None
            else pc.if_else(outside, pa.scalar(None, pa.int32()), days).view(target)
        )
        return array, outside if outside is None else (outside, "is infinite, or not in the years 1 to 9999")
    if name == "decimal":
        special = pc.is_in(raw, pa.array(["NaN", "Infinity", "-Infinity"]))
        if pc.any(special).as_py():
            array = pc.if_else(special, pa.scalar(None, pa.string()), raw).cast(target)
            return array, (special, "is NaN or infinite, which no decimal holds")
        return raw.cast(target), None
    if column.type.is_list:
        values = raw.cast(pa.list_(target.value_type)) if raw.type.value_type != target.value_type else raw
        return pa.ListArray.from_arrays(values.offsets, values.values, type=target, mask=values.is_null()), None
    return raw.cast(target), None


def _outside(numbers: pa.Array, first: int, last: int) -> pa.Array | None:
    import pyarrow.compute as pc

    bounds = pc.min_max(numbers).as_py()
    if bounds["min"] is None or (bounds["min"] >= first and bounds["max"] <= last):
        return None
    return pc.or_(pc.less(numbers, first), pc.greater(numbers, last))
