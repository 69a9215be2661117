"""`lakehouse lake add` and `lake list`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lakehouse.cli.output import JsonFlag, print_json, stdout, table
from schemas.errors import LakehouseError

lake_app = typer.Typer(no_args_is_help=True, help="Lakes: where organizations' tables live.")


def register(app: typer.Typer) -> None:
    app.add_typer(lake_app, name="lake")


@lake_app.command("add")
def add(
    organization: Annotated[str, typer.Option("--organization", help="Whose lake it is (id).")],
    warehouse: Annotated[str, typer.Option("--warehouse", help="s3://bucket/prefix, of the organization's own.")],
    endpoint: Annotated[str | None, typer.Option("--endpoint", help="Another S3 server than AWS, as https://…")] = None,
    region: Annotated[str | None, typer.Option("--region", help="The bucket's region.")] = None,
    catalog_uri: Annotated[
        str | None, typer.Option("--catalog-uri", help="A catalog database of its own; with a password, use the file.")
    ] = None,
    credentials_file: Annotated[
        str | None,
        typer.Option(
            "--credentials-file",
            help="JSON with access_key_id, secret_access_key, session_token, catalog_uri; - reads stdin.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Give an organization a lake in a bucket of its own; again with the same bucket: store other credentials."""
    from lakehouse.cli.capture import open_app
    from lakehouse.lakes import add_lake, parse_credentials
    from lakehouse.observe.redact import remember_all, remember_url

    credentials = parse_credentials(_read(credentials_file)) if credentials_file else {}
    if catalog_uri:
        credentials["catalog_uri"] = catalog_uri
    remember_all(credentials)
    remember_url(endpoint)
    app = open_app()
    try:
        result = add_lake(app, organization, warehouse, endpoint=endpoint, region=region, credentials=credentials)
    finally:
        app.close()
    if as_json:
        print_json(result)
    else:
        stdout.print(f"organization {organization}: lake at {result['warehouse']}", markup=False)
        stdout.print(f"catalog: {result['catalog']}", markup=False)


def _read(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LakehouseError(f"--credentials-file {file}: cannot be read: {type(error).__name__}") from error


@lake_app.command("list")
def list_lakes(as_json: JsonFlag = False) -> None:
    """Every organization's lake: where it is, whose keys open it, and under which key version they are stored."""
    from catalog.lake import CATALOG, OWN
    from lakehouse.cli.capture import open_app
    from lakehouse.control import store

    app = open_app()
    rows = [
        {
            "organization": row.organization_id,
            "namespace": row.namespace,
            "own": OWN in row.catalog_config,
            "warehouse": row.warehouse,
            "endpoint": row.catalog_config.get("endpoint"),
            "catalog": row.catalog_config.get(CATALOG, app.catalog_identity),
            "credentials": "stored" if row.encrypted_credentials else "settings",
            "key_version": row.token_key_version if row.encrypted_credentials else None,
            "stopped_at": row.stopped_at,
            "stopped_reason": row.stopped_reason,
        }
        for row in store.lakes(app.engine)
    ]
    if as_json:
        print_json(rows)
        return
    shown = ("organization", "own", "warehouse", "endpoint", "catalog", "credentials", "key_version", "stopped_reason")
    stdout.print(table("", shown, [tuple(row[name] for name in shown) for row in rows]))
