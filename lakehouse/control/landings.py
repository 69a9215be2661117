"""A window's shares in the control tables: recorded with their deliveries, acknowledged or given up under a lease.

Recording is one transaction under the table's task lease; from then on each share has a lease of its own and can
be landed by whoever holds that. Everything that is needed for it (files, the cursor before and after) is here.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from federation.kinds import DeliveryStatus, DestinationKind, DestinationStatus
from lakehouse.capture.position import Position
from lakehouse.control.models import Cursor, Landing, WarehouseDelivery, WarehouseDestination, Window
from lakehouse.control.store import HEALTHY, write_cursor
from lakehouse.landing.cursor import LakeCursor
from lakehouse.landing.parquet import StagedFile
from lakehouse.landing.staging import Share
from lakehouse.outbox.deliveries import mine
from lakehouse.outbox.lease import Lease, LeaseLostError, guard_task, seconds
from lakehouse.outbox.retry import Decision

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine


@dataclass(frozen=True)
class StagedShare:
    """One organization's share of a window, ready to be landed. `lease`: of its delivery."""

    window: uuid.UUID
    organization: str
    destination: uuid.UUID
    share: Share
    before: LakeCursor
    after: LakeCursor
    lease: Lease
    attempts: int = 1
    foreign: bool = False
    """Staged by another process: what lies there is checked before it is committed."""


@dataclass(frozen=True)
class IdleMove:
    """Organizations of one group that had no changes: they move without a landing."""

    organizations: Sequence[str]
    position: Position


def record_window(
    engine: Engine,
    lease: Lease,
    window: uuid.UUID,
    table: str,
    *,
    method: str,
    kind: str,
    snapshot: str,
    captured_at: datetime,
    changes: int | None,
    shares: Sequence[StagedShare],
    idle: Iterable[IdleMove],
    failed: Mapping[str, Decision],
) -> list[StagedShare]:
    """Remember a window before anything of it is committed to a lake, in one transaction.

    Its shares become deliveries under this worker's leases, idle organizations stand at the new position, and those
    that failed wait for their retry. Returns the shares that may be landed: not those whose range was delivered
    before, because their cursor here is older than the lake (a control database that was restored).

    Raises:
        LeaseLostError: another worker has the table; nothing was written.
    """
    made: set[Any] = set()
    with engine.begin() as connection:
        guard_task(connection, lease)
        connection.execute(
            insert(Window).values(
                id=window,
                table_name=table,
                method=method,
                kind=kind,
                snapshot=snapshot,
                captured_at=captured_at,
                changes=changes,
            )
        )
        if shares:
            connection.execute(insert(Landing), [_landing(table, item) for item in shares])
            asked_at = time.monotonic()
            now = connection.execute(select(func.clock_timestamp())).scalar_one()
            for some in (shares[i : i + 500] for i in range(0, len(shares), 500)):
                made |= set(
                    connection.scalars(
                        upsert(WarehouseDelivery)
                        .values([_delivery(table, item, now) for item in some])
                        .on_conflict_do_nothing(constraint="uq_warehouse_deliveries_range")
                        .returning(WarehouseDelivery.id)
                    )
                )
            for item in shares:
                item.lease.renewed(asked_at)
            connection.execute(
                update(Landing)
                .where(
                    Landing.window_id == window,
                    Landing.organization_id.in_([s.organization for s in shares if s.lease.id not in made]),
                )
                .values(status="abandoned")
            )
        for move in idle:
            connection.execute(
                update(Cursor)
                .where(Cursor.table_name == table, Cursor.organization_id.in_(move.organizations))
                .values(position=move.position.to_json(), captured_at=captured_at, **HEALTHY)
            )
        seen = [*(s.organization for s in shares), *(o for move in idle for o in move.organizations), *failed]
        connection.execute(
            update(Cursor)
            .where(Cursor.table_name == table, Cursor.organization_id.in_(seen))
            .values(polled_at=func.clock_timestamp())
        )
        for organization, decision in failed.items():
            _note_failure(connection, table, organization, decision)
    return [item for item in shares if item.lease.id in made]


def _landing(table: str, item: StagedShare) -> dict[str, Any]:
    return {
        "window_id": item.window,
        "organization_id": item.organization,
        "table_name": table,
        "status": "staged",
        "files": [f.to_json() for f in item.share.files],
        "fence_before": item.before.fence,
        "cursor_before": item.before.to_json(),
        "cursor_after": item.after.to_json(),
        "row_count": item.share.rows,
        "delete_count": item.share.deletes,
        "byte_count": item.share.bytes,
        "sequence_after": item.before.sequence,
        "sequence_upto": item.after.sequence,
        "watermark_start": item.share.watermark_start,
        "watermark_end": item.share.watermark_end,
    }


def _delivery(table: str, item: StagedShare, now: datetime) -> dict[str, Any]:
    return {
        "id": item.lease.id,
        "organization_id": item.organization,
        "destination_id": item.destination,
        "table_name": table,
        "sequence_after": item.before.sequence,
        "sequence_upto": item.after.sequence,
        "window_id": item.window,
        "watermark_start": item.share.watermark_start,
        "watermark_end": item.share.watermark_end,
        "row_count": item.share.rows + item.share.deletes,
        "status": DeliveryStatus.PROCESSING.value,
        "attempts": 1,
        "lease_owner": item.lease.owner,
        "lease_generation": item.lease.generation,
        "lease_expires_at": now + timedelta(seconds=item.lease.seconds),
    }


def _note_failure(connection: Connection, table: str, organization: str, decision: Decision) -> None:
    wait = decision.wait_seconds
    connection.execute(
        update(Cursor)
        .where(Cursor.table_name == table, Cursor.organization_id == organization)
        .values(
            attempts=Cursor.attempts + 1,
            next_attempt_at=None if wait is None else func.clock_timestamp() + seconds(wait),
            stopped=wait is None,
            last_error=decision.error,
            updated_at=func.now(),
        )
    )


def staged_share(engine: Engine, lease: Lease, window: uuid.UUID, organization: str) -> StagedShare | None:
    """A share as it was recorded; None where it is not staged any more, or was staged by the first version."""
    with engine.connect() as connection:
        row = connection.execute(
            select(Landing.__table__, WarehouseDelivery.destination_id, WarehouseDelivery.attempts)
            .join(WarehouseDelivery, WarehouseDelivery.id == lease.id)
            .where(
                Landing.window_id == window,
                Landing.organization_id == organization,
                Landing.status == "staged",
                Landing.cursor_after.is_not(None),
            )
        ).one_or_none()
    if row is None:
        return None
    return StagedShare(
        window=window,
        organization=organization,
        destination=row.destination_id,
        share=Share(
            files=[StagedFile(**f) for f in row.files],
            rows=row.row_count,
            deletes=row.delete_count,
            watermark_start=row.watermark_start,
            watermark_end=row.watermark_end,
        ),
        before=LakeCursor.from_json(row.cursor_before),
        after=LakeCursor.from_json(row.cursor_after),
        lease=lease,
        attempts=row.attempts,
        foreign=True,
    )


def acknowledge(
    engine: Engine, item: StagedShare, table: str, cursor: LakeCursor, *, snapshot_id: int, now: datetime
) -> None:
    """A share is in the lake: its delivery, landing and cursor, in one transaction.

    Raises:
        LeaseLostError: the delivery is another worker's now, which finds the share in the lake; nothing was written.
    """
    with engine.begin() as connection:
        _close(
            connection,
            item.lease,
            status=DeliveryStatus.DELIVERED.value,
            snapshot_id=snapshot_id,
            delivered_at=func.clock_timestamp(),
            last_error=None,
        )
        connection.execute(
            update(Landing)
            .where(Landing.window_id == item.window, Landing.organization_id == item.organization)
            .values(status="landed", snapshot_id=snapshot_id, landed_at=now)
        )
        write_cursor(connection, item.organization, table, cursor, snapshot_id, now)
        _well(connection, [item.destination], now)


def abandon(
    engine: Engine, lease: Lease, window: uuid.UUID, organization: str, table: str, stands: LakeCursor | None
) -> None:
    """A staged share will not be landed: its rows are read again. Its files stay until maintenance takes them.

    `stands`: where the lake's own cursor says that the table is; None leaves the cursor as it is.

    Raises:
        LeaseLostError: the delivery is another worker's now; nothing was written.
    """
    with engine.begin() as connection:
        removed = connection.execute(delete(WarehouseDelivery).where(mine(lease)).returning(WarehouseDelivery.id))
        if removed.one_or_none() is None:
            raise _lost(lease)
        connection.execute(
            update(Landing)
            .where(Landing.window_id == window, Landing.organization_id == organization, Landing.status == "staged")
            .values(status="abandoned")
        )
        if stands is not None:
            write_cursor(connection, organization, table, stands, None, None)


def acknowledge_backfill(
    engine: Engine,
    lease: Lease,
    backfill: uuid.UUID,
    organization: str,
    table: str,
    cursor: LakeCursor,
    *,
    rows: int,
    snapshot_id: int | None,
    now: datetime,
) -> None:
    """A backfill is in the lake: its cursor and the delivery to ICEBERG_S3, in one transaction. Idempotent.

    Raises:
        LeaseLostError: the backfill is another worker's now; nothing was written.
    """
    with engine.begin() as connection:
        guard_task(connection, lease)
        write_cursor(connection, organization, table, cursor, snapshot_id, now if snapshot_id else None)
        destinations = connection.scalars(
            select(WarehouseDestination.id).where(
                WarehouseDestination.organization_id == organization,
                WarehouseDestination.kind == DestinationKind.ICEBERG_S3.value,
            )
        ).all()
        if not cursor.sequence:
            return
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
                    delivered_at=func.clock_timestamp(),
                    sequence_after=0,
                    sequence_upto=cursor.sequence,
                    snapshot_id=snapshot_id,
                    window_id=backfill,
                    row_count=rows,
                )
                .on_conflict_do_nothing(constraint="uq_warehouse_deliveries_range")
            )
        _well(connection, destinations, now)


def _close(connection: Connection, lease: Lease, **values: Any) -> None:
    closed = connection.execute(
        update(WarehouseDelivery)
        .where(mine(lease))
        .values(lease_owner=None, lease_expires_at=None, updated_at=func.clock_timestamp(), **values)
        .returning(WarehouseDelivery.id)
    ).one_or_none()
    if closed is None:
        raise _lost(lease)


def _well(connection: Connection, destinations: Sequence[uuid.UUID], now: datetime) -> None:
    connection.execute(
        update(WarehouseDestination)
        .where(WarehouseDestination.id.in_(destinations))
        .values(last_delivery_at=now, last_error=None)
    )
    connection.execute(
        update(WarehouseDestination)
        .where(WarehouseDestination.id.in_(destinations), WarehouseDestination.status == DestinationStatus.ERROR.value)
        .values(status=DestinationStatus.ACTIVE.value)
    )


def _lost(lease: Lease) -> LeaseLostError:
    lease.lost = True
    return LeaseLostError(
        f"delivery {lease.id}: another worker has taken it over", "Nothing was changed; it goes on there."
    )
