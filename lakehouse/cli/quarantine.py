"""`lakehouse quarantine list` and `quarantine show`: rows that the lake cannot hold, and what they hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lakehouse.cli.capture import TableOption, chosen, open_app
from lakehouse.cli.output import JsonFlag, print_json, stdout, table
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from lakehouse.app import App
    from lakehouse.landing.quarantine import Entry
    from schemas.contract import Contract

quarantine_app = typer.Typer(no_args_is_help=True, help="Rows that the lake cannot hold; it keeps them whole.")

OrganizationOption = Annotated[
    str | None, typer.Option("--organization", "-o", help="Only this organization (id or slug).")
]


def register(app: typer.Typer) -> None:
    app.add_typer(quarantine_app, name="quarantine")


@quarantine_app.command("list")
def list_rows(
    names: TableOption = None,
    organization: OrganizationOption = None,
    every: Annotated[bool, typer.Option("--all", help="Also what was mended or is gone, and former versions.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Rows of the hot tables that the lake cannot hold as they are, and why. Reads the lake, not the hot tables."""
    app = open_app()
    rows = [
        _described(contract, who, entry)
        for contract, who, entry in _entries(app, names, organization, every=every, content=False)
    ]
    if as_json:
        print_json(rows)
        return
    shown = ("organization", "table", "key", "event", "reason", "xmin", "captured_at", "window")
    stdout.print(table("", shown, [tuple(row[name] for name in shown) for row in rows]))


@quarantine_app.command("show")
def show(
    key: Annotated[str, typer.Argument(help="The primary key; of several columns, with commas between.")],
    name: Annotated[str, typer.Option("--table", help="The table.")],
    organization: OrganizationOption = None,
    every: Annotated[bool, typer.Option("--all", help="Also former versions.")] = False,
) -> None:
    """One quarantined row as JSON, with PostgreSQL's text of every exported column."""
    app = open_app()
    found = [
        _described(contract, who, entry) | {"content": json.loads(entry.content) if entry.content else None}
        for contract, who, entry in _entries(app, [name], organization, every=every, content=True)
        if ",".join(entry.key) == key
    ]
    if not found:
        raise LakehouseError(
            f"{name}: no row {key} is quarantined",
            "`lakehouse quarantine list` shows those that are; with --all also what was mended or is gone.",
        )
    # Rows of the host's, as `lakehouse query` prints them.
    print_json(found, verbatim=True)


def _entries(
    app: App, names: list[str] | None, organization: str | None, *, every: bool, content: bool
) -> Iterator[tuple[Contract, str, Entry]]:
    from pyiceberg.exceptions import NoSuchTableError

    from catalog.tables import open_table
    from lakehouse.landing.cursor import read_cursor
    from lakehouse.landing.quarantine import read_entries
    from lakehouse.query import find_tenant, tenants

    known = tenants(app)
    wanted = [find_tenant(known, organization)] if organization else known
    for contract in chosen(app, names):
        for tenant in wanted:
            lake = app.lake(tenant.organization)
            lake.check()
            try:
                opened = open_table(lake, contract)
            except NoSuchTableError:
                # Never backfilled: nothing was read, and nothing found.
                continue
            cursor = read_cursor(opened)
            log = cursor.quarantine if cursor else None
            for entry in read_entries(opened.io, log, every=every, content=content):
                yield contract, tenant.organization, entry


def _described(contract: Contract, organization: str, entry: Entry) -> dict[str, Any]:
    return {
        "organization": organization,
        "table": contract.table,
        "key": ",".join(entry.key),
        "event": entry.event,
        "reason": "; ".join(f"{column}: {reason}" for column, reason in entry.faults),
        "faults": [{"column": column, "reason": reason} for column, reason in entry.faults],
        "xmin": entry.xmin,
        "captured_at": entry.captured_at,
        "window": entry.window,
        "sequence": entry.sequence,
        "content_sha256": entry.content_sha256,
    }
