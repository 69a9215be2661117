"""From a contract to the SELECT list, and from what the driver returns to the lake's Arrow types.

All work is columnar. A value that the lake cannot hold is found here, before anything is written: nulls where the
contract promises none, infinite or far-away times, NaN or too many digits in a decimal, arrays of other shapes than
one dimension from 1 (the driver flattens the one and aborts on the other, so SQL looks for them). `forbidden.py` says
the same in SQL, to read such rows whole.
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

OUT_OF_TIME = "is infinite, or not in the years 1 to 9999"
NOT_A_NUMBER = "is NaN or infinite, which no decimal holds"
BAD_SHAPE = "is an array of several dimensions or with another lower bound than 1"
IS_NULL = "is null, the contract says it never is"


@dataclass(frozen=True)
class Violation:
    """A row with a forbidden value: whose, which row, which column, why."""

    organization: str
    key: dict[str, object]
    """The primary key; None where the forbidden value stands in it."""
    column: str
    reason: str

    def error(self, contract: Contract) -> ContractViolation:
        key = ", ".join(f"{k}={v!r}" for k, v in self.key.items())
        return ContractViolation(
            f"{contract.source_name}: organization {self.organization}: row {key}: {self.column}: {self.reason}",
            "Mend the value in the source or the contract; the next round reads it again.",
        )


def too_many_digits(column: Column) -> str:
    """Why a finite number is forbidden in a decimal column."""
    return f"has more digits than {column.type} holds"


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
        sql.SQL("NOT {} AS {}").format(well_shaped(c, table), sql.Identifier(_SHAPE + c.name))
        for c in chosen
        if c.type.is_list
    ]
    return sql.SQL(", ").join(items)


def _expression(column: Column, table: sql.Identifier) -> sql.Composable:
    source = sql.SQL("{}.{}").format(table, sql.Identifier(column.source))
    if column.type.is_list:
        element = _CASTS.get(column.type.element, "boolean" if column.type.element == "boolean" else "text")
        return sql.SQL("CASE WHEN {} THEN {}::{}[] END").format(well_shaped(column, table), source, sql.SQL(element))
    if column.type.name in ("string", "json", "decimal"):
        return sql.SQL("{}::text").format(source)
    if column.type.name in _CASTS:
        return sql.SQL("{}::{}").format(source, sql.SQL(_CASTS[column.type.name]))
    return source


def well_shaped(column: Column, table: sql.Identifier) -> sql.Composed:
    """The array is null, empty, or of one dimension that begins at 1."""
    source = sql.SQL("{}.{}").format(table, sql.Identifier(column.source))
    return sql.SQL("(coalesce(array_ndims({s}), 1) = 1 AND coalesce(array_lower({s}, 1), 1) = 1)").format(s=source)


def to_lake(
    batch: pa.RecordBatch, contract: Contract, *, extra: tuple[str, ...] = ()
) -> tuple[pa.RecordBatch, list[Violation]]:
    """Convert a batch of `select_list` to the lake's types; `extra` columns come through as they are, last.

    Returns the batch without the rows that the lake cannot hold, and for each of those what is wrong with it.
    Columns: the contract's, then `_xmin` (int64).
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    converted, faults = convert(batch, contract, extra=extra)
    if not faults:
        return converted, []
    tenants = converted.column(contract.tenant).cast(pa.string())
    first: dict[int, Violation] = {}
    for name, mask, reason in faults:
        # The loop is over offending rows only.
        for row in pc.indices_nonzero(pc.fill_null(mask, False)).to_pylist():
            if row not in first:
                key = {k: converted.column(k)[row].as_py() for k in contract.primary_key}
                first[row] = Violation(str(tenants[row].as_py()), key, name, reason)
    keep = pc.invert(pc.is_in(pa.arange(0, batch.num_rows), pa.array(list(first), pa.int64())))
    return converted.filter(keep), list(first.values())


Fault = tuple[str, "pa.Array", str]
"""A column, which rows of the batch hold what it cannot, and why not."""


def convert(
    batch: pa.RecordBatch, contract: Contract, *, extra: tuple[str, ...] = ()
) -> tuple[pa.RecordBatch, list[Fault]]:
    """As `to_lake`, with every row: a value that the lake cannot hold is null, and named in the faults."""
    import pyarrow as pa
    import pyarrow.compute as pc

    arrays: dict[str, pa.Array] = {}
    faults: list[Fault] = []
    for column in contract.columns:
        if column.name not in batch.schema.names:
            continue
        raw = _storage(batch.column(column.name))
        arrays[column.name], found = _convert(raw, column)
        faults += [(column.name, mask, reason) for mask, reason in found]
        shape = _SHAPE + column.name
        if shape in batch.schema.names and pc.any(batch.column(shape)).as_py():
            faults.append((column.name, batch.column(shape), BAD_SHAPE))
        if not column.nullable and raw.null_count:
            faults.append((column.name, pc.is_null(raw), IS_NULL))
    arrays |= {name: batch.column(name) for name in (XMIN, *extra)}
    return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays)), faults


def _storage(array: pa.Array) -> pa.Array:
    import pyarrow as pa

    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _convert(raw: pa.Array, column: Column) -> tuple[pa.Array, list[tuple[pa.Array, str]]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    target = arrow_type(column.type, column.element_id)
    name = column.type.name
    if name == "timestamptz":
        ticks = raw.cast(pa.timestamp("us")) if pa.types.is_timestamp(raw.type) and raw.type.tz is None else raw
        ticks = ticks.view(pa.int64()) if pa.types.is_timestamp(ticks.type) else ticks
        return _within(ticks, _FIRST_US, _LAST_US, target)
    if name == "date":
        return _within(raw.view(pa.int32()), _FIRST_DAY, _LAST_DAY, target)
    if name == "decimal":
        return _decimal(raw, column, target)
    if column.type.is_list:
        values = raw.cast(pa.list_(target.value_type)) if raw.type.value_type != target.value_type else raw
        return pa.ListArray.from_arrays(values.offsets, values.values, type=target, mask=pc.is_null(values)), []
    return raw.cast(target), []


def _within(
    numbers: pa.Array, first: int, last: int, target: pa.DataType
) -> tuple[pa.Array, list[tuple[pa.Array, str]]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    bounds = pc.min_max(numbers).as_py()
    if bounds["min"] is None or (bounds["min"] >= first and bounds["max"] <= last):
        return numbers.view(target), []
    outside = pc.or_(pc.less(numbers, first), pc.greater(numbers, last))
    return pc.if_else(outside, pa.scalar(None, numbers.type), numbers).view(target), [(outside, OUT_OF_TIME)]


def _decimal(raw: pa.Array, column: Column, target: pa.DataType) -> tuple[pa.Array, list[tuple[pa.Array, str]]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    faults = []
    special = pc.is_in(raw, pa.array(["NaN", "Infinity", "-Infinity"]))
    if pc.any(special).as_py():
        faults.append((special, NOT_A_NUMBER))
        raw = pc.if_else(special, pa.scalar(None, pa.string()), raw)
    try:
        return raw.cast(target), faults
    except pa.ArrowInvalid:
        # Zeros behind the last digit are no digits too many; anything else is.
        short = pc.utf8_rtrim(pc.utf8_rtrim(raw, characters="0"), characters=".")
        plain = pc.if_else(pc.match_substring(raw, "."), short, raw)
        whole, scale = column.type.precision - column.type.scale, column.type.scale
        fits = pc.match_substring_regex(plain, rf"^-?0*[0-9]{{0,{whole}}}(\.[0-9]{{0,{scale}}})?$")
        faults.append((pc.invert(fits), too_many_digits(column)))
        return pc.if_else(fits, plain, pa.scalar(None, pa.string())).cast(target), faults
