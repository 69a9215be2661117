"""The program `lakehouse`. `lakehouse.cli.program` has its commands; this is what starts first.

`lakehouse sync --once` is run every few minutes by somebody's scheduler and mostly finds nothing: it looks before it
loads anything else (`lakehouse.glance`). Whatever that cannot answer goes the ordinary way.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typer import Typer

    app: Typer


def __getattr__(name: str) -> Any:
    # The commands take longer to load than a glance at the tables.
    if name == "app":
        from lakehouse.cli.program import app

        return app
    raise AttributeError(name)


def main() -> None:
    """Entry point of the `lakehouse` program. What it prints of errors is redacted, also of those it does not know."""
    from lakehouse.observe.redact import install

    install()
    if not quiet_round(sys.argv[1:]):
        from lakehouse.cli.program import run_command

        run_command()


def quiet_round(arguments: Sequence[str]) -> bool:
    """Answer `sync --once [--table NAME]… [--json]` if there is nothing to do. False: nothing was done or printed."""
    asked = _asked(arguments)
    if asked is None:
        return False
    from lakehouse.glance import nothing_to_do
    from lakehouse.settings import load_settings
    from schemas.errors import LakehouseError

    tables, as_json = asked
    try:
        found = nothing_to_do(load_settings(), tables or None)
    except LakehouseError:
        # The command meets it again, and says it as it says all errors.
        return False
    if found is None:
        return False
    if as_json:
        import json

        shown = [
            {**vars(r), "captured_at": r.captured_at.isoformat() if r.captured_at else None, "errors": {}}
            for r in found
        ]
        sys.stdout.write(json.dumps(shown, indent=2, ensure_ascii=False) + "\n")
    else:
        for result in found:
            state = f"{len(result.waiting)} not backfilled" if result.waiting else "nothing to do"
            seen = f"{result.captured_at:%Y-%m-%d %H:%M:%S}" if result.captured_at else ""
            sys.stdout.write(f"{result.table:20}  {seen:19}  {state}\n")
    return True


def _asked(arguments: Sequence[str]) -> tuple[list[str], bool] | None:
    if not arguments or arguments[0] != "sync" or "--once" not in arguments:
        return None
    tables: list[str] = []
    rest = iter(arguments[1:])
    for argument in rest:
        if argument == "--table":
            tables.append(next(rest, ""))
        elif argument not in ("--once", "--json"):
            return None
    return tables, "--json" in arguments
