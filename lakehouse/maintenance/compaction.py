"""Merges small files of settled days: the same rows, the same `_sequence`, fewer files.

Which. A day whose newest file is older than `settled_hours` is settled; of a table without days, each file is by
itself; a day with more than `busy_files` small ones is merged while it is still written. Of a day's small files,
smallest first, those are taken that are not larger than `TIER` times all smaller ones together: so a tiny late file
does not have a big one rewritten each time, and every row is rewritten a few times in all.

How. DuckDB sorts a group by event time, key and `_sequence`, spilling what does not fit, and streams it into files of
about `target_file_bytes`. Then it reads old and new files and compares the number of rows and a checksum over every
column: a difference commits nothing. The commit replaces files by identity, on top of the table's head; a landing
that came between is kept (the commit is made again on top of it). The snapshot says that it is a compaction.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

from catalog.errors import CatalogError, lake_errors
from lakehouse.duck import connect, literal, plain_path, quoted
from lakehouse.failpoints import failpoint
from lakehouse.landing.commit import COMPACTED_PART_SUMMARY, COMPACTION_SUMMARY, landed_part
from lakehouse.landing.held import unreadable
from lakehouse.landing.parquet import StagedFile, describe_data_file, row_groups, write_stream
from lakehouse.maintenance.references import LiveFile, References
from lakehouse.settings import MaintenanceSettings
from schemas.contract import Contract
from schemas.errors import LakehouseError, Retry
from schemas.lake_columns import SEQUENCE, arrow_schema, lake_fields

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from pyiceberg.table import Table

    from catalog.lake import LakeAddress

TIER = 4
ATTEMPTS = 5
COMMIT_DAYS = 20
"""Days that one commit replaces, about: each matches manifests by its own predicate."""
_BATCH_ROWS = 8192


@dataclass(frozen=True)
class Group:
    """Files of one day (None: of the table) that become one."""

    day: int | None
    files: tuple[LiveFile, ...]

    @property
    def rows(self) -> int:
        return sum(f.rows for f in self.files)

    @property
    def bytes(self) -> int:
        return sum(f.bytes for f in self.files)


@dataclass
class Compacted:
    """What a run merged."""

    files: int = 0
    into: int = 0
    rows: int = 0
    bytes: int = 0
    unused: tuple[str, ...] = ()
    """Files that were written and that another writer's commit made useless."""


def plan(files: Iterable[LiveFile], settings: MaintenanceSettings, now: datetime) -> list[Group]:
    """What to merge, oldest day first. See the module."""
    settled = now - timedelta(hours=settings.settled_hours)
    days: dict[tuple[int, int | None], list[LiveFile]] = {}
    for file in files:
        days.setdefault((file.spec_id, file.day), []).append(file)
    groups = []
    for (_, day), held in sorted(days.items(), key=lambda item: item[0][1] or 0):
        small = [f for f in held if f.bytes < settings.small_file_bytes]
        if len(small) <= settings.busy_files:
            if day is None:
                small = [f for f in small if f.captured_at <= settled]
            elif max(f.captured_at for f in held) > settled:
                continue
        groups += [Group(day, tuple(part)) for part in _bins(_tier(small), settings.target_file_bytes)]
    return groups


def _tier(small: Iterable[LiveFile]) -> list[LiveFile]:
    ordered = sorted(small, key=lambda f: (f.bytes, f.path))
    below, chosen = 0, 0
    for count, file in enumerate(ordered, start=1):
        if count > 1 and file.bytes <= TIER * below:
            chosen = count
        below += file.bytes
    return ordered[:chosen]


def _bins(files: list[LiveFile], target: int) -> Iterator[list[LiveFile]]:
    held: list[LiveFile] = []
    for file in sorted(files, key=lambda f: (f.first_sequence, f.path)):
        held.append(file)
        if sum(f.bytes for f in held) >= target:
            yield held
            held = []
    if len(held) > 1:
        yield held


def compact(
    references: References,
    contract: Contract,
    organization: str,
    address: LakeAddress,
    groups: Sequence[Group],
    should_stop: Callable[[], bool],
) -> Compacted:
    """Merge these groups; stops between two of them when `should_stop` says so. What is written is committed.

    Raises:
        LakehouseError: a file cannot be read, or what was written is not what was read: nothing of it is committed.
    """
    done = Compacted()
    waiting: list[tuple[Group, StagedFile]] = []
    for group in groups:
        if should_stop():
            break
        waiting.append((group, _merge(references.table, contract, organization, address, group)))
        if len(waiting) >= COMMIT_DAYS:
            _commit_all(references, waiting, done)
            waiting = []
    if waiting:
        _commit_all(references, waiting, done)
    return done


def _merge(table: Table, contract: Contract, organization: str, address: LakeAddress, group: Group) -> StagedFile:
    import duckdb

    where = ".".join(table.name())
    paths = [f.path for f in group.files]
    folder = "" if group.day is None else f"{contract.event_time}_day={_date(group.day)}/"
    path = f"{table.location()}/data/{folder}compacted-{uuid.uuid4().hex}.parquet"
    schema = arrow_schema(contract)
    with connect([address]) as connection:
        try:
            rows = _rows(connection, contract, paths)
            order = ", ".join(quoted(n) for n in dict.fromkeys([contract.tenant, *contract.identity, SEQUENCE]))
            reader = connection.execute(f"SELECT * FROM ({rows}) ORDER BY {order}").to_arrow_reader(_BATCH_ROWS)
            merged = write_stream(
                table.io,
                contract,
                organization,
                schema,
                row_groups(_typed(batch, schema) for batch in reader),
                path,
                group.day,
                expected_rows=group.rows,
            )
            failpoint("maintain.merged")
            before, after = _checksum(connection, rows), _checksum(connection, _rows(connection, contract, [path]))
        except duckdb.Error as error:
            raise unreadable(table, error) from error
    if before != after or before[0] != group.rows:
        raise LakehouseError(
            f"{where}: {len(paths)} files with {group.rows} rows by their manifests and {before[0]} in themselves "
            f"were merged into {after[0]} rows, checksum {after[1]} instead of {before[1]}: nothing was committed",
            "A file is not what its manifest says. Run `lakehouse verify`; the files are as they were.",
            retry=Retry.MANUAL,
        )
    return merged


def _rows(connection: duckdb.DuckDBPyConnection, contract: Contract, paths: Sequence[str]) -> str:
    """SQL of the files' rows in the lake's columns; a column that an older file lacks is null."""
    listed = ", ".join(literal(plain_path(p)) for p in paths)
    relation = f"read_parquet([{listed}], union_by_name = true, hive_partitioning = false)"
    there = {row[0] for row in connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()}
    columns = [
        quoted(c.name) if c.name in there else f"NULL AS {quoted(c.name)}" for c in lake_fields(contract)
    ]  # fmt: skip
    return f"SELECT {', '.join(columns)} FROM {relation}"


def _checksum(connection: duckdb.DuckDBPyConnection, rows: str) -> tuple[int, int | None]:
    # Each column as text with its name: a column that is null by its absence is as good as one that is null.
    query = f"SELECT count(*), sum(hash(r::VARCHAR)::HUGEINT) FROM ({rows}) r"
    (found,) = connection.execute(query).fetchall()
    return int(found[0]), found[1]


def _typed(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    columns = []
    for field in schema:
        column = batch.column(field.name)
        # A column that no file of the group has comes as nulls of whatever type.
        empty = column.null_count == len(column)
        columns.append(pa.nulls(len(column), field.type) if empty else column.cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _commit_all(references: References, merged: Sequence[tuple[Group, StagedFile]], done: Compacted) -> None:
    failpoint("maintain.before_commit")
    if not _commit(references, merged):
        done.unused += tuple(file.path for _, file in merged)
        return
    failpoint("maintain.after_commit")
    done.files += sum(len(group.files) for group, _ in merged)
    done.into += len(merged)
    done.rows += sum(file.rows for _, file in merged)
    done.bytes += sum(group.bytes for group, _ in merged)


def _commit(references: References, merged: Sequence[tuple[Group, StagedFile]]) -> bool:
    """Replace the files in one snapshot. False: some of them were replaced by somebody else.

    Raises:
        CatalogError: other writers won every attempt.
    """
    from pyiceberg.exceptions import CommitFailedException

    table = references.table
    where = ".".join(table.name())
    old = {file.path for group, _ in merged for file in group.files}
    new = {file.path for _, file in merged}
    entries = [describe_data_file(table, file) for _, file in merged]
    for _ in range(ATTEMPTS):
        with lake_errors(where):
            table.refresh()
        live = {file.path for file in references.live()}
        if new <= live:
            return True
        if not old <= live:
            return False
        summary = {
            COMPACTION_SUMMARY: f"{len(old)} files into {len(new)}",
            COMPACTED_PART_SUMMARY: landed_part(table),
        }
        try:
            with (
                lake_errors(where),
                table.transaction() as transaction,
                transaction.update_snapshot(snapshot_properties=summary).overwrite() as overwrite,
            ):
                for file in references.data_files(old):
                    overwrite.delete_data_file(file)
                for entry in entries:
                    overwrite.append_data_file(entry)
        except CommitFailedException:
            # A landing was first; it goes on top of whatever is there, and so do we.
            continue
        except Exception:  # the reply may be lost: only the table knows
            with lake_errors(where):
                table.refresh()
            if new <= {file.path for file in references.live()}:
                return True
            raise
        return True
    raise CatalogError(
        f"{where}: {ATTEMPTS} attempts to merge files lost against other writers",
        "The next maintenance tries again.",
        retry=Retry.TIMED,
    )


def _date(day: int) -> str:
    return (date(1970, 1, 1) + timedelta(days=day)).isoformat()
