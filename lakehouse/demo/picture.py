"""What happened, as a small picture for the terminal."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lakehouse.demo.fleet import FleetReport
from lakehouse.demo.run import DemoReport

BAR = 36
COUNTED = (
    "transactions",
    "inserts",
    "updates",
    "deletes",
    "rollbacks",
    "savepoints",
    "long_transactions",
    "late_commits",
)


def picture(report: DemoReport) -> Group:
    """The workload by phase, then a bar a round: upserts, deletes and snapshots that landed."""
    return Group(_workload(report), Text(), _rounds(report))


def _workload(report: DemoReport) -> Table:
    shown = Table(
        title="what the host did meanwhile", title_justify="left", header_style="bold", box=None, pad_edge=False
    )
    shown.add_column("phase")
    for name in COUNTED:
        shown.add_column(name.replace("_", " "), justify="right")
    for phase, counts in report.workload.items():
        shown.add_row(phase, *[f"{counts.get(name, 0):,}" for name in COUNTED])
    return shown


def _rounds(report: DemoReport) -> Table:
    most = max((r.upserts + r.deletes for r in report.rounds), default=0) or 1
    shown = Table(
        title="what landed, round by round (█ upserts, ▒ deletes)",
        title_justify="left",
        header_style="bold",
        box=None,
        pad_edge=False,
    )
    for name in ("round", "", "rows", "snapshots", "seconds"):
        shown.add_column(name, justify="left" if name in ("round", "") else "right")
    backfilled = sum(int(b["rows"]) for b in report.backfill)
    shown.add_row(
        "backfill", Text("█" * BAR, style="blue"), f"{backfilled:,}", "", f"{report.seconds.get('backfill', 0):.1f}"
    )
    for done in report.rounds:
        upserts = round(BAR * done.upserts / most)
        deletes = max(1, round(BAR * done.deletes / most)) if done.deletes else 0
        bar = Text("█" * upserts, style="green") + Text("▒" * deletes, style="red")
        shown.add_row(
            f"{done.number}", bar, f"{done.upserts + done.deletes:,}", str(done.snapshots), f"{done.seconds:.1f}"
        )
    return shown


def fleet_table(report: FleetReport) -> Table:
    """What the programs of `demo --run` met, in words."""
    shown = Table(title="what the programs met", title_justify="left", header_style="bold", box=None, pad_edge=False)
    shown.add_column("")
    shown.add_column("", justify="right")
    for label, value in (
        ("programs started", report.processes),
        ("SIGKILLs", report.kills),
        ("seconds without the bucket", round(report.outage_seconds)),
        ("times the lead was taken", report.leaders),
        ("windows captured", report.windows),
        ("landings", report.deliveries),
        ("attempts to land that failed", report.landings_failed),
        ("landings that took more than one attempt", report.deliveries_retried),
        ("leases taken over from the dead", report.takeovers),
        ("leases that a living program found lost", report.lease_losses),
        ("staged shares given up and read again", report.abandoned_shares),
        ("small files merged meanwhile", report.files_merged),
        ("dead letters", report.dead_letters),
    ):
        shown.add_row(label, f"{value:,}")
    return shown
