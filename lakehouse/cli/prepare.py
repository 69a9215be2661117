"""`lakehouse source prepare`: the hot tables' part of the trigger method."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lakehouse.cli.capture import TableOption, chosen, open_app, source_app
from lakehouse.cli.output import JsonFlag, print_json, stderr, stdout
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from lakehouse.app import App
    from lakehouse.capture.prepare import Work
    from schemas.contract import Contract


def register(app: typer.Typer) -> None:
    # Below `source`, which `capture` has registered.
    del app
    source_app.command("prepare")(prepare)


def prepare(
    show: Annotated[bool, typer.Option("--print", help="Print the SQL, for psql, and the lines for Prisma.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Run it. Safe to repeat, and to interrupt.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Undo all of it.")] = False,
    names: TableOption = None,
    url: Annotated[
        str | None,
        typer.Option(help="The hot database as its tables' owner. Default: source.owner_url, then source.url."),
    ] = None,
    lock_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds to wait for a table's lock; others wait meanwhile.")
    ] = 2.0,
    attempts: Annotated[int, typer.Option(min=1, help="How often to try for a lock.")] = 10,
    as_json: JsonFlag = False,
) -> None:
    """Prepare tables for the trigger method: column, index, triggers, tombstone log. Exactly one of the three."""
    if (show, apply, remove).count(True) != 1:
        raise LakehouseError(
            "`source prepare` wants exactly one of --print, --apply and --remove",
            "--print shows what --apply would do, and changes nothing.",
        )
    from lakehouse.capture import prepare as preparing
    from lakehouse.settings import method_of

    app = open_app()
    contracts = chosen(app, names)
    reader = preparing.reader_of(app.source)
    done: list[Work] = []
    errors: dict[str, LakehouseError] = {}
    with _checked_owner(app, url).catalog() as connection, preparing.alone(connection):
        for contract in contracts:
            try:
                work = _work(connection, contract, reader, remove=remove)
                done.append(work)
                if not show and not work.absent:
                    preparing.run(connection, contract, work, lock_seconds=lock_timeout, attempts=attempts)
            except LakehouseError as error:
                errors[contract.table] = error
    lines = {w.table: preparing.prisma_lines(app.contract(w.table)) for w in done if not (remove or w.absent)}
    if as_json:
        print_json(
            {
                "tables": [
                    {
                        "table": w.table,
                        "source": w.source,
                        "absent": w.absent,
                        "missing": w.faults,
                        "statements": [s for step in w.steps for s in step.statements],
                        "done": w.done,
                        "prisma": lines.get(w.table),
                    }
                    for w in done
                ],
                "errors": {t: {"detail": e.detail, "hint": e.hint, "retry": e.retry.value} for t, e in errors.items()},
            }
        )
    elif show:
        for work in done:
            sys.stdout.write("-- not there yet\n" if work.absent else preparing.script(work, lock_timeout))
        sys.stdout.write("\n" + "".join(f"-- {line}\n" for t in lines.values() for line in t.splitlines()))
    else:
        for work in done:
            stdout.print(f"{work.table}: {_outcome(work, remove=remove)}", markup=False, soft_wrap=True)
    used = [c.table for c in contracts if method_of(app.settings.capture, c) == "trigger" and c.table not in errors]
    if remove and used:
        stderr.print(
            f"warning: the settings capture {', '.join(used)} by trigger, which now fails: change "
            "LAKEHOUSE_CAPTURE__METHOD or __METHODS",
            markup=False,
        )
    for table, fault in errors.items():
        stderr.print(f"error: {table}: {fault.detail}\n  {fault.hint}", markup=False, soft_wrap=True)
    if errors:
        raise typer.Exit(1)


def _work(connection: Any, contract: Contract, reader: str, *, remove: bool) -> Work:
    from lakehouse.capture import prepare as preparing
    from lakehouse.capture.source import SourceTableMissing

    try:
        if remove:
            return preparing.removal_of(connection, contract)
        return preparing.work_for(connection, contract, reader)
    except SourceTableMissing:
        if not contract.provisional:
            raise
        return preparing.Work(contract.table, contract.source_name, absent=True)


def _outcome(work: Work, *, remove: bool) -> str:
    if work.absent:
        return "not there yet"
    if not work.done:
        return "not done"
    if not work.steps:
        return "nothing to remove" if remove else "was prepared already"
    return "removed" if remove else f"prepared ({', '.join(s.name for s in work.steps)})"


def _checked_owner(app: App, url: str | None) -> Any:
    from lakehouse.capture.prepare import owner_source
    from lakehouse.settings import SourceSettings

    if url is not None:
        # The same check as for a setting: what a driver says of a bad URL repeats its password.
        try:
            SourceSettings.model_validate({"url": url})
        except ValueError:
            raise LakehouseError(
                "--url: must look like postgresql://user:password@host:5432/database, with one host"
            ) from None
    return owner_source(app.source, url)
