"""Makes and opens lake tables: schema, partition, properties and the owner's marks.

Invariants: format version 2; field ids are the contract's, compared after creation and at every open; a
column that a contract added is added to the table, in one commit, and nothing else of a schema ever changes.
pyiceberg's own commit retry is off: a stale handle that retries commits an older window after a newer one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from catalog.errors import CatalogError, OwnershipError, lake_errors
from catalog.lake import INSTALLATION_PROPERTY, ORGANIZATION_PROPERTY, Lake
from schemas.contract import Contract
from schemas.errors import Retry
from schemas.lake_columns import iceberg_schema, lake_fields, partition_spec

if TYPE_CHECKING:
    from pyiceberg.schema import Schema as IcebergSchema
    from pyiceberg.table import Table

CONTRACT_PROPERTY = "lakehouse.contract"


def table_properties(lake: Lake, contract: Contract) -> dict[str, str]:
    """Properties that every lake table is made with."""
    properties = {
        "format-version": "2",
        ORGANIZATION_PROPERTY: lake.organization_id,
        INSTALLATION_PROPERTY: lake.installation,
        CONTRACT_PROPERTY: contract.version,
        "comment": contract.description,
        "commit.retry.num-retries": "0",
        "commit.manifest-merge.enabled": "true",
        "commit.manifest.min-count-to-merge": "32",
        "write.metadata.delete-after-commit.enabled": "true",
        "write.metadata.previous-versions-max": "20",
        "write.parquet.compression-codec": "zstd",
    }
    # Bounds of a JSON text prune nothing and would copy the start of payloads into manifests.
    properties.update(
        {f"write.metadata.metrics.column.{c.name}": "counts" for c in contract.columns if c.type.name == "json"}
    )
    return properties


def open_table(lake: Lake, contract: Contract) -> Table:
    """Load the table, check its owner and its schema against the contract.

    Raises:
        NoSuchTableError: there is none (pyiceberg's).
        OwnershipError: another's marks.
        CatalogError: its schema is not the contract's.
    """
    where = f"{lake.namespace}.{contract.table}"
    with lake_errors(where):
        table = lake.catalog.load_table((lake.namespace, contract.table))
    lake.check_marks(where, table.properties)
    _check_ids(table, contract, allow_missing=True)
    return table


def ensure_table(lake: Lake, contract: Contract) -> Table:
    """Load the table, or make it; add the columns that the contract has and the table has not. Idempotent."""
    from pyiceberg.exceptions import NoSuchTableError

    lake.check()
    try:
        table = open_table(lake, contract)
    except NoSuchTableError:
        table = _create(lake, contract)
    if missing := [c for c in lake_fields(contract) if c.name not in table.schema().column_names]:
        with lake_errors(f"{lake.namespace}.{contract.table}"), table.transaction() as transaction:
            transaction.set_properties({CONTRACT_PROPERTY: contract.version})
            with transaction.update_schema() as update:
                update.union_by_name(iceberg_schema(contract, tuple(missing)))
        table.refresh()
    _check_ids(table, contract, allow_missing=False)
    return table


def open_record_table(lake: Lake, name: str) -> Table | None:
    """A table of our own records in an organization's namespace (no contract's); None where there is none yet.

    Whose it is, the namespace's marks say, which are checked: an adoption of the lake brings it along.

    Raises:
        OwnershipError: another's marks.
        CatalogError, StorageError: there is no such namespace, or the table cannot be loaded.
    """
    from pyiceberg.exceptions import NoSuchTableError

    lake.check()
    where = f"{lake.namespace}.{name}"
    with lake_errors(where):
        try:
            table = lake.catalog.load_table((lake.namespace, name))
        except NoSuchTableError:
            return None
    if (found := table.properties.get(ORGANIZATION_PROPERTY)) != lake.organization_id:
        raise OwnershipError(f"{where}: holds the records of organization {found!r}, not of {lake.organization_id!r}")
    return table


def ensure_record_table(lake: Lake, name: str, schema: IcebergSchema, description: str) -> Table:
    """A table of our own records, made where it is not there. Idempotent. Raises as `open_record_table`."""
    from pyiceberg.exceptions import TableAlreadyExistsError

    where = f"{lake.namespace}.{name}"
    properties = {
        "format-version": "2",
        ORGANIZATION_PROPERTY: lake.organization_id,
        "comment": description,
        "commit.retry.num-retries": "0",
        "write.metadata.delete-after-commit.enabled": "true",
        "write.metadata.previous-versions-max": "20",
        "write.parquet.compression-codec": "zstd",
    }
    found = open_record_table(lake, name)
    if found is None:
        with lake_errors(where):
            try:
                return lake.catalog.create_table(
                    (lake.namespace, name), schema=schema, location=f"{lake.location}/{name}", properties=properties
                )
            except TableAlreadyExistsError:
                # Another program was first.
                pass
        found = open_record_table(lake, name)
    if found is None:
        raise CatalogError(f"{where}: was there and is not any more", "Try again.", retry=Retry.TIMED)
    return found


def open_records(lake: Lake, contract: Contract) -> Table | None:
    """A record table that has the shape of a contract (`open_record_table`), its schema compared; None: none yet."""
    table = open_record_table(lake, contract.table)
    if table is not None:
        _check_ids(table, contract, allow_missing=False)
    return table


def ensure_records(lake: Lake, contract: Contract) -> Table:
    """A record table in the shape of a contract, made where it is not there. Idempotent. Raises as `open_records`."""
    found = open_records(lake, contract)
    return found if found is not None else _create(lake, contract)


def _create(lake: Lake, contract: Contract) -> Table:
    from pyiceberg.exceptions import TableAlreadyExistsError

    where = f"{lake.namespace}.{contract.table}"
    # Iceberg numbers a new table's columns itself, in order: make the first version, the rest is added to it.
    first = tuple(c for c in lake_fields(contract) if c.since.split(".")[1] == "0")
    with lake_errors(where):
        try:
            return lake.catalog.create_table(
                (lake.namespace, contract.table),
                schema=iceberg_schema(contract, first),
                location=f"{lake.location}/{contract.table}",
                partition_spec=partition_spec(contract),
                properties=table_properties(lake, contract),
            )
        except TableAlreadyExistsError:
            return open_table(lake, contract)


def _check_ids(table: Table, contract: Contract, *, allow_missing: bool) -> None:
    schema = table.schema()
    for field in iceberg_schema(contract).fields:
        found = next((f for f in schema.fields if f.name == field.name), None)
        if found is None and allow_missing:
            continue
        if found is None or (found.field_id, found.field_type) != (field.field_id, field.field_type):
            raise CatalogError(
                f"{'.'.join(table.name())}: column {field.name} is {found}, the contract says {field}",
                "Field ids are permanent: number a first version's columns from 6 in order, list elements after them, "
                "later columns after those; a changed type needs a new major version.",
            )
    if set(schema.column_names) - {f.name for f in lake_fields(contract)} - _nested(schema.column_names):
        extra = sorted(
            set(schema.column_names) - {f.name for f in lake_fields(contract)} - _nested(schema.column_names)
        )
        raise CatalogError(
            f"{'.'.join(table.name())}: has columns that the contract {contract.version} lacks: {', '.join(extra)}",
            "Use the newest contract of the table: within a major version columns are only added.",
        )


def _nested(names: list[str]) -> set[str]:
    return {name for name in names if "." in name}
