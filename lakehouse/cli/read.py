"""`lakehouse status`, `verify` and `query`."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lakehouse.cli.capture import TableOption, chosen, error_json, open_app, warn_newcomers
from lakehouse.cli.output import JsonFlag, duration, parse_moment, print_json, size, stderr, stdout, table
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from lakehouse.maintenance.bounds import Bounds
    from lakehouse.standing import Standing
    from lakehouse.status import TableStatus
    from lakehouse.verify.compare import Comparison


def register(app: typer.Typer) -> None:
    app.command("status")(status)
    app.command("verify")(verify)
    app.command("query")(query)


def status(as_json: JsonFlag = False) -> None:
    """Where every table of every organization stands, how far behind it is, and why."""
    from lakehouse.query import tenants
    from lakehouse.status import read_status

    app = open_app()
    found = read_status(app)
    warn_newcomers(app)
    if as_json:
        standing = [{**dataclasses.asdict(d), "lag": d.lag} for d in found.destinations]
        print_json({**dataclasses.asdict(found), "destinations": standing, "healthy": found.healthy})
    else:
        labels = {t.organization: t.label or t.organization for t in tenants(app)}
        stdout.print(f"installation {found.installation}: {found.source} -> {found.warehouse}", markup=False)
        stdout.print(
            table(
                "",
                (
                    "organization",
                    "table",
                    "state",
                    "method",
                    "cadence",
                    "lag",
                    "rows behind",
                    "quarantined",
                    "archived",
                    "deletes seen",
                    "last landing",
                    "watermark",
                    "sequence",
                ),
                [
                    (
                        labels[t.organization],
                        t.table,
                        t.state,
                        t.method,
                        duration(t.cadence_seconds),
                        duration(t.lag_seconds),
                        _behind(t),
                        t.quarantined or "",
                        _archived(t),
                        f"{duration(t.delete_lag_seconds)} ago" if t.reconciled_at else "never" if t.method else "",
                        t.landed_at,
                        t.watermark,
                        t.sequence,
                    )
                    for t in found.tables
                ],
                numbers=("cadence", "lag", "rows behind", "quarantined", "archived", "sequence"),
            )
        )
        for t in found.tables:
            if t.quarantined:
                stderr.print(
                    f"quarantined: {t.table}: organization {t.organization}: {t.quarantined:,} rows that the lake "
                    f"cannot hold (`lakehouse quarantine list`): {t.quarantined_first}",
                    markup=False,
                    soft_wrap=True,
                )
            if t.error:
                then = f"; tried again at {t.next_attempt_at:%H:%M:%S}" if t.next_attempt_at else ""
                stderr.print(
                    f"{'stopped' if t.state == 'stopped' else 'error'}: {t.table}: organization {t.organization}: "
                    f"{t.error}{then}",
                    markup=False,
                    soft_wrap=True,
                )
        stdout.print("rows behind: staged and not landed, and (~) about how many versions of the table are unread")
        widest = max(found.window_seconds.values(), default=None)
        for method, lines in {t.method: t.cannot_see for t in found.tables if t.method}.items():
            wide = f" (recent windows are {duration(widest)} wide)" if widest else ""
            stdout.print(f"method {method} cannot see: {'; '.join(lines)}{wide}", markup=False, soft_wrap=True)
        if found.destinations:
            _show_destinations(found.destinations, labels)
        show_bounds(found.bounds, labels)
    if not found.healthy:
        raise typer.Exit(1)


def _show_destinations(found: list[Standing], labels: dict[str, str]) -> None:
    columns = ("destination", "kind", "organization", "table", "state", "sequence", "lag", "bound", "filled")
    stdout.print("")
    stdout.print(
        table(
            "destinations, fed from the lake: no expiry waits for one; one whose lag passes its bound is filled from "
            "the current state",
            columns,
            [
                (
                    d.name,
                    d.kind,
                    labels.get(d.organization, d.organization),
                    d.table,
                    d.state,
                    d.sequence,
                    d.lag,
                    d.bound if d.bound is not None else "history",
                    f"{d.filled[0]:,} of {d.filled[1]:,}" if d.filled else "",
                )
                for d in found
            ],
            numbers=("sequence", "lag", "bound", "filled"),
        )
    )
    for d in found:
        if d.error:
            stderr.print(f"{d.state}: {d.name}: {d.table}: {d.error}", markup=False, soft_wrap=True)


def _behind(status: TableStatus) -> str:
    parts = [f"{status.waiting_rows:,}"] if status.waiting_rows else []
    parts += [f"~{status.unread_rows:,}"] if status.unread_rows is not None else []
    return " + ".join(parts)


def _archived(status: TableStatus) -> str:
    if not status.archived:
        return "" if status.archived == 0 else "?"
    waiting = f" ({status.not_exported:,} not exported)" if status.not_exported else ""
    return f"{status.archived:,}{waiting}"


def show_bounds(bounds: Bounds, labels: dict[str, str]) -> None:
    """Every bound with its present figure, and what versions cost."""
    limits = bounds.limits
    stdout.print("")
    stdout.print(
        table(
            f"bounds: {limits['keep_snapshots']} snapshots, the last of {limits['keep_daily']} days and tagged ones; "
            f"{limits['keep_metadata']} metadata files; {limits['busy_files']} small files a day; freed files stay "
            f"{limits['grace_minutes']:g} min, orphans {limits['orphan_hours']:g} h, "
            f"finished work {limits['outbox_days']:g} days",
            (
                "organization",
                "table",
                "snapshots",
                "manifests",
                "metadata",
                "files",
                "small",
                "to remove",
                "bytes",
                "versions",
                "a row and day",
                "bytes a day",
                "measured",
            ),
            [
                (
                    labels.get(t.organization, t.organization),
                    t.table,
                    t.snapshots,
                    t.manifests,
                    f"{t.metadata_files:,} / {size(t.metadata_bytes)}",
                    t.data_files,
                    t.small_files,
                    t.pending_files,
                    size(t.data_bytes),
                    t.row_count,
                    "" if t.versions_per_row_day is None else f"{t.versions_per_row_day:.1f}",
                    size(t.bytes_per_day),
                    t.measured_at,
                )
                for t in bounds.tables
            ],
            numbers=(
                "snapshots",
                "manifests",
                "metadata",
                "files",
                "small",
                "to remove",
                "bytes",
                "versions",
                "a row and day",
                "bytes a day",
            ),
        )
    )
    for t in bounds.tables:
        if t.advice:
            where = f"{t.table}: {labels.get(t.organization, t.organization)}"
            stdout.print(f"{where}: {t.advice}", markup=False, soft_wrap=True)
    if not bounds.tables:
        stdout.print("nothing is measured yet: `lakehouse maintain` measures")
    stdout.print("control rows: " + ", ".join(f"{name} {count:,}" for name, count in bounds.control_rows.items()))


def verify(
    names: TableOption = None,
    organization: Annotated[
        list[str] | None, typer.Option("--organization", help="Only this organization (id or slug).")
    ] = None,
    limit: Annotated[int, typer.Option(help="Differences to name, for each table and organization.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """Compare the hot tables with the lake's own files, by key and by content. Exit 1 if anything differs.

    A row that the lake cannot hold is counted as quarantined if its log holds it as it is now, else it differs. A row
    that the archive took is counted as archived, if the lake has the version that was proven.
    """
    from lakehouse.capture.source import SourceTableMissing
    from lakehouse.query import find_tenant, tenants
    from lakehouse.verify.compare import verify_table

    app = open_app()
    known = tenants(app)
    warn_newcomers(app)
    labels = {t.organization: t.label or t.organization for t in known}
    wanted = [find_tenant(known, o).organization for o in organization] if organization else list(labels)
    if not wanted:
        raise LakehouseError("no organization is enrolled: there is nothing to compare", "Run `lakehouse init`.")
    results: list[Comparison] = []
    errors: dict[str, LakehouseError] = {}
    for contract in chosen(app, names):
        try:
            results += verify_table(app, contract, wanted, limit=limit)
        except SourceTableMissing as error:
            if not contract.provisional:
                errors[contract.table] = error
        except LakehouseError as error:
            errors[contract.table] = error
    if as_json:
        print_json(
            {
                "equal": all(r.equal for r in results) and not errors,
                "tables": [
                    {
                        **vars(r),
                        "equal": r.equal,
                        "error": error_json(r.error) if r.error else None,
                        "differences": [dataclasses.asdict(d) for d in r.differences],
                    }
                    for r in results
                ],
                "errors": {t: error_json(e) for t, e in errors.items()},
            }
        )
    else:
        stdout.print(comparison_table(results, labels))
        for r in results:
            _differences(r, labels)
    for name, fault in errors.items():
        stderr.print(f"error: {name}: {fault.detail}\n  {fault.hint}", markup=False, soft_wrap=True)
    if errors or not all(r.equal for r in results) or not results:
        raise typer.Exit(1)


def comparison_table(results: list[Comparison], labels: dict[str, str]) -> Any:
    """The table of equality."""
    return table(
        "",
        (
            "table",
            "organization",
            "hot rows",
            "lake rows",
            "versions",
            "missing",
            "extra",
            "content",
            "quarantined",
            "archived",
            "repeated",
            "equal",
        ),
        [
            (
                r.table,
                labels.get(r.organization, r.organization),
                r.hot_rows,
                r.lake_rows,
                r.versions,
                r.missing,
                r.extra,
                r.content,
                r.quarantined,
                r.archived,
                r.repeated,
                "error" if r.error else r.equal,
            )
            for r in results
        ],
        numbers=(
            "hot rows",
            "lake rows",
            "versions",
            "missing",
            "extra",
            "content",
            "quarantined",
            "archived",
            "repeated",
        ),
    )


_KINDS = {
    "missing": "not in the lake",
    "extra": "not in the hot table",
    "content": "other content",
    "both": "archived, and in the hot table as it was",
    "lost": "archived, and the lake has not the version that was proven",
}


def _differences(result: Comparison, labels: dict[str, str]) -> None:
    where = f"{result.table}: {labels.get(result.organization, result.organization)}"
    if result.error:
        stderr.print(f"error: {where}: {result.error.detail}\n  {result.error.hint}", markup=False, soft_wrap=True)
    if result.quarantined:
        stderr.print(
            f"{where}: {result.quarantined:,} rows are not compared: the lake cannot hold them, and keeps them whole "
            "beside it (`lakehouse quarantine list`)",
            markup=False,
            soft_wrap=True,
        )
    for d in result.differences:
        key = ", ".join(f"{k}={v}" for k, v in d.key.items())
        what = _KINDS[d.kind]
        columns = f" in {', '.join(d.columns)}" if d.columns else ""
        pending = " (newer than the last window: the next brings it)" if d.pending else ""
        stdout.print(f"{where}: {key}: {what}{columns}{pending}", markup=False, soft_wrap=True)
    named = len(result.differences)
    if (total := result.missing + result.extra + result.content + result.both + result.lost) > named:
        stdout.print(f"{where}: and {total - named:,} more", markup=False)


def query(
    statement: Annotated[
        str, typer.Argument(help="SQL; tables are the organization's latest state, <table>_history every version.")
    ],
    organization: Annotated[
        str | None, typer.Option("--organization", "-o", help="Whose tables have no prefix (id or slug).")
    ] = None,
    as_of: Annotated[
        str | None,
        typer.Option("--as-of", help="The state that was captured by this time, ISO 8601 (UTC unless it says)."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run SQL over the lake with DuckDB; needs the lake and its catalog, not the hot tables."""
    from lakehouse.query import run_query

    result = run_query(
        open_app(), statement, organization=organization, as_of=parse_moment(as_of, "--as-of") if as_of else None
    )
    if as_json:
        print_json(result.to_pylist(), verbatim=True)
        return
    rows = [tuple(row.values()) for row in result.to_pylist()] if result.num_columns else []
    stdout.print(table("", result.column_names, rows, verbatim=True))
    sys.stderr.write(f"{result.num_rows:,} rows\n")
