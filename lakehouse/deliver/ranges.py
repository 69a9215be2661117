"""Reads a range of `_sequence` of a lake table, from whatever snapshot holds it, and the latest state as of one.

By DuckDB over the lake's own files at one metadata file: a compaction that rewrote the files, or an expiry that removed
the snapshots of the range's landings, changes nothing. Files whose statistics lie outside of the range are not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from catalog.tables import open_table
from lakehouse.control import store
from lakehouse.duck import column_type, connect, lake_relation, literal, quoted
from lakehouse.landing.cursor import read_cursor
from lakehouse.landing.held import unreadable
from schemas.contract import Contract
from schemas.errors import LakehouseError, Retry
from schemas.lake_columns import DELETE, OP, SEQUENCE, arrow_schema, lake_fields

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from pyiceberg.table import Table

    from lakehouse.app import App

BATCH_ROWS = 10_000


@dataclass(frozen=True)
class LakeTable:
    """One table of one organization as it stands now."""

    contract: Contract
    organization: str
    table: Table
    sequence: int
    snapshot_id: int
    """0 where the table was backfilled and has had no row yet: then there is no snapshot."""

    @property
    def relation(self) -> str:
        """SQL that reads its whole history, at this metadata file."""
        if not self.snapshot_id:
            nothing = ", ".join(f"NULL::{column_type(c)} AS {quoted(c.name)}" for c in lake_fields(self.contract))
            return f"(SELECT {nothing} WHERE false)"
        relation = lake_relation(self.table.metadata_location)
        # A contract's new column is in the lake from the next landing on.
        held = {field.name for field in self.table.schema().fields}
        missing = [c for c in lake_fields(self.contract) if c.name not in held]
        if not missing:
            return relation
        nulls = ", ".join(f"NULL::{column_type(c)} AS {quoted(c.name)}" for c in missing)
        return f"(SELECT *, {nulls} FROM {relation})"


def open_lake_table(app: App, contract: Contract, organization: str, *, at_least: int = 0) -> LakeTable:
    """The table, checked to be ours and to hold everything up to a `_sequence`.

    Raises:
        LakehouseError: it is not there, another's, or nothing was landed in it yet.
    """
    from pyiceberg.exceptions import NoSuchTableError

    lake = app.lake(organization)
    lake.check()
    try:
        table = open_table(lake, contract)
    except NoSuchTableError as error:
        raise LakehouseError(
            f"{lake.namespace}.{contract.table}: not in the lake yet", "Run `lakehouse backfill`.", retry=Retry.TIMED
        ) from error
    cursor, snapshot = read_cursor(table), table.current_snapshot()
    if cursor is None and snapshot is None:
        known = store.cursors(app.engine, contract.table).get(organization)
        if known is not None and known.sequence == 0:
            check_reaches(table, 0, at_least)
            return LakeTable(contract, organization, table, 0, 0)
    if cursor is None or snapshot is None or not cursor.complete:
        raise LakehouseError(
            f"{lake.namespace}.{contract.table}: holds no complete history yet",
            "It is delivered when its backfill is done.",
            retry=Retry.TIMED,
        )
    check_reaches(table, cursor.sequence, at_least)
    return LakeTable(contract, organization, table, cursor.sequence, snapshot.snapshot_id)


def check_reaches(table: Table, sequence: int, wanted: int) -> None:
    """The lake holds what somebody has, or is to get.

    Raises:
        LakehouseError: it ends before that.
    """
    if sequence < wanted:
        raise LakehouseError(
            f"{'.'.join(table.name())}: the lake ends at {sequence}, and {wanted} was promised or delivered",
            "The lake was replaced by an older one: see `lakehouse lake adopt`.",
            retry=Retry.MANUAL,
        )


def state_order(contract: Contract, *, every_version: bool) -> tuple[str, ...]:
    """The columns that a state is ordered by: the event time first, so that what is left can be found by its days."""
    time = (contract.event_time,) if contract.event_time is not None else ()
    return (*dict.fromkeys((*time, *contract.identity)), *((SEQUENCE,) if every_version else ()))


@contextmanager
def range_reader(app: App, lake: LakeTable) -> Iterator[RangeOf]:
    """Reads ranges of this table while the body runs."""
    with connect(app.addresses_of([lake.organization])) as connection:
        yield RangeOf(lake, connection)


class RangeOf:
    """See `federation.protocol.RangeReader`."""

    def __init__(self, lake: LakeTable, connection: duckdb.DuckDBPyConnection) -> None:
        self.lake = lake
        self._connection = connection

    def __call__(self, after: int, upto: int) -> Iterator[pa.RecordBatch]:
        """Rows with `_sequence` in (after, upto], ordered by it.

        Raises:
            LakehouseError: the lake's files cannot be read.
        """
        yield from self._rows(f"WHERE {SEQUENCE} > {int(after)} AND {SEQUENCE} <= {int(upto)} ORDER BY {SEQUENCE}")

    def state(
        self,
        upto: int,
        beyond: Sequence[str] = (),
        begin: str | None = None,
        end: str | None = None,
        *,
        every_version: bool = False,
    ) -> Iterator[pa.RecordBatch]:
        """The latest state at this `_sequence`, without what is deleted, in the order of `state_order`.

        Or every version up to it. `beyond`: only what comes after this place. `begin`, `end`: only event times from the
        one to before the other.

        Raises:
            LakehouseError: the lake's files cannot be read.
        """
        contract = self.lake.contract
        order = state_order(contract, every_version=every_version)
        where = [f"{SEQUENCE} <= {int(upto)}", *self._bounds(beyond, order)]
        for sign, bound in ((">=", begin), ("<", end)):
            if bound is not None and contract.event_time is not None:
                where.append(f"{quoted(contract.event_time)} {sign} {self._value(contract.event_time, bound)}")
        identity = ", ".join(quoted(n) for n in contract.identity)
        newest = (
            f"QUALIFY row_number() OVER (PARTITION BY {identity} ORDER BY {SEQUENCE} DESC) = 1 AND {OP} <> '{DELETE}' "
        )
        yield from self._rows(
            f"WHERE {' AND '.join(where)} {'' if every_version else newest}"
            f"ORDER BY {', '.join(quoted(n) for n in order)}"
        )

    def days(self, upto: int, beyond: Sequence[str]) -> list[tuple[str | None, int]]:
        """Days of event times and how many versions each has, up to a `_sequence` and from a place on.

        One without a name where the table has no event time.

        Raises:
            LakehouseError: the lake's files cannot be read.
        """
        import duckdb

        time = self.lake.contract.event_time
        day = f"strftime({quoted(time)}, '%Y-%m-%d')" if time is not None else "NULL"
        order = state_order(self.lake.contract, every_version=True)
        where = " AND ".join([f"{SEQUENCE} <= {int(upto)}", *self._bounds(beyond, order)[:1]])
        try:
            found: list[tuple[str | None, int]] = self._connection.execute(
                f"SELECT {day}, count(*) FROM {self.lake.relation} WHERE {where} GROUP BY 1 ORDER BY 1"
            ).fetchall()
        except duckdb.Error as error:
            raise unreadable(self.lake.table, error) from error
        return found

    def _bounds(self, beyond: Sequence[str], order: Sequence[str]) -> list[str]:
        """Conditions of what comes after a place. The first is one that prunes files."""
        values = [(quoted(n), self._value(n, v)) for n, v in zip(order, beyond, strict=False)]
        if not values:
            return []
        steps = [
            " AND ".join([*(f"{n} = {v}" for n, v in values[:i]), f"{values[i][0]} > {values[i][1]}"])
            for i in range(len(values))
        ]
        return [f"{values[0][0]} >= {values[0][1]}", f"({' OR '.join(f'({s})' for s in steps)})"]

    def _value(self, name: str, text: str) -> str:
        types = {c.name: column_type(c) for c in lake_fields(self.lake.contract)}
        return f"{literal(text)}::{types[name]}"

    def _rows(self, rest: str) -> Iterator[pa.RecordBatch]:
        import duckdb
        import pyarrow as pa

        lake = self.lake
        schema = arrow_schema(lake.contract)
        names = ", ".join(quoted(c.name) for c in lake_fields(lake.contract))
        query = f"SELECT {names} FROM {lake.relation} {rest}"
        try:
            reader = self._connection.execute(query).to_arrow_reader(BATCH_ROWS)
            for batch in reader:
                columns = [batch.column(f.name).cast(f.type) for f in schema]
                yield pa.RecordBatch.from_arrays(columns, schema=schema)
        except duckdb.Error as error:
            raise unreadable(lake.table, error) from error
