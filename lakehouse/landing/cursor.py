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
class Quarantine:
    """The log of the rows that the lake could not hold (`lakehouse.landing.quarantine`).

    It comes and changes with the cursor, so in the commit of the window that met the row.
    """

    file: str
    bytes: int
    sha256: str
    entries: int
    open: int
    """Rows that the hot table has and the lake cannot hold."""
    first: str
    """The first of those: its key, column and reason; empty where there is none."""
    resolved_at: datetime | None = None
    """When the window was captured that last found one mended or gone."""
    sealed: tuple[str, ...] = ()
    """Older files of the log."""

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.sealed, self.file)

    def to_json(self) -> dict[str, Any]:
        return {
            **{k: getattr(self, k) for k in self.__dataclass_fields__},
            "resolved_at": self.resolved_at.isoformat() if self.resolved_at else None,
            "sealed": list(self.sealed),
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Quarantine:
        resolved = raw["resolved_at"]
        moment = datetime.fromisoformat(resolved) if resolved else None
        return cls(**{**raw, "resolved_at": moment, "sealed": tuple(raw["sealed"])})


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
    quarantine: Quarantine | None = None

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
            "quarantine": self.quarantine.to_json() if self.quarantine else None,
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
            quarantine=Quarantine.from_json(raw["quarantine"]) if raw.get("quarantine") else None,
        )


def needs_comparison(quarantine: Quarantine | None, position: Position) -> bool:
    """Rows have left the quarantine since keys were compared last."""
    if quarantine is None or quarantine.resolved_at is None:
        return False
    return position.reconciled_at is None or position.reconciled_at < quarantine.resolved_at


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
