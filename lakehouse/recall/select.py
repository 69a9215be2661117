"""The rows that a request names, read by DuckDB from the lake's own files at one snapshot.

Each is the newest version of its identity (event time and key) that was captured by `as_of`, unless that is a delete.
A row that left the hot database by the archive is its newest version still. Columns go by name, which a contract never
changes: a file from before a column has nulls there.

An id is looked for where its tombstone says that it lies: in the files of one day, of which the statistics in the
manifests leave a few. What is not found there, or has no tombstone, is looked for in the whole table, by statistics and
bloom filters. A tombstone is a hint and never the answer.

The engine reads files below the table's folder and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from catalog.errors import lake_errors
from catalog.tables import open_record_table, open_table
from lakehouse.duck import EXTENSIONS, FILES_ONLY, confine, connect, lake_relation, literal, plain_path, quoted
from lakehouse.landing.cursor import read_cursor
from lakehouse.landing.ended import read_endings
from lakehouse.landing.held import unreadable
from lakehouse.recall.condition import check_condition
from lakehouse.recall.request import RecallError, Request
from schemas.canonical import duckdb_hash
from schemas.contract import Contract
from schemas.errors import LakehouseError, Retry
from schemas.keys import duckdb_key
from schemas.lake_columns import CAPTURED_AT, DELETE, OP, SEQUENCE, arrow_schema
from schemas.views import latest_columns, latest_view_sql

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from pyiceberg.table import Table

    from catalog.lake import LakeAddress
    from lakehouse.app import App

KEY, HASH = "_key", "_hash"
"""Columns beside those that were asked for: the key text and the canonical hash of a row."""
ARCHIVE = "_archive"
BATCH_ROWS = 4096
_EPOCH = date(1970, 1, 1)
_MOST_LITERALS = 200
"""As many values pyiceberg compares with a file's statistics; beyond them it reads the file."""

Located = dict[str, set[date | None]]
"""Event times by key text; {None} where the table has none."""


@dataclass(frozen=True)
class LakeTable:
    """One table of one organization as it stands now."""

    contract: Contract
    table: Table
    address: LakeAddress
    snapshot_id: int
    archive: Table | None = None
    """The organization's `_archive`, if anything was ever archived."""

    @property
    def where(self) -> str:
        return ".".join(self.table.name())


def open_lake_table(app: App, request: Request) -> LakeTable:
    """The table that the rows come from, checked to be the organization's and ours.

    Raises:
        RecallError: nothing of it is in the lake, or not all of it yet.
        LakehouseError: the catalog or the storage does not answer, or it is another's.
    """
    from pyiceberg.exceptions import NoSuchTableError

    contract = request.contract
    lake = app.lake(request.organization)
    lake.check()
    try:
        table = open_table(lake, contract)
    except NoSuchTableError as error:
        raise RecallError(
            f"{contract.table} of {request.organization} is not in the lake", "Run `lakehouse backfill`."
        ) from error
    cursor, snapshot = read_cursor(table), table.current_snapshot()
    if cursor is None or snapshot is None or not cursor.complete:
        raise RecallError(
            f"{contract.table} of {request.organization}: the lake holds no complete history yet",
            "Run `lakehouse backfill`, or wait for the one that runs.",
            retry=Retry.TIMED,
        )
    return LakeTable(contract, table, lake.address, snapshot.snapshot_id, open_record_table(lake, ARCHIVE))


class Chosen:
    """The rows of a request, ready to be read; any number of times."""

    def __init__(
        self,
        lake: LakeTable,
        connection: duckdb.DuckDBPyConnection,
        request: Request,
        rows: str,
        missing: Mapping[str, str],
    ) -> None:
        self.lake = lake
        self.request = request
        self.missing = missing
        """Ids that are not among the rows, each with the reason."""
        self._connection = connection
        self._rows = rows

    def read(self, *expressions: str) -> Iterator[pa.RecordBatch]:
        """These SQL expressions of each row, then `_key` and `_hash`; ordered by the key's bytes.

        Raises:
            RecallError: the condition fails over some row.
            LakehouseError: the lake's files cannot be read.
        """
        import duckdb

        key, row_hash = duckdb_key(self.lake.contract), duckdb_hash(self.lake.contract)
        shown = ", ".join([*expressions, f"{key} AS {KEY}", f"{row_hash} AS {HASH}"])
        try:
            yield from _batches(
                self._connection, self.lake, f"SELECT {shown} FROM ({self._rows}) ORDER BY {KEY}, {HASH}"
            )
        except LakehouseError as error:
            cause = error.__cause__
            # The engine has one kind of error for a damaged file and for a value that a function does not take.
            broken = isinstance(cause, duckdb.IOException | duckdb.HTTPException) or ".parquet" in str(cause)
            if self.request.where is None or broken:
                raise
            raise RecallError(
                f"--where: {str(cause).splitlines()[0][:300]}",
                "Mend the condition. try_cast(… AS …) is null where a cast would fail.",
            ) from cause


@dataclass(frozen=True)
class Engine:
    """A private engine of DuckDB that is being opened: `whole` reads Iceberg tables, else only files that we name."""

    whole: bool
    opened: Callable[[], duckdb.DuckDBPyConnection]


@contextmanager
def opening(address: LakeAddress, request: Request, tombstones: Mapping[str, set[datetime]]) -> Iterator[Engine]:
    """Open the engine that the request will need, beside what its caller does first: loading it takes as long."""
    located = request.contract.event_time is not None and all(key in tombstones for key in request.ids)
    whole = not (request.ids and located)
    # The engine ends after the thread that opens it.
    with ExitStack() as stack, ThreadPoolExecutor(1, thread_name_prefix="engine") as pool:
        made = connect([address], private=True, extensions=EXTENSIONS if whole else FILES_ONLY)
        yield Engine(whole, pool.submit(stack.enter_context, made).result)


@contextmanager
def choose(
    lake: LakeTable, request: Request, tombstones: Mapping[str, set[datetime]], engine: Engine
) -> Iterator[Chosen]:
    """Find what a request names. `tombstones`: event times of ids that the archive took, as far as they are known.

    Raises:
        RecallError: the condition is not one that may be asked.
        LakehouseError: the lake's files cannot be read.
    """
    contract = request.contract
    times: Located = {key: {_time(contract, t) for t in found} for key, found in tombstones.items()}
    with ExitStack() as stack:
        connection = _confined(lake, engine.opened())
        if not engine.whole:
            found = _alive(connection, lake, request, times)
            if all(key in found for key in request.ids):
                yield Chosen(lake, connection, request, _named(lake, request, found), {})
                return
            connection = _confined(lake, stack.enter_context(connect([lake.address], private=True)))
        if not request.ids:
            yield Chosen(lake, connection, request, _condition(lake, request), {})
            return
        found, missing = Located(), dict[str, str]()
        if contract.event_time is not None:
            times |= _tombstoned(connection, lake, contract, [key for key in request.ids if key not in times])
            found = _alive(connection, lake, request, times)
        if rest := [key for key in request.ids if key not in found]:
            elsewhere, missing = _look_for(connection, lake, request, rest)
            found |= elsewhere
            missing |= _ended(lake, {key: times[key] for key in missing if key in times})
        yield Chosen(lake, connection, request, _named(lake, request, found), missing)


def _confined(lake: LakeTable, connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    # A table of its own: a filter on a time that went into an Arrow table would want another library for time zones.
    connection.register("empty", arrow_schema(lake.contract).empty_table())
    connection.execute("CREATE TEMP TABLE no_rows AS SELECT * FROM empty")
    connection.unregister("empty")
    folders = [lake.table.location()]
    if lake.archive is not None:
        folders.append(lake.archive.location())
    confine(connection, folders)
    return connection


def _latest(lake: LakeTable, request: Request, files: list[str] | None = None) -> str:
    """SQL of the rows that are shown as of the request's time; in these files, or in all."""
    return latest_view_sql(lake.contract, relation=_relation(lake, files), as_of=_as_of(request))


def _relation(lake: LakeTable, files: list[str] | None) -> str:
    """SQL that stands behind FROM: every version in these files, or in all that the snapshot has."""
    if files is None:
        relation = lake_relation(lake.table.metadata_location)
        there = set(lake.table.schema().column_names)
        if all(c.name in there for c in lake.contract.columns):
            return relation
        # Nothing landed since the contract got a column.
        return f"(SELECT * FROM no_rows UNION ALL BY NAME SELECT * FROM {relation})"
    if not files:
        return "no_rows"
    paths = ", ".join(literal(plain_path(f)) for f in files)
    return (
        "(SELECT * FROM no_rows UNION ALL BY NAME "
        f"SELECT * FROM read_parquet([{paths}], union_by_name = true, hive_partitioning = false))"
    )


def _as_of(request: Request) -> str | None:
    return _moment(request.as_of) if request.as_of is not None else None


def _time(contract: Contract, time: datetime) -> date:
    """A tombstone's event time as the lake's column has it."""
    at = time.astimezone(UTC)
    return at.date() if contract.event_time is not None and contract[contract.event_time].type.name == "date" else at


def _moment(moment: date) -> str:
    if isinstance(moment, datetime):
        return f"TIMESTAMPTZ {literal(moment.astimezone(UTC).isoformat())}"
    return f"DATE {literal(moment.isoformat())}"


def _condition(lake: LakeTable, request: Request) -> str:
    rows = _latest(lake, request)
    if request.where is not None:
        # In lines of its own: a comment in it ends there.
        rows = f"SELECT * FROM ({rows}) WHERE (\n{check_condition(request.where, latest_columns(lake.contract))}\n)"
    bounds = []
    if request.event_from is not None:
        bounds.append(f">= {_moment(request.event_from)}")
    if request.event_upto is not None:
        bounds.append(f"< {_moment(request.event_upto)}")
    if not bounds:
        return rows
    time = quoted(lake.contract.event_time or "")
    return f"SELECT * FROM ({rows}) WHERE {' AND '.join(f'{time} {bound}' for bound in bounds)}"


def _named(lake: LakeTable, request: Request, located: Located) -> str:
    """SQL of the rows that are shown of these keys and event times."""
    contract = lake.contract
    files = _files(lake, located) if contract.event_time is not None else None
    rows = _latest(lake, request, files)
    if not located:
        return f"SELECT * FROM ({rows}) WHERE false"
    condition = f"{duckdb_key(contract)} IN ({', '.join(map(literal, located))})"
    if times := _times(located):
        condition += f" AND {quoted(contract.event_time or '')} IN ({', '.join(map(_moment, times))})"
    return f"SELECT * FROM ({rows}) WHERE {condition}"


def _times(located: Located) -> list[date]:
    return sorted({t for found in located.values() for t in found if t is not None})


def _files(lake: LakeTable, located: Located) -> list[str]:
    """Data files that can hold these rows, by the statistics in the manifests.

    Raises:
        CatalogError, StorageError: the metadata cannot be read.
    """
    from pyiceberg import expressions

    contract = lake.contract
    assert contract.event_time is not None  # noqa: S101 - asked by the callers
    times = [t.isoformat() for t in _times(located)]
    if not times:
        return []
    # Its constructor is typed as pydantic sees it, which is not how it is called.
    among: Any = expressions.In
    wanted: expressions.BooleanExpression = expressions.AlwaysTrue()
    if len(times) <= _MOST_LITERALS:
        wanted = expressions.And(wanted, among(contract.event_time, times))
    if len(contract.primary_key) == 1 and contract[contract.primary_key[0]].type.name == "string":
        wanted = expressions.And(wanted, among(contract.primary_key[0], list(located)))
    with lake_errors(lake.where):
        tasks = lake.table.scan(row_filter=wanted, snapshot_id=lake.snapshot_id).plan_files()
        return sorted({task.file.file_path for task in tasks})


def _alive(connection: duckdb.DuckDBPyConnection, lake: LakeTable, request: Request, located: Located) -> Located:
    """Of rows that are said to lie at these event times, those that do."""
    contract = lake.contract
    found: Located = {}
    if not located:
        return found
    query = (
        f"SELECT {duckdb_key(contract)} AS {KEY}, {quoted(contract.event_time or '')} AS t "
        f"FROM ({_named(lake, request, located)})"
    )
    for batch in _batches(connection, lake, query):
        for key, time in zip(batch[KEY].to_pylist(), batch["t"].to_pylist(), strict=True):
            found.setdefault(key, set()).add(time)
    return found


def _tombstoned(
    connection: duckdb.DuckDBPyConnection, lake: LakeTable, contract: Contract, ids: Iterable[str]
) -> Located:
    """Event times of ids by the lake's own copy of the tombstones, which is never pruned."""
    wanted = ", ".join(map(literal, ids))
    found: Located = {}
    if lake.archive is None or not wanted or lake.archive.current_snapshot() is None:
        return found
    query = (
        f"SELECT DISTINCT row_key, event_time FROM {lake_relation(lake.archive.metadata_location)} "
        f"WHERE table_name = {literal(contract.table)} AND row_key IN ({wanted}) AND event_time IS NOT NULL"
    )
    for batch in _batches(connection, lake, query):
        for row in batch.to_pylist():
            found.setdefault(row["row_key"], set()).add(_time(contract, row["event_time"]))
    return found


def _look_for(
    connection: duckdb.DuckDBPyConnection, lake: LakeTable, request: Request, ids: Iterable[str]
) -> tuple[Located, dict[str, str]]:
    """Look in the whole table: where these ids lie, and of the others why they are not there."""
    contract = lake.contract
    found: Located = {}
    missing = dict.fromkeys(ids, "not in the lake")
    time = quoted(contract.event_time) if contract.event_time else "NULL::TIMESTAMPTZ"
    known = f" AND {CAPTURED_AT} <= {_as_of(request)}" if request.as_of is not None else ""
    query = (
        f"SELECT {duckdb_key(contract)} AS {KEY}, {time} AS t, arg_max({OP}, {SEQUENCE}) AS op, "
        f"arg_max({CAPTURED_AT}, {SEQUENCE}) AS at FROM {_relation(lake, None)} "
        f"WHERE {duckdb_key(contract)} IN ({', '.join(map(literal, missing))}){known} GROUP BY 1, 2"
    )
    for batch in _batches(connection, lake, query):
        for row in batch.to_pylist():
            if row["op"] != DELETE:
                found.setdefault(row[KEY], set()).add(row["t"])
            elif row[KEY] not in found:
                missing[row[KEY]] = f"deleted by {row['at']:%Y-%m-%d %H:%M:%S} UTC; --as-of brings back what was before"
    return found, {key: why for key, why in missing.items() if key not in found}


def _ended(lake: LakeTable, located: Located) -> dict[str, str]:
    """Of ids that are not there: which of them lay in days that have left the lake."""
    endings = read_endings(lake.table)
    found = {}
    for key, times in located.items():
        for time in times:
            day = (time.date() if isinstance(time, datetime) else time) if time is not None else None
            ending = next((e for e in endings if day is not None and e.holds((day - _EPOCH).days)), None)
            if ending is not None:
                found[key] = f"left the lake with its day, {day}, by the lake's own retention at {ending.at:%Y-%m-%d}"
    return found


def _batches(connection: duckdb.DuckDBPyConnection, lake: LakeTable, query: str) -> Iterator[pa.RecordBatch]:
    import duckdb

    try:
        yield from connection.execute(query).to_arrow_reader(BATCH_ROWS)
    except duckdb.Error as error:
        raise unreadable(lake.table, error) from error
