"""Holds in the lake: the table `_holds` of an organization's namespace, and tags on the tables in scope.

`_holds` is append-only, one row for each time that a hold was placed or released, so that a hot database that was
restored from an older copy gets back what it forgot. It is written after the database's commit: a hold is in force
without it, and a mirror that failed is tried again by maintenance. A (hold, action) pair is written once, whoever
writes: each commit requires that the table is where it was read. A tag `hold-<id>` keeps a snapshot of each table in
scope as it was when the hold was placed (or when the table first had one); expiry leaves tagged snapshots alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from catalog.errors import CatalogError, lake_errors
from catalog.tables import ensure_record_table, open_record_table
from lakehouse.archive.records import Hold
from schemas.errors import LakehouseError, Retry

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.schema import Schema
    from pyiceberg.table import Table

    from catalog.lake import Lake

TABLE = "_holds"
PLACED, RELEASED = "placed", "released"
TAG = "hold-"
ATTEMPTS = 5
_DESCRIPTION = "Legal holds of this organization: one row for each that was placed, one for each that was released."

Event = tuple[UUID, str]
"""A hold and what happened to it: `placed` or `released`."""


def read_holds(lake: Lake) -> dict[UUID, Hold]:
    """The holds that a lake remembers, by id; none where there is no such table or no lake yet.

    Raises:
        CatalogError, StorageError, OwnershipError: the lake does not answer, is damaged or another's.
    """
    if lake.owner() is None:
        return {}
    if (table := open_record_table(lake, TABLE)) is None:
        return {}
    return _holds(_rows(table))


def write_holds(lake: Lake, holds: Sequence[Hold]) -> int:
    """Add to the lake what it does not have of these holds; returns how many rows that were. Idempotent.

    Raises:
        CatalogError, StorageError, OwnershipError: as `read_holds`; or there is no lake yet.
    """
    from pyiceberg.exceptions import CommitFailedException

    table = open_record_table(lake, TABLE)
    if table is None:
        if not holds:
            return 0
        table = ensure_record_table(lake, TABLE, _schema(), _DESCRIPTION)
    where = ".".join(table.name())
    for attempt in range(1, ATTEMPTS + 1):
        with lake_errors(where):
            table.refresh()
        known = {(UUID(row["hold_id"]), row["action"]) for row in _rows(table)}
        missing = [row for hold in holds for row in _events(hold) if (UUID(row["hold_id"]), row["action"]) not in known]
        if not missing:
            return 0
        try:
            with lake_errors(where):
                table.append(_arrow(missing))
        except CommitFailedException as error:
            # Another program wrote meanwhile, perhaps the same rows: look again.
            if attempt == ATTEMPTS:
                raise CatalogError(
                    f"{where}: {ATTEMPTS} commits in a row lost against other writers: {error}",
                    "The holds are in force; the next maintenance writes them.",
                    retry=Retry.TIMED,
                ) from error
            continue
        except LakehouseError:
            # A reply that was lost: the table knows.
            with lake_errors(where):
                table.refresh()
            if {(r["hold_id"], r["action"]) for r in missing} - {(r["hold_id"], r["action"]) for r in _rows(table)}:
                raise
        return len(missing)
    raise AssertionError("unreachable")


def tag_table(table: Table, holds: Iterable[Hold]) -> tuple[list[str], list[str]]:
    """Give a lake table the tags of these holds (all that concern it, released ones too). Returns made and removed.

    An active hold's tag names the current snapshot, and stays where it is once it is there; a table without any
    snapshot gets it later. A released hold's tag goes; one of a hold that is not given stays. Idempotent.

    Raises:
        CatalogError: other writers won every attempt, or the catalog does not answer.
    """
    from pyiceberg.exceptions import CommitFailedException

    active = {f"{TAG}{hold.id}": hold.released_at is None for hold in holds}
    where = ".".join(table.name())
    for attempt in range(1, ATTEMPTS + 1):
        with lake_errors(where):
            table.refresh()
        snapshot, refs = table.current_snapshot(), table.metadata.refs
        made = [name for name, on in active.items() if on and name not in refs and snapshot is not None]
        gone = [name for name, on in active.items() if not on and name in refs]
        if not made and not gone:
            return [], []
        try:
            with lake_errors(where), table.manage_snapshots() as change:
                for name in made:
                    assert snapshot is not None  # noqa: S101 - nothing is made without one
                    change.create_tag(snapshot.snapshot_id, name)
                for name in gone:
                    change.remove_tag(name)
        except CommitFailedException as error:
            if attempt == ATTEMPTS:
                raise CatalogError(
                    f"{where}: {ATTEMPTS} attempts to tag it lost against other writers: {error}",
                    "The holds are in force; the next maintenance sets the tags.",
                    retry=Retry.TIMED,
                ) from error
            continue
        except LakehouseError:
            # A reply that was lost: the table knows.
            with lake_errors(where):
                table.refresh()
            now = table.metadata.refs
            if not all(name in now for name in made) or any(name in now for name in gone):
                raise
        return made, gone
    raise AssertionError("unreachable")


def mirrored(hold: Hold, lake: Mapping[UUID, Hold]) -> bool:
    """Whether the lake has what the database knows of a hold."""
    known = lake.get(hold.id)
    return known is not None and (hold.released_at is None or known.released_at is not None)


def _schema() -> Schema:
    from pyiceberg.schema import Schema
    from pyiceberg.types import ListType, NestedField, StringType, TimestamptzType

    return Schema(
        NestedField(1, "hold_id", StringType(), required=True),
        NestedField(2, "action", StringType(), required=True, doc="placed or released"),
        NestedField(3, "decided_at", TimestamptzType(), required=True, doc="When, by the hot database's clock."),
        NestedField(4, "actor", StringType(), required=True, doc="Who placed or released it."),
        NestedField(5, "reason", StringType(), required=True),
        NestedField(6, "organization_id", StringType(), required=True),
        NestedField(7, "table_name", StringType(), required=False, doc="Null: every table."),
        NestedField(
            8,
            "row_keys",
            ListType(12, StringType(), element_required=True),
            required=False,
            doc="Key texts; null: every row.",
        ),
        NestedField(9, "event_from", TimestamptzType(), required=False),
        NestedField(10, "event_upto", TimestamptzType(), required=False, doc="Exclusive."),
        NestedField(11, "written_at", TimestamptzType(), required=True, doc="When this row came into the lake."),
    )


def _events(hold: Hold) -> list[dict[str, Any]]:
    scope = {
        "hold_id": str(hold.id),
        "organization_id": hold.organization,
        "table_name": hold.table,
        "row_keys": None if hold.row_keys is None else list(hold.row_keys),
        "event_from": hold.event_from,
        "event_upto": hold.event_upto,
        "written_at": datetime.now(UTC),
    }
    placed = {"action": PLACED, "decided_at": hold.placed_at, "actor": hold.placed_by, "reason": hold.reason}
    events = [scope | placed]
    if hold.released_at is not None:
        released = {
            "action": RELEASED,
            "decided_at": hold.released_at,
            "actor": hold.released_by,
            "reason": hold.released_reason,
        }
        events.append(scope | released)
    return events


def _arrow(rows: list[dict[str, Any]]) -> pa.Table:
    import pyarrow as pa
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    return pa.Table.from_pylist(rows, schema=schema_to_pyarrow(_schema(), include_field_ids=False))


def _rows(table: Table) -> list[dict[str, Any]]:
    with lake_errors(".".join(table.name())):
        rows: list[dict[str, Any]] = table.scan().to_arrow().to_pylist()
    return rows


def _holds(rows: Iterable[dict[str, Any]]) -> dict[UUID, Hold]:
    found: dict[UUID, Hold] = {}
    # A release never stands without its hold, but may come before it in the files.
    for row in sorted(rows, key=lambda r: r["action"] != PLACED):
        key = UUID(row["hold_id"])
        if row["action"] == PLACED:
            found[key] = Hold(
                id=key,
                organization=row["organization_id"],
                table=row["table_name"],
                row_keys=None if row["row_keys"] is None else tuple(row["row_keys"]),
                event_from=row["event_from"],
                event_upto=row["event_upto"],
                reason=row["reason"],
                placed_by=row["actor"],
                placed_at=row["decided_at"],
            )
        else:
            found[key] = replace(
                found[key], released_by=row["actor"], released_reason=row["reason"], released_at=row["decided_at"]
            )
    return found
