"""`lakehouse destinations …` and `lakehouse deliveries …`."""

from __future__ import annotations

import dataclasses
import json
import math
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lakehouse.cli.capture import open_app
from lakehouse.cli.output import JsonFlag, duration, parse_duration, print_json, stdout, table
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from lakehouse.destinations import Destination

destinations_app = typer.Typer(no_args_is_help=True, help="Where organizations want their tables.")
deliveries_app = typer.Typer(no_args_is_help=True, help="The outbox: what is under way, waits or was given up.")

Name = Annotated[str, typer.Argument(help="Its name, or its id.")]
Organization = Annotated[str | None, typer.Option("--organization", help="The organization (id or slug).")]
Tables = Annotated[list[str] | None, typer.Option("--table", help="Only this table; repeat. Default: all.")]
Cadence = Annotated[str | None, typer.Option("--cadence", help="How often: 5s, 15m, 1h.")]
TableCadence = Annotated[
    list[str] | None, typer.Option("--table-cadence", help="TABLE=5s; TABLE=default takes it back. Repeat.")
]


def register(app: typer.Typer) -> None:
    app.add_typer(destinations_app, name="destinations")
    app.add_typer(deliveries_app, name="deliveries")


def _organization(app: Any, name: str | None) -> str | None:
    from lakehouse.query import find_tenant, tenants

    return find_tenant(tenants(app), name).organization if name is not None else None


def _cadence(text: str, option: str) -> int:
    return max(1, math.ceil(parse_duration(text, option)))


def _table_cadences(given: list[str] | None) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for item in given or ():
        name, separator, text = item.partition("=")
        if not separator:
            raise LakehouseError(f"--table-cadence {item}: not TABLE=TIME", "For example events=10s.")
        found[name] = None if text == "default" else _cadence(text, f"--table-cadence {name}")
    return found


@destinations_app.command("list")
def list_(organization: Organization = None, as_json: JsonFlag = False) -> None:
    """Every destination, its cadence and how it does."""
    from lakehouse.destinations import destinations

    app = open_app()
    _show(destinations(app, _organization(app, organization)), as_json=as_json)


@destinations_app.command("add")
def add(
    kind: Annotated[str, typer.Option("--kind", help="ICEBERG_S3, POSTGRES_REPLICA, PARQUET_S3 or JSONL_S3.")],
    name: Annotated[str, typer.Option("--name", help="What people call it.")],
    organization: Organization = None,
    vendor_wide: Annotated[
        bool, typer.Option("--vendor-wide", help="Every organization's rows in one table, for the operator alone.")
    ] = False,
    config: Annotated[str, typer.Option("--config", help="A JSON object; its keys depend on the kind.")] = "{}",
    credentials_file: Annotated[
        Path | None, typer.Option("--credentials-file", help="JSON: url, or access_key_id and secret_access_key.")
    ] = None,
    tables: Tables = None,
    cadence: Cadence = None,
    table_cadence: TableCadence = None,
    as_json: JsonFlag = False,
) -> None:
    """Add a destination; deliveries begin at once."""
    from lakehouse import destinations as operations

    try:
        parsed = json.loads(config)
    except ValueError as error:
        raise LakehouseError(f"--config is not JSON: {error}", 'For example --config \'{"key": "value"}\'.') from error
    if not isinstance(parsed, dict):
        raise LakehouseError("--config must be a JSON object", 'For example --config \'{"key": "value"}\'.')
    if (organization is None) != vendor_wide:
        raise LakehouseError("say either --organization or --vendor-wide", "A vendor-wide one holds everybody's rows.")
    app = open_app()
    of = _organization(app, organization)
    made = operations.add(
        app,
        organization=of,
        kind=kind,
        name=name,
        config=parsed,
        tables=tables or [],
        cadence_seconds=_cadence(cadence, "--cadence") if cadence else app.settings.schedule.cadence_seconds,
        table_cadences={t: s for t, s in _table_cadences(table_cadence).items() if s is not None},
        credentials=_credentials(credentials_file) if credentials_file else None,
    )
    _show([made], as_json=as_json)


def _credentials(file: Path) -> dict[str, str]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        # A JSON error quotes nothing of the file, but its position says enough.
        at = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise LakehouseError(
            f"--credentials-file {file}: cannot be read as JSON{at}", 'For example {"url": "postgresql://…"}.'
        ) from None
    if not isinstance(found, dict):
        raise LakehouseError(f"--credentials-file {file}: is no JSON object", 'For example {"url": "postgresql://…"}.')
    return found


@destinations_app.command("edit")
def edit(
    destination: Name,
    organization: Organization = None,
    name: Annotated[str | None, typer.Option("--name", help="A new name.")] = None,
    tables: Annotated[
        list[str] | None, typer.Option("--table", help="Only these tables from now on; '*' for all. Repeat.")
    ] = None,
    cadence: Cadence = None,
    table_cadence: TableCadence = None,
    credentials_file: Annotated[
        Path | None,
        typer.Option("--credentials-file", help="Other credentials; the target is reached with them first."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Change its name, tables, cadence or credentials; the next planning goes by it.

    What was given up stays so: then `lakehouse deliveries retry`.
    """
    from lakehouse import destinations as operations

    app = open_app()
    found = operations.find(app, destination, _organization(app, organization))
    edited = operations.edit(
        app,
        found,
        name=name,
        tables=tables,
        cadence_seconds=_cadence(cadence, "--cadence") if cadence else None,
        table_cadences=_table_cadences(table_cadence),
        credentials=_credentials(credentials_file) if credentials_file else None,
    )
    _show([edited], as_json=as_json)


@destinations_app.command("pause")
def pause(destination: Name, organization: Organization = None) -> None:
    """Begin nothing new for it; what is under way is finished. Nothing is lost: it goes on where it stands."""
    _status(destination, organization, "paused")


@destinations_app.command("resume")
def resume(destination: Name, organization: Organization = None) -> None:
    """Go on where it stands."""
    _status(destination, organization, "active")


@destinations_app.command("resync")
def resync(
    destination: Name,
    organization: Organization = None,
    tables: Tables = None,
    as_json: JsonFlag = False,
) -> None:
    """Fill it anew from the lake's current state: it was cleared, altered, or is an older copy.

    Readers see what was there before or all of the new, which is compared in full. One that was interrupted goes on
    where it was; `destinations list` shows how far. Exit 1 if a table could not be filled.
    """
    from lakehouse import destinations as operations
    from lakehouse.cli.deliver import show_delivered
    from lakehouse.deliver.run import resync as fill

    app = open_app()
    found = operations.find(app, destination, _organization(app, organization))
    for name in tables or []:
        if not {app.contract(name).table, "*"} & set(found.tables):
            raise LakehouseError(
                f"{found.name} has no table {name}", f"It has: {', '.join(found.tables)}; `destinations edit --table`."
            )
    show_delivered(fill(app, found, tables or list(app.contracts)), as_json=as_json)


@destinations_app.command("remove")
def remove(destination: Name, organization: Organization = None) -> None:
    """Remove it; what it was delivered stays there, and so do the records of that. What waits for it is dropped."""
    from lakehouse import destinations as operations

    app = open_app()
    found = operations.find(app, destination, _organization(app, organization))
    operations.remove(app, found)
    stdout.print(f"removed {found.name} ({found.kind}) of {found.organization or 'all organizations'}", markup=False)


@destinations_app.command("test")
def reach(destination: Name, organization: Organization = None, as_json: JsonFlag = False) -> None:
    """Reach it as a delivery would, and leave nothing there."""
    from lakehouse import destinations as operations

    app = open_app()
    found = operations.find(app, destination, _organization(app, organization))
    result = operations.reach(app, found)
    if as_json:
        print_json(result)
    else:
        stdout.print(f"{found.name}: {found.target} is reached and is ours", markup=False, soft_wrap=True)


def _status(destination: str, organization: str | None, status: str) -> None:
    from federation.kinds import DestinationStatus
    from lakehouse import destinations as operations

    app = open_app()
    found = operations.find(app, destination, _organization(app, organization))
    operations.set_status(app, found, DestinationStatus(status))
    stdout.print(f"{found.name} ({found.kind}) of {found.organization or 'all organizations'}: {status}", markup=False)


def _show(found: list[Destination], *, as_json: bool) -> None:
    if as_json:
        print_json([dataclasses.asdict(d) for d in found])
        return
    stdout.print(
        table(
            "",
            (
                "organization",
                "name",
                "kind",
                "status",
                "cadence",
                "tables",
                "open",
                "lag",
                "bound",
                "filling",
                "last delivery",
                "last error",
            ),
            [
                (
                    d.organization or "(all)",
                    d.name,
                    d.kind,
                    d.status,
                    duration(d.cadence_seconds)
                    + "".join(f", {t} {duration(s)}" for t, s in sorted(d.table_cadences.items())),
                    "all" if d.tables == ["*"] else ", ".join(d.tables),
                    d.open_deliveries,
                    d.lag,
                    d.bound,
                    ", ".join(f"{f.table} {f.rows:,} of {f.of:,}" for f in d.fillings),
                    d.last_delivery_at,
                    d.last_error,
                )
                for d in found
            ],
            numbers=("open", "lag", "bound"),
        )
    )


@deliveries_app.command("list")
def list_deliveries(
    organization: Organization = None,
    table_name: Annotated[str | None, typer.Option("--table", help="Only this table.")] = None,
    destination: Annotated[str | None, typer.Option("--destination", help="Only this destination (id).")] = None,
    status: Annotated[
        str | None, typer.Option("--status", help="PENDING, PROCESSING, DELIVERED, FAILED or DEAD_LETTER.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Those too that are delivered.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest first.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """What is under way, waits for a retry or was given up; --all for what is delivered too."""
    from federation.kinds import DeliveryStatus
    from lakehouse.destinations import deliveries

    app = open_app()
    try:
        wanted = DeliveryStatus(status.upper()) if status else None
    except ValueError:
        raise LakehouseError(
            f"--status {status}: no status has this name", f"There are: {', '.join(DeliveryStatus)}."
        ) from None
    rows = deliveries(
        app,
        organization=_organization(app, organization),
        table=table_name,
        destination=str(_uuid(destination)) if destination else None,
        status=wanted,
        all_of_them=everything,
        limit=limit,
    )
    if as_json:
        print_json(rows)
        return
    names = ("id", "organization", "table", "status", "rows", "attempts", "next attempt", "lease", "error")
    stdout.print(
        table(
            "",
            names,
            [
                (
                    r["id"],
                    r["organization_id"],
                    r["table_name"],
                    r["status"],
                    r["row_count"],
                    r["attempts"],
                    r["next_attempt_at"] if r["status"] in ("PENDING", "FAILED") else None,
                    r["lease_owner"],
                    r["last_error"],
                )
                for r in rows
            ],
            numbers=("rows", "attempts"),
        )
    )


@deliveries_app.command("show")
def show_delivery(delivery: Annotated[str, typer.Argument(help="Its id.")], as_json: JsonFlag = False) -> None:
    """One delivery with the window and files behind it."""
    from sqlalchemy import select

    from lakehouse.control.models import Landing, WarehouseDelivery, Window

    app = open_app()
    identifier = _uuid(delivery)
    with app.engine.connect() as connection:
        row = connection.execute(
            select(WarehouseDelivery.__table__).where(WarehouseDelivery.id == identifier)
        ).one_or_none()
        if row is None:
            raise LakehouseError(f"no delivery {delivery}", "`lakehouse deliveries list --all` shows them.")
        landing = connection.execute(
            select(Landing.status, Landing.files, Landing.byte_count, Landing.fence_before).where(
                Landing.window_id == row.window_id, Landing.organization_id == row.organization_id
            )
        ).one_or_none()
        window = connection.execute(select(Window.__table__).where(Window.id == row.window_id)).one_or_none()
    found = {
        **row._mapping,
        "landing": dict(landing._mapping) if landing else None,
        "window": dict(window._mapping) if window else None,
    }
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        stdout.print(f"{name:<16} {value}", markup=False, soft_wrap=True)


@deliveries_app.command("retry")
def retry(
    delivery: Annotated[list[str] | None, typer.Argument(help="Their ids.")] = None,
    organization: Organization = None,
    table_name: Annotated[str | None, typer.Option("--table", help="Only this table.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything that failed or was given up.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Try again now what failed or was given up, with all its attempts before it: deliveries, and captures."""
    from federation.kinds import DeliveryStatus
    from lakehouse.control import store
    from lakehouse.destinations import deliveries
    from lakehouse.outbox import tasks
    from lakehouse.outbox.deliveries import retry_now

    if bool(delivery) + bool(organization or table_name) + everything != 1:
        raise LakehouseError(
            "say which: ids, or --organization and/or --table, or --all", "`lakehouse deliveries list` shows them."
        )
    app = open_app()
    if table_name is not None:
        app.contract(table_name)
    of = _organization(app, organization)
    captures: list[tuple[str, str]] = []
    waiting: list[str] = []
    if delivery:
        chosen = [_uuid(d) for d in delivery]
    else:
        chosen = [
            row["id"]
            for status in (DeliveryStatus.FAILED, DeliveryStatus.DEAD_LETTER)
            for row in deliveries(app, organization=of, table=table_name, status=status, limit=100_000)
        ]
        captures = store.retry_cursors(app.engine, organization=of, table=table_name)
        if of is None:
            waiting = tasks.retry_now(app.engine, table_name)
    done = retry_now(app.engine, chosen)
    if as_json:
        print_json(
            {"deliveries": done, "captures": [{"organization": o, "table": t} for o, t in captures], "tasks": waiting}
        )
        return
    stdout.print(f"{len(done)} deliveries, {len(captures)} captures and {len(waiting)} tasks are tried again now")
    if delivery and (left := set(chosen) - set(done)):
        raise LakehouseError(
            f"{len(left)} of them neither failed nor were given up: {', '.join(map(str, left))}",
            "Nothing was changed for those.",
        )


def _uuid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise LakehouseError(f"{text!r} is not an id", "Ids are what `--json` and `list` show.") from None
