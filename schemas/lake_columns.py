"""The lake's own columns, the same in every table, and the Arrow and Iceberg schemas with a contract's.

They come first, with ids 1 to 5: Iceberg's `create_table` gives a new table ids in order, so a contract's
ids are permanent only if its first version counts as Iceberg does. Columns that a later version adds come
last, in the order of their ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from schemas.contract import Column, Contract
from schemas.types import LogicalType, arrow_type, iceberg_type

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.partitioning import PartitionSpec
    from pyiceberg.schema import Schema

OP = "_op"
SEQUENCE = "_sequence"
CAPTURED_AT = "_captured_at"
WINDOW = "_window"
XMIN = "_xmin"
UPSERT = "upsert"
DELETE = "delete"


def _own(field_id: int, name: str, kind: str, description: str, *, nullable: bool = False) -> Column:
    return Column(field_id, name, LogicalType(kind), nullable, name, "", description, "internal", "1.0")


LAKE_COLUMNS: tuple[Column, ...] = (
    _own(1, OP, "string", "What happened: upsert or delete."),
    _own(2, SEQUENCE, "long", "Orders the versions of a table; gaps are normal."),
    _own(3, CAPTURED_AT, "timestamptz", "When the snapshot that saw this version was taken."),
    _own(4, WINDOW, "string", "Id of the window or backfill that brought it."),
    _own(
        5,
        XMIN,
        "long",
        "The transaction that wrote the version, PostgreSQL's 32-bit xmin; null for a delete.",
        nullable=True,
    ),
)


def lake_fields(contract: Contract) -> tuple[Column, ...]:
    """Every column of the lake table, in its order: the lake's own, then the contract's by id."""
    return LAKE_COLUMNS + tuple(sorted(contract.columns, key=lambda c: c.id))


def arrow_schema(contract: Contract) -> pa.Schema:
    """The Arrow schema of the lake table, with Iceberg field ids.

    Only the columns that a delete row carries too (lake's own, key, tenant, event time) are required.
    """
    import pyarrow as pa

    required = required_columns(contract)
    return pa.schema(
        [
            pa.field(
                column.name,
                arrow_type(column.type, column.element_id),
                nullable=column.name not in required,
                metadata={b"PARQUET:field_id": str(column.id).encode()},
            )
            for column in lake_fields(contract)
        ]
    )


def iceberg_schema(contract: Contract, columns: tuple[Column, ...] | None = None) -> Schema:
    """The Iceberg schema of the lake table (or of `columns` of it), identified by event time and key."""
    from pyiceberg.schema import Schema
    from pyiceberg.types import NestedField

    required = required_columns(contract)
    chosen = lake_fields(contract) if columns is None else columns
    return Schema(
        *[
            NestedField(
                column.id,
                column.name,
                iceberg_type(column.type, column.element_id),
                required=column.name in required,
                doc=column.description,
            )
            for column in chosen
        ]
    )


def required_columns(contract: Contract) -> frozenset[str]:
    """Columns that every row has, a delete row too."""
    own = {c.name for c in LAKE_COLUMNS if not c.nullable}
    return frozenset(own | {contract.tenant, *contract.identity})


def partition_spec(contract: Contract) -> PartitionSpec:
    """`day(event time)`, or unpartitioned. Never evolved: Databricks' foreign tables take no evolution."""
    from pyiceberg.partitioning import PartitionField, PartitionSpec
    from pyiceberg.transforms import DayTransform

    if contract.event_time is None:
        return PartitionSpec()
    column = contract[contract.event_time]
    return PartitionSpec(PartitionField(column.id, 1000, DayTransform(), f"{column.name}_day"))
