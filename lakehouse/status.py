"""`lakehouse status`: where every table of every organization stands, and what is behind, and why."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from lakehouse.app import App
from lakehouse.control.models import Backfill, Cursor, Lake, Window
from lakehouse.maintenance.bounds import Bounds, read_bounds


@dataclass(frozen=True)
class TableStatus:
    """One table of one organization."""

    organization: str
    table: str
    state: str
    """never backfilled, backfilling, current, error"""
    method: str | None
    lag_seconds: float | None
    """Since the snapshot that the lake shows; nothing older is missing."""
    captured_at: datetime | None
    landed_at: datetime | None
    watermark: datetime | None
    sequence: int | None
    snapshot_id: int | None
    reconciled_at: datetime | None
    delete_lag_seconds: float | None
    pruned: bool
    error: str | None


@dataclass(frozen=True)
class Status:
    """Everything that `status` shows."""

    installation: str
    source: str
    warehouse: str
    window_seconds: dict[str, float]
    """By table: how wide recent windows were (median of the last 20): versions in between are not seen."""
    tables: list[TableStatus]
    bounds: Bounds

    @property
    def healthy(self) -> bool:
        return not any(t.error for t in self.tables)


def read_status(app: App) -> Status:
    """Read the control tables; does not open the lake or the source."""
    now = app.clock()
    with app.engine.connect() as connection:
        organizations = connection.scalars(select(Lake.organization_id).order_by(Lake.organization_id)).all()
        cursors = {(r.organization_id, r.table_name): r for r in connection.execute(select(Cursor.__table__))}
        running = set(connection.scalars(select(Backfill.table_name).where(Backfill.status == "running")))
        times = connection.execute(
            select(Window.table_name, Window.captured_at).order_by(Window.captured_at.desc()).limit(2000)
        ).all()
    return Status(
        installation=app.settings.installation,
        source=app.settings.source.address,
        warehouse=app.settings.lake.warehouse,
        window_seconds=_widths(times),
        bounds=read_bounds(app),
        tables=[_table(o, t, cursors.get((o, t)), t in running, now) for o in organizations for t in app.contracts],
    )


def _table(organization: str, table: str, row: Any, running: bool, now: datetime) -> TableStatus:
    if row is None:
        return TableStatus(
            organization,
            table,
            state="backfilling" if running else "never backfilled",
            method=None,
            lag_seconds=None,
            captured_at=None,
            landed_at=None,
            watermark=None,
            sequence=None,
            snapshot_id=None,
            reconciled_at=None,
            delete_lag_seconds=None,
            pruned=False,
            error=None,
        )
    reconciled = row.position["reconciled_at"]
    reconciled_at = datetime.fromisoformat(reconciled) if reconciled else None
    # A trigger's tombstones come with the window; keys are compared only where something went unseen.
    deletes_at = row.captured_at if row.position["method"] == "trigger" else reconciled_at
    return TableStatus(
        organization,
        table,
        state="error" if row.last_error else "current",
        method=row.position["method"],
        lag_seconds=(now - row.captured_at).total_seconds(),
        captured_at=row.captured_at,
        landed_at=row.landed_at,
        watermark=row.watermark,
        sequence=row.sequence,
        snapshot_id=row.snapshot_id,
        reconciled_at=reconciled_at,
        delete_lag_seconds=(now - deletes_at).total_seconds() if deletes_at else None,
        pruned=row.position["bound"] is not None,
        error=row.last_error,
    )


def _widths(times: Any) -> dict[str, float]:
    by_table: dict[str, list[datetime]] = {}
    for table, moment in times:
        by_table.setdefault(table, []).append(moment)
    widths: dict[str, float] = {}
    for table, moments in by_table.items():
        gaps = sorted((a - b).total_seconds() for a, b in itertools.pairwise(moments[:21]))
        if gaps:
            widths[table] = gaps[len(gaps) // 2]
    return widths
