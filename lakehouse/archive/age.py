"""How old a row is, as SQL over the hot table; and from when on an organization's rows count as old.

A row's age is the newest of the contract's timestamps (`age_bounds`) that it has: one without any, and one with a
timestamp that lies ahead, is not old. The time that the tenant itself gives is never enough: where the event time is
not what the database stamps, another timestamp must be there. A row is in use as long as its state is none of those
that the contract calls finished; of one in `old_since_landing`, which no timestamp records, age counts also from the
landing of the first version of the present run of versions that show it (`landed_at`), which only the lake knows.

The cutoff is computed by the hot database's clock, again in each transaction that deletes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from lakehouse.archive.installation import ArchiveError
from lakehouse.capture.projection import base_type
from lakehouse.duck import quoted
from schemas.contract import Column, Contract
from schemas.lake_columns import CAPTURED_AT, OP, SEQUENCE, UPSERT

if TYPE_CHECKING:
    from lakehouse.settings import SourceSettings

RETENTION_COLUMN = "data_retention_days"
_LONGEST_DAYS = 700_000
"""Longer retentions are as good as this one, and subtracting them would leave PostgreSQL's calendar."""


class RetentionRefused(ArchiveError):
    """Nothing says from when on this organization's rows are old."""


@dataclass(frozen=True)
class Retention:
    """How long an organization keeps rows hot. Rows whose age lies before `cutoff` are old."""

    days: int
    cutoff: datetime
    now: datetime
    """By the hot database's clock."""


def read_retention(connection: psycopg.Connection[Any], settings: SourceSettings, organization: str) -> Retention:
    """The organization's retention as the hot database has it now.

    Raises:
        RetentionRefused: no table of organizations, no such organization or column, or no number of days above zero.
    """
    if settings.organizations_table is None:
        raise RetentionRefused(
            "the settings name no table of organizations, so nobody says how long rows stay hot",
            f"Set LAKEHOUSE_SOURCE__ORGANIZATIONS_TABLE to a table with a column {RETENTION_COLUMN}.",
        )
    try:
        row = connection.execute(
            sql.SQL(
                "SELECT days, now - make_interval(days => least(days, {longest})), now FROM ("
                "SELECT {column}::int AS days, clock_timestamp() AS now FROM {table} WHERE {key}::text = %s) AS o"
            ).format(
                longest=sql.Literal(_LONGEST_DAYS),
                column=sql.Identifier(RETENTION_COLUMN),
                table=sql.Identifier(*settings.organizations_table.split(".")),
                key=sql.Identifier(settings.organizations_key),
            ),
            [organization],
        ).fetchone()
    except (psycopg.errors.ProgrammingError, psycopg.errors.DataError) as error:
        raise RetentionRefused(
            f"{RETENTION_COLUMN} cannot be read from {settings.organizations_table}: {error.diag.message_primary}",
            "The archive needs that column of whole days, and the right to read it.",
        ) from error
    if row is None:
        raise RetentionRefused(
            f"{settings.organizations_table} does not list organization {organization}",
            "Nothing of it is archived; its lake is kept.",
        )
    days, cutoff, now = row
    if days is None or days <= 0:
        raise RetentionRefused(
            f"organization {organization}: {RETENTION_COLUMN} is {'null' if days is None else days}, "
            "which is no number of days after which rows are old",
            f"Set {settings.organizations_table}.{RETENTION_COLUMN} to 1 or more; nothing is archived until then.",
        )
    return Retention(days, cutoff, now)


def fault(contract: Contract) -> str | None:
    """Why the contract cannot say how old a row is; None where it can."""
    if not contract.age_bounds:
        return f"{contract.table}: the contract names no timestamps that tell a row's age (age_bounds)"
    watermark = contract.watermark
    stamped = watermark is not None and watermark.every_change and watermark.column == contract.event_time
    if set(contract.age_bounds) == {contract.event_time} and not stamped:
        return (
            f"{contract.table}: the contract's only age bound is the event time {contract.event_time}, which the "
            "tenant gives: a row that has just arrived may bear any"
        )
    return None


def in_use(contract: Contract, alias: str = "t") -> sql.Composable:
    """True where the row's state does not say that it is finished: it says otherwise, or is none that is known.

    A state that the host gained after the contract was written may mean anything.
    """
    if contract.states is None:
        return sql.SQL("false")
    return _in_none(contract, contract.states.settled, alias)


def unknown_state(contract: Contract, alias: str = "t") -> sql.Composable:
    """True where the contract does not say what the row's state means; null is such a state."""
    if contract.states is None:
        return sql.SQL("false")
    return _in_none(contract, contract.states.known, alias)


def _in_none(contract: Contract, labels: Sequence[str], alias: str) -> sql.Composable:
    assert contract.states is not None  # noqa: S101 - asked only where there are states
    state = _hot(contract[contract.states.column], alias)
    return sql.SQL("({state} IS NULL OR {state}::text <> ALL (ARRAY[{labels}]::text[]))").format(
        state=state, labels=sql.SQL(", ").join(map(sql.Literal, labels))
    )


def since_landing(contract: Contract, alias: str = "t") -> sql.Composable:
    """True where the row's age counts also from its state's landing."""
    if contract.states is None or not contract.states.old_since_landing:
        return sql.SQL("false")
    state = _hot(contract[contract.states.column], alias)
    labels = sql.SQL(", ").join(map(sql.Literal, contract.states.old_since_landing))
    return sql.SQL("coalesce({}::text IN ({}), false)").format(state, labels)


def past(contract: Contract, cutoff: datetime, alias: str = "t") -> sql.Composable:
    """True where every timestamp of the row that tells its age lies before the cutoff, and one that may tell it is
    there. Null counts as false. Each is compared in its own type, so that an index on it serves."""
    bounds = [contract[name] for name in contract.age_bounds]
    terms: list[sql.Composable] = []
    for column in bounds:
        term = sql.SQL("{} < {}").format(_hot(column, alias), _native(column, cutoff))
        if column.nullable:
            term = sql.SQL("({} IS NULL OR {})").format(_hot(column, alias), term)
        terms.append(term)
    telling = _telling(contract)
    if all(column.nullable for column in telling):
        known = sql.SQL(", ").join(_hot(column, alias) for column in telling)
        terms.append(sql.SQL("num_nonnulls({}) > 0").format(known))
    return sql.SQL("({})").format(sql.SQL(" AND ").join(terms))


def age(contract: Contract, alias: str = "t") -> sql.Composable:
    """The newest timestamp that tells the row's age, as timestamptz; null where none is there. To be shown, not to
    decide by (`past` does)."""
    values = sql.SQL(", ").join(_moment(contract[name], alias) for name in contract.age_bounds)
    return sql.SQL("greatest({})").format(values)


def landed_at(versions: str, newest: str) -> str:
    """DuckDB SQL for the landing of the first version of the present run of versions in the state `newest`.

    `versions` is a list of `version_struct` of one identity. A version in another state, or a delete, begins the run
    anew. Null for an empty list.
    """
    other = f"list_filter({versions}, lambda v: v.state IS DISTINCT FROM {newest} OR v.op <> '{UPSERT}')"
    after = f"coalesce(list_max(list_transform({other}, lambda v: v.s)), -1)"
    run = f"list_filter({versions}, lambda v: v.s > {after})"
    return f"list_min(list_transform({run}, lambda v: v.at))"


def version_struct(contract: Contract, alias: str) -> str:
    """DuckDB SQL for one version (s: sequence, at: captured at, op, state), as `landed_at` takes them."""
    assert contract.states is not None  # noqa: S101 - asked only where a state counts from its landing
    state = f"{alias}.{quoted(contract.states.column)}"
    return f"{{'s': {alias}.{SEQUENCE}, 'at': {alias}.{CAPTURED_AT}, 'op': {alias}.{OP}, 'state': {state}::VARCHAR}}"


def _telling(contract: Contract) -> list[Column]:
    """The bounds of which one must be there: not the event time, where that is the tenant's own."""
    watermark = contract.watermark
    own = None if watermark is not None and watermark.column == contract.event_time else contract.event_time
    return [contract[name] for name in contract.age_bounds if name != own] or [contract[contract.age_bounds[0]]]


def _hot(column: Column, alias: str) -> sql.Composable:
    return sql.Identifier(alias, column.source)


def _native(column: Column, cutoff: datetime) -> sql.Composable:
    kind = base_type(column.source_type)
    if kind == "timestamp without time zone":
        return sql.Literal(cutoff.astimezone(UTC).replace(tzinfo=None))
    if kind == "date":
        # A day is over at its end.
        return sql.Literal(cutoff.astimezone(UTC).date())
    return sql.Literal(cutoff)


def _moment(column: Column, alias: str) -> sql.Composable:
    value = _hot(column, alias)
    kind = base_type(column.source_type)
    if kind == "timestamp without time zone":
        return sql.SQL("({} AT TIME ZONE 'UTC')").format(value)
    if kind == "date":
        return sql.SQL("((least({}, DATE '9999-12-30') + 1)::timestamp AT TIME ZONE 'UTC')").format(value)
    return sql.SQL("({})::timestamptz").format(value)
