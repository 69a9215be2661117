"""`lakehouse lake adopt`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lakehouse.cli.output import JsonFlag, print_json, stderr, stdout, table
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from lakehouse.adopt import Differences


def register(app: typer.Typer) -> None:
    app.command("adopt")(adopt)


def adopt(
    reason: Annotated[str, typer.Option("--reason", help="Why; kept with the lake for good.")] = "",
    organization: Annotated[
        list[str] | None, typer.Option("--organization", help="Only this organization (id); repeat for more.")
    ] = None,
    names: Annotated[list[str] | None, typer.Option("--table", help="Only this table; repeat for more.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Go on with a lake that was made from another source or by another installation, after showing what differs.

    The next window compares every row: what the source no longer has becomes a delete, what differs a new version.
    Nothing is removed from history. Archiving stays off until that window has landed.
    """
    from lakehouse.adopt import adopt_tables, find_differences
    from lakehouse.app import App
    from lakehouse.control.database import connect
    from lakehouse.settings import load_settings

    if not reason.strip():
        raise LakehouseError("an adoption needs a reason", 'Say why: --reason "restored after the outage of 3 March".')
    app = App(load_settings())
    app.engine = connect(app.settings, any_owner=True)
    try:
        found = find_differences(app, organization or (), names or ())
        errors = dict(found.errors)
        if not as_json:
            _show(found)
        adopted = False
        if not found.nothing:
            if not yes:
                if as_json or not sys.stdin.isatty():
                    raise LakehouseError(
                        f"{len(found.tables)} tables of lakes would be adopted, and nobody was asked", "Add --yes."
                    )
                typer.confirm("Adopt?", abort=True, err=True)
            errors |= adopt_tables(app, found, reason)
            adopted = True
    finally:
        app.close()
    if as_json:
        print_json(_json(found, errors, adopted=adopted))
    elif adopted:
        done = sum((d.organization, d.table) not in errors for d in found.tables)
        stdout.print(f"adopted: {done} tables. The next window of each compares every row (`lakehouse sync`).")
    for (one, name), error in errors.items():
        stderr.print(f"error: {name}: organization {one}: {error.detail}\n  {error.hint}", markup=False, soft_wrap=True)
    if errors:
        raise typer.Exit(1)


def _show(found: Differences) -> None:
    if found.nothing:
        stdout.print("nothing to adopt: every lake table was made by this installation from this source")
        return
    if found.owner is not None:
        stdout.print(f"the control tables belong to installation {found.owner}", markup=False)
    for organization, mark in found.namespaces.items():
        stdout.print(f"{organization}: its namespace belongs to installation {mark or '(none)'}", markup=False)
    stdout.print(
        table(
            "",
            ("table", "organization", "transactions behind", "what differs"),
            [(d.table, d.organization, d.behind, "; ".join(d.why)) for d in found.tables],
            numbers=("transactions behind",),
        )
    )
    for label, value in _identities(found):
        stdout.print(f"{label}: {value}", markup=False, soft_wrap=True)


def _identities(found: Differences) -> list[tuple[str, str]]:
    """Before and after of each table once, however many organizations it has."""
    lines: dict[tuple[str, str], None] = {}
    for difference in found.tables:
        for label, side in (("before", difference.before), ("after ", difference.after)):
            known = {k: v for k, v in side["source"].items() if k not in ("storage", "started")}
            text = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in known.items())
            line = f"installation {side['installation']}, {text}, next transaction {side['next_transaction']}"
            lines[f"{difference.table} {label}", line] = None
    return list(lines)


def _json(found: Differences, errors: dict[tuple[str, str], LakehouseError], *, adopted: bool) -> dict[str, Any]:
    return {
        "adopted": adopted,
        "control_owner": found.owner,
        "namespaces": found.namespaces,
        "tables": [
            {
                "organization": d.organization,
                "table": d.table,
                "why": d.why,
                "behind": d.behind,
                "before": d.before,
                "after": d.after,
                "adopted": adopted and (d.organization, d.table) not in errors,
            }
            for d in found.tables
        ],
        "errors": [{"organization": o, "table": t, "detail": e.detail, "hint": e.hint} for (o, t), e in errors.items()],
    }
