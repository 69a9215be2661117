"""`lakehouse hold place`, `hold release` and `hold list`."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lakehouse.cli.output import JsonFlag, parse_moment, print_json, stderr, stdout, table
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from lakehouse.archive.records import Hold

hold_app = typer.Typer(no_args_is_help=True, help="Legal holds: what no deletion, expiry or erasure passes.")

ByOption = Annotated[
    str | None, typer.Option("--by", help="Who decided it. Default: this system's user; the audit keeps it.")
]


def register(app: typer.Typer) -> None:
    app.add_typer(hold_app, name="hold")


@hold_app.command("place")
def place(
    organization: Annotated[str, typer.Option("--organization", "-o", help="Whose rows (id or slug).")],
    reason: Annotated[str, typer.Option("--reason", help="Why; the audit keeps it.")],
    name: Annotated[str | None, typer.Option("--table", help="Only this table. Default: every table.")] = None,
    ids: Annotated[
        list[str] | None, typer.Option("--id", help="Only this row of the table, by its key; repeat for more.")
    ] = None,
    begin: Annotated[
        str | None, typer.Option("--from", help="Only rows whose event time is at or after this, ISO 8601 (UTC).")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="Only rows whose event time is before this.")] = None,
    by: ByOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Place a legal hold. It is in force when this returns, also beside an archive that runs.

    A range of time holds a table without event time whole.
    """
    from lakehouse.archive import holds
    from lakehouse.cli.capture import open_app

    app = open_app()
    late: list[LakehouseError] = []
    hold = holds.place(
        app,
        organization,
        reason=reason,
        table_name=name,
        row_keys=ids,
        event_from=parse_moment(begin, "--from") if begin else None,
        event_upto=parse_moment(end, "--to") if end else None,
        by=by,
        warn=late.append,
    )
    unknown = holds.unknown_ids(app, hold)
    if as_json:
        print_json(_json(hold) | {"lake_errors": [e.detail for e in late], "unknown_ids": unknown})
    else:
        stdout.print(f"hold {hold.id} is in force: {_scope(hold)}", markup=False, soft_wrap=True)
    if unknown:
        stderr.print(
            f"warning: neither in the hot database nor archived: {', '.join(unknown)}\n  They are held all the same.",
            markup=False,
            soft_wrap=True,
        )
    _say_late(late)


@hold_app.command("release")
def release(
    hold_id: Annotated[str, typer.Argument(metavar="ID", help="The hold's id.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; the audit keeps it.")],
    by: ByOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Release a hold. Its record stays; what it kept may leave from now on."""
    from lakehouse.archive import holds
    from lakehouse.cli.capture import open_app

    late: list[LakehouseError] = []
    hold = holds.release(open_app(), hold_id, reason=reason, by=by, warn=late.append)
    if as_json:
        print_json(_json(hold) | {"lake_errors": [e.detail for e in late]})
    else:
        stdout.print(f"hold {hold.id} is released: {_scope(hold)}", markup=False, soft_wrap=True)
    _say_late(late)


@hold_app.command("list")
def list_holds(
    organization: Annotated[
        str | None, typer.Option("--organization", "-o", help="Only this organization's (id or slug).")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Released ones too.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Holds, and whether the lake knows each: a restored database gets back only those that it does."""
    from lakehouse.archive import holds
    from lakehouse.cli.capture import open_app

    app = open_app()
    of = holds.find_organization(app, organization) if organization is not None else None
    listed = holds.list_holds(app, of, released=every)
    if as_json:
        print_json(
            [
                _json(one.hold)
                | {
                    "mirrored": one.mirrored,
                    "forgotten": one.forgotten,
                    "lake_error": one.error.detail if one.error else None,
                }
                for one in listed
            ]
        )
        return
    shown = ("id", "organization", "holds", "reason", "placed by", "placed at", "mirrored")
    rows: list[tuple[Any, ...]] = []
    for one in listed:
        hold = one.hold
        state = "not known" if one.error else "no lake" if one.mirrored is None else one.mirrored
        state = "only there" if one.forgotten else state
        row = (hold.id, hold.organization, _scope(hold), hold.reason, hold.placed_by, hold.placed_at, state)
        rows.append((*row, hold.released_by, hold.released_at, hold.released_reason) if every else row)
    stdout.print(table("", (*shown, "released by", "released at", "because") if every else shown, rows))
    for text in dict.fromkeys(f"{one.hold.organization}: {one.error.detail}" for one in listed if one.error):
        stderr.print(f"warning: {text}", markup=False, soft_wrap=True)


def _scope(hold: Hold) -> str:
    if hold.row_keys is not None:
        named = ", ".join(hold.row_keys[:3]) + (f" and {len(hold.row_keys) - 3:,} more" if hold.row_keys[3:] else "")
        return f"{hold.table}: {named}"
    parts = [hold.table or "every table"]
    if hold.event_from is not None:
        parts.append(f"from {_time(hold.event_from)}")
    if hold.event_upto is not None:
        parts.append(f"before {_time(hold.event_upto)}")
    return " ".join(parts)


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S").removesuffix(" 00:00:00")


def _json(hold: Hold) -> dict[str, Any]:
    return vars(hold)


def _say_late(errors: list[LakehouseError]) -> None:
    for error in errors:
        stderr.print(
            f"warning: the lake does not know it yet: {error.detail}\n  Maintenance tries again; it counts without.",
            markup=False,
            soft_wrap=True,
        )
