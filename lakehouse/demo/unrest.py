"""`lakehouse demo --run`: several programs left running, killed every few seconds, without their bucket for a while."""

from __future__ import annotations

import dataclasses
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from federation.kinds import DeliveryStatus
from lakehouse.app import App
from lakehouse.control.models import Cursor, Landing, Task, WarehouseDelivery
from lakehouse.demo.environment import settings_values
from lakehouse.demo.fleet import Fleet, FleetReport
from lakehouse.demo.live import LiveWorkload
from lakehouse.demo.run import DemoOptions, DemoReport, Laps, Round, Say, prepare, prove, raise_first
from lakehouse.settings import ExplicitSettings
from lakehouse.sync import sync_table
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from lakehouse.demo.environment import World

PROGRAMS = 3
VARIABLES = {
    "LAKEHOUSE_SCHEDULE__CADENCE_SECONDS": "2",
    "LAKEHOUSE_SCHEDULE__MAINTAIN_EVERY_SECONDS": "15",
    "LAKEHOUSE_CAPTURE__RECONCILE_EVERY_SECONDS": "20",
    "LAKEHOUSE_WORK__LEASE_SECONDS": "4",
    "LAKEHOUSE_WORK__POLL_SECONDS": "0.5",
    "LAKEHOUSE_WORK__RETRY_BASE_SECONDS": "1",
    "LAKEHOUSE_WORK__RETRY_MAX_SECONDS": "4",
    "LAKEHOUSE_BACKFILL__WORKERS": "1",
    "LAKEHOUSE_METRICS__LISTEN": "",
}
BACKFILL_SECONDS = 240.0
STOP_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class UnrestOptions:
    """How hard the programs are treated."""

    kill_every: float = 5.0
    outage_at: float = 25.0
    outage_seconds: float = 10.0


def run_unrest(world: World, options: DemoOptions, unrest: UnrestOptions, say: Say) -> DemoReport:
    """Three programs backfill and land at a cadence of 2 s under the workload while they are killed one by one.

    Raises:
        LakehouseError: a program ended by itself, or the last window met an error.
    """
    report = DemoReport(options, fleet=FleetReport(outage_seconds=unrest.outage_seconds))
    assert report.fleet is not None  # noqa: S101 - made above
    lap = Laps(report)
    variables = world.variables() | VARIABLES
    app = App(ExplicitSettings(**settings_values(variables)))
    prepare(app, world, report, say, lap)
    with (
        tempfile.TemporaryDirectory(prefix="lakehouse-demo-") as folder,
        LiveWorkload(world.hot_url, rate=options.rate, seed=options.seed) as workload,
        Fleet(variables, Path(folder), PROGRAMS, seed=options.seed) as fleet,
    ):
        say(f"{PROGRAMS} programs begin beside a workload of about {options.rate} transactions a second")
        workload.phase("backfill")
        _until_backfilled(app, fleet, say)
        report.backfill = [{"table": "all", "rows": _landed_rows(app)}]
        lap("backfill")
        workload.phase("windows")
        _treat(world, app, fleet, options.seconds, unrest, say)
        report.workload = workload.finish()
        lap("windows")
        say("the workload has stopped, and the programs are asked to")
        fleet.stop(STOP_SECONDS)
        fleet.count(report.fleet)
    _last_window(app, report)
    lap("last window")
    _ask_control(app, report.fleet)
    prove(app, report, say, lap)
    return report


def _until_backfilled(app: App, fleet: Fleet, say: Say) -> None:
    wanted = len(app.contracts) * len(app.source.organizations())
    until = time.monotonic() + BACKFILL_SECONDS
    done = -1
    while done < wanted:
        with app.engine.connect() as connection:
            now = connection.scalar(select(func.count()).select_from(Cursor)) or 0
        if now != done:
            say(f"backfilled {now:>2} of {wanted} tables")
            done = now
        if time.monotonic() > until:
            raise LakehouseError("the backfill did not end in time", fleet.last_words())
        threading.Event().wait(1.0)


def _treat(world: World, app: App, fleet: Fleet, seconds: float, unrest: UnrestOptions, say: Say) -> None:
    began = time.monotonic()
    next_kill = unrest.kill_every
    taken = returned = False
    while (now := time.monotonic() - began) < seconds:
        if now >= next_kill:
            next_kill += unrest.kill_every
            say(f"SIGKILL to program {fleet.kill_one()}; {_standing(app)}")
        if not taken and now >= unrest.outage_at:
            taken = True
            say(f"the bucket is taken away for {unrest.outage_seconds:.0f} s")
            world.s3.kill()
        if taken and not returned and now >= unrest.outage_at + unrest.outage_seconds:
            returned = True
            world.s3.start()
            say("the bucket is back")
        threading.Event().wait(0.2)
    if taken and not returned:
        world.s3.start()


def _standing(app: App) -> str:
    with app.engine.connect() as connection:
        landed = connection.scalar(
            select(func.count()).where(WarehouseDelivery.status == DeliveryStatus.DELIVERED.value)
        )
        waiting = connection.scalar(
            select(func.count()).where(WarehouseDelivery.status != DeliveryStatus.DELIVERED.value)
        )
        age = connection.scalar(select(func.extract("epoch", func.clock_timestamp() - func.min(Cursor.captured_at))))
    return f"{landed:,} landings, {waiting} under way or waiting, oldest table {float(age or 0):.0f} s behind"


def _landed_rows(app: App) -> int:
    with app.engine.connect() as connection:
        return int(connection.scalar(select(func.coalesce(func.sum(WarehouseDelivery.row_count), 0))) or 0)


def _last_window(app: App, report: DemoReport) -> None:
    """By hand, as an operator would: what waits for a retry, then a window with a comparison of keys."""
    began = time.monotonic()
    results = [sync_table(app, c, reconcile=True) for c in app.contracts.values()]
    for result in results:
        raise_first(result.errors)
        if result.busy:
            raise LakehouseError(f"{result.table} is still held by a program that was stopped")
    report.rounds.append(
        Round(
            number=1,
            seconds=round(time.monotonic() - began, 3),
            reconciled=True,
            upserts=sum(sum(r.upserts.values()) for r in results),
            deletes=sum(sum(r.deletes.values()) for r in results),
            snapshots=sum(len(r.snapshots) for r in results),
            files=sum(r.files for r in results),
            bytes=sum(r.bytes for r in results),
        )
    )


def _ask_control(app: App, fleet: FleetReport) -> None:
    with app.engine.connect() as connection:
        tasks = connection.scalar(select(func.coalesce(func.sum(Task.takeovers), 0))) or 0
        deliveries = connection.execute(
            select(
                func.count().label("n"),
                func.count().filter(WarehouseDelivery.attempts > 1).label("retried"),
                func.coalesce(func.sum(WarehouseDelivery.takeovers), 0).label("takeovers"),
                func.count().filter(WarehouseDelivery.status == DeliveryStatus.DEAD_LETTER.value).label("dead"),
            )
        ).one()
        fleet.abandoned_shares = connection.scalar(select(func.count()).where(Landing.status == "abandoned")) or 0
    fleet.deliveries, fleet.deliveries_retried = deliveries.n, deliveries.retried
    fleet.dead_letters = deliveries.dead
    fleet.takeovers = int(tasks) + int(deliveries.takeovers)
