"""`lakehouse keys rotate`."""

from __future__ import annotations

from typing import Annotated

import typer

from lakehouse.cli.output import JsonFlag, print_json, stderr, stdout

keys_app = typer.Typer(no_args_is_help=True, help="Keys of stored credentials.")


def register(app: typer.Typer) -> None:
    app.add_typer(keys_app, name="keys")


@keys_app.callback()
def _keys() -> None:
    """Keys of stored credentials."""


@keys_app.command("rotate")
def rotate(
    to: Annotated[
        str | None, typer.Option("--to", help="Key version to encrypt with. Default: [secrets] key_version.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Encrypt every stored credential again under another key version. Resumable; workers may run."""
    from lakehouse.cli.capture import open_app
    from lakehouse.secrets.keyring import Vault
    from lakehouse.secrets.rotate import rotate as run

    app = open_app()
    vault = Vault(app.settings)
    with app.events.unit("keys", key_version=to or vault.key_version) as event:
        result = run(app.engine, vault, to)
        event |= {"rotated": sum(result.rotated.values()), "left": sum(result.left.values())}
    if as_json:
        print_json({**vars(result), "complete": result.complete, "written_with": vault.key_version})
    else:
        done = ", ".join(f"{count:,} {name}" for name, count in result.rotated.items())
        stdout.print(f"under key {result.key_version} now: {done}", markup=False)
        left = ", ".join(f"{count:,} under {version}" for version, count in sorted(result.left.items()))
        stdout.print(f"left under an older version: {left or 'none'}", markup=False)
        if vault.key_version != result.key_version:
            stderr.print(
                f"warning: new credentials are still written with {vault.key_version}\n"
                f"  Set LAKEHOUSE_SECRETS__KEY_VERSION={result.key_version} everywhere, then rotate once more.",
                markup=False,
            )
    if not result.complete:
        raise typer.Exit(1)
