"""`lakehouse source check`, `backfill` and `sync`."""

from __future__ import annotations

import dataclasses
import functools
import signal
import threading
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lakehouse.cli.output import JsonFlag, parse_duration, print_json, size, stderr, stdout, table
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from lakehouse.app import App
    from lakehouse.backfill.run import BackfillResult
    from lakehouse.executor import Executor
    from lakehouse.result import TableResult
    from schemas.contract import Contract

source_app = typer.Typer(no_args_is_help=True, help="The hot database.")
TableOption = Annotated[list[str] | None, typer.Option("--table", help="Only this table; repeat for more.")]


def register(app: typer.Typer) -> None:
    app.add_typer(source_app, name="source")
    app.command("backfill")(backfill)
    app.command("sync")(sync)


def open_app() -> App:
    """The application, from the settings."""
    from lakehouse.app import App
    from lakehouse.settings import load_settings

    return App(load_settings())


def open_app_of_lake() -> App:
    """The application for what needs the lake alone: the settings may name no hot database."""
    from lakehouse.app import App
    from lakehouse.settings import load_lake_settings

    return App(load_lake_settings())


def chosen(app: App, names: list[str] | None) -> list[Contract]:
    """The contracts that a command is for."""
    return [app.contract(n) for n in names] if names else list(app.contracts.values())


def warn_newcomers(app: App) -> None:
    """Say on stderr which of the host's organizations nobody has enrolled."""
    try:
        found = app.newcomers()
    except LakehouseError as error:
        # Only a comfort: what the command itself needs of the source it says itself.
        stderr.print(f"warning: the host's organizations cannot be listed: {error.detail}", markup=False)
        return
    if found:
        shown = ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
        stderr.print(
            f"warning: {len(found)} of the host's organizations have no lake: {shown}\n"
            "  Run `lakehouse init` and `lakehouse backfill`.",
            markup=False,
        )


def error_json(error: LakehouseError) -> dict[str, str]:
    """An error as programs read it."""
    return {"detail": error.detail, "hint": error.hint, "retry": error.retry.value}


@source_app.command("check")
def check(names: TableOption = None, as_json: JsonFlag = False) -> None:
    """For each table: how it is captured, what that can and cannot see, what a window costs, what is missing."""
    from lakehouse.capture.check import check_source

    app = open_app()
    contracts = {c.table: c for c in chosen(app, names)}
    found = check_source(app.source, contracts, app.settings.capture)
    if as_json:
        print_json({**dataclasses.asdict(found), "ready": found.ready})
    else:
        stdout.print(f"source {found.address}, PostgreSQL {found.version}, as {found.facts['user']}", markup=False)
        for warning in found.warnings:
            stdout.print(f"warning: {warning}", markup=False)
        stdout.print(
            table(
                "",
                ("table", "source", "method", "ready", "rows", "a window reads", "pruned by"),
                [
                    (
                        t.table,
                        t.source,
                        t.method,
                        "not there yet" if t.absent else t.ready,
                        t.rows,
                        size(t.window_bytes) if t.ready else "",
                        t.pruned_by,
                    )
                    for t in found.tables
                ],
                numbers=("rows", "a window reads"),
            )
        )
        for t in found.tables:
            for head, lines in (("missing", t.missing), ("warning", t.warnings), ("advice", t.advice)):
                for line in lines:
                    stdout.print(f"{t.table}: {head}: {line}", markup=False, soft_wrap=True)
        for head, lines in _sight(found.tables).items():
            stdout.print(f"\n{head}:")
            for line in lines:
                stdout.print(f"  - {line}", markup=False, soft_wrap=True)
    if not found.ready:
        raise typer.Exit(1)


def _sight(tables: list[Any]) -> dict[str, list[str]]:
    lines: dict[str, list[str]] = {}
    for t in tables:
        for head, found in (("sees", t.sees), ("cannot see", t.cannot_see)):
            if found:
                known = lines.setdefault(f"method {t.method} {head}", [])
                known += [line for line in found if line not in known]
    return lines


def backfill(
    names: TableOption = None,
    organization: Annotated[
        list[str] | None, typer.Option("--organization", help="Only this organization (id).")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Read every table for the first time, for organizations that were not; resumes what was interrupted."""
    from lakehouse.backfill.worker import LIBRARIES
    from lakehouse.executor import LocalProcesses
    from lakehouse.settings import load_settings

    # What reads ranges is loaded beside this process, which loads SQLAlchemy and Iceberg.
    with LocalProcesses(load_settings().backfill.workers, libraries=LIBRARIES) as executor:
        results = _backfill(names, organization, executor)
    if as_json:
        print_json([{**vars(r), "errors": {o: error_json(e) for o, e in r.errors.items()}} for r in results])
    else:
        stdout.print(
            table(
                "",
                ("table", "organizations", "rows", "ranges read", "ranges kept", "state"),
                [
                    (
                        r.table,
                        len(r.rows) + len(r.adopted),
                        sum(r.rows.values()),
                        r.read_ranges,
                        r.resumed_ranges,
                        "busy: another program works on it" if r.busy else "error" if r.errors else "done",
                    )
                    for r in results
                ],
                numbers=("organizations", "rows", "ranges read", "ranges kept"),
            )
        )
    _errors({r.table: r.errors for r in results})
    if any(r.errors or r.busy for r in results):
        raise typer.Exit(1)


def _backfill(names: list[str] | None, organization: list[str] | None, executor: Executor) -> list[BackfillResult]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from lakehouse.backfill.run import backfill_table
    from lakehouse.capture.source import SourceTableMissing
    from lakehouse.control import store

    app = open_app()
    if organization and (unknown := set(organization) - {k.organization_id for k in store.lakes(app.engine)}):
        raise LakehouseError(f"not enrolled: {', '.join(sorted(unknown))}", "Run `lakehouse init` first.")
    results: list[BackfillResult] = []
    columns = (
        TextColumn("{task.description:<20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr) as progress:
        for contract in chosen(app, names):
            bar = progress.add_task(contract.table, total=None, speed="")

            def advance(done: int, total: int, bar: Any = bar) -> None:
                task = next(t for t in progress.tasks if t.id == bar)
                rate = done / task.elapsed if task.elapsed else 0
                progress.update(bar, completed=done, total=total, speed=f"{rate:,.0f}/s")

            result = backfill_table(
                app, contract, executor, organizations=tuple(organization) if organization else None, progress=advance
            )
            if contract.provisional and isinstance(result.errors.get(""), SourceTableMissing):
                del result.errors[""]
                progress.update(bar, speed="not there yet")
            results.append(result)
            progress.update(bar, completed=result.read_rows, total=result.read_rows)
    return results


def sync(
    names: TableOption = None,
    once: Annotated[bool, typer.Option("--once", help="One window of every table, then stop.")] = False,
    every: Annotated[
        str | None, typer.Option("--every", help="A window of every table each so often: 5s, 2m, 1h.")
    ] = None,
    reconcile: Annotated[
        bool | None,
        typer.Option(
            "--reconcile/--no-reconcile",
            help="Compare keys (finds deletes) now, or not at all. Default: by its period.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Capture what changed and land it. A table or organization in error does not hold up the others."""
    if once == (every is not None):
        raise LakehouseError("say either --once or --every", "For example `lakehouse sync --every 5s`.")
    app = open_app()
    contracts = chosen(app, names)
    # What no later round can mend (settings, control tables) ends the program now.
    _ = app.engine
    app.source.keep_sessions(1)
    warn_newcomers(app)
    stop = threading.Event()
    period = parse_duration(every, "--every") if every else None
    if period is not None:
        # The round that is under way is finished; a second signal ends the process at once.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, functools.partial(_stop, stop))
    failed = False
    while not stop.is_set():
        # A clock that jumps must not lengthen the pause.
        began = time.monotonic()
        results = _round(app, contracts, reconcile, stop)
        failed = any(r.errors for r in results)
        _show(results, as_json=as_json)
        if period is None:
            break
        stop.wait(max(0.0, period - (time.monotonic() - began)))
    if failed:
        raise typer.Exit(1)


def _stop(stop: threading.Event, number: int, frame: object) -> None:
    del frame
    stop.set()
    signal.signal(number, signal.SIG_DFL)


def _round(app: App, contracts: list[Contract], reconcile: bool | None, stop: threading.Event) -> list[TableResult]:
    from lakehouse.capture.source import SourceTableMissing
    from lakehouse.sync import sync_table

    results = []
    unknown: list[Exception] = []
    for contract in contracts:
        if stop.is_set():
            break
        try:
            result = sync_table(app, contract, reconcile=reconcile)
        except Exception as error:  # noqa: BLE001 - the other tables go on, then it is raised
            error.add_note(f"while syncing {contract.table}")
            unknown.append(error)
            continue
        if contract.provisional and isinstance(result.errors.get(""), SourceTableMissing):
            del result.errors[""]
        results.append(result)
    if unknown:
        _show(results, as_json=False)
        raise ExceptionGroup("errors that this program does not know", unknown)
    return results


def _show(results: list[TableResult], *, as_json: bool) -> None:
    if as_json:
        print_json([{**vars(r), "errors": {o: error_json(e) for o, e in r.errors.items()}} for r in results])
    else:
        stdout.print(
            table(
                "",
                ("table", "captured at", "upserts", "deletes", "snapshots", "files", "bytes", "state"),
                [
                    (
                        r.table,
                        r.captured_at,
                        sum(r.upserts.values()),
                        sum(r.deletes.values()) if r.reconciled else "",
                        len(r.snapshots),
                        r.files,
                        size(r.bytes),
                        _state(r),
                    )
                    for r in results
                ],
                numbers=("upserts", "deletes", "snapshots", "files", "bytes"),
            )
        )
    for r in results:
        for note in r.notes:
            stderr.print(f"note: {r.table}: every row was compared: {note}", markup=False, soft_wrap=True)
        for organization, count in r.quarantined.items():
            text = f"{count:,} rows are quarantined: the lake cannot hold them (`lakehouse quarantine list`)"
            stderr.print(f"{r.table}: organization {organization}: {text}", markup=False, soft_wrap=True)
    _errors({r.table: r.errors for r in results})


def _state(result: TableResult) -> str:
    if result.busy:
        return "busy: another program works on it"
    if result.errors:
        return f"error for {len(result.errors)}" if "" not in result.errors else "error"
    if result.waiting:
        return f"{len(result.waiting)} not backfilled"
    return "ok" if result.window else "nothing to do"


def _errors(errors: dict[str, dict[str, LakehouseError]]) -> None:
    for name, found in errors.items():
        for organization, error in found.items():
            where = f"{name}: organization {organization}" if organization else name
            stderr.print(f"error: {where}: {error.detail}", markup=False, soft_wrap=True)
            if error.hint:
                stderr.print(f"  {error.hint}", markup=False, soft_wrap=True)
