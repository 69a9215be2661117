"""What the lake already holds: asked of the lake's own files, by DuckDB.

Two questions. Which versions, as (key, `_xmin`) pairs, came since a transaction id: an exact sweep, a window
after a backfill and a landing that broke off between two parts subtract them. Which keys are alive: those
that the hot table no longer has were deleted, or moved to another day or organization; or archived, which is no delete
(`lakehouse.archive.archived`).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from catalog.lake import LakeAddress
from lakehouse.archive.archived import Archived, archived_of
from lakehouse.capture.forbidden import FORBIDDEN
from lakehouse.capture.position import HALF_SPACE, XID_SPACE
from lakehouse.capture.protocol import CONTENT_HASH
from lakehouse.capture.source import SourceError
from lakehouse.duck import connect, lake_relation, literal, plain_path, quoted
from lakehouse.landing.cursor import Inventory, LakeCursor
from lakehouse.landing.ended import in_ended_days, read_endings
from lakehouse.landing.history import read_history
from schemas.canonical import duckdb_hash
from schemas.contract import Contract
from schemas.errors import LakehouseError, Retry
from schemas.keys import duckdb_key
from schemas.lake_columns import DELETE, OP, SEQUENCE, XMIN

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from pyiceberg.table import Table


class HeldRows:
    """Subtracts what the lakes of a group's organizations hold from a stream of rows.

    `failures`: organizations whose files could not be read; their rows are left out of the stream.
    """

    def __init__(self, contract: Contract, connection: duckdb.DuckDBPyConnection, names: list[str]) -> None:
        self.contract = contract
        self.failures: dict[str, LakehouseError] = {}
        self._connection = connection
        self._names = names
        self._loaded = False

    def load(self, organization: str, table: Table, query: str) -> None:
        """Add what one organization's lake holds; a fault is kept in `failures`."""
        import duckdb

        statement = "INSERT INTO held" if self._loaded else "CREATE TEMP TABLE held AS"
        try:
            self._connection.execute(f"{statement} {query}")
            self._loaded = True
        except duckdb.Error as error:
            self.failures[organization] = unreadable(table, error)

    def subtract(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The rows that no lake holds, without the column of their content's hash."""
        import pyarrow as pa
        import pyarrow.compute as pc

        join = " AND ".join(f"p.{quoted(n)} = b.{quoted(n)}" for n in self._names)
        lost = pa.array(sorted(self.failures), pa.string())
        for batch in batches:
            rows = batch
            if self.failures:
                tenants = rows.column(self.contract.tenant).cast(pa.string())
                rows = rows.filter(pc.invert(pc.is_in(tenants, lost)))
            if self._loaded:
                columns = {n: rows.column(n) for n in self._names}
                self._connection.register("candidates", pa.table({**columns, "row": pa.arange(0, rows.num_rows)}))
                keep = self._connection.execute(
                    "SELECT b.row FROM candidates b "
                    f"WHERE NOT EXISTS (SELECT 1 FROM held p WHERE {join}) ORDER BY b.row"
                ).to_arrow_table()["row"]
                self._connection.unregister("candidates")
                rows = rows if len(keep) == rows.num_rows else rows.take(keep.combine_chunks())
            if rows.num_rows:
                yield rows.drop_columns([CONTENT_HASH]) if CONTENT_HASH in rows.schema.names else rows


def unreadable(table: Table, error: Exception) -> LakehouseError:
    """Our error for a lake whose files DuckDB cannot read."""
    return LakehouseError(
        f"{'.'.join(table.name())}: the lake's files cannot be read: {str(error).splitlines()[0][:300]}",
        "A file is gone or damaged, or the storage does not answer. Nothing was lost: the hot rows are whole.",
        retry=Retry.TIMED,
    )


@contextmanager
def held_versions(
    contract: Contract, lakes: Iterable[LakeAddress], tables: Mapping[str, Table], lower: int
) -> Iterator[HeldRows]:
    """What the tables hold as (tenant, event time, key, `_xmin`), at or after the transaction id `lower` (64-bit).

    Only of the source's present history: in an earlier one the same id named another transaction.
    """
    names = list(dict.fromkeys([contract.tenant, *contract.identity, XMIN]))
    with connect(lakes) as connection:
        held = HeldRows(contract, connection, names)
        for organization, table in tables.items():
            if table.current_snapshot() is not None:
                # xmin is 32-bit: at or after `lower` is a distance below half of the space, however often it wrapped.
                held.load(
                    organization,
                    table,
                    f"SELECT {', '.join(map(quoted, names))} FROM {lake_relation(table.metadata_location)} "
                    f"WHERE {OP} <> '{DELETE}' AND {SEQUENCE} > {read_history(table).floor} "
                    f"AND (({XMIN} - {lower % XID_SPACE} + {XID_SPACE}) % {XID_SPACE}) < {HALF_SPACE}",
                )
        yield held


@contextmanager
def held_content(
    contract: Contract, lakes: Iterable[LakeAddress], tables: Mapping[str, Table], archived: Archived
) -> Iterator[HeldRows]:
    """What the tables show now as (tenant, event time, key, hash of the canonical row): what a recapture subtracts.

    Without the rows that the archive took: one that is in the hot table all the same (a restore brought it back, or
    it was inserted again as it was) lands again. Its newer version says that it is not archived any more.

    Raises:
        SourceError: it cannot be read what the archive took.
    """
    identity = list(dict.fromkeys([contract.tenant, *contract.identity]))
    order = ", ".join(quoted(n) for n in contract.identity)
    with connect(lakes) as connection:
        held = HeldRows(contract, connection, [*identity, CONTENT_HASH])
        for organization, table in tables.items():
            if table.current_snapshot() is None:
                continue
            latest = (
                f"SELECT {', '.join(map(quoted, identity))}, {duckdb_hash(contract)} AS {CONTENT_HASH}, {SEQUENCE} "
                f"FROM {lake_relation(table.metadata_location)} "
                f"QUALIFY row_number() OVER (PARTITION BY {order} ORDER BY {SEQUENCE} DESC) = 1 AND {OP} <> '{DELETE}'"
            )
            try:
                taken = archived.load_all(connection, organization)
            except SourceError:
                raise
            except LakehouseError as error:
                held.failures[organization] = error
                continue
            if taken is not None:
                latest = (
                    f"SELECT * FROM ({latest}) l WHERE NOT EXISTS (SELECT 1 FROM {taken} t "
                    f"WHERE t.row_key = {duckdb_key(contract, 'l')} AND t.sequence >= l.{SEQUENCE})"
                )
            held.load(organization, table, f"SELECT * EXCLUDE ({SEQUENCE}) FROM ({latest})")
        yield held


class KeyReconciliation:
    """Compares the keys that the hot table has now with those that the lake believes alive."""

    def __init__(self, contract: Contract, connection: duckdb.DuckDBPyConnection, archived: Archived) -> None:
        self.contract = contract
        self._connection = connection
        self._archived = archived
        self.archived: dict[str, int] = {}
        """By organization: keys that were missed here, and that the archive took."""
        self._names = list(dict.fromkeys([contract.tenant, *contract.identity]))
        self._columns = ", ".join(quoted(n) for n in self._names)
        # What the hot table has and the lake cannot hold, by primary key: usually nothing.
        key = dict.fromkeys([contract.tenant, *contract.primary_key])
        connection.execute(
            f"CREATE TEMP TABLE quarantined AS SELECT {', '.join(map(quoted, key))} FROM hot WHERE {FORBIDDEN}"
        )
        connection.execute(f"DELETE FROM hot WHERE {FORBIDDEN}")
        join = " AND ".join(f"q.{quoted(n)} = k.{quoted(n)}" for n in key)
        self._quarantined = f"EXISTS (SELECT 1 FROM quarantined q WHERE {join})"

    def deleted(self, organization: str, table: Table, cursor: LakeCursor) -> Iterator[pa.RecordBatch]:
        """Rows (tenant and identity columns) that are alive in the lake and whose key is not in the hot table.

        Without those that the archive took.

        Raises:
            LakehouseError: the lake's files cannot be read. SourceError: nor what the archive took.
        """
        import duckdb

        if table.current_snapshot() is None:
            return
        try:
            yield from self._deleted(organization, table, self._usable(table, cursor.inventory))
        except duckdb.Error as error:
            raise unreadable(table, error) from error

    def _deleted(self, organization: str, table: Table, inventory: Inventory | None) -> Iterator[pa.RecordBatch]:
        join = " AND ".join(f"h.{quoted(n)} = k.{quoted(n)}" for n in self._names)
        self._connection.execute(
            f"CREATE OR REPLACE TEMP TABLE vanished AS SELECT {self._columns}, {duckdb_key(self.contract)} AS row_key "
            f"FROM ({self._known(table, inventory)}) k "
            # The lake keeps the last good version of a row that it cannot hold as it is now.
            f"WHERE NOT EXISTS (SELECT 1 FROM hot h WHERE {join}) AND NOT {self._quarantined}"
        )
        history = lake_relation(table.metadata_location)
        self._connection.execute(
            f"CREATE OR REPLACE TEMP TABLE appeared AS {self._appeared(organization, history, inventory)}"
        )
        found = self._archived.find(self._connection, organization, "vanished", "appeared")
        gone = f"SELECT {self._columns} FROM vanished"
        if found:
            since = inventory.sequence if inventory else None
            archived_of(self._connection, self.contract, "vanished", history, since)
            self.archived[organization] = self._connection.execute("SELECT count(*) FROM archived").fetchall()[0][0]
            same = " AND ".join(f"a.{quoted(n)} = v.{quoted(n)}" for n in self._names)
            gone = (
                f"SELECT {self._columns} FROM vanished v WHERE NOT EXISTS (SELECT 1 FROM archived a WHERE {same})"
                f" UNION {self._returned(history)}"
            )
        yield from self._connection.execute(gone).to_arrow_reader(100_000)

    def _appeared(self, organization: str, history: str, inventory: Inventory | None) -> str:
        """SQL of identities that came after the inventory was written, where their keys may have been archived under
        another event time before that: no inventory lists those. `newest`: the identity's newest version in the lake,
        null of what is in the hot table. Others landed and went again, by windows that did not compare keys."""
        columns = f"{self._columns}, {duckdb_key(self.contract)} AS row_key"
        if inventory is None or self.contract.identity == self.contract.primary_key:
            return f"SELECT {columns}, NULL::BIGINT AS newest FROM hot WHERE false"
        join = " AND ".join(f"i.{quoted(n)} = h.{quoted(n)}" for n in self._names)
        same_key = " AND ".join(
            f"i.{quoted(n)} = h.{quoted(n)}" for n in dict.fromkeys([self.contract.tenant, *self.contract.primary_key])
        )
        came = (
            f"{quoted(self.contract.tenant)}::VARCHAR = {literal(organization)} AND NOT EXISTS "
            f"(SELECT 1 FROM read_parquet({literal(plain_path(inventory.file))}) i WHERE {join})"
        )
        return (
            f"SELECT {columns}, NULL::BIGINT AS newest FROM hot h WHERE {came} UNION ALL "
            f"SELECT {columns}, max({SEQUENCE}) AS newest FROM {history} h "
            f"WHERE {SEQUENCE} > {inventory.sequence} AND {OP} <> '{DELETE}' AND {came} "
            # Where the key is in the hot table, as whatever identity, that one has the say.
            f"AND NOT EXISTS (SELECT 1 FROM hot i WHERE {same_key}) GROUP BY ALL"
        )

    def _returned(self, history: str) -> str:
        """SQL of identities that are alive in the lake, of archived keys that came back under another event time."""
        if self.contract.event_time is None:
            return f"SELECT {self._columns} FROM appeared WHERE false"
        event = quoted(self.contract.event_time)
        kind = "DATE" if self.contract[self.contract.event_time].type.name == "date" else "TIMESTAMPTZ"
        columns = ", ".join(
            f"t.event_time::{kind} AS {event}" if n == self.contract.event_time else f"p.{quoted(n)}"
            for n in self._names
        )
        former = (
            f"SELECT {columns} FROM appeared p JOIN (SELECT row_key, event_time, max(sequence) AS sequence FROM taken "
            "GROUP BY ALL) t ON t.row_key = p.row_key "
            # Of two identities of one key, the one with the later version counts.
            f"WHERE t.event_time::{kind} <> p.{event} AND (p.newest IS NULL OR p.newest > t.sequence)"
        )
        return alive(self.contract, former, history)

    @staticmethod
    def _usable(table: Table, inventory: Inventory | None) -> Inventory | None:
        # It can be rebuilt: the lake itself knows.
        return inventory if inventory is not None and table.io.new_input(inventory.file).exists() else None

    def _known(self, table: Table, inventory: Inventory | None) -> str:
        history = lake_relation(table.metadata_location)
        since = inventory.sequence if inventory else -1
        versions = f"SELECT {self._columns}, {SEQUENCE}, {OP} FROM {history} WHERE {SEQUENCE} > {since}"
        if inventory:
            # What ended since it was written is in it, and is no delete: the lake let go of it.
            ended = [e for e in read_endings(table) if e.sequence >= since]
            versions += (
                f" UNION ALL SELECT {self._columns}, {since} AS {SEQUENCE}, 'upsert' AS {OP} "
                f"FROM read_parquet({literal(plain_path(inventory.file))}) "
                f"WHERE NOT {in_ended_days(self.contract, ended)}"
            )
        return (
            f"SELECT {self._columns} FROM ({versions}) GROUP BY {self._columns} "
            f"HAVING arg_max({OP}, {SEQUENCE}) <> '{DELETE}'"
        )

    def write_inventory(self, table: Table, organization: str, sequence: int, cursor: LakeCursor) -> Inventory:
        """Write this organization's present keys beside the table; the cursor will name the file.

        Without those that the archive took: a tombstone is asked for once, when the key is first missed. Of a row that
        the lake cannot hold: the identity under which the lake has it, if it does. `cursor`: the one that the window
        was read from.
        """
        path = f"{table.location()}/inventory/{sequence}-{uuid.uuid4().hex[:8]}.parquet"
        tenant = quoted(self.contract.tenant)
        if path.startswith("file://"):
            from pathlib import Path

            Path(plain_path(path)).parent.mkdir(parents=True, exist_ok=True)
        mine = f"{tenant}::VARCHAR = {literal(organization)}"
        keys = f"SELECT {self._columns} FROM hot WHERE {mine}"
        kept = self._connection.execute(f"SELECT count(*) FROM quarantined WHERE {mine}").fetchall()[0][0]
        if kept and table.current_snapshot() is not None:
            known = self._known(table, self._usable(table, cursor.inventory))
            keys += f" UNION ALL SELECT {self._columns} FROM ({known}) k WHERE {mine} AND {self._quarantined}"
        self._connection.execute(
            f"COPY (SELECT {self._columns} FROM ({keys})) "
            f"TO {literal(plain_path(path))} (FORMAT parquet, COMPRESSION zstd)"
        )
        return Inventory(sequence, path)


def alive(contract: Contract, identities: str, history: str) -> str:
    """SQL of those of some identities (tenant and identity columns) that a lake table, as SQL, shows alive."""
    names = list(dict.fromkeys([contract.tenant, *contract.identity]))
    columns = ", ".join(f"i.{quoted(n)}" for n in names)
    same = " AND ".join(f"h.{quoted(n)} = i.{quoted(n)}" for n in contract.identity)
    return (
        f"SELECT {columns} FROM ({identities}) i JOIN {history} h ON {same} GROUP BY {columns} "
        f"HAVING arg_max(h.{OP}, h.{SEQUENCE}) <> '{DELETE}'"
    )


def held_alive(
    contract: Contract,
    lakes: Iterable[LakeAddress],
    organization: str,
    table: Table,
    batches: Iterable[pa.RecordBatch],
) -> Iterator[pa.RecordBatch]:
    """Those of some identities, of any organization, that are this one's and that its lake shows alive.

    Raises:
        LakehouseError: the lake's files cannot be read.
    """
    import duckdb
    import pyarrow as pa

    found = pa.Table.from_batches(batches)
    if not found.num_rows or table.current_snapshot() is None:
        return
    with connect(lakes) as connection:
        connection.register("batches", found)
        # A table of DuckDB's own: filters on times that it pushes into Arrow's need what is not installed.
        connection.execute("CREATE TEMP TABLE found AS SELECT DISTINCT * FROM batches")
        connection.unregister("batches")
        mine = f"SELECT * FROM found WHERE {quoted(contract.tenant)}::VARCHAR = {literal(organization)}"
        try:
            yield from connection.execute(
                alive(contract, mine, lake_relation(table.metadata_location))
            ).to_arrow_reader(100_000)
        except duckdb.Error as error:
            raise unreadable(table, error) from error


@contextmanager
def key_reconciliation(
    contract: Contract, lakes: Iterable[LakeAddress], keys: Iterator[pa.RecordBatch], archived: Archived
) -> Iterator[KeyReconciliation]:
    """Stream the hot table's keys into DuckDB, which spills what does not fit."""
    import pyarrow as pa

    with connect(lakes) as connection:
        first = next(keys, None)
        if first is None:
            names = dict.fromkeys([contract.tenant, *contract.identity])
            from schemas.types import arrow_type

            fields = [pa.field(n, arrow_type(contract[n].type)) for n in names]
            schema = pa.schema([*fields, pa.field(FORBIDDEN, pa.bool_())])
            connection.register("stream", pa.Table.from_batches([], schema))
        else:
            connection.register("stream", pa.RecordBatchReader.from_batches(first.schema, _chain(first, keys)))
        connection.execute("CREATE TEMP TABLE hot AS SELECT * FROM stream")
        connection.unregister("stream")
        yield KeyReconciliation(contract, connection, archived)


def _chain(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest
