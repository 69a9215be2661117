"""`lakehouse receipts keygen`, `receipts show` and `receipts verify`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lakehouse.cli.output import JsonFlag, print_json, stderr, stdout, table
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from lakehouse.app import App
    from lakehouse.archive.evidence import Verified
    from lakehouse.archive.faults import Fault
    from lakehouse.archive.receipts import Shown

COLUMNS = (
    "organization", "batch", "table", "rows", "archived at", "policy", "operator", "destinations", "snapshot",
)  # fmt: skip
"""Of `receipts show`; docs/compliance.md shows them."""

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


@receipts_app.command("show")
def show(
    organization: Annotated[
        str | None, typer.Option("--organization", "-o", help="Only this organization's (id or slug).")
    ] = None,
    name: Annotated[str | None, typer.Option("--table", help="Only batches of this table.")] = None,
    row: Annotated[str | None, typer.Option("--id", help="Only the row with this key, and its tombstone.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Only the batch with this number.")] = None,
    from_lake: Annotated[
        bool, typer.Option("--from-lake", help="Ask the lake, not the hot database; it forgets nothing.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """What left the hot database: when, why, who allowed it, and where it is. `receipts verify` checks it."""
    from lakehouse.archive.receipts import find_receipts
    from lakehouse.cli.capture import open_app, open_app_of_lake

    app = open_app_of_lake() if from_lake else open_app()
    if from_lake and organization is None:
        raise LakehouseError("--from-lake without an organization", "Say whose lake: --organization ID")
    found = find_receipts(
        app,
        _organization(app, organization, in_lake=from_lake) if organization is not None else None,
        table_name=app.contract(name).table if name is not None else None,
        row_key=row,
        number=batch,
        from_lake=from_lake,
    )
    if not found and organization is not None and not from_lake:
        from lakehouse.archive.holds import find_organization

        # Nothing of an organization that there is, or of one that was misspelt.
        find_organization(app, organization)
    if not found and (row is not None or batch is not None):
        where = "the lake" if from_lake else "the hot database"
        raise LakehouseError(
            f"{where} has no {'tombstone of that row' if row is not None else 'such receipt'}",
            "It never left by the archive, or was pruned after the audit window: --from-lake asks the lake."
            if not from_lake
            else "`lakehouse receipts show --from-lake --organization …` shows every batch that there is.",
        )
    if as_json:
        # A receipt looks like a bearer token, and is none.
        print_json([_shown(one) for one in found], verbatim=True)
    elif row is not None:
        _say_row(found)
    else:
        _say_batches(found)


@receipts_app.command("verify")
def verify(
    organization: Annotated[str, typer.Option("--organization", "-o", help="Whose receipts (id or slug).")],
    public_key: Annotated[
        list[Path] | None,
        typer.Option(
            "--public-key",
            help="The operator's public key (PEM or JWK); repeat for earlier ones. Default: of the signing key.",
        ),
    ] = None,
    chain: Annotated[
        bool, typer.Option("--chain", help="Also that no batch is missing, and what the hot database has.")
    ] = False,
    known: Annotated[
        list[str] | None,
        typer.Option("--known", metavar="NUMBER:VALUE", help="With --chain: a value of it that you kept; repeat."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check receipts, tombstones and the lake's own rows. Needs the lake and the public key, no database of the host's.

    Exit 1 and what is wrong, by batch and row, if anything is not as it was signed.
    """
    from lakehouse.archive import evidence
    from lakehouse.cli.capture import open_app_of_lake

    kept = _known(known or [])
    if kept and not chain:
        raise LakehouseError("--known without --chain", "Add --chain.")
    app = open_app_of_lake()
    keys = evidence.public_keys(app, public_key or [])
    result = evidence.verify(app, _organization(app, organization, in_lake=True), keys, chain=chain, known=kept)
    if as_json:
        print_json({**vars(result), "sound": result.sound, "faults": [vars(f) for f in result.faults]})
    else:
        _say_verified(result)
    for fault in result.faults:
        if not as_json:
            stdout.print(_fault(fault), markup=False, soft_wrap=True)
    if not result.sound:
        raise typer.Exit(1)


def _organization(app: App, name: str, *, in_lake: bool) -> str:
    """An id, or the slug of one where the host can be asked; an auditor names the id.

    Raises:
        LakehouseError: the host does not answer, and the lake (where that is asked) knows no such id.
    """
    settings = app.settings.source
    try:
        listed = app.source.organizations() if settings.given and settings.organizations_table is not None else {}
    except LakehouseError as error:
        _check_id(app, name, error.detail, in_lake=in_lake)
        return name
    if not settings.given:
        _check_id(app, name, "LAKEHOUSE_SOURCE__URL is not set", in_lake=in_lake)
    by_label = [key for key, label in listed.items() if label == name]
    return by_label[0] if name not in listed and len(by_label) == 1 else name


def _check_id(app: App, name: str, why: str, *, in_lake: bool) -> None:
    from lakehouse.archive.recorded import lake_alone

    if in_lake and lake_alone(app, name)[0].owner() is None:
        raise LakehouseError(
            f"the catalog has no organization with the id {name!r}, and the host cannot be asked for slugs: {why}",
            "Give the organization's id: --organization ID.",
        )


def _known(texts: list[str]) -> dict[int, str]:
    found = {}
    for text in texts:
        match = re.fullmatch(r"(\d+):([0-9a-f]{64})", text)
        if match is None:
            raise LakehouseError(f"--known {text}: not a number and a value", "Write what --chain printed: 12:3f…")
        found[int(match[1])] = match[2]
    return found


def _shown(one: Shown) -> dict[str, Any]:
    values = vars(one) | {"receipt": vars(one.receipt) if one.receipt is not None else None}
    return values | {"tombstones": [vars(t) for t in one.tombstones]}


def _say_batches(found: list[Shown]) -> None:
    rows = []
    for one in found:
        receipt = one.receipt
        what: tuple[Any, ...] = (
            (
                receipt.archived_at,
                receipt.policy,
                receipt.operator,
                ", ".join(
                    d["name"] if "name" in d else f"waived by {d.get('waived_by')}" for d in receipt.destinations
                ),
                str(receipt.snapshot_id),
            )
            if receipt is not None
            else ("no receipt", "", "", "", "")
        )
        rows.append((one.organization, one.number, one.table, one.rows, *what))
    stdout.print(table("", COLUMNS, rows, numbers=("batch", "rows")))


def _say_row(found: list[Shown]) -> None:
    for one in found:
        for t in one.tombstones:
            facts = {
                "row": t.row_key,
                "table": f"{t.table} of {t.organization}",
                "left": f"{t.archived_at:%Y-%m-%d %H:%M:%S} UTC, in batch {t.batch}",
                "under": f"{t.policy}, set by {t.operator}",
                "proven": f"equal to version {t.sequence} of snapshot {t.snapshot_id}, contract {t.contract_version}",
                "held by": ", ".join(t.delivered_to),
                "event time": f"{t.event_time:%Y-%m-%d %H:%M:%S} UTC" if t.event_time is not None else "",
                "bring back": f"lakehouse recall --organization {t.organization} --table {t.table} --id {t.row_key} "
                "--reason … --to table",
            }
            for name, value in facts.items():
                stdout.print(f"{name:<11} {value}", markup=False, soft_wrap=True)


def _say_verified(result: Verified) -> None:
    tables = ", ".join(f"{rows:,} {name}" for name, rows in sorted(result.tables.items()))
    lines = [
        f"organization {result.organization}: {result.batches:,} batches, {result.rows:,} rows"
        + (f" ({tables})" if tables else ""),
        f"signatures   {result.signatures:,} of {result.batches:,} good"
        + (f", of key {', '.join(result.keys)}" if result.keys else ""),
        f"tombstones   {result.tombstones:,} of {result.rows:,} as they were signed"
        + (f", {result.keyed_hashes:,} keyed hashes right" if result.keyed_hashes is not None else ""),
        f"lake         {result.contents:,} of {result.rows:,} rows there, with the content that was signed"
        + (f"; {result.ended:,} have left it by its own retention" if result.ended else ""),
    ]
    if result.chain_checked:
        value = f"{result.last}:{result.chain}"
        lines.append(f"chain        whole up to {value}" if result.chain else "chain        nothing, or not whole")
        hot = (
            "has the same" if result.hot_equal else f"{result.hot}, and differs" if result.hot_compared else result.hot
        )
        more = [
            f"{result.waiting:,} batches wait for the lake" if result.waiting else "",
            f"{result.lake_alone:,} batches have their tombstones in the lake alone" if result.lake_alone else "",
        ]
        lines.append("; ".join([f"hot database {hot}", *filter(None, more)]))
    for text in [*lines, *(f"note: {n}" for n in result.notes)]:
        stdout.print(text, markup=False, soft_wrap=True)


def _fault(fault: Fault) -> str:
    where = f"batch {fault.batch}: " if fault.batch is not None else ""
    named = ", ".join(fault.keys)
    more = f" and {fault.rows - len(fault.keys):,} more" if fault.rows and fault.rows > len(fault.keys) else ""
    return f"{where}{fault.what}: {fault.detail}{': ' + named + more if named else ''}"
