"""Whether hot rows of a table may be archived at all now: the source is the lake's, and nothing about it is open.

A source that failed over, was restored, cloned or adopted may hold other rows than the lake was made from, under the
same keys: archiving stays off until a window has compared every row. The same is asked of the connection that deletes,
which has a URL of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg

from lakehouse.adopt import unreconciled
from lakehouse.archive.gate import Gate
from lakehouse.capture.fence import Verdict, judge
from lakehouse.capture.position import Snapshot
from lakehouse.capture.source import identify
from lakehouse.control import store

if TYPE_CHECKING:
    from lakehouse.app import App


def not_ready(app: App, connection: psycopg.Connection[Any], gate: Gate, organization: str) -> str:
    """Why no row of this organization's table may go now; empty where they may.

    `connection`: to the hot database, the one that deletes.
    """
    table = gate.contract.table
    if unreconciled(app, organization, table):
        return "the lake was adopted, and no window has compared every row yet: archiving stays off until reconciled"
    cursor = store.cursors(app.engine, table).get(organization)
    if cursor is None:
        return "nothing has landed in the lake yet (`lakehouse backfill`)"
    source = identify(connection, gate.hot, app.settings.source.address)
    row = connection.execute("SELECT pg_current_snapshot()::text").fetchone()
    assert row is not None  # noqa: S101 - the query has no FROM
    found = judge(cursor.position, source, Snapshot.parse(row[0]))
    if found.verdict is Verdict.SAME:
        return ""
    until = "a person adopts it" if found.verdict is Verdict.REFUSE else "a window has compared every row"
    return f"{found.detail}: archiving stays off until {until}"
