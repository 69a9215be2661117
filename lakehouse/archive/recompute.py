"""The content of archived rows, computed anew from the lake's own data files.

A tombstone names its row by key and by the `_sequence` of the version that was proven; that version stays in the lake
whatever is compacted or expired. Its canonical hash is taken under the contract of that time, by DuckDB, from the files
of the present snapshot that may hold it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

from catalog.lake import Lake
from catalog.tables import open_table
from lakehouse.archive.recorded import Files
from lakehouse.archive.records import Tombstone
from lakehouse.duck import quoted
from lakehouse.landing.ended import read_endings
from schemas.canonical import duckdb_hash
from schemas.contract import Contract
from schemas.keys import duckdb_key
from schemas.lake_columns import DELETE, OP, SEQUENCE, UPSERT, arrow_schema

if TYPE_CHECKING:
    import duckdb
    from pyiceberg.expressions import BooleanExpression
    from pyiceberg.table import Table

_EPOCH = date(1970, 1, 1)
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


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
    deleted: dict[int, list[str]] = field(default_factory=dict)
    """Keys by batch that the lake shows as deleted since, although no version of them came after the archived one."""


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
                "event_time": pa.array([_microseconds(t.event_time) for t in tombstones], pa.int64()),
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
    _deleted(connection, table, contract, tombstones, content)
    for batch, key, row_hash in zip(*(column.to_pylist() for column in found.columns), strict=True):
        content.hashes.setdefault(batch, []).append((key, row_hash))
    return content


def _deleted(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    contract: Contract,
    tombstones: Sequence[Tombstone],
    content: Content,
) -> None:
    """What is archived stays as it was: only after its id was inserted again is a delete of its identity no wonder.

    The version that tells of it may have another event time, so it is looked for in every day, but only where there is
    a delete. It may have left the lake by its own retention since: of what was archived before that, nothing is said.
    """
    from pyiceberg.expressions import And

    day = _days(contract, tombstones)
    since = _after(min(t.sequence for t in tombstones))
    files = Files(connection, table, arrow_schema(contract), since if day is None else And(since, day))
    of_key = f"l.{SEQUENCE} > n.sequence AND {duckdb_key(contract, 'l')} = n.row_key"
    # An id that moved to another day before it was archived has a delete of its former identity.
    event = contract.event_time
    own = f" AND epoch_us(l.{quoted(event)}::TIMESTAMPTZ) = n.event_time" if event is not None else ""
    ended = max((e.sequence for e in read_endings(table)), default=0)
    found = files.ask(
        f"SELECT DISTINCT n.batch, n.row_key, n.sequence FROM {{files}} l JOIN named n ON {of_key}{own} "
        f"WHERE l.{OP} = '{DELETE}' AND n.sequence >= {ended}"
    )
    content.broken |= files.broken
    if not found.num_rows:
        return
    connection.register("gone_arrow", found)
    connection.execute("CREATE OR REPLACE TEMP TABLE gone AS SELECT * FROM gone_arrow")
    connection.unregister("gone_arrow")
    files = Files(connection, table, arrow_schema(contract), since)
    left = files.ask(
        "SELECT batch, row_key FROM gone ANTI JOIN (SELECT n.batch, n.row_key FROM {files} l "
        f"JOIN gone n ON {of_key} WHERE l.{OP} = '{UPSERT}') USING (batch, row_key) ORDER BY batch, row_key"
    )
    content.broken |= files.broken
    if files.broken:
        # What would tell why may have been in one of them.
        return
    for batch, key in zip(*(column.to_pylist() for column in left.columns), strict=True):
        content.deleted.setdefault(batch, []).append(key)


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


def _microseconds(moment: datetime | None) -> int | None:
    return None if moment is None else (moment - _BEGINNING) // timedelta(microseconds=1)


def _bounds(contract: Contract, tombstones: Sequence[Tombstone]) -> BooleanExpression:
    """What files must hold to be worth opening: both bounds stay good when files are merged."""
    from pyiceberg.expressions import And

    sequences = [t.sequence for t in tombstones]
    bound = _between(SEQUENCE, min(sequences), max(sequences))
    day = _days(contract, tombstones)
    return bound if day is None else And(bound, day)


def _days(contract: Contract, tombstones: Sequence[Tombstone]) -> BooleanExpression | None:
    """Where versions of these rows' own identities are; None: anywhere."""
    times = [t.event_time for t in tombstones if t.event_time is not None]
    if contract.event_time is None or len(times) < len(tombstones):
        return None
    first, last = min(times), max(times)
    if contract[contract.event_time].type.name == "date":
        return _between(contract.event_time, first.date().isoformat(), last.date().isoformat())
    return _between(contract.event_time, first.isoformat(), last.isoformat())


def _between(name: str, first: object, last: object) -> BooleanExpression:
    from pyiceberg.expressions import And, GreaterThanOrEqual, LessThanOrEqual, Reference
    from pyiceberg.expressions.literals import literal

    term = Reference(name)
    return And(
        GreaterThanOrEqual(term=term, value=literal(first)),
        LessThanOrEqual(term=term, value=literal(last)),
    )


def _after(sequence: int) -> BooleanExpression:
    from pyiceberg.expressions import GreaterThan, Reference
    from pyiceberg.expressions.literals import literal

    return GreaterThan(term=Reference(SEQUENCE), value=literal(sequence))
