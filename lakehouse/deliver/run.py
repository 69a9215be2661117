"""One delivery under its lease: open the destination, bring it to the range's end, compare the range, acknowledge.

Killed anywhere, the next worker asks the destination where it stands and goes on from there; it compares the range,
whoever brought it. What goes wrong is written to the delivery, with the time of its next attempt; other destinations
are not held up.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import case, func, select, update

from federation.config import COPYING
from federation.kinds import DeliveryStatus, DestinationKind, DestinationStatus
from federation.protocol import Delivery
from lakehouse.control.models import WarehouseDelivery, WarehouseDestination
from lakehouse.deliver.check import check_delivered
from lakehouse.deliver.differences import remember
from lakehouse.deliver.fill import Place, fill
from lakehouse.deliver.parity import DifferenceError, check_range
from lakehouse.deliver.plan import STEP, plan_deliveries
from lakehouse.deliver.ranges import open_lake_table, range_reader
from lakehouse.deliver.targets import adapter_of, credentials_of, opened
from lakehouse.destinations import PARITY, organizations_of
from lakehouse.failpoints import failpoint
from lakehouse.outbox import deliveries
from lakehouse.outbox.deliveries import ClaimedDelivery
from lakehouse.outbox.lease import Lease, LeaseLostError
from lakehouse.outbox.retry import decide
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from federation.protocol import Adapter, Receipt
    from lakehouse.app import App
    from lakehouse.destinations import Destination
    from schemas.contract import Contract


def deliver_claimed(app: App, claimed: ClaimedDelivery) -> LakehouseError | None:
    """Do one claimed delivery; the error that is understood, if there was one. Others are noted and raised."""
    contract = app.contract(claimed.table)
    with (
        app.leases.holding(claimed.lease),
        app.events.unit(
            "delivery",
            table=claimed.table,
            organization=claimed.organization,
            destination=str(claimed.destination),
            destination_kind=claimed.kind.value,
            after=claimed.sequence_after,
            upto=claimed.sequence_upto,
            attempt=claimed.attempts,
        ) as event,
    ):
        try:
            failpoint("delivery.claimed")
            lake = open_lake_table(app, contract, claimed.organization, at_least=claimed.sequence_upto)
            credentials = credentials_of(app, claimed.destination)
            raw, shared = _config(app.engine, claimed)
            whose = claimed.destination
            adapter = adapter_of(
                app, claimed.organization, claimed.kind, raw, credentials, destination=whose, shared=shared
            )
            try:
                adapter.prepare(contract)
                if _is_filled(app, adapter, contract, claimed):
                    place = Place(claimed.destination, contract, claimed.organization, claimed.lease.check)
                    receipt, lake = fill(app, adapter, place)
                    event["filled"] = True
                else:
                    delivery = Delivery(
                        str(claimed.id), contract, claimed.sequence_after, claimed.sequence_upto, lake.snapshot_id
                    )
                    with range_reader(app, lake) as rows:
                        claimed.lease.check()
                        receipt = adapter.deliver(delivery, rows)
                failpoint("delivery.taken")
                check_delivered(app, adapter, claimed, credentials, lake)
            finally:
                adapter.close()
            failpoint("delivery.delivered")
            app.leases.drop([claimed.lease])
            acknowledge(app.engine, claimed, receipt, lake.snapshot_id)
        except LeaseLostError as error:
            app.events.emit("lease_lost", delivery=str(claimed.id), generation=claimed.lease.generation)
            return error
        except Exception as error:
            decision = decide(error, claimed.attempts, app.settings.work)
            app.leases.drop([claimed.lease])
            deliveries.fail(app.engine, claimed.lease, decision)
            event |= {"outcome": "error", "error": decision.error, "retry_in_seconds": decision.wait_seconds}
            if not isinstance(error, LakehouseError):
                raise
            return error
        event |= {"rows": receipt.rows, "bytes": receipt.bytes, "snapshot": lake.snapshot_id}
    return None


def _is_filled(app: App, adapter: Adapter, contract: Contract, claimed: ClaimedDelivery) -> bool:
    """Whether it is filled from the lake's current state, and does not get the range: it is new, or far behind.

    One that was cleared is not: it stands before its range, and a person has to look.
    """
    if adapter.every_version:
        return False
    stands = adapter.standing(contract)
    if not claimed.sequence_after <= stands < claimed.sequence_upto:
        return False
    return stands == 0 or claimed.sequence_upto - stands > app.settings.deliver.fill_behind


def deliver_now(
    app: App, destinations: Sequence[Destination], tables: Sequence[str], *, step: int = STEP
) -> list[Delivered]:
    """By hand: bring these destinations to where the lake stands, due or not. Errors that are understood are results.

    What another worker is at is left to it.
    """
    chosen = [d for d in destinations if DestinationKind(d.kind) in COPYING]
    results: dict[tuple[uuid.UUID, str, str], Delivered] = {}
    for _ in iter(lambda: bool(_round(app, chosen, tables, step, results)), False):
        continue
    return list(results.values())


def _round(
    app: App,
    chosen: Sequence[Destination],
    tables: Sequence[str],
    step: int,
    results: dict[tuple[uuid.UUID, str, str], Delivered],
) -> int:
    """Plan and do what can be done now; how many deliveries succeeded."""
    names = {d.id: d.name for d in chosen}
    done = 0
    behind = app.settings.deliver.fill_behind
    plan_deliveries(app.engine, tables, behind=behind, early=True, destinations=list(names), step=step)
    mine = deliveries.claim(
        app.engine,
        app.leases.owner,
        app.settings.work.lease_seconds,
        kinds=COPYING,
        tables=tables,
        limit=1000,
        early=True,
        destinations=list(names),
    )
    # From now on: the last one's lease would run out while the first ones are delivered.
    with app.leases.holding(*(claimed.lease for claimed in mine)):
        for claimed in mine:
            key = (claimed.destination, claimed.organization, claimed.table)
            result = results.setdefault(key, Delivered(names[claimed.destination], claimed.organization, claimed.table))
            result.error = deliver_claimed(app, claimed)
            if result.error is None:
                done += 1
                result.sequence = claimed.sequence_upto
                result.deliveries += 1
    return done


def resync(app: App, destination: Destination, tables: Sequence[str]) -> list[Delivered]:
    """Fill tables of a destination anew from the lake's latest state, one after another.

    For one that was cleared or altered; deliveries go on meanwhile and afterwards. Each is compared in full before it
    counts as filled. What was given up for it is tried again. Killed, it goes on from what the target has taken.

    Raises:
        LakehouseError: the destination's config or credentials cannot be used.
    """
    wanted = [t for t in tables if "*" in destination.tables or t in destination.tables]
    return [
        result
        for organization in organizations_of(app, destination)
        for result in _resync(app, destination, organization, wanted)
    ]


def _resync(app: App, destination: Destination, organization: str, tables: Sequence[str]) -> list[Delivered]:
    kind = DestinationKind(destination.kind)
    results = []
    with opened(app, destination, organization) as (adapter, credentials):
        for table in tables:
            result = Delivered(destination.name, organization, table)
            contract = app.contract(table)
            with app.events.unit("resync", table=table, organization=organization) as event:
                try:
                    receipt, lake = fill(app, adapter, Place(destination.id, contract, organization))
                    check_range(app, adapter, kind, credentials, lake, 0)
                    remember(app.engine, destination.id, organization, table, "")
                    result.sequence, result.deliveries = receipt.sequence, 1
                    event |= {"rows": receipt.rows, "bytes": receipt.bytes, "snapshot": lake.snapshot_id}
                except LakehouseError as error:
                    if isinstance(error, DifferenceError):
                        remember(app.engine, destination.id, organization, table, error.detail)
                    result.error = error
                    event |= {"outcome": "error", "error": error.detail}
            results.append(result)
    well = [r.table for r in results if r.error is None]
    with app.engine.connect() as connection:
        given_up = connection.scalars(
            select(WarehouseDelivery.id).where(
                WarehouseDelivery.destination_id == destination.id,
                WarehouseDelivery.organization_id == organization,
                WarehouseDelivery.table_name.in_(well),
                WarehouseDelivery.status.in_([DeliveryStatus.FAILED.value, DeliveryStatus.DEAD_LETTER.value]),
            )
        ).all()
    if given_up:
        deliveries.retry_now(app.engine, given_up)
    return results


@dataclass
class Delivered:
    """What `deliver_now` did for one destination and table."""

    destination: str
    organization: str
    table: str
    deliveries: int = 0
    sequence: int = 0
    error: LakehouseError | None = None


def _config(engine: Engine, claimed: ClaimedDelivery) -> tuple[dict[str, object], bool]:
    """The destination's config, and whether it is vendor-wide."""
    with engine.connect() as connection:
        config, organization = connection.execute(
            select(WarehouseDestination.config, WarehouseDestination.organization_id).where(
                WarehouseDestination.id == claimed.destination
            )
        ).one()
    return config, organization is None


def acknowledge(engine: Engine, claimed: ClaimedDelivery, receipt: Receipt, snapshot_id: int) -> None:
    """The destination holds the range: its delivery and its own state, in one transaction.

    Raises:
        LeaseLostError: the delivery is another worker's now, which finds the range there; nothing was written.
    """
    lease: Lease = claimed.lease
    now = func.clock_timestamp()
    with engine.begin() as connection:
        closed = connection.execute(
            update(WarehouseDelivery)
            .where(deliveries.mine(lease))
            .values(
                status=DeliveryStatus.DELIVERED.value,
                lease_owner=None,
                lease_expires_at=None,
                snapshot_id=snapshot_id,
                row_count=WarehouseDelivery.row_count + receipt.rows,
                delivered_at=now,
                last_error=None,
                updated_at=now,
            )
            .returning(WarehouseDelivery.id)
        ).one_or_none()
        if closed is None:
            lease.lost = True
            raise LeaseLostError(
                f"delivery {lease.id}: another worker has taken it over", "It finds the range delivered."
            )
        destination = update(WarehouseDestination).where(WarehouseDestination.id == claimed.destination)
        kept = case((WarehouseDestination.last_error.startswith(PARITY), WarehouseDestination.last_error), else_=None)
        connection.execute(destination.values(last_delivery_at=now, last_error=kept))
        connection.execute(
            destination.where(WarehouseDestination.status == DestinationStatus.ERROR.value).values(
                status=DestinationStatus.ACTIVE.value
            )
        )
