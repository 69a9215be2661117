"""What a hold names: the check of a request, and the SQL condition over a hot table."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from psycopg import sql

from lakehouse.archive.installation import ArchiveError, table
from lakehouse.archive.records import Hold, moment
from schemas.contract import Contract
from schemas.keys import postgres_key

if TYPE_CHECKING:
    from lakehouse.app import App


def held(contract: Contract, alias: str, *, installed: bool = True, forgotten: Sequence[Hold] = ()) -> sql.Composable:
    """The SQL condition, over the hot table `alias`, that a hold in force names the row; never NULL.

    For a statement that is run with parameters (`%` in a name is doubled), in READ COMMITTED and after the
    organization's lock was taken: only then does it see a hold that this transaction waited for. `installed`: false
    where the database has no holds at all. `forgotten`: holds in force that it has not, for who only looks.
    """
    if not installed and not forgotten:
        return sql.SQL("false")
    tenant = hot_column(contract, contract.tenant, alias) + sql.SQL("::text")
    # A hold's text is compared byte by byte, whatever collation the hot column has.
    tenant = sql.SQL('({} COLLATE "C")').format(tenant)
    key = sql.SQL('(({}) COLLATE "C")').format(as_sql(postgres_key(contract, alias)))
    shared = sql.SQL(
        "_h.released_at IS NULL AND _h.organization_id = {tenant} "
        "AND (_h.table_name IS NULL OR _h.table_name = {table}) AND _h.row_keys IS NULL"
    ).format(tenant=tenant, table=sql.Literal(contract.table))
    if contract.event_time is not None:
        first, last = _bounds(contract, alias)
        # A row without its time is held rather than not.
        shared += sql.SQL(
            " AND coalesce(_h.event_from IS NULL OR {last} >= _h.event_from, true)"
            " AND coalesce(_h.event_upto IS NULL OR {first} < _h.event_upto, true)"
        ).format(first=first, last=last)
    # Ids are looked up in one hash of all of them, not list by list for each row.
    return sql.SQL(
        "(EXISTS (SELECT FROM {holds} AS _h WHERE {shared}) OR ({tenant}, {key}) IN "
        "(SELECT _h.organization_id, unnest(_h.row_keys) FROM {holds} AS _h "
        "WHERE _h.released_at IS NULL AND _h.table_name = {table} AND _h.row_keys IS NOT NULL))"
    ).format(
        holds=_holds(forgotten, installed=installed),
        shared=shared,
        tenant=tenant,
        key=key,
        table=sql.Literal(contract.table),
    )


def _holds(forgotten: Sequence[Hold], *, installed: bool) -> sql.Composable:
    """What to ask for holds: their table, and beside it those that it has forgotten."""
    if not forgotten:
        return table("holds")
    columns = "organization_id, table_name, row_keys, event_from, event_upto, released_at"
    parts: list[sql.Composable] = [sql.SQL("SELECT {} FROM {}").format(sql.SQL(columns), table("holds"))]
    for hold in forgotten:
        keys = None if hold.row_keys is None else [_doubled(key) for key in hold.row_keys]
        parts.append(
            sql.SQL(
                "SELECT {}::text AS organization_id, {}::text AS table_name, {}::text[] AS row_keys, "
                "{}::timestamptz AS event_from, {}::timestamptz AS event_upto, NULL::timestamptz AS released_at"
            ).format(
                sql.Literal(_doubled(hold.organization)),
                sql.Literal(hold.table),
                sql.Literal(keys),
                sql.Literal(hold.event_from),
                sql.Literal(hold.event_upto),
            )
        )
    return sql.SQL("({})").format(sql.SQL(" UNION ALL ").join(parts if installed else parts[1:]))


def concerns(hold: Hold, table_name: str) -> bool:
    """Whether a hold is about rows of this table (all of them, or some)."""
    return hold.table is None or hold.table == table_name


def check_scope(
    app: App,
    table_name: str | None,
    row_keys: Sequence[str] | None,
    event_from: datetime | None,
    event_upto: datetime | None,
) -> None:
    """Check what a new hold is to name.

    Raises:
        LakehouseError: an unknown table, ids without a table, an empty range, a range where there is no event time.
    """
    contract = app.contract(table_name) if table_name is not None else None
    if row_keys is not None:
        if contract is None:
            raise ArchiveError("ids without a table", "Say which table they are of: --table events --id …")
        if not row_keys or not all(row_keys):
            raise ArchiveError("an id is empty", "Leave --id out to hold every row of the table.")
        if event_from is not None or event_upto is not None:
            raise ArchiveError(
                "ids and a time range in one hold",
                "Ids name rows whatever their time. Place two holds, if both are meant.",
            )
    for bound in (event_from, event_upto):
        if bound is not None and bound.tzinfo is None:
            raise ArchiveError(f"{bound.isoformat()}: a time without a time zone", "Give it as UTC.")
    if event_from is not None and event_upto is not None and event_from >= event_upto:
        raise ArchiveError(
            f"the range from {moment(event_from)} to {moment(event_upto)} is empty",
            "--from is the first moment that is held, --to the first that is not.",
        )
    if contract is not None and contract.event_time is None and (event_from or event_upto):
        raise ArchiveError(
            f"{contract.table} has no event time, so a range of time names none of its rows",
            f"Hold the whole table (--table {contract.table}), or rows of it by --id.",
        )


def _bounds(contract: Contract, alias: str) -> tuple[sql.Composable, sql.Composable]:
    """The first and the last moment of a row's event time, as timestamptz; a date is a whole day in UTC."""
    assert contract.event_time is not None  # noqa: S101 - asked only where there is one
    column = contract[contract.event_time]
    named = hot_column(contract, contract.event_time, alias)
    if column.type.name == "date":
        first = sql.SQL("({}::timestamp AT TIME ZONE 'UTC')").format(named)
        return first, sql.SQL("(({} + 1)::timestamp AT TIME ZONE 'UTC' - interval '1 microsecond')").format(named)
    if column.source_type.endswith("without time zone"):
        named = sql.SQL("({} AT TIME ZONE 'UTC')").format(named)
    return named, named


def hot_column(contract: Contract, name: str, alias: str) -> sql.Composed:
    """A column of the hot table, by its lake name; for a statement with parameters, as all of these."""
    return sql.Composed([sql.Identifier(_doubled(alias), _doubled(contract[name].source))])


def hot_table(contract: Contract) -> sql.Composed:
    """The hot table's name."""
    return sql.Composed([sql.Identifier(_doubled(contract.source_schema), _doubled(contract.source_table))])


def as_sql(expression: str) -> sql.SQL:
    """An expression of ours as SQL: built from quoted names, never from what a person typed."""
    return sql.SQL(_doubled(expression))


def _doubled(text: str) -> str:
    # Where there are parameters psycopg reads % as one, in quoted names too.
    return text.replace("%", "%%")
