"""`lakehouse recall`, `recall list` and `recall remove`."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lakehouse.cli.output import JsonFlag, parse_duration, parse_moment, print_json, size, stderr, stdout, table
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from lakehouse.recall.register import Recall
    from lakehouse.recall.run import Recalled

By = Annotated[str | None, typer.Option("--by", help="Who asks. Default: this system's user; the audit keeps it.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="The recall's id.")]
SHOWN_MISSING = 20

recall_app = typer.Typer(invoke_without_command=True, help="Bring rows back from the lake.")


def register(app: typer.Typer) -> None:
    app.add_typer(recall_app, name="recall")


@recall_app.callback()
def recall(
    context: typer.Context,
    organization: Annotated[str | None, typer.Option("--organization", "-o", help="Whose rows (id or slug).")] = None,
    name: Annotated[str | None, typer.Option("--table", help="Of which table of the lake.")] = None,
    ids: Annotated[list[str] | None, typer.Option("--id", help="A row's key; repeat for more.")] = None,
    where: Annotated[
        str | None, typer.Option("--where", help="A condition over the table's columns, as DuckDB writes it.")
    ] = None,
    event_from: Annotated[
        str | None, typer.Option("--from", help="Event time at or after this (UTC unless it says).")
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", help="Where to: table, parquet, csv or jsonl. A time here: event time before it."),
    ] = None,
    as_of: Annotated[str | None, typer.Option("--as-of", help="The state that was captured by this time.")] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept for good.")] = "",
    output: Annotated[
        str | None, typer.Option("--output", help="The file: a path, or s3://… in the operator's bucket.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", help="When the rows leave their table again: 30d, 12h.")
    ] = None,
    by: By = None,
    as_json: JsonFlag = False,
) -> None:
    """Bring rows back from the lake, archived or not: into a table of our own schema, or into a file with a manifest.

    Which rows: --id, or --where and/or --from/--to. Exit 1 if ids were given and none is in the lake.
    """
    if context.invoked_subcommand is not None:
        return
    from lakehouse.cli.capture import open_app
    from lakehouse.operator import operator
    from lakehouse.query import find_tenant, tenants
    from lakehouse.recall.request import make_request
    from lakehouse.recall.run import NothingFoundError, recall

    target, event_upto = _ends(to or [])
    lasting = timedelta(seconds=parse_duration(expires, "--expires")) if expires else None
    if organization is None or name is None:
        raise LakehouseError("a recall is of one table of one organization", "Say --organization and --table.")
    app = open_app()
    try:
        request = make_request(
            find_tenant(tenants(app), organization).organization,
            app.contract(name),
            ids=ids or (),
            where=where,
            event_from=parse_moment(event_from, "--from") if event_from else None,
            event_upto=event_upto,
            as_of=parse_moment(as_of, "--as-of") if as_of else None,
        )
        done = recall(app, request, target=target, output=output, expires=lasting, reason=reason, by=operator(by))
    except NothingFoundError as error:
        if as_json:
            print_json({"rows": 0, "missing": error.missing}, verbatim=True)
        stderr.print(f"error: {error.detail}\n  {error.hint}", markup=False, soft_wrap=True, verbatim=True)
        raise typer.Exit(1) from None
    finally:
        app.close()
    if as_json:
        print_json({**dataclasses.asdict(done), "missing": dict(done.missing)}, verbatim=True)
    else:
        _show(done)
    for key, why in list(done.missing.items())[:SHOWN_MISSING]:
        stderr.print(f"{key}: {why}", markup=False, soft_wrap=True, verbatim=True)
    if (more := len(done.missing) - SHOWN_MISSING) > 0:
        stderr.print(f"and {more:,} more ids that were not found")


def _ends(to: list[str]) -> tuple[Any, datetime | None]:
    """What `--to` said: the target, and the end of the range where it was said too."""
    from lakehouse.recall.request import TARGETS

    targets = [text for text in to if text in TARGETS]
    times = [text for text in to if text not in TARGETS]
    if len(targets) != 1 or len(times) > 1:
        raise LakehouseError(
            f"--to says {', '.join(to) or 'nothing'}",
            f"Say once where the rows go: --to {', '.join(TARGETS)}. A second --to may be the end of --from.",
        )
    return targets[0], parse_moment(times[0], "--to") if times else None


def _show(done: Recalled) -> None:
    stdout.print(f"recall {done.id}: {done.rows:,} rows of {done.table} into {done.target}", markup=False)
    for change in done.changes:
        stdout.print(change, markup=False, soft_wrap=True)
    if done.expires_at is not None:
        stdout.print(f"until {done.expires_at:%Y-%m-%d %H:%M} UTC; each row was compared with the lake", markup=False)
    if done.bytes is not None:
        stdout.print(f"{size(done.bytes)}, SHA-256 {done.file_sha256}", markup=False)
    stdout.print(f"content {done.content_sha256}, snapshot {done.snapshot_id}, contract {done.contract}", markup=False)


@recall_app.command("list")
def list_recalls(
    organization: Annotated[
        str | None, typer.Option("--organization", "-o", help="Only this organization's (id or slug).")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Every recall: who asked for which rows, why, what was returned, and until when it stays."""
    from lakehouse.cli.capture import open_app
    from lakehouse.query import find_tenant, tenants
    from lakehouse.recall.run import recalls

    with closing(open_app()) as app:
        of = find_tenant(tenants(app), organization).organization if organization else None
        found = recalls(app, of)
    if as_json:
        print_json([{**dataclasses.asdict(r), "state": r.state} for r in found])
        return
    columns = ("id", "organization", "table", "by", "at", "reason", "target", "rows", "state", "expires")
    stdout.print(table("", columns, [_row(r) for r in found], numbers=("rows",)))
    for r in found:
        if r.error:
            stdout.print(f"{r.id}: {r.error}", markup=False, soft_wrap=True)


def _row(r: Recall) -> tuple[Any, ...]:
    return (
        str(r.id), r.organization, r.table, r.requested_by, r.requested_at, r.reason, r.target, r.row_count, r.state,
        r.expires_at if r.state == "done" else None,
    )  # fmt: skip


@recall_app.command("remove")
def remove(
    identity: Id,
    reason: Annotated[str, typer.Option("--reason", help="Why, if it is worth saying.")] = "",
    by: By = None,
    as_json: JsonFlag = False,
) -> None:
    """Remove what a recall put into a table, before its time. The record of it stays."""
    from lakehouse.cli.capture import open_app
    from lakehouse.operator import operator
    from lakehouse.recall.run import remove_recall

    with closing(open_app()) as app:
        removed = remove_recall(app, identity, by=operator(by), reason=reason)
    if as_json:
        print_json({**dataclasses.asdict(removed), "state": removed.state})
    else:
        stdout.print(f"recall {removed.id}: its {removed.row_count:,} rows are gone from {removed.recalled_table}")
