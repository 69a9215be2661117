"""Reads and writes of the control tables that capture and landing need. Each function is one transaction."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from federation.kinds import DeliveryStatus, DestinationKind
from lakehouse.capture.position import Position
from lakehouse.control.models import Cursor, Lake, Landing, WarehouseDelivery, WarehouseDestination, Window
from lakehouse.landing.cursor import Inventory, LakeCursor
from lakehouse.landing.staging import Share
from lakehouse.observe.redact import redact

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

ERROR_LENGTH = 500


@dataclass(frozen=True)
class StagedShare:
    """One organization's share, about to be landed."""

    organization: str
    share: Share
    before: LakeCursor | None
    after: LakeCursor


@contextmanager
def table_lock(engine: Engine, table: str) -> Iterator[bool]:
    """Whether this process may work on the table: a session lock, gone when the process is.

    It spares work, nothing rests on it: two programs that both land are told apart by the lake's fence.
    """
    key = select(func.hashtextextended(func.concat(func.current_schema(), ":lakehouse:", table), 0)).scalar_subquery()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        taken = bool(connection.scalar(select(func.pg_try_advisory_lock(key))))
        try:
            yield taken
        finally:
            if taken:
                connection.execute(select(func.pg_advisory_unlock(key)))


def lakes(engine: Engine) -> list[Lake]:
    """Every organization's lake, by organization."""
    from sqlalchemy.orm import Session

    with Session(engine, expire_on_commit=False) as session:
        return list(session.scalars(select(Lake).order_by(Lake.organization_id)))


def enrol(engine: Engine, organization: str, namespace: str, kind: str, warehouse: str, tables: Sequence[str]) -> bool:
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
                enabled_tables=list(tables),
                lake_id=made,
            )
        )
        return True


def cursors(engine: Engine, table: str) -> dict[str, LakeCursor]:
    """Where each organization stands in one table, as this database remembers it."""
    with engine.connect() as connection:
        rows = connection.execute(select(Cursor.__table__).where(Cursor.table_name == table)).all()
    return {
        row.organization_id: LakeCursor(
            position=Position.from_json(row.position),
            fence=row.fence,
            sequence=row.sequence,
            captured_at=row.captured_at,
            watermark=row.watermark,
            inventory=Inventory(**row.inventory) if row.inventory else None,
        )
        for row in rows
    }


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
        _save_cursor(connection, organization, table, cursor, snapshot_id, landed_at)


def _save_cursor(
    connection: Any,
    organization: str,
    table: str,
    cursor: LakeCursor,
    snapshot_id: int | None,
    landed_at: datetime | None,
) -> None:
    raw = cursor.to_json()
    values = {
        "position": raw["position"],
        "fence": cursor.fence,
        "sequence": cursor.sequence,
        "inventory": raw["inventory"],
        "captured_at": cursor.captured_at,
        "watermark": cursor.watermark,
        "last_error": None,
        "updated_at": func.now(),
    }
    if landed_at is not None:
        values |= {"landed_at": landed_at, "snapshot_id": snapshot_id}
    statement = upsert(Cursor).values(organization_id=organization, table_name=table, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["organization_id", "table_name"], set_=values))


def advance_empty(
    engine: Engine, table: str, organizations: Sequence[str], position: Position, captured_at: datetime
) -> None:
    """Move organizations whose share was empty to the group's new position: nothing was landed for them."""
    if not organizations:
        return
    with engine.begin() as connection:
        connection.execute(
            update(Cursor)
            .where(Cursor.table_name == table, Cursor.organization_id.in_(organizations))
            .values(position=position.to_json(), captured_at=captured_at, last_error=None, updated_at=func.now())
        )


def note_errors(engine: Engine, table: str, errors: Mapping[str, str]) -> None:
    """Write the last error of each organization beside its cursor, where `status` finds it."""
    with engine.begin() as connection:
        for organization, message in errors.items():
            connection.execute(
                update(Cursor)
                .where(Cursor.table_name == table, Cursor.organization_id == organization)
                .values(last_error=redact(message)[:ERROR_LENGTH], updated_at=func.now())
            )


def record_window(
    engine: Engine,
    window: uuid.UUID,
    table: str,
    *,
    method: str,
    kind: str,
    snapshot: str,
    captured_at: datetime,
    shares: Iterable[StagedShare],
) -> None:
    """Remember a window and its staged shares before anything is committed."""
    with engine.begin() as connection:
        connection.execute(
            insert(Window).values(
                id=window, table_name=table, method=method, kind=kind, snapshot=snapshot, captured_at=captured_at
            )
        )
        rows = [
            {
                "window_id": window,
                "organization_id": item.organization,
                "table_name": table,
                "status": "staged",
                "files": [f.to_json() for f in item.share.files],
                "row_count": item.share.rows,
                "delete_count": item.share.deletes,
                "byte_count": item.share.bytes,
                "sequence_after": item.before.sequence if item.before else 0,
                "sequence_upto": item.after.sequence,
                "watermark_start": item.share.watermark_start,
                "watermark_end": item.share.watermark_end,
            }
            for item in shares
        ]
        if rows:
            connection.execute(insert(Landing), rows)


def open_landings(engine: Engine, table: str) -> list[Any]:
    """Shares that were staged and neither acknowledged nor given up: their process died."""
    with engine.connect() as connection:
        return list(
            connection.execute(
                select(Landing.__table__).where(Landing.table_name == table, Landing.status == "staged")
            ).all()
        )


def acknowledge(
    engine: Engine,
    window: uuid.UUID,
    organization: str,
    table: str,
    cursor: LakeCursor,
    *,
    snapshot_id: int,
    now: datetime,
) -> None:
    """A share is in the lake: its landing, cursor and the delivery to ICEBERG_S3, in one transaction. Idempotent."""
    with engine.begin() as connection:
        landing = connection.execute(
            update(Landing)
            .where(Landing.window_id == window, Landing.organization_id == organization, Landing.status == "staged")
            .values(status="landed", snapshot_id=snapshot_id, landed_at=now)
            .returning(Landing.__table__)
        ).one_or_none()
        _save_cursor(connection, organization, table, cursor, snapshot_id, now)
        if landing is not None:
            _delivered(
                connection,
                organization,
                table,
                now,
                sequence_after=landing.sequence_after,
                sequence_upto=landing.sequence_upto,
                snapshot_id=snapshot_id,
                window_id=window,
                watermark_start=landing.watermark_start,
                watermark_end=landing.watermark_end,
                row_count=landing.row_count + landing.delete_count,
            )


def acknowledge_backfill(
    engine: Engine,
    backfill: uuid.UUID,
    organization: str,
    table: str,
    cursor: LakeCursor,
    *,
    rows: int,
    snapshot_id: int,
    now: datetime,
) -> None:
    """A backfill is in the lake: its cursor and the delivery to ICEBERG_S3, in one transaction. Idempotent."""
    with engine.begin() as connection:
        _save_cursor(connection, organization, table, cursor, snapshot_id, now)
        _delivered(
            connection,
            organization,
            table,
            now,
            sequence_after=0,
            sequence_upto=cursor.sequence,
            snapshot_id=snapshot_id,
            window_id=backfill,
            row_count=rows,
        )


def _delivered(connection: Connection, organization: str, table: str, now: datetime, **values: Any) -> None:
    """Landing is what acknowledges the organization's ICEBERG_S3 destination."""
    destinations = connection.scalars(
        update(WarehouseDestination)
        .where(
            WarehouseDestination.organization_id == organization,
            WarehouseDestination.kind == DestinationKind.ICEBERG_S3.value,
        )
        .values(last_delivery_at=now)
        .returning(WarehouseDestination.id)
    ).all()
    for destination in destinations:
        connection.execute(
            upsert(WarehouseDelivery)
            .values(
                id=uuid.uuid4(),
                organization_id=organization,
                destination_id=destination,
                table_name=table,
                status=DeliveryStatus.DELIVERED.value,
                attempts=1,
                delivered_at=now,
                **values,
            )
            .on_conflict_do_nothing(constraint="uq_warehouse_deliveries_range")
        )


def abandon(engine: Engine, window: uuid.UUID, organization: str) -> None:
    """A staged share will not be landed: its rows are read again. Its files stay until maintenance takes them."""
    with engine.begin() as connection:
        connection.execute(
            update(Landing)
            .where(Landing.window_id == window, Landing.organization_id == organization, Landing.status == "staged")
            .values(status="abandoned")
        )


def forget_cursor(engine: Engine, organization: str, table: str) -> None:
    """Forget where an organization stands (its lake table remembers)."""
    with engine.begin() as connection:
        connection.execute(delete(Cursor).where(Cursor.organization_id == organization, Cursor.table_name == table))
