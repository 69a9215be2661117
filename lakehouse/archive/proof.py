"""Proves that the lake holds rows as the hot table has them: DuckDB over the lake's own files, before any lock.

One read of one named snapshot proves a slice of candidates; many batches are deleted against it. Only files whose
bounds meet the candidates' event times are opened, so the price of a row does not grow with the lake. Files are read by
`read_parquet` and not by `iceberg_scan`, which believes the sizes in the manifests: an altered file must show as rows
that differ. A row is proven if the newest version of its identity is no delete, and its canonical hash is the hot
row's; what differs is named by column.

And the lake must have *this* version of the row, not only its content: `_xmin` is the hot row's, or the row is older
than what the cursor was read exactly from. Otherwise a window that is under way could still land an older version
after the row is gone (A, B, A again: the lake holds the first A, B is on its way). No proof, no delete: whatever goes
wrong here leaves every row hot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from lakehouse.archive import age
from lakehouse.archive.candidates import EVENT, HASH, KEY, LANDING, NUMBER, XMIN, Slice, key_names
from lakehouse.archive.durable import Backing
from lakehouse.archive.gate import Gate
from lakehouse.capture.position import XID_SPACE
from lakehouse.control import store
from lakehouse.deliver.ranges import LakeTable, open_lake_table
from lakehouse.duck import connect, literal, plain_path, quoted
from lakehouse.failpoints import failpoint
from lakehouse.landing.cursor import LakeCursor, read_cursor
from lakehouse.landing.held import unreadable
from lakehouse.landing.history import read_history
from lakehouse.landing.quarantine import open_keys
from schemas.canonical import duckdb_field_text, duckdb_hash, postgres_field_text
from schemas.contract import Contract
from schemas.errors import LakehouseError
from schemas.keys import duckdb_key
from schemas.lake_columns import OP, SEQUENCE, UPSERT, arrow_schema
from schemas.lake_columns import XMIN as LAKE_XMIN

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from pyiceberg.expressions import BooleanExpression
    from pyiceberg.table import Table

    from lakehouse.app import App

NOT_IN_LAKE = "not in the lake"
NOT_LANDED = "not landed yet"
DELETED = "deleted in the lake"
DIFFERS = "differs from the lake"
QUARANTINED = "quarantined"
LANDED_LATELY = "not old: its state landed lately"
NO_RECEIPT = "no destination holds it"
FAULTS = (NOT_IN_LAKE, DELETED, DIFFERS)
"""Reasons that are nobody's ordinary course: they are named row by row."""
SEQUENCE_OF, LANDED_AT, FILE = "sequence", "landed_at", "file"
_FROZEN = "(1, 2)"
"""Transaction ids that are older than every other."""


@dataclass(frozen=True)
class Unproven:
    """A row that stays because the lake does not hold it as it is, and by which columns that shows."""

    row_key: str
    reason: str
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Proven:
    """Up to a batch of rows, oldest event first, that a named snapshot of the lake holds as the hot table had them.

    `rows`: `row_key`, key columns as text (`k0`, …), `event`, `row_hash`, `hot_xmin`, `sequence`, `landed_at` (null
    unless the row's age counts from it) and `file`.
    """

    contract: Contract
    organization: str
    lake_table: str
    snapshot_id: int
    backing: Backing
    rows: pa.Table


@dataclass
class Proof:
    """What one read of the lake proved."""

    contract: Contract
    organization: str
    lake: LakeTable
    backing: Backing
    candidates: int
    proven: int
    kept: Counter[str] = field(default_factory=Counter)
    unproven: list[Unproven] = field(default_factory=list)
    """Some of those whose reason is a fault."""
    files: int = 0
    _connection: duckdb.DuckDBPyConnection | None = field(default=None, repr=False)

    def batches(self, size: int) -> Iterator[Proven]:
        """The proven rows, so many at a time, while the proof is open."""
        assert self._connection is not None  # noqa: S101 - within `prove`
        names = [KEY, *key_names(self.contract), EVENT, HASH, XMIN, SEQUENCE_OF, LANDED_AT, FILE]
        chosen = ", ".join(quoted(n) for n in names)
        for first in range(0, self.proven, size):
            rows = self._connection.execute(
                f"SELECT {chosen} FROM proven WHERE i >= {first} AND i < {first + size} ORDER BY i"
            ).to_arrow_table()
            yield Proven(
                self.contract,
                self.organization,
                ".".join(self.lake.table.name()),
                self.lake.snapshot_id,
                self.backing,
                rows,
            )


@contextmanager
def prove(
    app: App,
    hot: psycopg.Connection[Any],
    gate: Gate,
    found: Slice,
    organization: str,
    cutoff: datetime,
    backing: Backing,
    *,
    named: int = 20,
) -> Iterator[Proof]:
    """Prove a slice of candidates; the proof is open while the body runs. `named`: so many faulty rows are named.

    `hot` is asked only what faulty rows hold.

    Raises:
        LakehouseError: the lake has no such table, no complete history of it, or its files cannot be read.
    """
    import duckdb

    contract = gate.contract
    lake = open_lake_table(app, contract, organization)
    with connect(app.addresses_of([organization])) as connection:
        connection.register("slice", found.rows)
        connection.execute("CREATE OR REPLACE TEMP TABLE candidates AS SELECT * FROM slice")
        connection.unregister("slice")
        if contract.event_time is None:
            connection.execute(f"ALTER TABLE candidates ADD COLUMN {EVENT} TIMESTAMPTZ")
        try:
            relation, files = _relation(connection, contract, lake.table)
            _read(connection, contract, relation)
            _judge(connection, app, contract, lake, found, cutoff, backing)
            counts = dict(connection.execute("SELECT reason, count(*) FROM judged GROUP BY 1").fetchall())
            proof = Proof(contract, organization, lake, backing, found.rows.num_rows, counts.pop(None, 0), files=files)
            proof.kept.update(counts)
            proof._connection = connection
            proof.unproven = _named(connection, hot, gate, relation, named)
            failpoint("archive.proven")
            yield proof
        except duckdb.Error as error:
            raise unreadable(lake.table, error) from error
        finally:
            for table in ("candidates", "newest", "judged", "proven", "no_rows"):
                connection.execute(f"DROP TABLE IF EXISTS {table}")


def _relation(connection: duckdb.DuckDBPyConnection, contract: Contract, table: Table) -> tuple[str, int]:
    """SQL over the data files of the snapshot that may hold a candidate's versions, and how many files these are."""
    # A table of DuckDB's own: filters that are pushed into Arrow's need what is not installed.
    connection.register("no_rows_arrow", arrow_schema(contract).empty_table())
    connection.execute("CREATE OR REPLACE TEMP TABLE no_rows AS SELECT * FROM no_rows_arrow")
    connection.unregister("no_rows_arrow")
    paths = _files(connection, contract, table)
    if not paths:
        return "SELECT *, NULL::VARCHAR AS filename FROM no_rows", 0
    where = ""
    if (bounds := _event_bounds(connection, contract)) is not None:
        event = quoted(str(contract.event_time))
        kind = "DATE" if contract[str(contract.event_time)].type.name == "date" else "TIMESTAMPTZ"
        first, last = (f"{kind} {literal(b)}" for b in bounds)
        where = f" WHERE {event} >= {first} AND {event} <= {last}"
    listed = ", ".join(literal(plain_path(p)) for p in paths)
    return (
        "SELECT * FROM no_rows UNION ALL BY NAME SELECT * FROM "
        f"read_parquet([{listed}], union_by_name = true, hive_partitioning = false, filename = true){where}",
        len(paths),
    )


def _files(connection: duckdb.DuckDBPyConnection, contract: Contract, table: Table) -> list[str]:
    """Data files of the current snapshot whose bounds meet the candidates'."""
    from pyiceberg.expressions import AlwaysTrue

    from catalog.errors import lake_errors

    snapshot = table.current_snapshot()
    assert snapshot is not None  # noqa: S101 - `open_lake_table` says so
    bound: BooleanExpression = AlwaysTrue()
    if contract.event_time is not None:
        if (bounds := _event_bounds(connection, contract)) is None:
            return []
        bound = _between(contract.event_time, *bounds)
    elif contract[contract.primary_key[0]].type.name == "string":
        first, last = connection.execute("SELECT min(k0), max(k0) FROM candidates").fetchall()[0]
        bound = _between(contract.primary_key[0], first, last)
    paths = []
    with lake_errors(".".join(table.name())):
        for task in table.scan(row_filter=bound, snapshot_id=snapshot.snapshot_id).plan_files():
            if task.delete_files:
                raise LakehouseError(
                    f"{'.'.join(table.name())}: has delete files, which this program never writes",
                    "Another program changed the table: nothing of it is archived. See `lakehouse verify`.",
                )
            paths.append(task.file.file_path)
    return paths


def _event_bounds(connection: duckdb.DuckDBPyConnection, contract: Contract) -> tuple[str, str] | None:
    """The first and the last event time of the candidates, in ISO 8601; None where none of them has one."""
    if contract.event_time is None:
        return None
    query = f"SELECT min({EVENT})::VARCHAR, max({EVENT})::VARCHAR FROM candidates"
    first, last = connection.execute(query).fetchall()[0]
    if first is None:
        return None
    if contract[contract.event_time].type.name == "date":
        return first, last
    return datetime.fromisoformat(first).isoformat(), datetime.fromisoformat(last).isoformat()


def _between(name: str, first: str, last: str) -> BooleanExpression:
    from pyiceberg.expressions import And, GreaterThanOrEqual, LessThanOrEqual, Reference
    from pyiceberg.expressions.literals import literal as value

    term = Reference(name)
    return And(GreaterThanOrEqual(term=term, value=value(first)), LessThanOrEqual(term=term, value=value(last)))


def _read(connection: duckdb.DuckDBPyConnection, contract: Contract, relation: str) -> None:
    """One pass over the files: the newest version of each candidate, with its hash."""
    event = f"AND l.{quoted(contract.event_time)} = c.{EVENT}" if contract.event_time else ""
    state, versions = "NULL", ""
    if contract.states is not None and contract.states.old_since_landing:
        state = f"l.{quoted(contract.states.column)}::VARCHAR"
        versions = f", list({age.version_struct(contract, 'l')}) FILTER (WHERE c.{LANDING}) AS versions"
    newest = (
        f"{{'op': l.{OP}, 'xmin': l.{LAKE_XMIN}, 'hash': {duckdb_hash(contract, 'l')}, "
        f"'file': l.filename, 'state': {state}}}"
    )
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE newest AS SELECT c.{NUMBER}, max(l.{SEQUENCE}) AS {SEQUENCE_OF}, "
        f"arg_max({newest}, l.{SEQUENCE}) AS version{versions} "
        f"FROM ({relation}) l JOIN candidates c ON {duckdb_key(contract, 'l')} = c.{KEY} {event} GROUP BY c.{NUMBER}"
    )


def _judge(
    connection: duckdb.DuckDBPyConnection,
    app: App,
    contract: Contract,
    lake: LakeTable,
    found: Slice,
    cutoff: datetime,
    backing: Backing,
) -> None:
    cursor = _cursor(app, contract, lake)
    landed = "NULL::TIMESTAMPTZ"
    if contract.states is not None and contract.states.old_since_landing:
        landed = f"CASE WHEN c.{LANDING} THEN {age.landed_at('v.versions', 'v.version.state')} END"
    position = cursor.position
    # Written since a transaction id: from there to what the candidates' snapshot did not see any more.
    since = f"({XMIN} NOT IN {_FROZEN} AND ({XMIN} - {{0}} + {XID_SPACE}) % {XID_SPACE} < {{1}})"
    unread = since.format(position.xmin % XID_SPACE, found.next_xid - position.xmin)
    inexact = since.format(position.exact_xmin % XID_SPACE, found.next_xid - position.exact_xmin)
    captured = f"coalesce(version.xmin = {XMIN} AND {SEQUENCE_OF} > {read_history(lake.table).floor}, false)"
    young = f"NOT coalesce({LANDED_AT} < TIMESTAMPTZ {literal(cutoff.isoformat())}, false)"
    cases = [
        (f"{SEQUENCE_OF} IS NULL", f"CASE WHEN {unread} THEN '{NOT_LANDED}' ELSE '{NOT_IN_LAKE}' END"),
        (f"version.op <> '{UPSERT}'", f"CASE WHEN {unread} THEN '{NOT_LANDED}' ELSE '{DELETED}' END"),
        (f"version.hash <> {HASH}", f"CASE WHEN {unread} THEN '{NOT_LANDED}' ELSE '{DIFFERS}' END"),
        (f"{inexact} AND NOT {captured}", f"'{NOT_LANDED}'"),
        (f"{LANDING} AND {young}", f"'{LANDED_LATELY}'"),
    ]
    if backing.sequence is not None:
        cases.append((f"{SEQUENCE_OF} > {backing.sequence}", f"'{NO_RECEIPT}'"))
    whens = " ".join(f"WHEN {condition} THEN {reason}" for condition, reason in cases)
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE judged AS SELECT *, version.file AS {FILE}, CASE {whens} END AS reason FROM ("
        f"SELECT c.*, v.{SEQUENCE_OF}, v.version, {landed} AS {LANDED_AT} "
        f"FROM candidates c LEFT JOIN newest v ON v.{NUMBER} = c.{NUMBER})"
    )
    _set_quarantined(connection, contract, lake, cursor)
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE proven AS SELECT *, row_number() OVER (ORDER BY {NUMBER}) - 1 AS i "
        "FROM judged WHERE reason IS NULL"
    )


def _cursor(app: App, contract: Contract, lake: LakeTable) -> LakeCursor:
    """Where the table was read up to: the lake's own cursor, or its copy where windows without rows moved that on."""
    standing = read_cursor(lake.table)
    assert standing is not None  # noqa: S101 - `open_lake_table` says so
    copy = store.cursors(app.engine, contract.table).get(lake.organization)
    return copy if copy is not None and copy.fence == standing.fence else standing


def _set_quarantined(
    connection: duckdb.DuckDBPyConnection, contract: Contract, lake: LakeTable, cursor: LakeCursor
) -> None:
    import pyarrow as pa

    keys = open_keys(lake.table.io, cursor.quarantine)
    if not keys:
        return
    names = key_names(contract)
    connection.register("log", pa.table({n: pa.array([k[i] for k in keys], pa.string()) for i, n in enumerate(names)}))
    same = " AND ".join(f"q.{n} = judged.{n}" for n in names)
    connection.execute(
        f"UPDATE judged SET reason = '{QUARANTINED}' WHERE reason IS NOT NULL "
        f"AND EXISTS (SELECT 1 FROM log q WHERE {same})"
    )
    connection.unregister("log")


def _named(
    connection: duckdb.DuckDBPyConnection,
    hot: psycopg.Connection[Any],
    gate: Gate,
    relation: str,
    most: int,
) -> list[Unproven]:
    """Some of the rows whose reason is a fault, those that differ with their columns."""
    reasons = ", ".join(literal(r) for r in FAULTS)
    rows = connection.execute(
        f"SELECT {KEY}, reason, {SEQUENCE_OF}, {', '.join(key_names(gate.contract))} FROM judged "
        f"WHERE reason IN ({reasons}) ORDER BY {NUMBER} LIMIT {int(most)}"
    ).fetchall()
    differing = {key: (sequence, values) for key, reason, sequence, *values in rows if reason == DIFFERS}
    columns = _columns(connection, hot, gate, relation, differing) if differing else {}
    return [Unproven(key, reason, columns.get(key, ())) for key, reason, *_ in rows]


def _columns(
    connection: duckdb.DuckDBPyConnection,
    hot: psycopg.Connection[Any],
    gate: Gate,
    relation: str,
    rows: dict[str, tuple[int, list[str]]],
) -> dict[str, tuple[str, ...]]:
    """For rows of other content, by key text: which columns differ, by the canonical text of each."""
    contract = gate.contract
    sequences = ", ".join(str(sequence) for sequence, _ in rows.values())
    texts = ", ".join(duckdb_field_text(c, "l") for c in contract.columns)
    lake = {
        key: found
        for key, *found in connection.execute(
            f"SELECT {duckdb_key(contract, 'l')}, {texts} FROM ({relation}) l WHERE l.{SEQUENCE} IN ({sequences})"
        ).fetchall()
    }
    kinds = gate.hot.key_types(contract)
    differing: dict[str, tuple[str, ...]] = {}
    for key, (_, values) in rows.items():
        same = [
            sql.SQL("{} = {}::{}").format(sql.Identifier("t", contract[k].source), sql.Literal(v), sql.SQL(kinds[k]))
            for k, v in zip(contract.primary_key, values, strict=True)
        ]
        found = hot.execute(
            sql.SQL("SELECT {} FROM {} AS t WHERE {}").format(
                sql.SQL(", ").join(sql.SQL(postgres_field_text(c, alias="t")) for c in contract.columns),
                sql.Identifier(contract.source_schema, contract.source_table),
                sql.SQL(" AND ").join(same),
            )
        ).fetchone()
        if found is not None and key in lake:
            pairs = zip(contract.columns, found, lake[key], strict=True)
            differing[key] = tuple(c.name for c, h, x in pairs if h != x)
    return differing
