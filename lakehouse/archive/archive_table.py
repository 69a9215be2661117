"""The lake's own copy of the tombstones: the Iceberg table `_archive` of an organization's namespace.

A row is a tombstone of `lakehouse_archive.cold_storage_archive`, with the batch that it belongs to. The receipt (a JWS)
stands on the first tombstone of its batch, in the order of the keys' bytes, and is null on the others: it may be
longer than all of them together. Tombstones are added in the order of their batches' numbers and never removed, so
that what left the hot database is known after they were pruned there, and after that database was lost.

The table has the lake's own five columns like any other, so whatever keeps tables within bounds keeps it too.
Unpartitioned: it is asked by key (whenever the row left) and by batch, and files lie in the order of batches; months
would only make more files of the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from catalog.tables import open_records
from lakehouse.archive.installation import ArchiveError
from lakehouse.archive.records import FIRST_CHAIN, Tombstone
from schemas.contract import FIRST_COLUMN_ID, Column, Contract
from schemas.errors import Retry
from schemas.types import parse_type

if TYPE_CHECKING:
    from pyiceberg.table import Table

    from catalog.lake import Lake

EXPORTED_PROPERTY = "lakehouse.exported"
_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("organization_id", "string", "The organization whose row it was."),
    ("table_name", "string", "The lake table that holds the row."),
    ("row_key", "string", "The row's key as text (docs/canonical-row.md)."),
    ("event_time", "timestamptz", "The row's event time: with the key, its identity in the lake."),
    ("sequence", "long", "The version in the lake that was proven equal to the row: its `_sequence`."),
    ("batch", "long", "Number of the delete transaction that took the row; the organization's numbers only grow."),
    ("delivered_to", "list<string>", "Destinations whose durable receipts allowed it."),
    ("snapshot_id", "long", "The lake table's snapshot that the proof read."),
    ("keyed_hash", "string", "HMAC-SHA256 of the row's canonical hash."),
    ("hash_key", "string", "Version of the key of that hash."),
    ("contract_version", "string", "The contract under which it was proven."),
    ("policy", "string", "The policy by which the row left."),
    ("operator", "string", "Who enabled that policy, or ran it."),
    ("archived_at", "timestamptz", "When the row left the hot database."),
    ("batch_id", "string", "Id of the batch."),
    ("receipt", "string", "The batch's signed receipt (JWS); only on its first tombstone."),
    ("chain", "string", "SHA-256 that binds the batch to all before it."),
)


def _contract() -> Contract:
    after = FIRST_COLUMN_ID + len(_COLUMNS)
    return Contract(
        table="_archive",
        version="1.0",
        title="Archived rows",
        description="Tombstones of the rows that left the hot database for the lake; never pruned.",
        provisional=False,
        source_schema="lakehouse_archive",
        source_table="cold_storage_archive",
        tenant="organization_id",
        primary_key=("batch", "row_key"),
        event_time=None,
        watermark=None,
        age_bounds=(),
        retention="never",
        columns=tuple(
            Column(
                id=number,
                name=name,
                type=parse_type(kind),
                nullable=name in ("event_time", "receipt"),
                source=name,
                source_type="text[]" if kind.startswith("list") else "text",
                description=description,
                sensitivity="internal",
                since="1.0",
                element_id=after if kind.startswith("list") else None,
            )
            for number, (name, kind, description) in enumerate(_COLUMNS, start=FIRST_COLUMN_ID)
        ),
        not_exported=(),
    )


ARCHIVE = _contract()
"""The shape of `_archive`, in the terms of every other lake table; no hot table is read by it."""


@dataclass(frozen=True)
class Standing:
    """How far an `_archive` goes; a property that is committed with the rows. `sequence`: of its last row."""

    number: int = 0
    chain: str = FIRST_CHAIN
    sequence: int = 0
    tables: tuple[str, ...] = ()
    """Tables of which it has tombstones."""

    def to_property(self) -> dict[str, str]:
        """As a table property."""
        raw = {"v": 1, **{k: getattr(self, k) for k in self.__dataclass_fields__}}
        return {EXPORTED_PROPERTY: json.dumps(raw, separators=(",", ":"))}


def read_standing(table: Table) -> Standing:
    """How far the table goes, as it was last read.

    Raises:
        ArchiveError: the property was changed by hand, or a newer program wrote it.
    """
    text = table.properties.get(EXPORTED_PROPERTY)
    if text is None:
        return Standing()
    where = ".".join(table.name())
    try:
        raw = json.loads(text)
        version = raw.pop("v")
        if version == 1:
            return Standing(**{**raw, "tables": tuple(raw["tables"])})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArchiveError(
            f"{where}: how far it goes cannot be read: {error}",
            f"The property {EXPORTED_PROPERTY} was changed by hand.",
            retry=Retry.NEVER,
        ) from error
    raise ArchiveError(
        f"{where}: how far it goes is of version {version}", "A newer program wrote it: upgrade this one."
    )


def open_archive(lake: Lake) -> Table | None:
    """The `_archive` of a lake, with its owner's marks checked; None where nothing was ever archived.

    Raises:
        OwnershipError, CatalogError, StorageError: see `catalog.tables.open_record_table`.
    """
    return open_records(lake, ARCHIVE)


def tombstone(row: Mapping[str, Any]) -> Tombstone:
    """A row of `_archive`, or of the hot table, by column name."""
    return Tombstone(
        organization=row["organization_id"],
        table=row["table_name"],
        row_key=row["row_key"],
        event_time=row["event_time"],
        sequence=row["sequence"],
        batch=row["batch"],
        delivered_to=tuple(row["delivered_to"]),
        snapshot_id=row["snapshot_id"],
        keyed_hash=row["keyed_hash"],
        hash_key=row["hash_key"],
        contract_version=row["contract_version"],
        policy=row["policy"],
        operator=row["operator"],
        archived_at=row["archived_at"],
    )
