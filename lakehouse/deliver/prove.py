"""Parity on a schedule: every destination is compared in full, and a difference stands with it until it is gone.

One destination after another, each table an event of its own. A target that does not answer is no difference: its
deliveries say so. Killed, it begins anew when its lease has run out; it writes nothing but what it found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sqlalchemy import update

from federation.kinds import DestinationStatus
from lakehouse.control.models import ERROR_LENGTH, WarehouseDestination
from lakehouse.deliver.parity import Parity, parity
from lakehouse.destinations import PARITY, destinations
from lakehouse.observe.events import describe

if TYPE_CHECKING:
    import uuid

    from lakehouse.app import App


def prove(app: App, *, should_stop: Callable[[], bool] = lambda: False) -> list[Parity]:
    """Compare every destination that is not paused, and note with it what differs. Returns all results."""
    results = []
    for destination in destinations(app):
        faults, asked = [], False
        for result in parity(app, [destination], list(app.contracts)):
            results.append(result)
            fault = result.fault
            asked |= fault is not None or result.equal
            with app.events.unit("parity", table=result.table, organization=result.organization) as event:
                event |= {"destination": result.destination, "rows": result.rows, "lag": result.lag}
                event |= {"equal": result.equal}
                if result.error is not None or fault:
                    event |= {"outcome": "error", "error": describe(result.error) if result.error else fault}
            if fault:
                faults.append(f"{result.table}: {fault}")
            if should_stop():
                return results
        if asked and destination.status != DestinationStatus.PAUSED.value:
            _note(app, destination.id, "; ".join(faults))
    return results


def _note(app: App, destination: uuid.UUID, faults: str) -> None:
    row = WarehouseDestination
    mine = update(row).where(row.id == destination)
    with app.engine.begin() as connection:
        if faults:
            connection.execute(mine.values(last_error=f"{PARITY}{faults}"[:ERROR_LENGTH]))
        else:
            connection.execute(mine.where(row.last_error.startswith(PARITY)).values(last_error=None))
