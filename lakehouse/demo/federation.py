"""The demo's destinations: one organization's tables in a PostgreSQL replica, as Parquet and as JSON Lines."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from federation.kinds import DestinationKind
from lakehouse.deliver.parity import Parity, parity
from lakehouse.deliver.run import deliver_now
from lakehouse.destinations import add, deliveries, destinations

if TYPE_CHECKING:
    from lakehouse.app import App
    from lakehouse.demo.environment import World

EXPORTS = "exports"


def add_destinations(app: App, world: World, organization: str) -> None:
    """A database beside the hot one, a bucket beside the lake's, and a destination of each kind that copies."""
    world.s3.create_bucket(EXPORTS)
    keys = {"access_key_id": world.s3.access_key, "secret_access_key": world.s3.secret_key}
    places = (
        (DestinationKind.POSTGRES_REPLICA, {"schema": "aperio"}, {"url": world.postgres.create_database("replica")}),
        (DestinationKind.PARQUET_S3, {"location": f"s3://{EXPORTS}/parquet", "endpoint": world.s3.endpoint}, keys),
        (DestinationKind.JSONL_S3, {"location": f"s3://{EXPORTS}/jsonl", "endpoint": world.s3.endpoint}, keys),
    )
    for kind, config, credentials in places:
        add(
            app,
            organization=organization,
            kind=kind.value,
            name=kind.value.lower().replace("_", "-"),
            config=config,
            tables=[],
            cadence_seconds=app.settings.schedule.cadence_seconds,
            table_cadences={},
            credentials=credentials,
        )


def bring_up(app: App) -> int:
    """Deliver what the lake has and the destinations have not; how many ranges.

    Raises:
        LakehouseError: a destination failed: in the demo none may.
    """
    results = deliver_now(app, destinations(app), list(app.contracts))
    for result in results:
        if result.error is not None:
            raise result.error
    return sum(r.deliveries for r in results)


def settle(app: App, seconds: float) -> None:
    """Deliver until nothing is open: leases of programs that were killed have to run out first."""
    pause = threading.Event()
    until = time.monotonic() + seconds
    bring_up(app)
    while deliveries(app) and time.monotonic() < until:
        pause.wait(0.5)
        bring_up(app)


def compare(app: App) -> list[Parity]:
    """Every destination and table beside the lake."""
    return list(parity(app, destinations(app), list(app.contracts)))
