"""`lakehouse status`: where every table of every organization stands, and what is behind, and why."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from sqlalchemy import Connection, select

from federation.kinds import DeliveryStatus, DestinationKind
from lakehouse.app import App
from lakehouse.archive.tombstones import archived_rows
from lakehouse.capture.check import blind_spots
from lakehouse.capture.source import change_counts
from lakehouse.control.models import (
    Backfill,
    Cursor,
    DestinationTable,
    Lake,
    Task,
    WarehouseDelivery,
    WarehouseDestination,
    Window,
)
from lakehouse.destinations import PARITY
from lakehouse.maintenance.bounds import Bounds, read_bounds
from lakehouse.outbox import tasks
from lakehouse.standing import Standing, standings
from schemas.errors import LakehouseError

RECENT_WINDOWS = 2000


@dataclass(frozen=True)
class TableStatus:
    """One table of one organization."""

    organization: str
    table: str
    state: str
    """never backfilled, backfilling, current, landing, error, needs a person, stopped"""
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
    cadence_seconds: int | None
    waiting_rows: int
    """Rows of this organization that are staged and not in the lake yet."""
    unread_rows: int | None
    """Row versions written to the hot table since its last window, about, of all organizations."""
    quarantined: int
    """Rows of the hot table that the lake cannot hold; kept whole beside it (`lakehouse quarantine`)."""
    quarantined_first: str | None
    """The first of them: its key, column and reason."""
    archived: int | None
    """Rows that the archive took from the hot table; None where that cannot be read."""
    not_exported: int | None
    """Of those: whose tombstones are in the hot database only, and not in the lake's `_archive` yet."""
    next_attempt_at: datetime | None
    cannot_see: list[str]
    error: str | None
    """Why it is behind."""


@dataclass(frozen=True)
class Status:
    """Everything that `status` shows."""

    installation: str
    source: str
    warehouse: str
    window_seconds: dict[str, float]
    """By table: how wide recent windows were (median of the last 20): versions in between are not seen."""
    tables: list[TableStatus]
    destinations: list[Standing]
    bounds: Bounds

    @property
    def healthy(self) -> bool:
        well = not any(t.error and t.state != "stopped" for t in self.tables)
        return well and all(d.healthy for d in self.destinations)


def read_status(app: App) -> Status:
    """Read the control tables, and the hot database's statistics if it answers; does not open the lake."""
    with app.engine.connect() as connection:
        return Status(
            installation=app.settings.installation,
            source=app.settings.source.address,
            warehouse=app.settings.lake.warehouse,
            window_seconds=_widths(
                connection.execute(
                    select(Window.table_name, Window.captured_at)
                    .order_by(Window.captured_at.desc())
                    .limit(RECENT_WINDOWS)
                ).all()
            ),
            bounds=read_bounds(app),
            tables=_Reading(app, connection).tables(),
            destinations=standings(connection, list(app.contracts), app.settings.deliver.fill_behind, PARITY),
        )


class _Reading:
    """What the control tables say, read once for all tables of all organizations."""

    def __init__(self, app: App, connection: Connection) -> None:
        self.app = app
        self.now = app.clock()
        self.lakes = connection.execute(
            select(Lake.organization_id, Lake.stopped_reason).order_by(Lake.organization_id)
        ).all()
        self.cursors = {(r.organization_id, r.table_name): r for r in connection.execute(select(Cursor.__table__))}
        self.running = set(connection.scalars(select(Backfill.table_name).where(Backfill.status == "running")))
        self.tasks = {r.id: r for r in connection.execute(select(Task.__table__).where(Task.last_error.is_not(None)))}
        self.open = {
            (r.organization_id, r.table_name): r
            for r in connection.execute(
                select(WarehouseDelivery.__table__)
                .join(WarehouseDestination, WarehouseDestination.id == WarehouseDelivery.destination_id)
                .where(
                    WarehouseDelivery.status != DeliveryStatus.DELIVERED.value,
                    WarehouseDestination.kind == DestinationKind.ICEBERG_S3.value,
                )
            )
        }
        self.destinations = {
            r.organization_id: r
            for r in connection.execute(
                select(WarehouseDestination.__table__).where(
                    WarehouseDestination.kind == DestinationKind.ICEBERG_S3.value
                )
            )
        }
        self.cadences = {
            (r.destination_id, r.table_name): r.cadence_seconds
            for r in connection.execute(select(DestinationTable.__table__))
        }
        self.unread: dict[str, int] = {}
        self.archived: dict[tuple[str, str], tuple[int, int]] | None = None
        try:
            with app.source.catalog() as catalog:
                self.unread = self._unread(connection, catalog)
                self.archived = archived_rows(catalog)
        except LakehouseError:
            # What only the hot database knows is not known then; everything else is.
            pass

    def _unread(self, connection: Connection, catalog: psycopg.Connection[Any]) -> dict[str, int]:
        at_window: dict[str, int] = {}
        for row in connection.execute(
            select(Window.table_name, Window.changes)
            .where(Window.changes.is_not(None))
            .order_by(Window.captured_at.desc())
            .limit(RECENT_WINDOWS)
        ):
            at_window.setdefault(row.table_name, row.changes or 0)
        counts = change_counts(catalog, list(self.app.contracts.values()))
        # The statistics may have been reset since.
        return {t: max(0, count - at_window[t]) for t, count in counts.items() if t in at_window}

    def tables(self) -> list[TableStatus]:
        return [
            self._table(lake.organization_id, table, lake.stopped_reason)
            for lake in self.lakes
            for table in self.app.contracts
        ]

    def _table(self, organization: str, table: str, stopped: str | None) -> TableStatus:
        row = self.cursors.get((organization, table))
        waits = self.open.get((organization, table))
        destination = self.destinations.get(organization)
        task = self.tasks.get(tasks.task_id(tasks.CAPTURE if row else tasks.BACKFILL, table))
        error = (waits.last_error if waits else None) or (row.last_error if row else None)
        # Another organization's fault is its own, and may name its places; a fault of the table is everybody's.
        error = error or (task.detail.get(organization) or task.detail.get("") if task else None)
        given_up = (waits is not None and waits.status == DeliveryStatus.DEAD_LETTER.value) or (row and row.stopped)
        if stopped:
            state, error = "stopped", stopped
        elif destination is None or destination.status == "paused":
            state = "paused" if destination else "no destination"
        elif given_up:
            state = "needs a person"
        elif error:
            state = "error"
        elif row is None:
            state = "backfilling" if table in self.running else "never backfilled"
        else:
            state = "landing" if waits is not None else "current"
        cadence = None
        if destination is not None:
            cadence = self.cadences.get((destination.id, table)) or destination.cadence_seconds
        archived, not_exported = (
            (None, None) if self.archived is None else self.archived.get((organization, table), (0, 0))
        )
        next_attempt = waits.next_attempt_at if waits and waits.status == DeliveryStatus.FAILED.value else None
        return TableStatus(
            organization=organization,
            table=table,
            state=state,
            cadence_seconds=cadence,
            waiting_rows=waits.row_count if waits else 0,
            unread_rows=self.unread.get(table) if row else None,
            next_attempt_at=next_attempt or (row.next_attempt_at if row else None) or (task.due_at if task else None),
            error=error,
            archived=archived,
            not_exported=not_exported,
            quarantined=row.quarantine["open"] if row and row.quarantine else 0,
            quarantined_first=(row.quarantine["first"] if row and row.quarantine else None) or None,
            **self._position(row),
        )

    def _position(self, row: Any) -> dict[str, Any]:
        if row is None:
            times = ("lag_seconds", "captured_at", "landed_at", "watermark", "reconciled_at", "delete_lag_seconds")
            missing = dict.fromkeys((*times, "method", "sequence", "snapshot_id"))
            return {**missing, "pruned": False, "cannot_see": []}
        method = row.position["method"]
        reconciled = row.position["reconciled_at"]
        reconciled_at = datetime.fromisoformat(reconciled) if reconciled else None
        # A trigger's tombstones come with the window; keys are compared only where something went unseen.
        deletes_at = row.captured_at if method == "trigger" else reconciled_at
        return {
            "method": method,
            "lag_seconds": (self.now - row.captured_at).total_seconds(),
            "captured_at": row.captured_at,
            "landed_at": row.landed_at,
            "watermark": row.watermark,
            "sequence": row.sequence,
            "snapshot_id": row.snapshot_id,
            "reconciled_at": reconciled_at,
            "delete_lag_seconds": (self.now - deletes_at).total_seconds() if deletes_at else None,
            "pruned": row.position["bound"] is not None,
            "cannot_see": blind_spots(method, self.app.settings.capture),
        }


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
