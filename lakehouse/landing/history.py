"""What a lake table remembers of the sources that it was made from: the property `lakehouse.history`.

`_xmin` names a transaction only within one history of the source. After a failover, a restore or an adoption the
same id may name another transaction, so whoever asks the lake for (key, `_xmin`) pairs asks only for versions with
`_sequence` above the last floor: those that landed in the present history. `changes` keeps every adoption and
failover, so that the record survives the loss of the control database. It is written in the same commit as a
snapshot, never alone: a commit of properties is not fenced. A start of the server adds a floor and is no change.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from catalog.errors import lake_errors
from lakehouse.capture.position import SourceIdentity
from lakehouse.landing.cursor import CURSOR_PROPERTY, CursorError, LakeCursor, read_cursor
from schemas.errors import Retry

if TYPE_CHECKING:
    from pyiceberg.table import Table

HISTORY_PROPERTY = "lakehouse.history"


@dataclass(frozen=True)
class History:
    """`floors`: the last `_sequence` of each earlier history. `source`: whose history the later versions are of."""

    floors: tuple[int, ...] = ()
    source: SourceIdentity | None = None
    changes: tuple[dict[str, Any], ...] = ()

    @property
    def floor(self) -> int:
        """Versions above it are of the present history."""
        return self.floors[-1] if self.floors else 0

    def begun(self, floor: int, source: SourceIdentity, *changes: dict[str, Any]) -> History:
        """With another history from above `floor` on."""
        floors = self.floors if floor in self.floors else (*self.floors, floor)
        return History(floors, source, (*self.changes, *changes))

    def to_property(self) -> dict[str, str]:
        """As a table property."""
        raw = {
            "v": 1,
            "floors": self.floors,
            "source": dataclasses.asdict(self.source) if self.source else None,
            "changes": list(self.changes),
        }
        return {HISTORY_PROPERTY: json.dumps(raw, separators=(",", ":"))}


def read_history(table: Table) -> History:
    """The table's history.

    Raises:
        CursorError: it cannot be read: changed by hand, or written by a newer program.
    """
    text = table.properties.get(HISTORY_PROPERTY)
    if text is None:
        return History()
    try:
        raw = json.loads(text)
        if raw["v"] == 1:
            source = SourceIdentity(**raw["source"]) if raw["source"] else None
            return History(tuple(raw["floors"]), source, tuple(raw["changes"]))
        fault = f"is of version {raw['v']}"
    except (KeyError, TypeError, ValueError) as error:
        raise CursorError(
            f"{'.'.join(table.name())}: its history cannot be read: {error}",
            f"The property {HISTORY_PROPERTY} was changed by hand.",
        ) from error
    raise CursorError(f"{'.'.join(table.name())}: its history {fault}", "A newer program wrote it: upgrade this one.")


def history_properties(table: Table, after: LakeCursor) -> dict[str, str]:
    """Properties that a landing sets beside its cursor: none while the source's history goes on.

    Compared with the cursor that stands in the table, so that windows that brought nothing do not hide a change.
    The same for every part of a landing, and for a later landing that goes on from one that died between parts.
    """
    before = read_cursor(table)
    source = after.position.source
    if before is None or before.position.source.same_history(source):
        return {}
    known = read_history(table)
    if known.source is not None and known.source.same_history(source):
        return {}
    was = before.position.source
    change = {
        "kind": "failover",
        "at": after.captured_at.isoformat(),
        "sequence": before.sequence,
        "before": dataclasses.asdict(was),
        "after": dataclasses.asdict(source),
    }
    changes = [change] if was.timeline != source.timeline else []
    return known.begun(before.sequence, source, *changes).to_property()


def commit_adoption(
    table: Table, cursor: LakeCursor, source: SourceIdentity, record: dict[str, Any], marks: dict[str, str]
) -> tuple[LakeCursor, int]:
    """Write an adoption into the lake table: an empty snapshot with the record, the owner's `marks` and the cursor
    under a fence of its own. Returns that cursor and the snapshot's id.

    `cursor`: read from the table (or its copy of the same landing), with the adoption in its position. A stale
    program that landed from the cursor before is fenced from here on.

    Raises:
        CursorError: the table moved since it was read. Nothing was written.
        CatalogError, StorageError: the lake is not reachable.
    """
    from pyiceberg.exceptions import CommitFailedException

    where = ".".join(table.name())
    standing = read_cursor(table)
    if standing is not None and standing.fence != cursor.fence:
        raise CursorError(f"{where}: another program landed meanwhile", "Adopt again.", retry=Retry.TIMED)
    adopted = dataclasses.replace(cursor, fence=f"{record['id']}/1")
    known = read_history(table)
    # Another installation's landings from this same source are still named by their ids.
    if cursor.position.source.same_history(source):
        history = History(known.floors, source, (*known.changes, record))
    else:
        history = known.begun(cursor.sequence, source, record)
    summary = {
        "lakehouse.window": record["id"],
        "lakehouse.part": "1/1",
        "lakehouse.sequence": str(cursor.sequence),
        "lakehouse.captured-at": cursor.captured_at.isoformat(),
        "lakehouse.adoption": record["reason"],
        "lakehouse.adopted-by": record["by"],
    }
    text = json.dumps(adopted.to_json(), separators=(",", ":"))
    try:
        with lake_errors(where), table.transaction() as transaction:
            transaction.set_properties({CURSOR_PROPERTY: text} | history.to_property() | marks)
            # Without files: what makes the commit fenced is that it is a snapshot.
            with transaction.update_snapshot(snapshot_properties=summary).merge_append():
                pass
    except CommitFailedException as error:
        raise CursorError(
            f"{where}: another program committed meanwhile: {error}", "Adopt again.", retry=Retry.TIMED
        ) from error
    snapshot = table.current_snapshot()
    assert snapshot is not None  # noqa: S101 - it was committed above
    return adopted, snapshot.snapshot_id
