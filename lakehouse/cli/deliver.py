"""`lakehouse deliver` and `lakehouse parity`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lakehouse.cli.capture import TableOption, chosen, error_json, open_app
from lakehouse.cli.output import JsonFlag, print_json, stderr, stdout, table
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from rich.table import Table

    from lakehouse.app import App
    from lakehouse.deliver.parity import Parity
    from lakehouse.deliver.run import Delivered
    from lakehouse.destinations import Destination

DestinationOption = Annotated[
    list[str] | None, typer.Option("--destination", help="Only this destination (name or id); repeat.")
]
Organization = Annotated[
    str | None, typer.Option("--organization", help="Only this organization's destinations (id or slug).")
]


def register(app: typer.Typer) -> None:
    app.command("deliver")(deliver)
    app.command("parity")(parity)


def _wanted(app: App, names: list[str] | None, organization: str | None) -> list[Destination]:
    from lakehouse.destinations import destinations, find
    from lakehouse.query import find_tenant, tenants

    of = find_tenant(tenants(app), organization).organization if organization is not None else None
    return [find(app, n, of) for n in names] if names else destinations(app, of)


def deliver(
    destination: DestinationOption = None,
    organization: Organization = None,
    names: TableOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Bring destinations to where the lake stands now, due or not. `lakehouse run` does it on each one's cadence.

    Exit 1 if a destination could not be reached or refused; the others were brought up all the same.
    """
    from lakehouse.deliver.run import deliver_now

    app = open_app()
    results = deliver_now(app, _wanted(app, destination, organization), [c.table for c in chosen(app, names)])
    show_delivered(results, as_json=as_json)


def show_delivered(results: list[Delivered], *, as_json: bool) -> None:
    """What was delivered; exit 1 where something was not."""
    if as_json:
        print_json([{**vars(r), "error": error_json(r.error) if r.error else None} for r in results])
    else:
        stdout.print(
            table(
                "",
                ("destination", "organization", "table", "deliveries", "sequence", "state"),
                [
                    (
                        r.destination,
                        r.organization,
                        r.table,
                        r.deliveries,
                        r.sequence,
                        "error" if r.error else "delivered",
                    )
                    for r in results
                ],
                numbers=("deliveries", "sequence"),
            )
        )
    for r in results:
        if r.error:
            stderr.print(
                f"error: {r.destination}: {r.table}: {r.error.detail}\n  {r.error.hint}", markup=False, soft_wrap=True
            )
    if any(r.error for r in results):
        raise typer.Exit(1)


def parity(
    destination: DestinationOption = None,
    organization: Organization = None,
    names: TableOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Prove that each destination shows what the lake shows, at the `_sequence` that it stands at.

    Rows and a content hash are computed there and in the lake. Exit 1 on a difference; it is named by key and column.
    """
    from lakehouse.deliver import parity as proof

    app = open_app()
    tables = [c.table for c in chosen(app, names)]
    results = list(proof.parity(app, _wanted(app, destination, organization), tables))
    if as_json:
        print_json([_json(r) for r in results])
    else:
        stdout.print(parity_table(results))
        for r in results:
            _say(r)
    if not results:
        where = " with this table" if names else ""
        raise LakehouseError(
            f"there is no destination{where} that is fed by deliveries",
            "`lakehouse destinations list` shows them; `destinations add` and `edit --table` change that.",
        )
    if not all(r.equal for r in results):
        raise typer.Exit(1)


def parity_table(results: list[Parity]) -> Table:
    """Destinations beside the lake, as a person reads it."""
    columns = (
        "destination",
        "kind",
        "organization",
        "table",
        "sequence",
        "lag",
        "rows",
        "lake rows",
        "history",
        "digest",
        "equal",
    )
    shown = [
        (r.name, r.kind, r.organization, r.table, r.sequence, r.lag, r.rows, r.lake_rows, r.versions, r.digest[-12:],
         "error" if r.error else r.equal)
        for r in results
    ]  # fmt: skip
    return table("", columns, shown, numbers=("sequence", "lag", "rows", "lake rows", "history"))


def _say(result: Parity) -> None:
    where = f"{result.name}: {result.table}"
    if result.error:
        stderr.print(f"error: {where}: {result.error.detail}\n  {result.error.hint}", markup=False, soft_wrap=True)
    if result.ended:
        stdout.print(f"{where}: {result.ended:,} rows there are of days that have left the lake", markup=False)
    for d in result.differences:
        key = ", ".join(f"{k}={v}" for k, v in d.key.items())
        where = f"{result.name}: {result.table}{'' if d.aspect == 'latest' else f', {d.aspect}'}"
        what = {"missing": "not there", "extra": "not in the lake", "content": "other content"}[d.kind]
        columns = f" in {', '.join(d.columns)}" if d.columns else ""
        stdout.print(f"{where}: {key}: {what}{columns}", markup=False, soft_wrap=True)


def _json(result: Parity) -> dict[str, object]:
    return {
        **vars(result),
        "lag": result.lag,
        "differences": [vars(d) for d in result.differences],
        "error": error_json(result.error) if result.error else None,
    }
