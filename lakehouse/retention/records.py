"""What ended, in the lake itself: the record table `_ended` of an organization's namespace.

One row for each day of a table that was about to end: versions and rows that it held, a digest of its content, and who
decided it, why and under which policy. Rows are added before the day's files leave their table. An ending happened if
its id stands in the table's property `lakehouse.ended` (`lakehouse.landing.ended`), which is written in the commit that
takes the files; rows under another id are of one that was prepared and given up.

`content_sha256` is that of receipts: SHA-256 over the canonical hashes (docs/canonical-row.md) of the day's rows in
their latest state, a line each, in the order of their keys' bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from catalog.errors import CatalogError, lake_errors
from catalog.tables import ensure_record_table, open_record_table
from schemas.errors import Retry

if TYPE_CHECKING:
    from pyiceberg.schema import Schema

    from catalog.lake import Lake

TABLE = "_ended"
ATTEMPTS = 5
_DESCRIPTION = "Days of this organization's tables that left the lake by its policy of retention; never removed."


@dataclass(frozen=True)
class EndedDay:
    """One day of one table, as it was when it ended."""

    ending: str
    table_name: str
    day: date
    versions: int
    rows: int
    content_sha256: str
    files: int
    bytes: int
    sequence: int
    """The table's `_sequence` then: no version of the day up to it is in the lake any more."""
    snapshot_id: int
    """The table's snapshot that was read."""
    contract_version: str
    years: int
    reason: str
    operator: str
    at: datetime


def _schema() -> Schema:
    from pyiceberg import types as ice
    from pyiceberg.schema import Schema
    from pyiceberg.types import NestedField

    kinds: dict[str, Any] = {
        "str": ice.StringType,
        "date": ice.DateType,
        "int": ice.LongType,
        "datetime": ice.TimestamptzType,
    }
    return Schema(
        *[
            NestedField(number, f.name, kinds[str(f.type)](), required=True)
            for number, f in enumerate(EndedDay.__dataclass_fields__.values(), start=1)
        ]
    )


def write_days(lake: Lake, days: Sequence[EndedDay]) -> None:
    """Add these days to the lake's record, in one commit.

    Raises:
        CatalogError, StorageError, OwnershipError: the lake does not answer or refuses. Days may be there then; they
            count for nothing.
    """
    import pyarrow as pa
    from pyiceberg.exceptions import CommitFailedException
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    table = ensure_record_table(lake, TABLE, _schema(), _DESCRIPTION)
    where = ".".join(table.name())
    rows = pa.Table.from_pylist([vars(day) for day in days], schema=schema_to_pyarrow(table.schema()))
    for _ in range(ATTEMPTS):
        with lake_errors(where):
            table.refresh()
        try:
            with lake_errors(where):
                table.append(rows)
        except CommitFailedException:
            continue
        return
    raise CatalogError(
        f"{where}: {ATTEMPTS} commits in a row lost against other writers", "Try again.", retry=Retry.TIMED
    )


def read_days(lake: Lake, table_name: str | None = None) -> list[EndedDay]:
    """Days in the lake's record, in the order of their table and day; also of endings that did not happen.

    Raises:
        CatalogError, StorageError, OwnershipError: the lake does not answer or is another's.
    """
    table = open_record_table(lake, TABLE)
    if table is None:
        return []
    with lake_errors(".".join(table.name())):
        rows = table.scan().to_arrow().to_pylist()
    found = [EndedDay(**row) for row in rows]
    return sorted(
        (d for d in found if table_name is None or d.table_name == table_name),
        key=lambda d: (d.table_name, d.day, d.at),
    )
