"""The manifest of one table of one organization: which files count. What it does not name does not exist for a reader.

`<table>/organization_id=<id>/_manifest.json`, an object that is replaced whole: a delivery's files become visible all
at once, with the `_sequence` that they bring the table to. Every `path` is a whole address, so that any engine can be
handed the list (docs/files.md shows DuckDB, Polars and Spark).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import quote

from federation.files.store import DamagedError, Found
from federation.protocol import DestinationError, Filling, ForeignTargetError, Owner
from schemas.errors import Retry

FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """One file: versions of one date (of the event time, UTC), `_sequence` from `first` to `last`."""

    path: str
    date: str | None
    rows: int
    bytes: int
    sha256: str
    first: int
    last: int


@dataclass(frozen=True)
class Manifest:
    """What a table consists of at `sequence`."""

    kind: str
    owner: Owner
    table: str
    contract: str
    sequence: int = 0
    snapshot_id: int | None = None
    files: tuple[Entry, ...] = field(default=())
    filled: str | None = None
    """The filling that its first files are from."""
    filled_upto: int = 0
    """The `_sequence` of the state that these hold: of what was deleted up to there they have nothing."""
    filling: Filling | None = None
    """Of the list of what a filling has taken, which no reader is shown: how far that is."""

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "kind": self.kind,
            "installation": self.owner.installation,
            "organization_id": self.owner.organization,
            "table": self.table,
            "contract": self.contract,
            "sequence": self.sequence,
            "snapshot_id": self.snapshot_id,
            "files": [asdict(f) for f in self.files],
            "filled": self.filled,
            "filled_upto": self.filled_upto,
            **({"filling": asdict(self.filling)} if self.filling is not None else {}),
        }


def folder(table: str, owner: Owner) -> str:
    """Where a table's files lie below the destination's location."""
    return f"{table}/organization_id={quote(owner.organization, safe='')}"


def name(table: str, owner: Owner) -> str:
    """The manifest's own name."""
    return f"{folder(table, owner)}/_manifest.json"


def filling_name(table: str, owner: Owner) -> str:
    """The name of the list of what a filling has taken."""
    return f"{folder(table, owner)}/_filling.json"


def read(stored: Found, kind: str, owner: Owner, table: str, where: str) -> Manifest:
    """A manifest as it was stored.

    Raises:
        ForeignTargetError: it is another's, or of another kind.
        DamagedError: it is not one.
        DestinationError: a newer program wrote it.
    """
    raw = stored.value
    try:
        if raw["format"] != FORMAT:
            raise DestinationError(f"{where}: is of format {raw['format']}", "Upgrade.", retry=Retry.NEVER)
        found = Manifest(
            raw["kind"],
            Owner(raw["installation"], raw["organization_id"]),
            raw["table"],
            raw["contract"],
            int(raw["sequence"]),
            raw["snapshot_id"],
            tuple(Entry(**f) for f in raw["files"]),
            raw.get("filled"),
            int(raw.get("filled_upto", 0)),
            _filling(raw["filling"]) if "filling" in raw else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{where}: is no manifest of ours: {error!r}", stored.etag) from None
    if (found.kind, found.owner, found.table) != (kind, owner, table):
        raise ForeignTargetError(
            f"{where}: belongs to {found.kind} {found.table} of organization {found.owner.organization}, "
            f"installation {found.owner.installation}",
            "Give each destination a prefix of its own. Nothing was written.",
        )
    return found


def _filling(raw: Any) -> Filling:
    return Filling(**raw | {"reached": tuple(raw["reached"])})
