"""What a lake's `_archive` says left the hot database, read from its data files themselves.

Files are read by `read_parquet`, not by a table scan that believes what manifests say of them, and one that is gone or
damaged is named and left out, so that whoever checks evidence sees what is missing and what is still there. Everything
comes in the order of the batches' numbers, a bounded number of tombstones at a time. Needs the lake's catalog and
files, no database of the host's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from catalog.errors import lake_errors, storage_error
from catalog.lake import Lake
from lakehouse.archive.archive_table import ARCHIVE, Standing, open_archive, read_standing, tombstone
from lakehouse.archive.records import Tombstone
from lakehouse.duck import arrow, connect, literal, plain_path
from lakehouse.landing.held import unreadable
from schemas.errors import LakehouseError
from schemas.lake_columns import arrow_schema

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from pyiceberg.expressions import BooleanExpression
    from pyiceberg.table import Table

    from lakehouse.app import App


@dataclass(frozen=True)
class Recorded:
    """One batch as it stands in `_archive`. Sets: what its tombstones say; a sound batch has one of each."""

    number: int
    ids: tuple[str, ...]
    tables: tuple[str, ...]
    receipts: tuple[str, ...]
    chains: tuple[str, ...]
    rows: int

    @property
    def receipt(self) -> str | None:
        return self.receipts[0] if len(self.receipts) == 1 else None

    @property
    def chain(self) -> str | None:
        return self.chains[0] if len(self.chains) == 1 else None


class Files:
    """The data files of a table's present snapshot (those that a filter leaves), as one relation in DuckDB."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        table: Table,
        schema: pa.Schema,
        row_filter: BooleanExpression | None = None,
    ) -> None:
        from pyiceberg.expressions import AlwaysTrue

        self.connection = connection
        self.table = table
        self.broken: dict[str, str] = {}
        """Files that cannot be read, and why."""
        connection.register("no_rows_arrow", schema.empty_table())
        connection.execute("CREATE OR REPLACE TEMP TABLE no_rows AS SELECT * FROM no_rows_arrow")
        connection.unregister("no_rows_arrow")
        self._paths: list[str] = []
        if table.current_snapshot() is not None:
            with lake_errors(".".join(table.name())):
                scan = table.scan(row_filter=row_filter if row_filter is not None else AlwaysTrue())
                self._paths = sorted({task.file.file_path for task in scan.plan_files()})

    def ask(self, query: str) -> pa.Table:
        """Run a query in which `{files}` stands for the relation. A file that cannot be read is left out and noted.

        Raises:
            LakehouseError: it is no file's fault.
        """
        import duckdb

        try:
            return arrow(self.connection, query.replace("{files}", self._relation()))
        except duckdb.Error as error:
            if not self._leave_out_broken():
                raise unreadable(self.table, error) from error
        return self.ask(query)

    def _relation(self) -> str:
        if not self._paths:
            return "no_rows"
        paths = ", ".join(literal(plain_path(p)) for p in self._paths)
        return (
            "(SELECT * FROM no_rows UNION ALL BY NAME SELECT * FROM "
            f"read_parquet([{paths}], union_by_name = true, hive_partitioning = false))"
        )

    def _leave_out_broken(self) -> bool:
        import duckdb

        before = len(self.broken)
        for path in self._paths:
            try:
                # Every column of every row: a damaged page shows only when it is decoded.
                read = f"read_parquet([{literal(plain_path(path))}], hive_partitioning = false)"
                self.connection.execute(f"SELECT count(hash(COLUMNS(*))) FROM {read}").fetchall()
            except duckdb.Error as error:
                if not _is_the_files_fault(error):
                    raise storage_error(path, OSError(str(error))) from error
                self.broken[path] = str(error).splitlines()[0][:200]
        self._paths = [p for p in self._paths if p not in self.broken]
        return len(self.broken) > before


def _is_the_files_fault(error: duckdb.Error) -> bool:
    """Whether a file is gone or damaged. A storage that does not answer or refuses says nothing about its files."""
    import duckdb

    if isinstance(error, duckdb.HTTPException):
        return error.status_code == HTTPStatus.NOT_FOUND or f"HTTP {HTTPStatus.NOT_FOUND}" in str(error)
    if isinstance(error, duckdb.OutOfMemoryException | duckdb.InterruptException):
        return False
    return not (isinstance(error, duckdb.IOException) and "error for HTTP" in str(error))


class RecordedArchive:
    """An organization's `_archive`, open."""

    def __init__(self, files: Files, standing: Standing) -> None:
        self._files = files
        self.standing = standing

    @property
    def broken(self) -> dict[str, str]:
        return self._files.broken

    def batches(self) -> list[Recorded]:
        """Every batch, in the order of numbers."""
        found = self._files.ask(
            "SELECT batch, list(DISTINCT batch_id ORDER BY batch_id), list(DISTINCT table_name ORDER BY table_name), "
            "list(DISTINCT receipt ORDER BY receipt) FILTER (WHERE receipt IS NOT NULL), "
            "list(DISTINCT chain ORDER BY chain), count(*) FROM {files} GROUP BY batch ORDER BY batch"
        )
        rows = zip(*(column.to_pylist() for column in found.columns), strict=True)
        return [
            Recorded(number, tuple(ids), tuple(tables), tuple(receipts or ()), tuple(chains), count)
            for number, ids, tables, receipts, chains, count in rows
        ]

    def tombstones(self, numbers: Sequence[int]) -> dict[int, list[Tombstone]]:
        """The tombstones of these batches, by number, in the order of their keys' bytes."""
        found: dict[int, list[Tombstone]] = {number: [] for number in numbers}
        for row in self._rows(f"batch IN ({', '.join(str(int(n)) for n in numbers)})"):
            found[row["batch"]].append(tombstone(row))
        return found

    def of_row(self, row_key: str, table: str | None = None) -> list[Tombstone]:
        """The tombstones of one row; more than one where its id came back and left again."""
        of_table = f" AND table_name = {literal(table)}" if table is not None else ""
        return [tombstone(row) for row in self._rows(f"row_key = {literal(row_key)}{of_table}")]

    def _rows(self, where: str) -> Iterator[dict[str, Any]]:
        found = self._files.ask(f"SELECT * FROM {{files}} WHERE {where} ORDER BY batch, row_key, sequence")
        for part in found.to_batches(max_chunksize=10_000):
            yield from part.to_pylist()


@contextmanager
def open_recorded(lake: Lake) -> Iterator[tuple[duckdb.DuckDBPyConnection, RecordedArchive | None]]:
    """The lake's `_archive` and the connection that it is read by; None where nothing was ever archived.

    Raises:
        LakehouseError: the lake does not answer, or is another's.
    """
    lake.check()
    table = open_archive(lake)
    with connect([lake.address]) as connection:
        if table is None:
            yield connection, None
        else:
            yield connection, RecordedArchive(Files(connection, table, arrow_schema(ARCHIVE)), read_standing(table))


def lake_alone(app: App, organization: str) -> tuple[Lake, LakehouseError | None]:
    """The organization's lake, and why it is taken for the default one: the control database does not answer.

    Only that database knows who has a lake of its own; an auditor may have none.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from lakehouse.control.database import ControlError, control_broke_off

    if app.settings.control.url is None and not app.settings.source.given:
        unknown = ControlError("LAKEHOUSE_CONTROL__URL is not set, so nobody says who has a lake of its own")
        return Lake(app.catalog, app.address, organization, app.settings.installation), unknown
    try:
        return app.lake(organization), None
    except (ControlError, SQLAlchemyError) as error:
        known = error if isinstance(error, ControlError) else control_broke_off("looking for the lake", error)
    return Lake(app.catalog, app.address, organization, app.settings.installation), known
