"""The bounds and their present figures, from the control tables: what `status` shows and metrics export."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select

from lakehouse.app import App
from lakehouse.control.models import Backfill, FreedFile, Landing, TableStatistics, WarehouseDelivery, Window, Worker

MANY_VERSIONS = 12.0
"""Versions a row and day above which the cadence is worth a thought."""
_LEAST_DAYS = 1 / 24


@dataclass(frozen=True)
class TableBounds:
    """One lake table, as maintenance last measured it. `recent_*`: what windows brought in `recent_days` days."""

    organization: str
    table: str
    measured_at: datetime
    snapshots: int
    manifests: int
    metadata_files: int
    metadata_bytes: int
    data_files: int
    data_bytes: int
    row_count: int
    """Rows of the history: versions and deletes. History is not cut."""
    recent_versions: int
    recent_keys: int
    recent_days: float
    small_files: int
    pending_files: int
    """Freed or orphaned, waiting for the grace period."""
    versions_per_row_day: float | None
    """How often a row that changed at all got a version each day; None in a table's first hour."""
    bytes_per_day: int
    advice: str | None


@dataclass(frozen=True)
class Bounds:
    """Every bound that maintenance keeps (`limits`, the settings) and what there is."""

    limits: dict[str, Any]
    tables: list[TableBounds]
    control_rows: dict[str, int]


def read_bounds(app: App) -> Bounds:
    """Read what was last measured; does not open the lake."""
    with app.engine.connect() as connection:
        rows = connection.execute(
            select(TableStatistics.__table__).order_by(TableStatistics.organization_id, TableStatistics.table_name)
        ).all()
        counts = {
            model.__tablename__: connection.scalar(select(func.count()).select_from(model)) or 0
            for model in (WarehouseDelivery, Landing, Window, Backfill, Worker, FreedFile)
        }
    return Bounds(app.settings.maintenance.model_dump(), [_bounds(row) for row in rows], counts)


def _bounds(row: Any) -> TableBounds:
    detail = row.detail
    # Less than an hour says nothing of a day.
    long_enough = row.recent_days >= _LEAST_DAYS
    a_day = row.recent_versions / row.recent_keys / row.recent_days if long_enough and row.recent_keys else None
    bytes_a_day = detail.get("bytes_per_day", 0) if long_enough else 0
    return TableBounds(
        organization=row.organization_id,
        table=row.table_name,
        measured_at=row.measured_at,
        snapshots=row.snapshots,
        manifests=row.manifests,
        metadata_files=row.metadata_files,
        metadata_bytes=row.metadata_bytes,
        data_files=row.data_files,
        data_bytes=row.data_bytes,
        row_count=row.row_count,
        recent_versions=row.recent_versions,
        recent_keys=row.recent_keys,
        recent_days=row.recent_days,
        small_files=detail.get("small_files", 0),
        pending_files=detail.get("pending_files", 0),
        versions_per_row_day=a_day,
        bytes_per_day=bytes_a_day,
        advice=_advice(a_day, bytes_a_day),
    )


def _advice(versions: float | None, bytes_a_day: int) -> str | None:
    if versions is None or versions < MANY_VERSIONS:
        return None
    return (
        f"each row that changes gets {versions:.0f} versions a day, {bytes_a_day / 2**20:.1f} MiB a day; a longer "
        "cadence for this table keeps fewer of them"
    )
