"""Brings committed batches into the lake's `_archive`, tombstone by tombstone, in the order of their numbers.

The highest number that is there is a property of the table, committed with the rows in one snapshot; whoever commits
has read the table again and found it where the rows were gathered for. So a reply that was lost, another exporter and
a death anywhere are settled by asking the table: nothing comes twice, and nothing is left out. Only then does the hot
database note `exported_at`, without which no tombstone is pruned. When it fails, tombstones stay where they are.

A hot database that was restored from an older copy has forgotten batches that the lake has: `recover_batches` puts
them back, so that the chain goes on from the lake's end. A number that stands for one batch here and for another
there is an error for a person.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from catalog.errors import CatalogError, lake_errors
from catalog.lake import INSTALLATION_PROPERTY
from catalog.tables import ensure_records
from lakehouse.archive.archive_table import ARCHIVE, Standing, open_archive, read_standing
from lakehouse.archive.hot_records import BATCHES_RESTORED
from lakehouse.archive.installation import ArchiveError, connect_if_installed, lock_organization, note, table
from lakehouse.duck import arrow, lake_relation
from lakehouse.duck import connect as connect_duck
from lakehouse.failpoints import failpoint
from lakehouse.landing.commit import ATTEMPTS, PART_SUMMARY, WINDOW_SUMMARY
from lakehouse.landing.held import unreadable
from lakehouse.landing.parquet import StagedFile, describe_data_file, lake_rows, row_groups, write_stream
from schemas.errors import LakehouseError, Retry
from schemas.lake_columns import UPSERT, arrow_schema

if TYPE_CHECKING:
    from datetime import datetime

    import pyarrow as pa
    from pyiceberg.table import Table

    from lakehouse.app import App

COMMIT_ROWS = 200_000
"""Tombstones of one commit, about: many small batches are one snapshot and one file."""
PAGE_ROWS = 10_000
STORED = tuple(c.name for c in ARCHIVE.columns if c.name not in ("batch_id", "receipt", "chain"))
"""Columns that a tombstone has in the hot database too."""
BATCHES_SUMMARY = "lakehouse.batches"

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True)
class _Batch:
    number: int
    id: str
    table: str
    rows: int
    receipt: str
    chain: str


def export_batches(app: App, organization: str) -> int:
    """Bring an organization's committed batches into its lake; returns how many this call brought. Idempotent.

    Costs one look where there is nothing to do. Memory is a row group's, however big the batches are.

    Raises:
        ArchiveError: a batch is not what it was when it was committed, or the lake has another under its number.
        LakehouseError: the database or the lake does not answer; what was brought is brought.
    """
    with connect_if_installed(app) as connection:
        if connection is None or not _batches(connection, organization, 0, limit=1):
            return 0
        with app.events.unit("archive_export", organization=organization) as event:
            exporter = _Exporter(app, connection, organization)
            try:
                exporter.run()
            finally:
                event |= {"batches": exporter.batches, "rows": exporter.rows}
    return exporter.batches


def export_all(app: App) -> tuple[int, list[LakehouseError]]:
    """`export_batches` for every organization that has any: how many batches that were, and what went wrong.

    Raises:
        SourceError: the hot database does not answer.
    """
    with connect_if_installed(app) as connection:
        if connection is None:
            return 0, []
        waiting = connection.execute(
            sql.SQL("SELECT DISTINCT organization_id FROM {} WHERE exported_at IS NULL ORDER BY 1").format(
                table("batches")
            )
        ).fetchall()
    count = 0
    faults: list[LakehouseError] = []
    for (organization,) in waiting:
        try:
            count += export_batches(app, organization)
        except LakehouseError as error:
            faults.append(error)
    return count, faults


class _Exporter:
    def __init__(self, app: App, connection: Connection, organization: str) -> None:
        self.app = app
        self.connection = connection
        self.organization = organization
        self.owner = app.lake(organization)
        self.lake = ensure_records(self.owner, ARCHIVE)
        self.batches = self.rows = 0

    def run(self) -> None:
        while True:
            self._refresh()
            standing = read_standing(self.lake)
            self._settle(standing)
            group = _batches(self.connection, self.organization, standing.number, rows=COMMIT_ROWS)
            if not group:
                return
            export = str(uuid.uuid4())
            file = self._write(group, standing, export)
            after = Standing(
                number=group[-1].number,
                chain=group[-1].chain,
                sequence=standing.sequence + file.rows,
                tables=tuple(sorted({*standing.tables, *(b.table for b in group)})),
            )
            if self._commit(file, standing, after, export):
                failpoint("archive.exported")
                self.batches += len(group)
                self.rows += file.rows

    def _settle(self, standing: Standing) -> None:
        """Note what the lake has as exported: of this run, and of one that died or was another's."""
        if not standing.number:
            return
        ours = self.connection.execute(
            sql.SQL("SELECT chain FROM {} WHERE organization_id = %s AND number = %s").format(table("batches")),
            [self.organization, standing.number],
        ).fetchone()
        if ours is None:
            # Restored from an older copy. What it has is the lake's, or `recover_batches` says what is not.
            recover_batches(self.app, self.organization)
        elif ours[0] != standing.chain:
            raise _another(self.organization, standing.number)
        self.connection.execute(
            sql.SQL(
                "UPDATE {} SET exported_at = clock_timestamp() "
                "WHERE organization_id = %s AND number <= %s AND exported_at IS NULL"
            ).format(table("batches")),
            [self.organization, standing.number],
        )

    def _write(self, group: Sequence[_Batch], standing: Standing, export: str) -> StagedFile:
        path = f"{self.lake.location()}/data/{export}.parquet"
        return write_stream(
            self.lake.io,
            ARCHIVE,
            self.organization,
            arrow_schema(ARCHIVE),
            row_groups(self._rows(group, standing.sequence, export)),
            path,
            None,
            expected_rows=sum(b.rows for b in group),
        )

    def _rows(self, group: Sequence[_Batch], sequence: int, export: str) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        schema = arrow_schema(ARCHIVE)
        names = [c.name for c in ARCHIVE.columns]
        now = self.app.clock()
        for batch in group:
            found = 0
            for page in _tombstones(self.connection, self.organization, batch.number):
                rows = len(page)
                columns = dict(zip(STORED, zip(*page, strict=True), strict=True))
                columns |= {"batch_id": (batch.id,) * rows, "chain": (batch.chain,) * rows}
                columns["receipt"] = (None if found else batch.receipt, *(None,) * (rows - 1))
                found += rows
                # Column by column: a dictionary for each row would take most of an export's time.
                share = pa.table({n: pa.array(columns[n], schema.field(n).type) for n in names})
                yield from lake_rows(
                    ARCHIVE, share, op=UPSERT, first_sequence=sequence + 1, captured_at=now, window=export
                ).to_batches()
                sequence += rows
            if found != batch.rows:
                raise ArchiveError(
                    f"organization {self.organization}: batch {batch.number} took {batch.rows} rows, and has {found} "
                    "tombstones: some were removed or added by hand",
                    "Bring them back from a copy of the database: its receipt says what they were "
                    "(`lakehouse receipts verify`). Nothing of it was exported, and nothing will be pruned.",
                )

    def _commit(self, file: StagedFile, before: Standing, after: Standing, export: str) -> bool:
        """Add the file if the table still stands where it was gathered for. False: another exporter was first."""
        from pyiceberg.exceptions import CommitFailedException

        where = ".".join(self.lake.name())
        summary = {
            WINDOW_SUMMARY: export,
            PART_SUMMARY: "1/1",
            BATCHES_SUMMARY: f"{before.number + 1}-{after.number}",
        }
        for _ in range(ATTEMPTS):
            self._refresh()
            if read_standing(self.lake) != before:
                return False
            try:
                entry = describe_data_file(self.lake, file)
                with lake_errors(where), self.lake.transaction() as transaction:
                    # After an adoption it is ours from the first commit on.
                    transaction.set_properties(after.to_property() | {INSTALLATION_PROPERTY: self.owner.installation})
                    with transaction.update_snapshot(snapshot_properties=summary).merge_append() as append:
                        append.append_data_file(entry)
            except CommitFailedException:
                # Maintenance, or another exporter: look at where it stands, and try once more.
                continue
            except Exception:  # the reply may be lost: only the table knows
                self._refresh()
                if read_standing(self.lake).number < after.number:
                    raise
            self._refresh()
            if read_standing(self.lake).number < after.number:
                raise CatalogError(f"{where}: a commit was acknowledged and is not in the table")
            return True
        raise CatalogError(
            f"{where}: {ATTEMPTS} commits in a row lost against other writers",
            "The tombstones stay in the hot database until then.",
            retry=Retry.TIMED,
        )

    def _refresh(self) -> None:
        # Whose it is, the namespace says: an installation whose lake was adopted by another adds nothing more.
        self.owner.check()
        with lake_errors(".".join(self.lake.name())):
            self.lake.refresh()


def _another(organization: str, number: int) -> ArchiveError:
    return ArchiveError(
        f"organization {organization}: batch {number} of the hot database is not the one that the lake has under that "
        "number: the database was restored, and rows were archived since",
        "Nothing was exported or pruned, and no tombstone is lost. A person has to decide: the lake's `_archive` has "
        "the receipts of both histories' rows (`lakehouse receipts verify --chain`).",
    )


def _batches(
    connection: Connection, organization: str, after: int, *, limit: int = 1000, rows: int = 0
) -> list[_Batch]:
    """Batches that are not noted as exported, above a number and in order; no more than `rows` where that is given."""
    found = connection.execute(
        sql.SQL(
            "SELECT number, id::text, table_name, row_count, receipt, chain FROM {} "
            "WHERE organization_id = %s AND exported_at IS NULL AND number > %s ORDER BY number LIMIT %s"
        ).format(table("batches")),
        [organization, after, limit],
    )
    group: list[_Batch] = []
    total = 0
    for row in found:
        batch = _Batch(*row)
        total += batch.rows
        if group and rows and total > rows:
            break
        group.append(batch)
    return group


def _tombstones(connection: Connection, organization: str, batch: int) -> Iterator[list[tuple[Any, ...]]]:
    """A batch's tombstones in the order of their keys' bytes, a page at a time; no transaction stays open between."""
    last: str | None = None
    query = sql.SQL(
        "SELECT {} FROM {} WHERE organization_id = %s AND batch = %s "
        'AND (%s::text IS NULL OR row_key COLLATE "C" > %s) ORDER BY row_key COLLATE "C" LIMIT %s'
    ).format(
        sql.SQL(", ").join(map(sql.Identifier, STORED)),
        table("cold_storage_archive"),
    )
    with connection.cursor() as cursor:
        while page := cursor.execute(query, [organization, batch, last, last, PAGE_ROWS], binary=True).fetchall():
            yield page
            last = page[-1][STORED.index("row_key")]


def recover_batches(app: App, organization: str) -> int:
    """Put back the batches that the lake has and the hot database forgot; returns how many. Idempotent.

    After a restore from an older copy, so that the next batch follows the lake's last one. Their tombstones stay in
    the lake alone. Rows that the copy has are in the hot table again, and land as new versions when everything is
    compared; rows that were written after it are in the lake alone and stay archived, by what `_archive` has of them.
    The audit tells which batches were put back.

    Raises:
        ArchiveError: the database made batches of its own under numbers that the lake has.
    """
    lake = app.lake(organization)
    with connect_if_installed(app) as connection:
        if connection is None or lake.owner() is None or (archive := open_archive(lake)) is None:
            return 0
        standing = read_standing(archive)
        number, chain = _newest(connection, organization)
        if number >= standing.number:
            return 0
        missing = _lakes_batches(app, organization, archive, number)
        if number and (not missing or missing[0][:2] != (number, chain)):
            raise _another(organization, number)
        new = [m for m in missing if m[0] > number]
        with connection.transaction():
            lock_organization(connection, organization)
            if _newest(connection, organization) != (number, chain):
                # A batch of this moment: it followed what was there, which the lake says is not the end.
                raise _another(organization, number + 1)
            for row in new:
                connection.execute(
                    sql.SQL(
                        "INSERT INTO {} (organization_id, number, chain, id, table_name, receipt, created_at, "
                        "row_count, exported_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, clock_timestamp())"
                    ).format(table("batches")),
                    [organization, *row],
                )
            if new:
                # Without it, nobody could tell these batches from others whose tombstones were removed here.
                note(
                    connection,
                    actor="lakehouse",
                    action=BATCHES_RESTORED,
                    organization=organization,
                    subject={"first": new[0][0], "last": new[-1][0]},
                    reason="the lake has them, and the database had forgotten them",
                )
        app.events.emit("archive_recovered", organization=organization, batches=len(new))
        return len(new)


def _newest(connection: Connection, organization: str) -> tuple[int, str]:
    row = connection.execute(
        sql.SQL("SELECT number, chain FROM {} WHERE organization_id = %s ORDER BY number DESC LIMIT 1").format(
            table("batches")
        ),
        [organization],
    ).fetchone()
    return row or (0, "")


def _lakes_batches(
    app: App, organization: str, archive: Table, first: int
) -> list[tuple[int, str, str, str, str, datetime, int]]:
    """(number, chain, id, table, receipt, archived_at, rows) of the lake's batches from a number on."""
    import duckdb

    with connect_duck([app.address_of(organization)]) as duck:
        try:
            # By Arrow: for a time with a zone DuckDB's own values need a library that is not here.
            found = arrow(
                duck,
                "SELECT batch, any_value(chain), any_value(batch_id), any_value(table_name), max(receipt), "
                f"any_value(archived_at), count(*) FROM {lake_relation(archive.metadata_location)} "
                f"WHERE batch >= {int(first)} GROUP BY batch ORDER BY batch",
            )
        except duckdb.Error as error:
            raise unreadable(archive, error) from error
    return list(zip(*(column.to_pylist() for column in found.columns), strict=True))
