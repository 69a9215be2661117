"""Compares one table of every organization: hot PostgreSQL on one side, DuckDB over the lake on the other.

A quarantined row is neither equal nor missing: if the log holds what the hot table has, to the last character, it is
counted on its own and left out of the rest; if it does not, it differs like any other.

A row that the archive took is neither missing nor extra: it is counted on its own. Its tombstone must name a version
that the lake has, and a row must not be hot with that version and have a tombstone too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from psycopg import sql

from catalog.tables import open_table
from lakehouse.app import App
from lakehouse.archive.archive_table import open_archive
from lakehouse.archive.tombstones import Tombstones
from lakehouse.capture.forbidden import Flags, Key, examine
from lakehouse.capture.position import HALF_SPACE, XID_SPACE, Position
from lakehouse.capture.projection import select_list, to_lake
from lakehouse.capture.source import HotTable, Reading, check_table, describe
from lakehouse.capture.xmin import stream, tenant_condition, transaction
from lakehouse.control import store
from lakehouse.duck import connect, literal, plain_path, quoted
from lakehouse.landing.cursor import read_cursor
from lakehouse.landing.ended import Ending, in_ended_days, read_endings
from lakehouse.landing.history import read_history
from lakehouse.landing.quarantine import open_keys
from schemas.canonical import duckdb_field_text, duckdb_hash, postgres_field_text, postgres_hash
from schemas.contract import Contract
from schemas.errors import LakehouseError
from schemas.keys import duckdb_key
from schemas.lake_columns import DELETE, OP, SEQUENCE, UPSERT, XMIN, arrow_schema
from schemas.views import latest_view_sql

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from pyiceberg.table import Table

HASH = "_hash"


@dataclass(frozen=True)
class Difference:
    """One key that the two sides do not hold alike.

    `kind`: missing (not in the lake), extra (not in the hot table), content, both (archived, and hot as it was), lost
    (archived, and the lake has not the version that was proven). `pending`: the hot row is newer than the last window,
    so the next one will bring it.
    """

    organization: str
    key: dict[str, Any]
    kind: str
    pending: bool
    columns: tuple[str, ...] = ()


@dataclass
class Comparison:
    """What one organization's table looks like on both sides."""

    table: str
    organization: str
    hot_rows: int = 0
    lake_rows: int = 0
    versions: int = 0
    missing: int = 0
    extra: int = 0
    content: int = 0
    quarantined: int = 0
    """Rows that the lake cannot hold, and whose whole content its log of quarantined rows does."""
    archived: int = 0
    """Rows that the archive took: the lake shows them, and its tombstones say that they left the hot table."""
    both: int = 0
    lost: int = 0
    repeated: int = 0
    """Versions that landed more than once in one history of the source: same key, same transaction, same content."""
    differences: list[Difference] = field(default_factory=list)
    error: LakehouseError | None = None

    @property
    def equal(self) -> bool:
        faults = (self.missing, self.extra, self.content, self.both, self.lost, self.repeated)
        return self.error is None and not any(faults)


def verify_table(
    app: App, contract: Contract, organizations: Sequence[str], *, limit: int = 20, repeats: bool = True
) -> list[Comparison]:
    """Compare the table for each organization. At most `limit` differences of each are named.

    `repeats`: also look for versions that landed twice.

    Raises:
        SourceError, ContractViolation: the hot table cannot be read as the contract says.
    """
    import duckdb

    results = {o: Comparison(contract.table, o) for o in organizations}
    tables: dict[str, Table] = {}
    archives: dict[str, Table | None] = {}
    for organization, comparison in results.items():
        try:
            lake = app.lake(organization)
            lake.check()
            # Before the snapshot: a row that is archived meanwhile is in the hot table, and has no tombstone yet.
            archives[organization] = open_archive(lake)
            tables[organization] = _open(lake, contract)
        except LakehouseError as error:
            comparison.error = error
    cursors = store.cursors(app.engine, contract.table)
    flags = Flags(contract, app.settings.capture.max_quarantined)
    with (
        connect(app.addresses_of(tables)) as duck,
        app.source.reader() as reader,
        reader.cursor() as cursor,
        transaction(cursor, contract),
    ):
        hot = describe(Reading(cursor), contract)
        check_table(contract, hot)
        _load_hot(duck, cursor, contract, hot, list(tables), flags)
        tombstones = Tombstones(Reading(cursor), contract)
        for organization, table in tables.items():
            comparison = results[organization]
            try:
                _set_aside(duck, cursor, contract, hot, table, comparison, flags)
            except LakehouseError as error:
                comparison.error = error
                continue
            position = cursors[organization].position if organization in cursors else None
            try:
                _load_tombstones(duck, app, tombstones, organization, archives[organization], table)
                _compare(duck, contract, comparison, table, position, limit, repeats)
                _name_columns(duck, cursor, contract, table, comparison)
            except duckdb.Error as error:
                comparison.error = LakehouseError(
                    f"{'.'.join(table.name())}: the lake's files cannot be read: {str(error).splitlines()[0]}",
                    "A file that is gone or damaged: bring it back from the bucket's versions; the hot rows are whole.",
                )
    return list(results.values())


def _open(lake: Any, contract: Contract) -> Table:
    from pyiceberg.exceptions import NoSuchTableError

    try:
        return open_table(lake, contract)
    except NoSuchTableError as error:
        raise LakehouseError(
            f"{lake.namespace}.{contract.table}: not in the lake yet", "Run `lakehouse backfill`."
        ) from error


def _identity(contract: Contract) -> list[str]:
    return list(dict.fromkeys([contract.tenant, *contract.identity]))


def _load_hot(
    duck: duckdb.DuckDBPyConnection,
    cursor: Any,
    contract: Contract,
    hot: HotTable,
    organizations: list[str],
    flags: Flags,
) -> None:
    """Stream key, xmin and content hash of every hot row into DuckDB, which spills what does not fit."""
    import pyarrow as pa

    from schemas.types import arrow_type

    names = _identity(contract)
    schema = pa.schema(
        [
            *[pa.field(n, arrow_type(contract[n].type)) for n in names],
            pa.field(XMIN, pa.int64()),
            pa.field(HASH, pa.string()),
        ]
    )

    def batches() -> Iterator[pa.RecordBatch]:
        query = sql.SQL("SELECT {}, {} AS {} FROM {} AS t WHERE {}").format(
            select_list(contract, only=tuple(names)),
            sql.SQL(postgres_hash(contract, alias="t")),
            sql.Identifier(HASH),
            sql.Identifier(contract.source_schema, contract.source_table),
            tenant_condition(contract, organizations, hot.columns[contract[contract.tenant].source].type),
        )
        for raw in stream(cursor, query, contract):
            batch, found = to_lake(raw, contract, extra=(HASH,))
            flags.add(found)
            yield batch.select(schema.names).cast(schema)

    if organizations:
        duck.register("stream", pa.RecordBatchReader.from_batches(schema, batches()))
    else:
        duck.register("stream", schema.empty_table())
    duck.execute("CREATE TEMP TABLE hot AS SELECT * FROM stream")
    duck.unregister("stream")


def _set_aside(
    duck: duckdb.DuckDBPyConnection,
    cursor: Any,
    contract: Contract,
    hot: HotTable,
    table: Table,
    comparison: Comparison,
    flags: Flags,
) -> None:
    """Put the keys of rows that are quarantined as they are now into DuckDB's table `quarantined`.

    Raises:
        ContractViolation: a row whose key the lake cannot hold is not quarantined. LakehouseError: the log is gone.
    """
    import pyarrow as pa

    from schemas.types import arrow_type

    found = read_cursor(table)
    organization = comparison.organization
    flagged = flags.of.get(organization)
    entries = open_keys(table.io, found.quarantine if found else None)
    rows: dict[str, list[Any]] = {k: [] for k in contract.primary_key}
    unmatched = None if flagged is None else flagged.first
    matched = 0
    if entries or flagged:
        source_type = hot.columns[contract[contract.tenant].source].type
        done: set[Key] = set()
        faulty = 0
        for row in examine(
            lambda query: stream(cursor, query, contract),
            contract,
            tenant_condition(contract, [organization], source_type),
            hot.key_types(contract),
            keys=list(entries),
            flagged=flagged,
        ):
            if row.key in done:
                continue
            done.add(row.key)
            entry = entries.get(row.key)
            if row.content is None:
                continue
            if entry is None or entry.content_sha256 != hashlib.sha256(row.content.encode()).hexdigest():
                faulty += row.values in flagged.keys or None in row.values if flagged else 0
                continue
            matched += 1
            for name, value in zip(contract.primary_key, row.values, strict=True):
                rows[name].append(value)
        if not faulty:
            unmatched = None
    if organization in flags.violations:
        raise flags.violations[organization].error(contract)
    if unmatched is not None:
        raise unmatched.error(contract)
    comparison.quarantined = matched
    schema = pa.schema([pa.field(k, arrow_type(contract[k].type)) for k in contract.primary_key])
    # A table of DuckDB's own: filters on times that it pushes into Arrow's need what is not installed.
    duck.register("rows", pa.table(rows, schema=schema))
    duck.execute("CREATE OR REPLACE TEMP TABLE quarantined AS SELECT * FROM rows")
    duck.unregister("rows")


def _load_tombstones(
    duck: duckdb.DuckDBPyConnection,
    app: App,
    tombstones: Tombstones,
    organization: str,
    archive: Table | None,
    table: Table,
) -> None:
    """Put the tombstones of the hot database and of `_archive` into DuckDB's table `tombs`.

    Without those of versions that landed after the lake table was opened.
    """
    contract = tombstones.contract
    import pyarrow as pa

    duck.execute("CREATE OR REPLACE TEMP TABLE tombs (row_key VARCHAR, event_time TIMESTAMPTZ, sequence BIGINT)")
    for page in tombstones.after(organization, 0):
        keys, moments, sequences = zip(*page, strict=True)
        kind = pa.timestamp("us", tz="UTC")
        duck.register("page", pa.table({"k": list(keys), "e": pa.array(moments, kind), "s": list(sequences)}))
        duck.execute("INSERT INTO tombs SELECT * FROM page")
        duck.unregister("page")
    if archive is not None and (files := _paths(archive)):
        duck.execute(
            f"INSERT INTO tombs SELECT row_key, event_time, sequence FROM read_parquet([{files}], "
            f"hive_partitioning = false) WHERE table_name = {literal(contract.table)} "
            "EXCEPT SELECT * FROM tombs"
        )
    cursor = read_cursor(table)
    last = cursor.sequence if cursor else 0
    if _one(duck, f"SELECT count(*) FROM tombs WHERE sequence > {last}"):
        newer = read_cursor(_open(app.lake(organization), contract))
        upto = newer.sequence if newer else 0
        duck.execute(f"DELETE FROM tombs WHERE sequence > {last} AND sequence <= {upto}")


def _compare(
    duck: duckdb.DuckDBPyConnection,
    contract: Contract,
    comparison: Comparison,
    table: Table,
    position: Position | None,
    limit: int,
    repeats: bool,
) -> None:
    names = _identity(contract)
    columns = ", ".join(quoted(n) for n in names)
    tenant = quoted(contract.tenant)
    same = " AND ".join(f"q.{quoted(k)} = r.{quoted(k)}" for k in contract.primary_key)
    known = f"NOT EXISTS (SELECT 1 FROM quarantined q WHERE {same})"
    mine = f"SELECT {columns}, {XMIN}, {HASH} FROM hot r WHERE {tenant}::VARCHAR = $organization AND {known}"
    duck.execute(f"CREATE OR REPLACE TEMP TABLE archived AS SELECT {columns}, false AS hot FROM hot WHERE false")
    duck.execute("CREATE OR REPLACE TEMP TABLE lost AS SELECT * FROM tombs")
    if table.current_snapshot() is None:
        lake = f"SELECT {columns}, '' AS {HASH} FROM hot WHERE false"
    else:
        # One pass over the files, then everything from keys and hashes.
        duck.execute(
            f"CREATE OR REPLACE TEMP TABLE versions AS SELECT {columns}, {XMIN}, {OP}, {SEQUENCE}, "
            f"{duckdb_hash(contract)} AS {HASH} FROM ({_files(duck, contract, table)})"
        )
        identity = ", ".join(quoted(n) for n in contract.identity)
        latest = (
            f"SELECT {columns}, {HASH}, {SEQUENCE} FROM versions QUALIFY row_number() OVER "
            f"(PARTITION BY {identity} ORDER BY {SEQUENCE} DESC) = 1 AND {OP} <> '{DELETE}'"
        )
        _find_archived(duck, contract, latest, read_endings(table))
        mine_too = " AND ".join(f"a.{quoted(n)} = r.{quoted(n)}" for n in names)
        lake = (
            # Of a quarantined row the lake shows the last good version, if there was one.
            f"SELECT {columns}, {HASH} FROM ({latest}) r WHERE {known} "
            f"AND NOT EXISTS (SELECT 1 FROM archived a WHERE NOT a.hot AND {mine_too})"
        )
        comparison.versions = _one(duck, "SELECT count(*) FROM versions")
        if repeats:
            comparison.repeated = _one(
                duck,
                f"SELECT coalesce(sum(n - 1), 0)::BIGINT FROM (SELECT count(*) AS n FROM versions "
                # After a restore an old version can come back, with its old transaction id: another history.
                f"WHERE {OP} = '{UPSERT}' GROUP BY {columns}, {XMIN}, {HASH}, "
                f"len(list_filter({list(read_history(table).floors)}::BIGINT[], f -> f < {SEQUENCE})) "
                "HAVING count(*) > 1)",
            )
    pending = "false" if position is None else _pending(position)
    join = " AND ".join(f"h.{quoted(n)} = l.{quoted(n)}" for n in names)
    either = ", ".join(f"coalesce(h.{quoted(n)}, l.{quoted(n)}) AS {quoted(n)}" for n in names)
    taken = " AND ".join(f"a.{quoted(n)} = h.{quoted(n)}" for n in names)
    duck.execute(
        f"CREATE OR REPLACE TEMP TABLE compared AS SELECT {either}, h.{HASH} AS hot_hash, l.{HASH} AS lake_hash, "
        f"coalesce({pending}, false) AS pending, CASE WHEN l.{HASH} IS NULL THEN 'missing' "
        f"WHEN h.{HASH} IS NULL THEN 'extra' "
        f"WHEN EXISTS (SELECT 1 FROM archived a WHERE a.hot AND {taken}) THEN 'both' "
        f"WHEN h.{HASH} <> l.{HASH} THEN 'content' END AS kind FROM ({mine}) h FULL JOIN ({lake}) l ON {join}",
        {"organization": comparison.organization},
    )
    comparison.hot_rows, comparison.lake_rows = duck.execute(
        "SELECT count(hot_hash), count(lake_hash) FROM compared"
    ).fetchall()[0]
    for kind, count in duck.execute("SELECT kind, count(*) FROM compared WHERE kind IS NOT NULL GROUP BY 1").fetchall():
        setattr(comparison, kind, count)
    comparison.archived = _one(duck, "SELECT count(*) FROM archived WHERE NOT hot")
    comparison.lost = _one(duck, "SELECT count(*) FROM lost")
    keys = ", ".join(f"{quoted(n)}::VARCHAR AS {quoted(n)}" for n in names)
    rows = duck.execute(
        f"SELECT {keys}, kind, pending FROM compared WHERE kind IS NOT NULL ORDER BY kind, {columns} LIMIT {int(limit)}"
    ).fetchall()
    comparison.differences = [
        Difference(
            comparison.organization,
            {n: v for n, v in zip(names, row, strict=False) if n in contract.identity},
            row[-2],
            row[-1],
        )
        for row in rows
    ]
    lost = duck.execute(f"SELECT row_key FROM lost ORDER BY 1 LIMIT {int(limit) - len(rows)}").fetchall()
    name = contract.primary_key[0] if len(contract.primary_key) == 1 else "key"
    comparison.differences += [Difference(comparison.organization, {name: key}, "lost", False) for (key,) in lost]


def _find_archived(duck: duckdb.DuckDBPyConnection, contract: Contract, latest: str, endings: Sequence[Ending]) -> None:
    """By the tables `tombs` and `versions`: what of the latest state the archive took (`archived`; `hot`: it is in the
    hot table all the same), and tombstones of versions that the lake has not (`lost`), unless their day ended. The
    rule is that of `lakehouse.archive.archived`."""
    if not _one(duck, "SELECT count(*) FROM tombs"):
        return
    names = _identity(contract)
    key = duckdb_key(contract, "v")
    same = " AND ".join(f"h.{quoted(n)} = v.{quoted(n)}" for n in names)
    same_key = " AND ".join(
        f"h.{quoted(n)} = v.{quoted(n)}" for n in dict.fromkeys([contract.tenant, *contract.primary_key])
    )
    duck.execute(
        f"CREATE OR REPLACE TEMP TABLE archived AS SELECT {', '.join(f'v.{quoted(n)}' for n in names)}, "
        f"EXISTS (SELECT 1 FROM hot h WHERE {same}) AS hot FROM ({latest}) v "
        f"JOIN (SELECT row_key, max(sequence) AS proven FROM tombs GROUP BY 1) t ON t.row_key = {key} "
        f"JOIN (SELECT {key} AS row_key, max({SEQUENCE}) AS newest FROM versions v WHERE {OP} = '{UPSERT}' GROUP BY 1) "
        f"n ON n.row_key = t.row_key WHERE t.proven >= v.{SEQUENCE} AND n.newest = v.{SEQUENCE} "
        f"AND (EXISTS (SELECT 1 FROM hot h WHERE {same}) OR NOT EXISTS (SELECT 1 FROM hot h WHERE {same_key}))"
    )
    duck.execute(
        "CREATE OR REPLACE TEMP TABLE lost AS SELECT * FROM tombs t WHERE NOT EXISTS (SELECT 1 FROM versions v "
        f"WHERE {key} = t.row_key AND v.{SEQUENCE} = t.sequence AND v.{OP} = '{UPSERT}')"
    )
    if contract.event_time is None:
        return
    event = quoted(contract.event_time)
    kind = "DATE" if contract[contract.event_time].type.name == "date" else "TIMESTAMPTZ"
    for ending in endings:
        duck.execute(
            "DELETE FROM lost USING (SELECT row_key AS k, sequence AS s FROM "
            f"(SELECT row_key, sequence, event_time::{kind} AS {event} FROM lost) "
            f"WHERE {in_ended_days(contract, [ending])} AND sequence <= {ending.sequence}) gone "
            "WHERE lost.row_key = gone.k AND lost.sequence = gone.s"
        )


def _files(duck: duckdb.DuckDBPyConnection, contract: Contract, table: Table) -> str:
    """SQL over exactly the data files of the current snapshot, as they are stored now.

    Not `iceberg_scan`: it believes the file sizes in the manifests, so a rewritten file would be an error that
    names no row. Columns go by name, which a contract never changes; a file from before a column has nulls.
    """
    duck.register("no_rows", arrow_schema(contract).empty_table())
    paths = _paths(table)
    if not paths:
        return "SELECT * FROM no_rows"
    return (
        "SELECT * FROM no_rows UNION ALL BY NAME "
        f"SELECT * FROM read_parquet([{paths}], union_by_name = true, hive_partitioning = false)"
    )


def _paths(table: Table) -> str:
    """The data files of the current snapshot, as the elements of a list in SQL."""
    snapshot = table.current_snapshot()
    if snapshot is None or not snapshot.manifests(table.io):
        # An adoption of a table that nothing ever landed in leaves a snapshot without files.
        return ""
    return ", ".join(literal(plain_path(path)) for path in table.inspect.files()["file_path"].to_pylist())


def _pending(position: Position) -> str:
    seen = f"AND h.{XMIN} NOT IN ({', '.join(str(x % XID_SPACE) for x in position.seen)})" if position.seen else ""
    return f"((h.{XMIN} - {position.xmin % XID_SPACE} + {XID_SPACE}) % {XID_SPACE} < {HALF_SPACE} {seen})"


def _one(duck: duckdb.DuckDBPyConnection, query: str) -> int:
    value: int = duck.execute(query).fetchall()[0][0]
    return value


def _name_columns(
    duck: duckdb.DuckDBPyConnection, cursor: Any, contract: Contract, table: Table, comparison: Comparison
) -> None:
    """For keys of other content: which columns differ, by the canonical text of each."""
    import pyarrow as pa

    named = [d for d in comparison.differences if d.kind == "content"]
    if not named:
        return
    keys = [contract[k] for k in contract.primary_key]
    texts = [duckdb_field_text(c, alias="l") for c in (*keys, *contract.columns)]
    join = " AND ".join(f"l.{quoted(k)}::VARCHAR = d.{quoted(k)}" for k in contract.primary_key)
    rows = {k: [str(d.key[k]) for d in named] for k in contract.primary_key}
    duck.register("named", pa.table(rows))
    latest = latest_view_sql(contract, relation=f"({_files(duck, contract, table)})")
    lake: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    position: dict[tuple[Any, ...], tuple[str, ...]] = {}
    shown = ", ".join(f"d.{quoted(k)}" for k in contract.primary_key)
    for row in duck.execute(f"SELECT {shown}, {', '.join(texts)} FROM ({latest}) l JOIN named d ON {join}").fetchall():
        canonical = row[len(keys) : 2 * len(keys)]
        position[canonical] = row[: len(keys)]
        lake[row[: len(keys)]] = row[2 * len(keys) :]
    if not lake:
        return
    hot_key = [postgres_field_text(c, alias="t") for c in keys]
    query = sql.SQL("SELECT {} FROM {} AS t WHERE ({}) IN ({})").format(
        sql.SQL(", ".join([*hot_key, *(postgres_field_text(c, alias="t") for c in contract.columns)])),
        sql.Identifier(contract.source_schema, contract.source_table),
        sql.SQL(", ".join(hot_key)),
        sql.SQL(", ").join(sql.SQL("({})").format(sql.SQL(", ").join(map(sql.Literal, k))) for k in position),
    )
    cursor.execute(query.as_string(None))
    hot = {position[row[: len(keys)]]: row[len(keys) :] for row in cursor.fetchall()}
    comparison.differences = [
        d if d.kind != "content" else _with_columns(d, contract, hot, lake) for d in comparison.differences
    ]


def _with_columns(
    difference: Difference, contract: Contract, hot: dict[tuple[Any, ...], Any], lake: dict[tuple[Any, ...], Any]
) -> Difference:
    import dataclasses

    key = tuple(str(difference.key[k]) for k in contract.primary_key)
    if key not in hot or key not in lake:
        return difference
    names = [c.name for c, h, x in zip(contract.columns, hot[key], lake[key], strict=True) if h != x]
    return dataclasses.replace(difference, columns=tuple(names))
