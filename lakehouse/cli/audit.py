"""`lakehouse audit`."""

from __future__ import annotations

from typing import Annotated

import typer

from lakehouse.cli.output import JsonFlag, print_json, stdout, table


def register(app: typer.Typer) -> None:
    app.command("audit")(audit)


def audit(
    organization: Annotated[
        str | None, typer.Option("--organization", "-o", help="Only this organization's (id or slug).")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Who decided what about archived rows, when and why: policies, holds, recalls, erasures. Lines are never lost."""
    from lakehouse.archive.audit import read_audit
    from lakehouse.archive.holds import find_organization
    from lakehouse.cli.capture import open_app

    app = open_app()
    lines = read_audit(app, find_organization(app, organization) if organization is not None else None)
    if as_json:
        print_json([vars(line) for line in lines])
        return
    shown = [
        (
            line.at,
            line.organization,
            line.actor,
            line.action,
            ", ".join(f"{k} {v}" for k, v in line.subject.items() if v not in (None, False, "", [], {})),
            line.reason,
        )
        for line in lines
    ]
    stdout.print(table("", ("at", "organization", "who", "did", "what", "why"), shown))
