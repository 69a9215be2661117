"""The cursor of one table of one organization, as it stands in the lake table's own property.

The lake alone is enough to go on: the control tables hold a copy. `fence` names the last commit
("<window>/<part>"); the next commit must find it unchanged.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from lakehouse.capture.position import Position
from schemas.errors import LakehouseError, Retry

if TYPE_CHECKING:
    from pyiceberg.table import Table

CURSOR_PROPERTY = "lakehouse.cursor"


class CursorError(LakehouseError):
    """The cursor in a lake table cannot be read."""

    retry = Retry.NEVER


@dataclass(frozen=True)
class Inventory:
    """Parquet files of the keys that were alive after `sequence`; rebuildable from the lake."""

    sequence: int
    file: str


@dataclass(frozen=True)
class LakeCursor:
    """Where one table of one organization stands."""

    position: Position
    fence: str | None
    sequence: int
    captured_at: datetime
    watermark: datetime | None
    inventory: Inventory | None
    complete: bool = True
    """False between two parts of a backfill's landing: there is no position to go on from yet."""

    def to_json(self) -> dict[str, Any]:
        return {
            "v": 1,
            "position": self.position.to_json(),
            "fence": self.fence,
            "sequence": self.sequence,
            "captured_at": self.captured_at.isoformat(),
            "watermark": self.watermark.isoformat() if self.watermark else None,
            "complete": self.complete,
            "inventory": {"sequence": self.inventory.sequence, "file": self.inventory.file} if self.inventory else None,
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> LakeCursor:
        return cls(
            position=Position.from_json(raw["position"]),
            fence=raw["fence"],
            sequence=raw["sequence"],
            captured_at=datetime.fromisoformat(raw["captured_at"]),
            watermark=datetime.fromisoformat(raw["watermark"]) if raw["watermark"] else None,
            inventory=Inventory(**raw["inventory"]) if raw["inventory"] else None,
            complete=raw["complete"],
        )


def read_cursor(table: Table) -> LakeCursor | None:
    """The cursor that the table holds; None where nothing ever landed.

    Raises:
        CursorError: it is there and cannot be read, or a newer program wrote it.
    """
    text = table.properties.get(CURSOR_PROPERTY)
    if text is None:
        return None
    where = ".".join(table.name())
    try:
        raw = json.loads(text)
        version = raw["v"]
        if version == 1:
            return LakeCursor.from_json(raw)
    except (KeyError, TypeError, ValueError) as error:
        raise CursorError(
            f"{where}: its cursor cannot be read: {error}", f"The property {CURSOR_PROPERTY} was changed by hand."
        ) from error
    raise CursorError(f"{where}: its cursor is of version {version}", "A newer program wrote it: upgrade this one.")
