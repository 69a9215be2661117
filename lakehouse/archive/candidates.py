"""Reads from the hot table the rows that may go: their keys, versions and content hashes, oldest event first.

One REPEATABLE READ transaction a slice, so that hash and `xmin` are of one version of a row; the slice ends before the
lake is read. Rows that are held, or that a row of another table refers to, are left out: they are asked for again in
the transaction that deletes, and reading them here would only cost time. Slices follow one another by event time and
key, in the table's own types.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from psycopg import sql

from lakehouse.archive import age
from lakehouse.archive.gate import Gate
from lakehouse.archive.holds import held
from lakehouse.archive.records import Hold
from lakehouse.capture.source import Source
from lakehouse.capture.xmin import stream, transaction
from lakehouse.failpoints import failpoint
from schemas.canonical import postgres_hash
from schemas.contract import Contract
from schemas.keys import postgres_key
from schemas.types import arrow_type

if TYPE_CHECKING:
    import pyarrow as pa

    from lakehouse.app import App

NUMBER, KEY, EVENT, HASH, XMIN, LANDING = "n", "row_key", "event", "row_hash", "hot_xmin", "since_landing"
_AFTER = "event_text"

Place = tuple[str, ...]
"""Where a slice ends: the last row's event time (if the contract has one) and key, as PostgreSQL's text."""


@dataclass(frozen=True)
class Slice:
    """Candidates of one organization. `rows`: number, key text, key columns as text (`k0`, …), event, hash, xmin."""

    rows: pa.Table
    """Without rows it has no columns either."""
    last: Place | None
    """None: there are no more after these."""
    next_xid: int
    """Transactions of this number or above were not visible."""


def key_names(contract: Contract) -> list[str]:
    """How the key's columns are named in a slice."""
    return [f"k{n}" for n in range(len(contract.primary_key))]


@contextmanager
def archive_source(app: App) -> Iterator[Source]:
    """The hot database as the archive's user reads it."""
    settings = app.settings.source
    source = Source(settings.model_copy(update={"url": app.settings.archive.url or settings.url}))
    try:
        yield source
    finally:
        source.close()


def read_slice(
    source: Source,
    gate: Gate,
    organization: str,
    cutoff: datetime,
    *,
    after: Place | None,
    most: int,
    installed: bool = True,
    forgotten: Sequence[Hold] = (),
) -> Slice:
    """The next `most` rows that are old, not in use, not held and not referred to by another table's row.

    `installed`: false where the archive was never set up in this database, which then has no holds. `forgotten`: holds
    that only the lake has.

    Raises:
        SourceError: the hot database does not answer or refuses.
    """
    import pyarrow as pa

    contract = gate.contract
    with source.session() as reader, reader.cursor() as cursor, transaction(cursor, contract):
        # By the indexes that give the order and serve the keys, wherever there are any, whatever the planner thinks of
        # how many rows are old: sorting all of them, or reading a referring table whole, would be paid at each slice.
        for way in ("sort", "hashjoin", "mergejoin", "seqscan", "bitmapscan"):
            cursor.execute(f"SET LOCAL enable_{way} = off")
        query = _query(gate, organization, cutoff, after, most, installed=installed, forgotten=forgotten)
        batches = list(stream(cursor, query, contract))
        cursor.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")
        next_xid = int(cursor.fetchone()[0])
    failpoint("archive.candidates_read")
    if not any(batch.num_rows for batch in batches):
        return Slice(pa.table({}), None, next_xid)
    rows = pa.Table.from_batches(batches)
    last: Place | None = None
    if rows.num_rows == most:
        names = [*([_AFTER] if contract.event_time else []), *key_names(contract)]
        last = tuple(rows[name][-1].as_py() for name in names)
    rows = rows.drop_columns([_AFTER]) if contract.event_time else rows
    return Slice(_typed(rows, contract), last, next_xid)


def _typed(rows: pa.Table, contract: Contract) -> pa.Table:
    import pyarrow as pa

    if contract.event_time is not None:
        kind = arrow_type(contract[contract.event_time].type)
        ticks = rows[EVENT].cast(pa.int32()) if pa.types.is_date32(kind) else rows[EVENT]
        rows = rows.set_column(rows.schema.get_field_index(EVENT), EVENT, [c.view(kind) for c in ticks.chunks])
    return rows.append_column(NUMBER, pa.arange(0, rows.num_rows))


def _query(
    gate: Gate,
    organization: str,
    cutoff: datetime,
    after: Place | None,
    most: int,
    *,
    installed: bool,
    forgotten: Sequence[Hold],
) -> sql.Composed:
    contract = gate.contract
    columns: list[sql.Composable] = [
        sql.SQL("{} AS {}").format(sql.SQL(postgres_key(contract, "t")), sql.Identifier(KEY)),
        *(
            sql.SQL("{}::text AS {}").format(sql.Identifier("t", contract[k].source), sql.Identifier(name))
            for k, name in zip(contract.primary_key, key_names(contract), strict=True)
        ),
        sql.SQL("{} AS {}").format(sql.SQL(postgres_hash(contract, alias="t")), sql.Identifier(HASH)),
        sql.SQL("t.xmin::text::bigint AS {}").format(sql.Identifier(XMIN)),
        sql.SQL("{} AS {}").format(age.since_landing(contract), sql.Identifier(LANDING)),
    ]
    order = [sql.Identifier("t", contract[k].source) for k in contract.primary_key]
    types = list(gate.hot.key_types(contract).values())
    conditions: list[sql.Composable] = [
        # Not as one of a list: an index that begins with the tenant then gives the rest in order.
        sql.SQL("{} = {}").format(
            sql.Identifier("t", contract[contract.tenant].source),
            _value(organization, gate.hot.columns[contract[contract.tenant].source].type),
        ),
        age.past(contract, cutoff),
        sql.SQL("NOT {}").format(age.in_use(contract)),
        sql.SQL("NOT {}").format(_plain(held(contract, "t", installed=installed, forgotten=forgotten))),
        *(sql.SQL("NOT {}").format(r.condition()) for r in gate.others),
    ]
    if contract.event_time is not None:
        event = contract[contract.event_time]
        value = sql.Identifier("t", event.source)
        number = (
            sql.SQL("({} - DATE '1970-01-01')::bigint")
            if event.type.name == "date"
            else sql.SQL("(extract(epoch FROM {}) * 1000000)::bigint")
        ).format(value)
        # An infinite one has no number, and no row in the lake.
        columns.append(sql.SQL("CASE WHEN isfinite({}) THEN {} END AS {}").format(value, number, sql.Identifier(EVENT)))
        columns.append(sql.SQL("{}::text AS {}").format(value, sql.Identifier(_AFTER)))
        order.insert(0, value)
        types.insert(0, gate.hot.columns[event.source].type)
        if after is not None:
            # Said on its own too: an index that has only the event time serves this.
            conditions.append(sql.SQL("{} >= {}").format(value, _value(after[0], types[0])))
    if after is not None:
        conditions.append(
            sql.SQL("({}) > ({})").format(
                sql.SQL(", ").join(order),
                sql.SQL(", ").join(_value(text, kind) for text, kind in zip(after, types, strict=True)),
            )
        )
    return sql.SQL("SELECT {} FROM {} AS t WHERE {} ORDER BY {} LIMIT {}").format(
        sql.SQL(", ").join(columns),
        sql.Identifier(contract.source_schema, contract.source_table),
        sql.SQL(" AND ").join(conditions),
        sql.SQL(", ").join(order),
        sql.Literal(most),
    )


def _plain(condition: sql.Composable) -> sql.SQL:
    """A condition that was written for a statement with parameters, for one without."""
    return sql.SQL(condition.as_string(None).replace("%%", "%"))


def _value(text: Any, kind: str) -> sql.Composable:
    return sql.SQL("{}::{}").format(sql.Literal(text), sql.SQL(kind))
