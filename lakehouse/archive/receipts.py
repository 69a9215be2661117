"""Finds receipts and tombstones to be shown: from the hot database, or from the lake alone. Nothing is checked here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from lakehouse.archive.hot_records import HotRecords
from lakehouse.archive.installation import connect_if_installed, table
from lakehouse.archive.recorded import Recorded, lake_alone, open_recorded
from lakehouse.archive.records import Receipt, Tombstone
from lakehouse.archive.seal import ReceiptError, read_unverified

if TYPE_CHECKING:
    from lakehouse.app import App


@dataclass(frozen=True)
class Shown:
    """A batch's receipt as it stands. `receipt`: None where it is none; `tombstones`: of the row that was asked for."""

    organization: str
    number: int
    table: str
    rows: int
    jws: str
    receipt: Receipt | None
    chain: str
    tombstones: tuple[Tombstone, ...] = ()


def find_receipts(
    app: App,
    organization: str | None = None,
    *,
    table_name: str | None = None,
    row_key: str | None = None,
    number: int | None = None,
    from_lake: bool = False,
) -> list[Shown]:
    """Receipts of batches, in order of organization and number; only those that have to do with what is named.

    `organization`: None for all of the hot database's. `row_key`: the row's key text, with its tombstones.

    Raises:
        LakehouseError: database or lake do not answer.
    """
    if from_lake:
        assert organization is not None  # noqa: S101 - the command asks for it
        found = _of_lake(app, organization, table_name, row_key)
    else:
        found = _of_database(app, organization, table_name, row_key)
    return [
        one
        for one in found
        if (number is None or one.number == number)
        and (table_name is None or one.table == table_name)
        and (row_key is None or one.tombstones)
    ]


def _of_database(app: App, organization: str | None, table_name: str | None, row_key: str | None) -> Iterator[Shown]:
    with connect_if_installed(app) as connection:
        if connection is None:
            return
        wanted = [organization] if organization is not None else [
            row[0]
            for row in connection.execute(
                sql.SQL("SELECT DISTINCT organization_id FROM {} ORDER BY 1").format(table("batches"))
            )
        ]  # fmt: skip
        for each in wanted:
            hot = HotRecords(connection, each, "")
            tombstones = hot.of_row(row_key, table_name) if row_key is not None else []
            yield from _shown(each, list((hot.exported() or {}).values()), tombstones)


def _of_lake(app: App, organization: str, table_name: str | None, row_key: str | None) -> Iterator[Shown]:
    lake, _ = lake_alone(app, organization)
    with open_recorded(lake) as (_connection, archive):
        if archive is not None:
            tombstones = archive.of_row(row_key, table_name) if row_key is not None else []
            yield from _shown(organization, archive.batches(), tombstones)


def _shown(organization: str, batches: list[Recorded], tombstones: list[Tombstone]) -> Iterator[Shown]:
    for batch in batches:
        jws = batch.receipt or ""
        try:
            receipt = read_unverified(jws)
        except ReceiptError:
            receipt = None
        yield Shown(
            organization,
            batch.number,
            ", ".join(batch.tables),
            batch.rows,
            jws,
            receipt,
            batch.chain or "",
            tuple(t for t in tombstones if t.batch == batch.number),
        )
