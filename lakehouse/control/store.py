"""Reads and writes of the control tables that are not about one landing: lakes, members, cursors.

Each function is one transaction. What only the holder of a task may write takes its lease.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, any_, delete, func, insert, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from federation.kinds import DeliveryStatus, DestinationKind, DestinationStatus
from lakehouse.capture.position import Position
from lakehouse.control.models import (
    ERROR_LENGTH,
    Adoption,
    Cursor,
    DestinationTable,
    Lake,
    WarehouseDelivery,
    WarehouseDestination,
)
from lakehouse.landing.cursor import Inventory, LakeCursor, Quarantine
from lakehouse.outbox.lease import seconds

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection, Engine, Row

ALL_TABLES = "*"
"""In `enabled_tables`: every table that has a contract, now or later."""
EARLY = 0.1
"""An organization joins a window that begins this part of its cadence too early: groups stay together."""


@dataclass(frozen=True)
class Member:
    """An organization that a window may read: its lake destination is there and wants the table."""

    organization: str
    destination: uuid.UUID
    cursor: LakeCursor
    attempts: int
    open: bool
    """A landing of it is under way or waits: no window reads it until that is settled."""


def lakes(engine: Engine) -> list[Lake]:
    """Every organization's lake, by organization."""
    from sqlalchemy.orm import Session

    with Session(engine, expire_on_commit=False) as session:
        return list(session.scalars(select(Lake).order_by(Lake.organization_id)))


def file_places(engine: Engine) -> Sequence[Row[tuple[uuid.UUID, str, str, str | None, str]]]:
    """Of every destination that writes files: id, kind, name, target and location."""
    row = WarehouseDestination
    location = row.config["location"].astext.label("location")
    with engine.connect() as connection:
        return connection.execute(
            select(row.id, row.kind, row.name, row.target, location).where(location.is_not(None)).order_by(row.id)
        ).all()


def enrol(
    engine: Engine,
    organization: str,
    namespace: str,
    kind: str,
    warehouse: str,
    *,
    cadence_seconds: int = 900,
) -> bool:
    """Give an organization a lake and the destination ICEBERG_S3 that names it. True if it had none."""
    with engine.begin() as connection:
        lake = uuid.uuid4()
        made = connection.execute(
            upsert(Lake)
            .values(id=lake, organization_id=organization, namespace=namespace, catalog_kind=kind, warehouse=warehouse)
            .on_conflict_do_nothing()
            .returning(Lake.id)
        ).scalar_one_or_none()
        if made is None:
            return False
        connection.execute(
            insert(WarehouseDestination).values(
                id=uuid.uuid4(),
                organization_id=organization,
                kind=DestinationKind.ICEBERG_S3.value,
                name="lake",
                enabled_tables=[ALL_TABLES],
                target=lake_target(warehouse, namespace),
                lake_id=made,
                cadence_seconds=cadence_seconds,
            )
        )
        return True


def lake_target(warehouse: str, namespace: str) -> str:
    """What an ICEBERG_S3 destination writes to, as `warehouse_destinations.target` has it."""
    return f"{warehouse}/{namespace}"


def stop_lake(engine: Engine, organization: str, reason: str) -> bool:
    """Capture nothing for this organization any more; its lake is kept. False: it was stopped already."""
    with engine.begin() as connection:
        done = connection.execute(
            update(Lake)
            .where(Lake.organization_id == organization, Lake.stopped_at.is_(None))
            .values(stopped_at=func.now(), stopped_reason=reason[:ERROR_LENGTH], updated_at=func.now())
        )
    return bool(done.rowcount)


def resume_lake(engine: Engine, organization: str) -> bool:
    """Capture again from where it stands. False: it was not stopped."""
    with engine.begin() as connection:
        done = connection.execute(
            update(Lake)
            .where(Lake.organization_id == organization, Lake.stopped_at.is_not(None))
            .values(stopped_at=None, stopped_reason=None, updated_at=func.now())
        )
    return bool(done.rowcount)


def wants_table(table: str | ColumnElement[str]) -> ColumnElement[bool]:
    """The lake's own destination is not paused and wants the table; joined to `lakes`."""
    return and_(
        WarehouseDestination.lake_id == Lake.id,
        WarehouseDestination.organization_id == Lake.organization_id,
        WarehouseDestination.kind == DestinationKind.ICEBERG_S3.value,
        WarehouseDestination.status != DestinationStatus.PAUSED.value,
        or_(
            any_(WarehouseDestination.enabled_tables) == table, any_(WarehouseDestination.enabled_tables) == ALL_TABLES
        ),
        Lake.stopped_at.is_(None),
    )


def cadence() -> ColumnElement[int]:
    """Seconds between windows: the table's own, or the destination's."""
    return func.coalesce(DestinationTable.cadence_seconds, WarehouseDestination.cadence_seconds)


def is_open() -> ColumnElement[bool]:
    """A landing of this cursor's table is not settled."""
    return (
        select(WarehouseDelivery.id)
        .where(
            WarehouseDelivery.organization_id == Cursor.organization_id,
            WarehouseDelivery.table_name == Cursor.table_name,
            WarehouseDelivery.destination_id == WarehouseDestination.id,
            WarehouseDelivery.status != DeliveryStatus.DELIVERED.value,
        )
        .exists()
    )


def is_due(part: float = 1.0) -> ColumnElement[bool]:
    """The cadence (or this part of it) has passed since the last window, and no retry is being waited for."""
    now = func.clock_timestamp()
    return and_(
        Cursor.stopped.is_(False),
        or_(Cursor.next_attempt_at.is_(None), Cursor.next_attempt_at <= now),
        or_(Cursor.polled_at.is_(None), Cursor.polled_at + cadence() * part * seconds(1) <= now),
    )


def members(engine: Engine, table: str, *, due: bool = False) -> list[Member]:
    """Every organization that is captured and has a cursor for the table, in one query.

    `due`: only those whose cadence has passed, or nearly.
    """
    query = (
        select(Cursor.__table__, WarehouseDestination.id.label("destination"), is_open().label("open"))
        .join(Lake, Lake.organization_id == Cursor.organization_id)
        .join(WarehouseDestination, wants_table(table))
        .outerjoin(
            DestinationTable,
            and_(DestinationTable.destination_id == WarehouseDestination.id, DestinationTable.table_name == table),
        )
        .where(Cursor.table_name == table, *([is_due(1 - EARLY)] if due else []))
        .order_by(Cursor.organization_id)
    )
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    return [Member(r.organization_id, r.destination, _cursor(r), r.attempts, r.open) for r in rows]


def without_cursor(engine: Engine, table: str) -> list[str]:
    """Organizations that are captured and were never backfilled for the table."""
    query = (
        select(Lake.organization_id)
        .join(WarehouseDestination, wants_table(table))
        .outerjoin(Cursor, and_(Cursor.organization_id == Lake.organization_id, Cursor.table_name == table))
        .where(Cursor.organization_id.is_(None))
        .order_by(Lake.organization_id)
    )
    with engine.connect() as connection:
        return list(connection.scalars(query).all())


def captured(engine: Engine, table: str) -> set[str]:
    """Organizations whose lake is not stopped and wants the table."""
    query = select(Lake.organization_id).join(WarehouseDestination, wants_table(table))
    with engine.connect() as connection:
        return set(connection.scalars(query))


def cursors(engine: Engine, table: str) -> dict[str, LakeCursor]:
    """Where each organization stands in one table, as this database remembers it."""
    with engine.connect() as connection:
        rows = connection.execute(select(Cursor.__table__).where(Cursor.table_name == table)).all()
    return {row.organization_id: _cursor(row) for row in rows}


def _cursor(row: Any) -> LakeCursor:
    return LakeCursor(
        position=Position.from_json(row.position),
        fence=row.fence,
        sequence=row.sequence,
        captured_at=row.captured_at,
        watermark=row.watermark,
        inventory=Inventory(**row.inventory) if row.inventory else None,
        quarantine=Quarantine.from_json(row.quarantine) if row.quarantine else None,
    )


def save_cursor(
    engine: Engine,
    organization: str,
    table: str,
    cursor: LakeCursor,
    *,
    snapshot_id: int | None,
    landed_at: datetime | None,
) -> None:
    """Write where an organization stands; what was there before is replaced."""
    with engine.begin() as connection:
        write_cursor(connection, organization, table, cursor, snapshot_id, landed_at)


def write_cursor(
    connection: Connection,
    organization: str,
    table: str,
    cursor: LakeCursor,
    snapshot_id: int | None,
    landed_at: datetime | None,
) -> None:
    """Within a transaction: where an organization stands; whatever failed before is over."""
    raw = cursor.to_json()
    values = {
        "position": raw["position"],
        "fence": cursor.fence,
        "sequence": cursor.sequence,
        "inventory": raw["inventory"],
        "quarantine": raw["quarantine"],
        "captured_at": cursor.captured_at,
        "watermark": cursor.watermark,
        **HEALTHY,
    }
    if landed_at is not None:
        values |= {"landed_at": landed_at, "snapshot_id": snapshot_id}
    statement = upsert(Cursor).values(organization_id=organization, table_name=table, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["organization_id", "table_name"], set_=values))


HEALTHY: Mapping[str, Any] = {
    "last_error": None,
    "attempts": 0,
    "next_attempt_at": None,
    "stopped": False,
    "updated_at": func.now(),
}
"""Columns of a cursor whose table and organization are well."""


def forget_cursor(engine: Engine, organization: str, table: str) -> None:
    """Forget where an organization stands (its lake table remembers)."""
    with engine.begin() as connection:
        connection.execute(delete(Cursor).where(Cursor.organization_id == organization, Cursor.table_name == table))


def retry_cursors(
    engine: Engine, *, organization: str | None = None, table: str | None = None
) -> list[tuple[str, str]]:
    """Try again what failed or was stopped before it was staged. Returns those (organization, table) pairs."""
    query = update(Cursor).where(or_(Cursor.stopped, Cursor.next_attempt_at.is_not(None)))
    if organization is not None:
        query = query.where(Cursor.organization_id == organization)
    if table is not None:
        query = query.where(Cursor.table_name == table)
    with engine.begin() as connection:
        rows = connection.execute(
            query.values(stopped=False, attempts=0, next_attempt_at=None, polled_at=None).returning(
                Cursor.organization_id, Cursor.table_name
            )
        ).all()
    return [(row.organization_id, row.table_name) for row in rows]


def record_adoption(
    engine: Engine,
    organization: str,
    table: str,
    record: Mapping[str, Any],
    cursor: LakeCursor,
    *,
    snapshot_id: int | None,
    now: datetime,
) -> None:
    """Who adopted a lake table, why, and the cursor to go on from, in one transaction. `record`: as in the lake."""
    with engine.begin() as connection:
        connection.execute(
            insert(Adoption).values(
                id=uuid.UUID(record["id"]),
                organization_id=organization,
                table_name=table,
                reason=record["reason"],
                adopted_by=record["by"],
                before=record["before"],
                after=record["after"],
            )
        )
        write_cursor(connection, organization, table, cursor, snapshot_id, now if snapshot_id else None)
