"""The content of archived rows, computed anew from the lake's own data files.

A tombstone names its row by key and by the `_sequence` of the version that was proven; that version stays in the lake
whatever is compacted or expired. Its canonical hash is taken under the contract of that time, by DuckDB, from the files
of the present snapshot that may hold it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date
from typing import TYPE_CHECKING

from catalog.lake import Lake
from catalog.tables import open_table
from lakehouse.archive.recorded import Files
from lakehouse.archive.records import Tombstone
from lakehouse.landing.ended import read_endings
from schemas.canonical import duckdb_hash
from schemas.contract import Contract
from schemas.keys import duckdb_key
from schemas.lake_columns import OP, SEQUENCE, UPSERT, arrow_schema

if TYPE_CHECKING:
    import duckdb
    from pyiceberg.expressions import BooleanExpression
    from pyiceberg.table import Table

_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class Gone:
    """A day of a table that has left the lake, and the id under which the lake's `_ended` tells of it."""

    table: str
    day: date
    ending: str


@dataclass
class Content:
    """Canonical hashes by batch: (key text, hash) in the order of the keys' bytes, one for each row that was found."""

    hashes: dict[int, list[tuple[str, str]]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    """Files that cannot be read, and why."""
    ended: dict[int, dict[str, Gone]] = field(default_factory=dict)
    """Keys by batch whose day has left the lake since, by the lake's own retention."""


def recompute(
    connection: duckdb.DuckDBPyConnection, lake: Lake, contract: Contract, tombstones: Sequence[Tombstone]
) -> Content:
    """The hashes of the rows that these tombstones name; of one table, and of one version of its contract.

    Raises:
        LakehouseError: the lake has no such table (NoSuchTableError of pyiceberg's), or does not answer.
    """
    import pyarrow as pa

    table = open_table(lake, contract)
    then = contract.at(tombstones[0].contract_version)
    files = Files(connection, table, arrow_schema(contract), _bounds(contract, tombstones))
    connection.register(
        "named_arrow",
        pa.table(
            {
                "batch": pa.array([t.batch for t in tombstones], pa.int64()),
                "row_key": pa.array([t.row_key for t in tombstones], pa.string()),
                "sequence": pa.array([t.sequence for t in tombstones], pa.int64()),
            }
        ),
    )
    connection.execute("CREATE OR REPLACE TEMP TABLE named AS SELECT DISTINCT * FROM named_arrow")
    connection.unregister("named_arrow")
    found = files.ask(
        f"SELECT n.batch, n.row_key, {duckdb_hash(then, 'l')} FROM {{files}} l JOIN named n "
        f"ON l.{SEQUENCE} = n.sequence AND {duckdb_key(contract, 'l')} = n.row_key "
        f"WHERE l.{OP} = '{UPSERT}' ORDER BY n.batch, n.row_key"
    )
    content = Content(broken=files.broken, ended=_ended(table, tombstones))
    for batch, key, row_hash in zip(*(column.to_pylist() for column in found.columns), strict=True):
        content.hashes.setdefault(batch, []).append((key, row_hash))
    return content


def _ended(table: Table, tombstones: Sequence[Tombstone]) -> dict[int, dict[str, Gone]]:
    endings = read_endings(table)
    found: dict[int, dict[str, Gone]] = {}
    for tombstone in tombstones if endings else ():
        if tombstone.event_time is None:
            continue
        day = tombstone.event_time.astimezone(UTC).date()
        ending = next((e for e in endings if e.holds((day - _EPOCH).days) and e.sequence >= tombstone.sequence), None)
        if ending is not None:
            found.setdefault(tombstone.batch, {})[tombstone.row_key] = Gone(tombstone.table, day, ending.id)
    return found


def _bounds(contract: Contract, tombstones: Sequence[Tombstone]) -> BooleanExpression:
    """What files must hold to be worth opening: both bounds stay good when files are merged."""
    from pyiceberg.expressions import And, GreaterThanOrEqual, LessThanOrEqual, Reference
    from pyiceberg.expressions.literals import literal

    def between(name: str, first: object, last: object) -> BooleanExpression:
        term = Reference(name)
        return And(
            GreaterThanOrEqual(term=term, value=literal(first)),
            LessThanOrEqual(term=term, value=literal(last)),
        )

    sequences = [t.sequence for t in tombstones]
    bound = between(SEQUENCE, min(sequences), max(sequences))
    times = [t.event_time for t in tombstones if t.event_time is not None]
    if contract.event_time is None or len(times) < len(tombstones):
        return bound
    first, last = min(times), max(times)
    if contract[contract.event_time].type.name == "date":
        return And(bound, between(contract.event_time, first.date().isoformat(), last.date().isoformat()))
    return And(bound, between(contract.event_time, first.isoformat(), last.isoformat()))
