"""The outbox: claim, retry and give up deliveries. Acknowledging a landing is in `lakehouse.control.store`.

Fair: a claim takes each organization's oldest row before any organization's second, so one with thousands of rows
does not hold up one with a single row.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, case, func, or_, select, update

from federation.kinds import DeliveryStatus, DestinationKind, DestinationStatus
from lakehouse.control.models import WarehouseDelivery, WarehouseDestination
from lakehouse.outbox.lease import Lease, seconds
from lakehouse.outbox.retry import Decision

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Engine

_D = WarehouseDelivery
_WAITING = (DeliveryStatus.PENDING.value, DeliveryStatus.FAILED.value)


@dataclass(frozen=True)
class ClaimedDelivery:
    """A delivery that this process works on."""

    id: uuid.UUID
    organization: str
    destination: uuid.UUID
    kind: DestinationKind
    table: str
    window: uuid.UUID | None
    sequence_after: int
    sequence_upto: int
    attempts: int
    """This attempt's number, from 1."""
    max_attempts: int
    lease: Lease


def claim(
    engine: Engine,
    owner: str,
    lease_seconds: float,
    *,
    kinds: Sequence[DestinationKind],
    tables: Sequence[str],
    limit: int = 1,
    early: bool = False,
    destinations: Sequence[uuid.UUID] | None = None,
    but: Collection[uuid.UUID] = (),
) -> list[ClaimedDelivery]:
    """Deliveries of these tables that are due, or whose worker's lease ran out; not those of paused destinations.

    A landing that is staged is finished although its lake was paused meanwhile.
    `early`: those too whose retry is not due yet (somebody asked by hand). `destinations`: only of these.
    `but`: not of these.
    """
    now = func.clock_timestamp()
    waiting: ColumnElement[bool] = _D.status.in_(_WAITING)
    if not early:
        waiting = and_(waiting, _D.next_attempt_at <= now)
    ready = or_(waiting, and_(_D.status == DeliveryStatus.PROCESSING.value, _D.lease_expires_at < now))
    ranked = (
        select(
            _D.id,
            func.row_number().over(partition_by=_D.organization_id, order_by=_D.next_attempt_at).label("turn"),
            _D.next_attempt_at,
        )
        .join(WarehouseDestination, WarehouseDestination.id == _D.destination_id)
        .where(
            ready,
            WarehouseDestination.kind.in_([k.value for k in kinds]),
            or_(
                WarehouseDestination.status != DestinationStatus.PAUSED.value,
                WarehouseDestination.kind == DestinationKind.ICEBERG_S3.value,
            ),
            _D.table_name.in_(tables),
            *([_D.destination_id.in_(destinations)] if destinations is not None else []),
            *([_D.destination_id.not_in(but)] if but else []),
        )
        .subquery()
    )
    chosen = (
        select(_D.id)
        .join(ranked, ranked.c.id == _D.id)
        # Asked again of the locked row: another worker may have taken it since it was ranked.
        .where(ready)
        .order_by(ranked.c.turn, ranked.c.next_attempt_at)
        .limit(limit)
        .with_for_update(skip_locked=True, of=_D)
        .cte("chosen")
    )
    asked_at = time.monotonic()
    with engine.begin() as connection:
        rows = connection.execute(
            update(_D)
            .where(_D.id == chosen.c.id, WarehouseDestination.id == _D.destination_id)
            .values(
                status=DeliveryStatus.PROCESSING.value,
                attempts=_D.attempts + 1,
                lease_owner=owner,
                lease_generation=_D.lease_generation + 1,
                lease_expires_at=now + seconds(lease_seconds),
                takeovers=_D.takeovers + case((_D.status == DeliveryStatus.PROCESSING.value, 1), else_=0),
                updated_at=now,
            )
            .returning(_D.__table__, WarehouseDestination.kind)
        ).all()
    return [_claimed(row, owner, lease_seconds, asked_at) for row in rows]


def _claimed(row: Any, owner: str, lease_seconds: float, asked_at: float) -> ClaimedDelivery:
    lease = Lease(row.id, owner, row.lease_generation, lease_seconds)
    lease.renewed(asked_at)
    return ClaimedDelivery(
        id=row.id,
        organization=row.organization_id,
        destination=row.destination_id,
        kind=DestinationKind(row.kind),
        table=row.table_name,
        window=row.window_id,
        sequence_after=row.sequence_after,
        sequence_upto=row.sequence_upto,
        attempts=row.attempts,
        max_attempts=row.max_attempts,
        lease=lease,
    )


def held_for(engine: Engine, table: str) -> float:
    """Seconds until the last lease on this table's landings runs out; 0 where nobody works on one."""
    with engine.connect() as connection:
        left = connection.execute(
            select(func.extract("epoch", func.max(_D.lease_expires_at) - func.clock_timestamp()))
            .join(WarehouseDestination, WarehouseDestination.id == _D.destination_id)
            .where(
                WarehouseDestination.kind == DestinationKind.ICEBERG_S3.value,
                _D.table_name == table,
                _D.status == DeliveryStatus.PROCESSING.value,
            )
        ).scalar_one()
    return max(0.0, float(left)) if left is not None else 0.0


def mine(lease: Lease) -> ColumnElement[bool]:
    """The row is still this lease's."""
    return and_(
        _D.id == lease.id,
        _D.lease_owner == lease.owner,
        _D.lease_generation == lease.generation,
        _D.status == DeliveryStatus.PROCESSING.value,
    )


def fail(engine: Engine, lease: Lease, decision: Decision) -> bool:
    """Wait for the next attempt, or for a person. False: the lease was another's, and nothing was changed."""
    dead = decision.wait_seconds is None
    wait = 0.0 if decision.wait_seconds is None else decision.wait_seconds
    with engine.begin() as connection:
        destination = connection.execute(
            update(_D)
            .where(mine(lease))
            .values(
                status=(DeliveryStatus.DEAD_LETTER if dead else DeliveryStatus.FAILED).value,
                next_attempt_at=func.clock_timestamp() + seconds(wait),
                last_error=decision.error,
                lease_owner=None,
                lease_expires_at=None,
                updated_at=func.clock_timestamp(),
            )
            .returning(_D.destination_id)
        ).scalar_one_or_none()
        if destination is None:
            lease.lost = True
            return False
        connection.execute(
            update(WarehouseDestination)
            .where(
                WarehouseDestination.id == destination, WarehouseDestination.status != DestinationStatus.PAUSED.value
            )
            .values(
                last_error=decision.error,
                updated_at=func.clock_timestamp(),
                **({"status": DestinationStatus.ERROR.value} if dead else {}),
            )
        )
    return True


def retry_now(engine: Engine, chosen: Sequence[uuid.UUID]) -> list[uuid.UUID]:
    """Make FAILED and DEAD_LETTER deliveries due now, with all attempts before them. Returns those that were."""
    with engine.begin() as connection:
        rows = connection.execute(
            update(_D)
            .where(_D.id.in_(chosen), _D.status.in_([DeliveryStatus.FAILED.value, DeliveryStatus.DEAD_LETTER.value]))
            .values(
                status=DeliveryStatus.PENDING.value,
                attempts=0,
                next_attempt_at=func.clock_timestamp(),
                updated_at=func.clock_timestamp(),
            )
            .returning(_D.id, _D.destination_id)
        ).all()
        connection.execute(
            update(WarehouseDestination)
            .where(
                WarehouseDestination.id.in_({row.destination_id for row in rows}),
                WarehouseDestination.status == DestinationStatus.ERROR.value,
            )
            .values(status=DestinationStatus.ACTIVE.value, updated_at=func.clock_timestamp())
        )
    return [row.id for row in rows]
