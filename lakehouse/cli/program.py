"""The command line. Results go to stdout (tables, or `--json`), progress and errors to stderr.

Exit status: 0 done and well; 1 done, and something is not well (a difference, a table in error); 2 not done.
Commands import what they need when they run: `lakehouse --help` must not load pyiceberg.
"""

from __future__ import annotations

import sys
import traceback

import typer

from lakehouse.cli import (
    adopt,
    archive,
    audit,
    capture,
    deliver,
    demo,
    destinations,
    hold,
    keys,
    lakes,
    maintain,
    prepare,
    quarantine,
    read,
    recall,
    receipts,
    retention,
    run,
    setup,
)
from lakehouse.observe.redact import redact
from schemas.errors import LakehouseError

app = typer.Typer(
    name="lakehouse",
    help="PostgreSQL to canonical Apache Iceberg tables, one namespace per organization, provably complete.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
setup.register(app)
capture.register(app)
prepare.register(app)
read.register(app)
recall.register(app)
run.register(app)
destinations.register(app)
deliver.register(app)
lakes.register(app)
adopt.register(lakes.lake_app)
retention.register(lakes.lake_app)
maintain.register(app)
archive.register(app)
demo.register(app)
keys.register(app)
quarantine.register(app)
receipts.register(app)
hold.register(app)
audit.register(app)


def run_command() -> None:
    """Run the command that was typed, and end as the module says."""
    try:
        app()
    except LakehouseError as error:
        sys.stderr.write(f"error: {redact(error.detail)}\n")
        if error.hint:
            sys.stderr.write(f"  {redact(error.hint)}\n")
        sys.exit(2)
    except BrokenPipeError:
        # `lakehouse query … | head`: the reader has what it wanted.
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:  # noqa: BLE001 - a fault of ours: shown whole, but without secrets
        if (known := _control_broke_off(error)) is not None:
            sys.stderr.write(f"error: {redact(known.detail)}\n  {known.hint}\n")
            sys.exit(2)
        # Typer puts its own hook in place of Python's, so the traceback is printed here.
        sys.stderr.write(redact("".join(traceback.format_exception(error))))
        sys.exit(1)


def _control_broke_off(error: Exception) -> LakehouseError | None:
    """Our error where the control database broke off in the middle of a command; None where it was something else."""
    if (alchemy := sys.modules.get("sqlalchemy.exc")) is None:
        return None
    if not isinstance(error, alchemy.OperationalError | alchemy.InterfaceError):
        return None
    from lakehouse.control.database import control_broke_off

    return control_broke_off("this command", error)
