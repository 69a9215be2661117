"""Logical types: what a contract may say, and what each becomes in Arrow and Iceberg.

The set is the largest that every warehouse of `federation` reads (no uuid, time, fixed, nanoseconds or
variant). JSON is a string that holds exactly the text that PostgreSQL prints.
Source: Iceberg table spec, "Primitive Types"; docs/canonical-row.md for the text of each type.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.types import IcebergType

_DECIMAL = re.compile(r"decimal\((\d+),(\d+)\)")
_LIST = re.compile(r"list<(\w+)>")


@dataclass(frozen=True)
class LogicalType:
    """A parsed type. `name`: string, boolean, integer, long, double, date, timestamptz, json, binary, decimal, list."""

    name: str
    precision: int = 0
    scale: int = 0
    element: str = ""

    @property
    def is_list(self) -> bool:
        return self.name == "list"

    def __str__(self) -> str:
        if self.name == "decimal":
            return f"decimal({self.precision},{self.scale})"
        return f"list<{self.element}>" if self.is_list else self.name


def parse_type(text: str) -> LogicalType:
    """Parse a contract's type, which the JSON Schema has already accepted."""
    if match := _DECIMAL.fullmatch(text):
        return LogicalType("decimal", precision=int(match[1]), scale=int(match[2]))
    if match := _LIST.fullmatch(text):
        return LogicalType("list", element=match[1])
    return LogicalType(text)


def arrow_type(logical: LogicalType, element_id: int | None = None) -> pa.DataType:
    """The Arrow type of a column; a list's element carries its Iceberg field id."""
    import pyarrow as pa

    if logical.is_list:
        element = arrow_type(LogicalType(logical.element))
        metadata = {b"PARQUET:field_id": str(element_id).encode()} if element_id is not None else None
        return pa.list_(pa.field("element", element, nullable=True, metadata=metadata))
    if logical.name == "decimal":
        return pa.decimal128(logical.precision, logical.scale)
    return {
        "string": pa.string(),
        "json": pa.string(),
        "boolean": pa.bool_(),
        "integer": pa.int32(),
        "long": pa.int64(),
        "double": pa.float64(),
        "date": pa.date32(),
        "timestamptz": pa.timestamp("us", tz="UTC"),
        "binary": pa.binary(),
    }[logical.name]


def iceberg_type(logical: LogicalType, element_id: int | None = None) -> IcebergType:
    """The Iceberg type of a column."""
    from pyiceberg import types as ice

    if logical.is_list:
        if element_id is None:
            raise ValueError("a list needs the field id of its element")
        element = iceberg_type(LogicalType(logical.element))
        return ice.ListType(element_id, element, element_required=False)
    if logical.name == "decimal":
        return ice.DecimalType(logical.precision, logical.scale)
    primitive: IcebergType = {
        "string": ice.StringType,
        "json": ice.StringType,
        "boolean": ice.BooleanType,
        "integer": ice.IntegerType,
        "long": ice.LongType,
        "double": ice.DoubleType,
        "date": ice.DateType,
        "timestamptz": ice.TimestamptzType,
        "binary": ice.BinaryType,
    }[logical.name]()
    return primitive
