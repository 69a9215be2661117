"""`lakehouse lake …`: organizations' lakes."""

from __future__ import annotations

import typer

lake_app = typer.Typer(no_args_is_help=True, help="Organizations' lakes.")


def register(app: typer.Typer) -> None:
    app.add_typer(lake_app, name="lake")
