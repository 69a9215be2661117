"""From a PostgreSQL type to a contract's.

What no warehouse reads alike becomes its PostgreSQL text: every value has one, and nothing is rounded.
Source: PostgreSQL manual, "pg_type"; numeric's typmod from `numeric.c` (precision << 16 | scale, plus 4).
"""

from __future__ import annotations

from dataclasses import dataclass

from lakehouse.drafting.catalog import HotColumn

_SCALARS = {
    "bool": "boolean",
    "int2": "integer",
    "int4": "integer",
    "int8": "long",
    "float4": "double",
    "float8": "double",
    "json": "json",
    "jsonb": "json",
    "bytea": "binary",
    "date": "date",
    "timestamp": "timestamptz",
    "timestamptz": "timestamptz",
}
_ELEMENTS = ("boolean", "integer", "long", "double")
_CANNOT_BE_KEY = ("json", "double")
_TEXT = ("text", "varchar", "bpchar", "name")


@dataclass(frozen=True)
class Mapped:
    """A contract's type; `cast` says that the value is turned into text on the way."""

    type: str
    cast: bool = False


def is_text(column: HotColumn) -> bool:
    """A type whose values are text already: text, varchar, char, name, citext."""
    return (column.built_in and column.base in _TEXT) or (column.kind == "b" and column.base == "citext")


def map_type(column: HotColumn, *, in_key: bool = False) -> Mapped:
    """The contract type of a column.

    A key must compare exactly, which doubles, JSON and lists do not: in a key they are text.
    """
    logical = _array_type(column) if column.is_array else _scalar_type(column)
    if logical is None or (in_key and (logical in _CANNOT_BE_KEY or column.is_array)):
        return Mapped("string", cast=column.is_array or not is_text(column))
    return Mapped(logical, cast=logical == "list<string>" and not is_text(column))


def _scalar_type(column: HotColumn) -> str | None:
    if not column.built_in:
        return None
    if column.base == "numeric":
        return _decimal(column.typmod)
    return _SCALARS.get(column.base)


def _array_type(column: HotColumn) -> str | None:
    # attndims is what was declared; PostgreSQL does not enforce it, but it is all that the catalog knows
    if column.dimensions > 1:
        return None
    if is_text(column) or column.kind == "e" or (column.built_in and column.base == "uuid"):
        return "list<string>"
    element = _scalar_type(column)
    return f"list<{element}>" if element in _ELEMENTS else None


def _decimal(typmod: int) -> str | None:
    if typmod < 4:
        return None
    precision = (typmod - 4) >> 16 & 0xFFFF
    scale = ((typmod - 4 & 0x7FF) ^ 0x400) - 0x400  # 11 bits, signed since PostgreSQL 15
    return f"decimal({precision},{scale})" if precision <= 38 and 0 <= scale <= precision else None
