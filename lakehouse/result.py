"""What one round of one table did: made by `lakehouse.sync` and `lakehouse.glance`, shown by the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from schemas.errors import LakehouseError


@dataclass
class TableResult:
    """What one round of one table did."""

    table: str
    window: str | None = None
    captured_at: datetime | None = None
    reconciled: bool = False
    busy: bool = False
    """Another worker is reading the table."""
    upserts: dict[str, int] = field(default_factory=dict)
    deletes: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    files: int = 0
    snapshots: dict[str, int] = field(default_factory=dict)
    settled: list[str] = field(default_factory=list)
    """Organizations whose earlier share, left behind by somebody, was landed or found in the lake."""
    notes: list[str] = field(default_factory=list)
    """Why everything was read again, where it was."""
    landing: list[str] = field(default_factory=list)
    """Organizations that no window reads now: a share of theirs is under way or waits for its retry."""
    quarantined: dict[str, int] = field(default_factory=dict)
    """Rows that the lake cannot hold, of organizations where that changed."""
    waiting: list[str] = field(default_factory=list)
    """Organizations that were never backfilled."""
    errors: dict[str, LakehouseError] = field(default_factory=dict)
    """By organization; the key "" is the whole table's."""
