"""What the lake already holds: asked of the lake's own files, by DuckDB.

Two questions. Which versions, as (key, `_xmin`) pairs, came since a transaction id: an exact sweep, a window
after a backfill and a landing that broke off between two parts subtract them. Which keys are alive: those
that the hot table no longer has were deleted, or moved to another day or organization.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lakehouse.capture.position import HALF_SPACE, XID_SPACE
from lakehouse.duck import connect, lake_relation, literal, plain_path, quoted
from lakehouse.landing.cursor import Inventory, LakeCursor
from schemas.contract import Contract
from schemas.lake_columns import DELETE, OP, SEQUENCE, XMIN

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from pyiceberg.table import Table


class HeldRows:
    """Subtracts what the lakes of a group's organizations hold from a stream of rows."""

    def __init__(self, contract: Contract, connection: duckdb.DuckDBPyConnection, pairs: int) -> None:
        self.contract = contract
        self.pairs = pairs
        self._connection = connection

    def subtract(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The rows whose (tenant, key, event time, `_xmin`) no lake holds."""
        import pyarrow as pa

        names = _pair_columns(self.contract)
        join = " AND ".join(f"p.{quoted(n)} = b.{quoted(n)}" for n in names)
        for batch in batches:
            if not self.pairs:
                yield batch
                continue
            candidates = pa.table({n: batch.column(n) for n in names}).append_column(
                "row", pa.arange(0, batch.num_rows)
            )
            self._connection.register("candidates", candidates)
            keep = self._connection.execute(
                f"SELECT b.row FROM candidates b WHERE NOT EXISTS (SELECT 1 FROM pairs p WHERE {join}) ORDER BY b.row"
            ).to_arrow_table()["row"]
            self._connection.unregister("candidates")
            if len(keep):
                yield batch if len(keep) == batch.num_rows else batch.take(keep.combine_chunks())


def _pair_columns(contract: Contract) -> list[str]:
    return list(dict.fromkeys([contract.tenant, *contract.identity, XMIN]))


@contextmanager
def held_rows(
    contract: Contract, storage: Mapping[str, str], tables: Iterable[Table], lower: int
) -> Iterator[HeldRows]:
    """Load the pairs that the tables hold at or after the transaction id `lower` (64-bit)."""
    columns = ", ".join(quoted(n) for n in _pair_columns(contract))
    with connect(storage) as connection:
        parts = [
            # xmin is 32-bit: at or after `lower` is a distance below half of the space, however often it wrapped.
            f"SELECT {columns} FROM {lake_relation(t.metadata_location)} WHERE {OP} <> '{DELETE}' "
            f"AND (({XMIN} - {lower % XID_SPACE} + {XID_SPACE}) % {XID_SPACE}) < {HALF_SPACE}"
            for t in tables
            if t.current_snapshot() is not None
        ]
        count = 0
        if parts:
            connection.execute(f"CREATE TEMP TABLE pairs AS {' UNION ALL '.join(parts)}")
            found = connection.execute("SELECT count(*) FROM pairs").fetchone()
            count = found[0] if found else 0
        yield HeldRows(contract, connection, count)


class KeyReconciliation:
    """Compares the keys that the hot table has now with those that the lake believes alive."""

    def __init__(self, contract: Contract, connection: duckdb.DuckDBPyConnection) -> None:
        self.contract = contract
        self._connection = connection
        self._names = list(dict.fromkeys([contract.tenant, *contract.identity]))
        self._columns = ", ".join(quoted(n) for n in self._names)

    def deleted(self, table: Table, cursor: LakeCursor) -> Iterator[pa.RecordBatch]:
        """Rows (tenant and identity columns) that are alive in the lake and not in the hot table."""
        if table.current_snapshot() is None:
            return
        join = " AND ".join(f"h.{quoted(n)} = k.{quoted(n)}" for n in self._names)
        reader = self._connection.execute(
            f"SELECT {self._columns} FROM ({self._known(table, cursor.inventory)}) k "
            f"WHERE NOT EXISTS (SELECT 1 FROM hot h WHERE {join})"
        ).to_arrow_reader(100_000)
        yield from reader

    def _known(self, table: Table, inventory: Inventory | None) -> str:
        history = lake_relation(table.metadata_location)
        since = inventory.sequence if inventory else -1
        versions = f"SELECT {self._columns}, {SEQUENCE}, {OP} FROM {history} WHERE {SEQUENCE} > {since}"
        if inventory:
            versions += (
                f" UNION ALL SELECT {self._columns}, {since} AS {SEQUENCE}, 'upsert' AS {OP} "
                f"FROM read_parquet({literal(plain_path(inventory.file))})"
            )
        return (
            f"SELECT {self._columns} FROM ({versions}) GROUP BY {self._columns} "
            f"HAVING arg_max({OP}, {SEQUENCE}) <> '{DELETE}'"
        )

    def write_inventory(self, table: Table, organization: str, sequence: int) -> Inventory:
        """Write this organization's present keys beside the table; the cursor will name the file."""
        path = f"{table.location()}/inventory/{sequence}-{uuid.uuid4().hex[:8]}.parquet"
        tenant = quoted(self.contract.tenant)
        if path.startswith("file://"):
            from pathlib import Path

            Path(plain_path(path)).parent.mkdir(parents=True, exist_ok=True)
        self._connection.execute(
            f"COPY (SELECT {self._columns}, false AS archived FROM hot "
            f"WHERE {tenant}::VARCHAR = {literal(organization)}) "
            f"TO {literal(plain_path(path))} (FORMAT parquet, COMPRESSION zstd)"
        )
        return Inventory(sequence, path)


@contextmanager
def key_reconciliation(
    contract: Contract, storage: Mapping[str, str], keys: Iterator[pa.RecordBatch]
) -> Iterator[KeyReconciliation]:
    """Stream the hot table's keys into DuckDB, which spills what does not fit."""
    import pyarrow as pa

    with connect(storage) as connection:
        first = next(keys, None)
        if first is None:
            names = dict.fromkeys([contract.tenant, *contract.identity])
            from schemas.types import arrow_type

            schema = pa.schema([pa.field(n, arrow_type(contract[n].type)) for n in names])
            connection.register("stream", pa.Table.from_batches([], schema))
        else:
            connection.register("stream", pa.RecordBatchReader.from_batches(first.schema, _chain(first, keys)))
        connection.execute("CREATE TEMP TABLE hot AS SELECT * FROM stream")
        connection.unregister("stream")
        yield KeyReconciliation(contract, connection)


def _chain(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest
