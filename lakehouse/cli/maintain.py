"""`lakehouse maintain`."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from lakehouse.cli.capture import TableOption, error_json, open_app
from lakehouse.cli.output import JsonFlag, print_json, size, stderr, stdout, table
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from lakehouse.app import App
    from lakehouse.maintenance.run import Kept, MaintenanceResult


def register(app: typer.Typer) -> None:
    app.command("maintain")(maintain)


def maintain(
    names: TableOption = None,
    organization: Annotated[
        list[str] | None, typer.Option("--organization", help="Only this organization (id or slug).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Bring every lake table back within its bounds: snapshots, metadata, small files, orphans, the outbox.

    Can be killed at any moment and run again, beside programs that capture and land.
    """
    from lakehouse.capture.tombstones import prune_tombstones
    from lakehouse.maintenance.archive import keep_archive
    from lakehouse.maintenance.outbox import prune_outbox
    from lakehouse.maintenance.run import kept, maintained
    from lakehouse.query import find_tenant, tenants

    app = open_app()
    known = tenants(app)
    wanted = [find_tenant(known, o) for o in organization] if organization else known
    if not wanted:
        raise LakehouseError("no organization is enrolled: there is nothing to maintain", "Run `lakehouse init`.")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    results: list[MaintenanceResult] = []
    busy: list[str] = []
    names_of = [t.organization for t in wanted] if organization else None
    tables = maintained(app)
    for each in [tables[n] if n in tables else kept(app.contract(n)) for n in names] if names else tables.values():
        done = _one(app, each, names_of, stop, dry_run=dry_run)
        if done is None:
            busy.append(each.name)
        else:
            results += done
    pruned: dict[str, int] = {}
    records: dict[str, int] = {}
    late: list[LakehouseError] = []
    if not dry_run and not stop.is_set():
        pruned = prune_outbox(app) | prune_tombstones(app)
        records, late = keep_archive(app)
    if as_json:
        print_json(
            {
                "dry_run": dry_run,
                "tables": [{**r.fields(), "errors": [error_json(e) for e in r.errors]} for r in results],
                "pruned": pruned,
                "archive": records,
                "errors": [error_json(e) for e in late],
                "busy": busy,
            }
        )
    else:
        _show(results, {t.organization: t.label or t.organization for t in wanted}, dry_run)
        if any(pruned.values()):
            stdout.print("pruned: " + ", ".join(f"{count:,} {name}" for name, count in pruned.items() if count))
    _say_errors(results, late, busy)
    if any(r.errors for r in results) or late or busy or stop.is_set():
        raise typer.Exit(1)


def _say_errors(results: list[MaintenanceResult], late: list[LakehouseError], busy: list[str]) -> None:
    for r in results:
        for error in r.errors:
            stderr.print(
                f"error: {r.table}: organization {r.organization}: {error.detail}\n  {error.hint}",
                markup=False,
                soft_wrap=True,
            )
    for error in late:
        stderr.print(f"error: the archive's records: {error.detail}\n  {error.hint}", markup=False, soft_wrap=True)
    for name in busy:
        stderr.print(f"{name}: another program maintains it", markup=False)


def _one(
    app: App, each: Kept, organizations: list[str] | None, stop: threading.Event, *, dry_run: bool
) -> list[MaintenanceResult] | None:
    """One table, under its task; None: another program maintains it."""
    from lakehouse.maintenance.run import maintain_all
    from lakehouse.outbox import tasks

    task = tasks.claim_named(app.engine, app.leases.owner, app.settings.work.lease_seconds, tasks.MAINTAIN, each.name)
    if task is None:
        return None
    complete = False
    try:
        with app.leases.holding(task.lease):
            results = maintain_all(
                app,
                each,
                organizations,
                should_stop=lambda: stop.is_set() or task.lease.lost,
                dry_run=dry_run,
            )
        complete = organizations is None and not dry_run and not stop.is_set() and not any(r.errors for r in results)
        return results
    finally:
        if complete:
            tasks.finish(app.engine, task.lease)
        else:
            # Not what the schedule asks for: that still comes when it would have.
            tasks.release(app.engine, task.lease)


def _show(results: list[MaintenanceResult], labels: dict[str, str], dry_run: bool) -> None:
    stdout.print(
        table(
            "would be done" if dry_run else "",
            ("organization", "table", "expired", "merged", "into", "bytes", "orphans", "removed", "state"),
            [
                (
                    labels[r.organization],
                    r.table,
                    r.snapshots_expired,
                    r.files_merged,
                    r.files_written,
                    size(r.bytes_merged),
                    r.orphans,
                    r.files_removed,
                    r.state,
                )
                for r in results
                if r.state != "no table"
            ],
            numbers=("expired", "merged", "into", "bytes", "orphans", "removed"),
        )
    )
