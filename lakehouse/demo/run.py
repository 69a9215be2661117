"""The demo: the main job from an empty machine to proof, under a live workload, on real servers."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lakehouse.app import App
from lakehouse.backfill.run import BackfillResult, backfill_table
from lakehouse.backfill.worker import LIBRARIES
from lakehouse.control.database import migrate
from lakehouse.deliver.parity import Parity
from lakehouse.demo.environment import World
from lakehouse.demo.federation import add_destinations, bring_up, compare, settle
from lakehouse.demo.fleet import FleetReport
from lakehouse.demo.live import LiveWorkload
from lakehouse.demo.retention import RetentionReport, archive
from lakehouse.demo.seed import seed
from lakehouse.executor import LocalProcesses
from lakehouse.result import TableResult
from lakehouse.sync import sync_table
from lakehouse.verify.compare import Comparison, verify_table
from schemas.errors import LakehouseError

Say = Callable[[str], None]


@dataclass(frozen=True)
class DemoOptions:
    """How large and how long."""

    rows: int = 200_000
    organizations: int = 3
    seconds: float = 40.0
    rate: int = 150
    seed: int = 1


@dataclass
class Round:
    """One window of every table."""

    number: int
    seconds: float
    reconciled: bool
    upserts: int
    deletes: int
    snapshots: int
    files: int
    bytes: int


@dataclass
class DemoReport:
    """Everything that the demo measured; `--report` writes it as JSON."""

    options: DemoOptions
    seeded: dict[str, int] = field(default_factory=dict)
    workload: dict[str, dict[str, int]] = field(default_factory=dict)
    backfill: list[dict[str, Any]] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    equality: list[Comparison] = field(default_factory=list)
    parity: list[Parity] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    fleet: FleetReport | None = None
    retention: RetentionReport | None = None

    @property
    def equal(self) -> int:
        return sum(c.equal for c in self.equality)

    @property
    def proven(self) -> bool:
        return (
            bool(self.equality and self.parity)
            and self.equal == len(self.equality)
            and self.delivered == len(self.parity)
        )

    @property
    def delivered(self) -> int:
        """Destinations' tables that show what the lake shows, and lack nothing of it."""
        return sum(p.equal and not p.lag for p in self.parity)

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "options": dataclasses.asdict(self.options),
            "seeded": self.seeded,
            "workload": self.workload,
            "backfill": self.backfill,
            "rounds": [dataclasses.asdict(r) for r in self.rounds],
            "equality": [
                {
                    **{k: v for k, v in vars(c).items() if k not in ("differences", "error")},
                    "organization_label": self.labels.get(c.organization),
                    "equal": c.equal,
                    "error": str(c.error) if c.error else None,
                }
                for c in self.equality
            ],
            "parity": [
                {k: v for k, v in vars(p).items() if k not in ("differences", "error")}
                | {"lag": p.lag, "error": str(p.error) if p.error else None}
                for p in self.parity
            ],
            "destinations_equal": self.delivered,
            "tables_equal": self.equal,
            "tables": len(self.equality),
            "proven": self.proven,
            "seconds": self.seconds,
            "fleet": dataclasses.asdict(self.fleet) if self.fleet else None,
            "retention": dataclasses.asdict(self.retention) if self.retention else None,
        }


class Laps:
    """Seconds by name: each lap begins where the one before ended."""

    def __init__(self, report: DemoReport) -> None:
        self._report = report
        self._began = time.monotonic()

    def __call__(self, name: str) -> None:
        self._report.seconds[name] = round(time.monotonic() - self._began, 2)
        self._began = time.monotonic()


def run_demo(world: World, options: DemoOptions, say: Say) -> DemoReport:
    """Seed, enrol, backfill and sync under the workload, then stop it, sync once more, archive and compare.

    Raises:
        LakehouseError: any table or organization met an error: in the demo nothing may.
    """
    report = DemoReport(options)
    lap = Laps(report)
    app = App(world.settings())
    prepare(app, world, report, say, lap)
    with LiveWorkload(world.hot_url, rate=options.rate, seed=options.seed) as workload:
        say(f"a live workload begins: about {options.rate} transactions a second")
        workload.phase("backfill")
        _backfill(app, report, say)
        lap("backfill")
        say(f"{bring_up(app)} first deliveries to a PostgreSQL replica, Parquet and JSON Lines")
        lap("first deliveries")
        workload.phase("windows")
        _windows(app, report, options.seconds, say)
        report.workload = workload.finish()
        lap("windows")
    say("the workload has stopped; one more window, with a comparison of keys")
    _round(app, report, reconcile=True)
    lap("last window")
    report.retention = archive(app, world, next(iter(report.labels)), say)
    lap("retention")
    say("what left is no delete: one more window of each table, with a comparison of keys")
    if _round(app, report, reconcile=True).deletes:
        raise LakehouseError("a window took archived rows for deleted ones")
    lap("window after the archive")
    prove(app, report, say, lap)
    return report


def prepare(app: App, world: World, report: DemoReport, say: Say, lap: Laps) -> None:
    """Seed the hot database; make the control tables and every organization's lake."""
    options = report.options
    say(f"seeding about {options.rows:,} rows in ten tables, {options.organizations} organizations")
    report.seeded = seed(world.hot_url, rows=options.rows, organizations=options.organizations, seed=options.seed)
    lap("seed")
    say("control tables, namespaces, lakes")
    app.engine = migrate(app.settings)
    report.labels = app.source.organizations()
    for organization in report.labels:
        app.enrol(organization)
    add_destinations(app, world, next(iter(report.labels)))
    lap("init")


def prove(app: App, report: DemoReport, say: Say, lap: Laps) -> None:
    """Compare every table of every organization, row by row."""
    say("DuckDB reads the lake's own files and compares every row with PostgreSQL")
    for contract in app.contracts.values():
        report.equality += verify_table(app, contract, list(report.labels))
    lap("verify")
    say("what the lake has is delivered, and each destination is compared with the lake")
    settle(app, 3 * app.settings.work.lease_seconds)
    report.parity = compare(app)
    lap("parity")
    report.seconds["total"] = round(sum(report.seconds.values()), 2)


def _backfill(app: App, report: DemoReport, say: Say) -> None:
    with LocalProcesses(app.settings.backfill.workers, libraries=LIBRARIES) as executor:
        for contract in app.contracts.values():
            began = time.monotonic()
            result: BackfillResult = backfill_table(app, contract, executor)
            raise_first(result.errors)
            seconds = time.monotonic() - began
            rows = sum(result.rows.values())
            say(f"backfill {contract.table:<20} {rows:>8,} rows, {rows / seconds:>9,.0f} rows/s")
            report.backfill.append(
                {"table": contract.table, "rows": rows, "ranges": result.read_ranges, "seconds": round(seconds, 3)}
            )


def _windows(app: App, report: DemoReport, seconds: float, say: Say) -> None:
    """Windows of every table until the time is over; keys are compared in every third round."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done = _round(app, report, reconcile=len(report.rounds) % 3 == 2)
        say(
            f"round {done.number:>2}: {done.upserts:>6,} upserts, "
            + (f"{done.deletes:>4,} deletes, " if done.reconciled else " " * 14)
            + f"{done.snapshots:>2} snapshots in {done.seconds:.1f} s"
        )


def _round(app: App, report: DemoReport, *, reconcile: bool) -> Round:
    began = time.monotonic()
    results: list[TableResult] = [sync_table(app, c, reconcile=reconcile) for c in app.contracts.values()]
    for result in results:
        raise_first(result.errors)
    done = Round(
        number=len(report.rounds) + 1,
        seconds=round(time.monotonic() - began, 3),
        reconciled=reconcile,
        upserts=sum(sum(r.upserts.values()) for r in results),
        deletes=sum(sum(r.deletes.values()) for r in results),
        snapshots=sum(len(r.snapshots) for r in results),
        files=sum(r.files for r in results),
        bytes=sum(r.bytes for r in results),
    )
    report.rounds.append(done)
    return done


def raise_first(errors: dict[str, LakehouseError]) -> None:
    for error in errors.values():
        raise error
