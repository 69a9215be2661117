"""`lakehouse archive enable`, `disable`, `plan` and `run`."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lakehouse.cli.capture import TableOption, chosen, error_json, open_app
from lakehouse.cli.hold import ByOption
from lakehouse.cli.output import JsonFlag, print_json, size, stderr, stdout, table
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from lakehouse.app import App
    from lakehouse.archive.plan import Plan
    from lakehouse.archive.policy import Policy
    from lakehouse.archive.run import Result

archive_app = typer.Typer(
    no_args_is_help=True, help="Old rows leave the hot database, with proof for each; off until it is enabled."
)
Organizations = Annotated[
    list[str] | None, typer.Option("--organization", "-o", help="Only this organization (id or slug); repeat for more.")
]
NoDestination = Annotated[
    bool,
    typer.Option(
        "--no-destination", help="Ask for no destination's receipt; the lake's proof is asked for all the same."
    ),
]


def register(app: typer.Typer) -> None:
    app.add_typer(archive_app, name="archive")


@archive_app.command("enable")
def enable(
    organization: Annotated[str, typer.Option("--organization", "-o", help="Whose old rows leave (id or slug).")],
    reason: Annotated[str, typer.Option("--reason", help="Why; the audit keeps it.")],
    optional: Annotated[
        list[str] | None,
        typer.Option("--optional-table", help="Also this table, which is archived only where it is asked for."),
    ] = None,
    no_destination: NoDestination = False,
    by: ByOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Turn archiving on for an organization, or replace its policy. Nothing is deleted by this command.

    From then on `lakehouse run` archives it on a schedule, and `archive run` now: rows older than its
    data_retention_days that the lake was proven to hold. `archive plan` shows before what would go.
    """
    from lakehouse.archive import policy
    from lakehouse.archive.holds import find_organization

    app = open_app()
    made = policy.enable(
        app,
        find_organization(app, organization),
        reason=reason,
        by=by,
        optional_tables=optional or (),
        no_destination=no_destination,
    )
    _show_policy(made, as_json=as_json)


@archive_app.command("disable")
def disable(
    organization: Annotated[str, typer.Option("--organization", "-o", help="Whose rows stay (id or slug).")],
    reason: Annotated[str, typer.Option("--reason", help="Why; the audit keeps it.")],
    by: ByOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Turn archiving off for an organization. When this returns, no row of it leaves any more."""
    from lakehouse.archive import policy
    from lakehouse.archive.holds import find_organization

    app = open_app()
    made = policy.disable(app, find_organization(app, organization), reason=reason, by=by)
    _show_policy(made, as_json=as_json)


def _show_policy(policy: Policy, *, as_json: bool) -> None:
    if as_json:
        print_json({**vars(policy), "waiver": vars(policy.waiver) if policy.waiver else None})
        return
    state = "is enabled" if policy.enabled else "is off"
    more = f", {', '.join(policy.optional_tables)} too" if policy.enabled and policy.optional_tables else ""
    more += ", without a destination's receipt" if policy.waiver else ""
    stdout.print(f"archiving {state} for organization {policy.organization}{more}", markup=False, soft_wrap=True)


@archive_app.command("plan")
def plan(organization: Organizations = None, names: TableOption = None, as_json: JsonFlag = False) -> None:
    """Show what would leave the hot database now, rows and bytes, what stays and why, and in which order.

    Also for organizations where archiving is off. Changes nothing. Whether the lake holds each row as it is only a
    proof tells: `archive run --dry-run`.
    """
    from lakehouse.archive.plan import make_plan

    app = open_app()
    found = make_plan(app, _ids(app, organization), [c.table for c in chosen(app, names)] if names else [])
    if as_json:
        print_json({**vars(found), "tables": [vars(t) for t in found.tables]})
    else:
        _show_plan(found)


def _ids(app: App, names: list[str] | None) -> list[str]:
    from lakehouse.archive.holds import find_organization

    return [find_organization(app, name) for name in names or ()]


def _show_plan(found: Plan) -> None:
    columns = ("organization", "table", "archiving", "days", "hot rows", "would go", "bytes", "oldest", "newest")
    stdout.print(
        table(
            "",
            columns,
            [
                (
                    t.organization,
                    t.table,
                    "refused" if t.refusals else "on" if t.enabled else "off",
                    t.retention_days,
                    t.hot_rows,
                    t.rows,
                    size(t.bytes),
                    t.oldest,
                    t.newest,
                )
                for t in found.tables
            ],
            numbers=("days", "hot rows", "would go", "bytes"),
        )
    )
    lines: dict[str, None] = {}
    for t in found.tables:
        where = f"{t.organization}: {t.table}"
        for reason in t.refusals:
            lines[f"{where}: refused: {reason}"] = None
        for reason, count in t.kept.items():
            lines[f"{where}: {count:,} stay: {reason}"] = None
        for child, count in t.waits.items():
            lines[f"{where}: {count:,} wait until {child} has gone"] = None
        if t.quarantined:
            lines[f"{where}: {t.quarantined:,} rows are quarantined: the lake cannot hold them, and they stay"] = None
        for note in t.notes:
            lines[f"{t.table}: note: {note}"] = None
    for line in lines:
        stdout.print(line, markup=False, soft_wrap=True)
    stdout.print(f"order: {', '.join(found.order) or 'nothing'}", markup=False, soft_wrap=True)
    for cycle in found.cycles:
        stdout.print(
            f"{' and '.join(cycle)} refer to each other: rows that do stay, for one of them would have to be changed",
            markup=False,
            soft_wrap=True,
        )
    if found.missing:
        stdout.print(f"not in the hot database: {', '.join(found.missing)}", markup=False, soft_wrap=True)
    off = sorted(
        {t.organization for t in found.tables if not t.enabled} - {t.organization for t in found.tables if t.enabled}
    )
    if off:
        stdout.print(f"archiving is off for {', '.join(off)}: this is what would go if it were enabled", markup=False)


@archive_app.command("run")
def run(
    organization: Organizations = None,
    names: TableOption = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Prove what may go now, without what waits for others to go first; delete nothing."
        ),
    ] = False,
    no_destination: NoDestination = False,
    reason: Annotated[str, typer.Option("--reason", help="Why no destination is needed; the audit keeps it.")] = "",
    by: ByOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Archive now what is old and proven, of organizations that have it enabled; `lakehouse run` does it by itself.

    Can be stopped or killed at any moment, and run again. Exit 1 if rows that should be in the lake are not as they
    are here, or something is in error; what stays for a reason is no error.
    """
    from lakehouse.archive.run import archive_all, waive
    from lakehouse.outbox import tasks

    app = open_app()
    wanted = _ids(app, organization)
    waiver = waive(wanted, reason, by) if no_destination and not dry_run else None
    if dry_run and no_destination:
        from lakehouse.archive.durable import Waiver

        waiver = Waiver("dry run", reason, standing=False)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    if not as_json:
        app.events.add(_progress)
    task = None
    if not dry_run:
        task = tasks.claim_named(app.engine, app.leases.owner, app.settings.work.lease_seconds, tasks.ARCHIVE)
        if task is None:
            raise LakehouseError("another program archives now", "Wait for it, or stop it; nothing was done.")
    whole = False
    try:
        with app.leases.holding(*([task.lease] if task else ())):
            result = archive_all(
                app,
                wanted,
                [c.table for c in chosen(app, names)] if names else [],
                dry_run=dry_run,
                waiver=waiver,
                should_stop=lambda: stop.is_set() or (task is not None and task.lease.lost),
            )
        whole = result.well and not wanted and not names and not stop.is_set()
    finally:
        if task is not None:
            # What was asked for by hand puts off the schedule only if it was all that the schedule asks for.
            (tasks.finish if whole else tasks.release)(app.engine, task.lease)
    if as_json:
        print_json(_json(result))
    else:
        _show_run(result)
    if not result.well or any(t.unproven for t in result.tables) or stop.is_set():
        raise typer.Exit(1)


def _progress(event: dict[str, Any]) -> None:
    if event["event"] == "archive_batch" and event["rows"]:
        stderr.print(
            f"{event['organization']}: {event['table']}: batch {event['batch']}: {event['done']:,} of "
            f"{event['proven']:,} proven rows are gone",
            markup=False,
        )
    elif event["event"] == "archive_waits":
        stderr.print(f"a standby is {event['lag_seconds']} s behind: waiting", markup=False)
    elif event["event"] == "archive_lag_unknown":
        stderr.print(f"warning: how far standbys are behind cannot be seen\n  {event['hint']}", markup=False)


def _json(result: Result) -> dict[str, Any]:
    return {
        "dry_run": result.dry_run,
        "tables": [{**t.fields(), "error": error_json(t.error) if t.error else None} for t in result.tables],
        "exported": result.exported,
        "holds_restored": result.holds_restored,
        "errors": {o: error_json(e) for o, e in result.errors.items()},
    }


def _show_run(result: Result) -> None:
    columns = ("organization", "table", "candidates", "proven", "gone", "batches", "stayed", "state")
    stdout.print(
        table(
            "would go" if result.dry_run else "",
            columns,
            [
                (t.organization, t.table, t.candidates, t.proven, t.rows, t.batches, sum(t.kept.values()), t.state)
                for t in result.tables
            ],
            numbers=("candidates", "proven", "gone", "batches", "stayed"),
        )
    )
    for t in result.tables:
        where = f"{t.organization}: {t.table}"
        for why, count in sorted(t.kept.items(), key=lambda item: -item[1]):
            stdout.print(f"{where}: {count:,} stayed: {why}", markup=False, soft_wrap=True)
        for u in t.unproven:
            columns_of = f" in {', '.join(u.columns)}" if u.columns else ""
            stdout.print(f"{where}: {u.row_key}: {u.reason}{columns_of}", markup=False, soft_wrap=True)
        if t.state in ("refused", "not ready", "off"):
            stdout.print(f"{where}: {t.state}: {t.detail}", markup=False, soft_wrap=True)
        if t.error is not None:
            stderr.print(f"error: {where}: {t.error.detail}\n  {t.error.hint}", markup=False, soft_wrap=True)
    for organization, error in result.errors.items():
        stderr.print(f"error: {organization}: {error.detail}\n  {error.hint}", markup=False, soft_wrap=True)
    if not result.organizations:
        preview = "; name one to see what would go: --organization" if result.dry_run else ""
        stdout.print(f"archiving is enabled for nobody (`lakehouse archive enable`){preview}", markup=False)
    elif not result.tables and not result.errors:
        stdout.print("the hot database has no table that may be archived")
