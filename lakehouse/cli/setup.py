"""`lakehouse init` and `lakehouse contract …`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lakehouse.cli.output import JsonFlag, print_json, stderr, stdout, table

contract_app = typer.Typer(no_args_is_help=True, help="Contracts: the published definition of every table.")


def register(app: typer.Typer) -> None:
    app.command("init")(init)
    app.add_typer(contract_app, name="contract")


def init(
    organization: Annotated[
        list[str] | None,
        typer.Option("--organization", help="Enrol this organization (id); repeat for more. Default: all of them."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Create or upgrade the control tables, and give every organization its lake. Safe to repeat."""
    from lakehouse.app import App
    from lakehouse.control.database import migrate
    from lakehouse.settings import load_settings
    from schemas.errors import LakehouseError

    app = App(load_settings())
    tables = list(app.contracts)
    if organization and app.settings.source.organizations_table is None:
        known = dict.fromkeys(organization, "")
    else:
        known = app.source.organizations()
    if unknown := sorted(set(organization or ()) - set(known)):
        raise LakehouseError(
            f"{app.settings.source.organizations_table} has no organization {', '.join(unknown)}",
            "Give ids as they stand in the tenant column.",
        )
    app.probe_storage()
    app.engine = migrate(app.settings)
    app.recognize_catalog()
    app.enrolled()
    added: list[str] = []
    present: list[str] = []
    errors: dict[str, LakehouseError] = {}
    for one in organization or known:
        try:
            new = app.enrol(one)
        except LakehouseError as error:
            errors[one] = error
            continue
        (added if new else present).append(one)
    result = {
        "installation": app.settings.installation,
        "control_schema": app.settings.control.schema_name,
        "warehouse": app.settings.lake.warehouse,
        "tables": tables,
        "added": added,
        "present": present,
        "errors": {o: {"detail": e.detail, "hint": e.hint} for o, e in errors.items()},
    }
    if as_json:
        print_json(result)
    else:
        stdout.print(
            f"installation {app.settings.installation}: control tables in schema {app.settings.control.schema_name}, "
            f"lake at {app.settings.lake.warehouse}, {len(tables)} tables"
        )
        stdout.print(f"organizations: {len(added)} new, {len(present)} already there")
        for one, fault in errors.items():
            stderr.print(f"error: organization {one}: {fault.detail}\n  {fault.hint}", markup=False)
    if errors:
        raise typer.Exit(1)


@contract_app.command("check")
def check(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Contract files or folders of them. Default: the settings'.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check contracts: every fault with its file and field."""
    from lakehouse.settings import load_settings
    from schemas.contract import BUILT_IN, Contract, load_contract, load_contracts
    from schemas.errors import LakehouseError

    if paths:
        contracts: dict[str, Contract] = {}
        for path in paths:
            if path.is_dir():
                contracts |= load_contracts([path])
            else:
                contract = load_contract(path)
                contracts[contract.table] = contract
    else:
        try:
            folders = load_settings().contract_folders
        except LakehouseError:
            # Without settings the built-in contracts can still be checked.
            folders = [BUILT_IN]
        contracts = load_contracts(folders)
    rows = [
        (
            c.table,
            c.version,
            c.source_name,
            len(c.columns),
            len(c.not_exported),
            c.event_time,
            c.retention,
            c.provisional,
        )
        for c in contracts.values()
    ]
    names = ("table", "version", "source", "columns", "not exported", "event time", "retention", "provisional")
    if as_json:
        print_json([dict(zip(names, row, strict=True)) for row in rows])
    else:
        stdout.print(table("", names, rows, numbers=("columns", "not exported")))


@contract_app.command("docs")
def docs() -> None:
    """Print the documentation of every table, as Markdown."""
    from schemas.contract import BUILT_IN, load_contracts
    from schemas.documentation import contracts_markdown

    sys.stdout.write(contracts_markdown(load_contracts([BUILT_IN])))


@contract_app.command("draft")
def draft(
    source_table: Annotated[str, typer.Option("--table", help="The hot table, as schema.table.")],
    name: Annotated[str | None, typer.Option(help="Name of the lake table. Default: the hot table's.")] = None,
    tenant: Annotated[str | None, typer.Option(help="The column that names the organization.")] = None,
    event_time: Annotated[
        str | None, typer.Option(help="The timestamp that partitions; it never changes for a key.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A contracts folder; writes <table>/v1.json there. Default: stdout."),
    ] = None,
) -> None:
    """Write a first contract for any table, from the database's catalog. Notes go to stderr: read them."""
    from lakehouse.capture.source import Source
    from lakehouse.drafting import draft_contract, format_contract
    from lakehouse.settings import load_source_settings
    from schemas.contract import parse_contract
    from schemas.errors import LakehouseError

    with Source(load_source_settings()).catalog() as connection:
        drafted = draft_contract(connection, source_table, name=name, tenant=tenant, event_time=event_time)
    contract = parse_contract(drafted.contract, where="the draft")
    text = format_contract(drafted.contract)
    for note in drafted.notes:
        stderr.print(f"note: {note}", markup=False)
    if output is None:
        sys.stdout.write(text)
        return
    path = output / contract.table / f"v{contract.major}.json"
    if path.exists():
        raise LakehouseError(f"{path} is there already", "A draft overwrites nothing: move it away, or give --name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    stdout.print(f"wrote {path}", markup=False)
    stdout.print(
        f'to use it beside the built-in ones: export LAKEHOUSE_CONTRACTS=\'["builtin", "{output}"]\'', markup=False
    )
