"""`lakehouse receipts keygen`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lakehouse.cli.output import JsonFlag, print_json, stderr, stdout

receipts_app = typer.Typer(no_args_is_help=True, help="Receipts: signed proof of what left the hot database.")


def register(app: typer.Typer) -> None:
    app.add_typer(receipts_app, name="receipts")


@receipts_app.callback()
def _receipts() -> None:
    """Receipts: signed proof of what left the hot database."""


@receipts_app.command("keygen")
def keygen(
    file: Annotated[Path, typer.Argument(help="The private key's new file; never one that is there.")],
    as_json: JsonFlag = False,
) -> None:
    """Make the key that receipts are signed with (Ed25519), and print its public half for whoever checks them."""
    from lakehouse.archive.seal import make_signing_key

    public = make_signing_key(file)
    jwk = {**public.jwk, "kid": public.thumbprint}
    if as_json:
        print_json({"file": str(file), "public_key": public.pem, "jwk": jwk, "thumbprint": public.thumbprint})
        return
    stdout.print(public.pem, end="", markup=False, soft_wrap=True)
    print_json(jwk)
    stderr.print(
        f"the private key is in {file}: keep it from others, and keep a copy\n"
        f"  Set LAKEHOUSE_ARCHIVE__SIGNING_KEY_FILE={file}, and give the public key to who checks receipts.",
        markup=False,
        soft_wrap=True,
    )
