"""What was recalled: a row of `recalls` for every request, written before it is looked at and completed after.

The audit says the same in two lines, the request and its outcome. A request without an outcome is under way, or its
process died: then nothing of it is there. The outcome is written before rows are to be seen: of a table, in the same
transaction; of a file, before it gets its name. One that then did not get it has failed, with the rows and the hash
that it was to have; where the process died at that moment, the record says "done", and the file may be missing.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from psycopg import sql
from psycopg.types.json import Jsonb

from lakehouse.archive.installation import note, table
from lakehouse.recall.request import RecallError, Request, Target

if TYPE_CHECKING:
    import psycopg

    Connection = psycopg.Connection[tuple[Any, ...]]

TABLE_TARGET = "table "
"""How `recalls.target` begins where rows went into a table; its name follows."""


@dataclass(frozen=True)
class Recall:
    """A row of `recalls`."""

    id: uuid.UUID
    organization: str
    table: str
    request: dict[str, Any]
    reason: str
    requested_by: str
    requested_at: datetime
    target: str
    row_count: int | None
    content_sha256: str | None
    snapshot_id: int | None
    finished_at: datetime | None
    error: str | None
    expires_at: datetime | None
    removed_at: datetime | None

    @property
    def recalled_table(self) -> str | None:
        """The table in the archive's schema that the rows went into, if they did."""
        return self.target.removeprefix(TABLE_TARGET) if self.target.startswith(TABLE_TARGET) else None

    @property
    def state(self) -> str:
        """unfinished: under way, or its process died, and nothing was handed out; failed; removed; done"""
        if self.error is not None:
            return "failed"
        if self.finished_at is None:
            return "unfinished"
        return "removed" if self.removed_at is not None else "done"


_COLUMNS = sql.SQL(
    "id, organization_id, table_name, request, reason, requested_by, requested_at, target, row_count, content_sha256, "
    "snapshot_id, finished_at, error, expires_at, removed_at"
)


def begin(
    connection: Connection, request: Request, *, target: Target, output: str | None, reason: str, by: str
) -> uuid.UUID:
    """Write a request down, before anything of it is done; its id."""
    identity = uuid.uuid4()
    where = f"{target} {output}" if output is not None else target
    with connection.transaction():
        connection.execute(
            sql.SQL(
                "INSERT INTO {} (id, organization_id, table_name, request, reason, requested_by, target) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s)"
            ).format(table("recalls")),
            [identity, request.organization, request.contract.table, Jsonb(request.to_json()), reason, by, where],
        )
        note(
            connection,
            actor=by,
            action="recall",
            organization=request.organization,
            subject={
                "recall": str(identity),
                "table": request.contract.table,
                "request": request.to_json(),
                "target": where,
            },
            reason=reason,
        )
    return identity


def finish(
    connection: Connection,
    identity: uuid.UUID,
    *,
    target: str,
    rows: int,
    content_sha256: str,
    snapshot_id: int,
    expires_at: datetime | None,
    more: dict[str, Any],
) -> None:
    """Complete it, within the caller's transaction where there is one. `more`: what else the audit is to say."""
    with connection.transaction():
        connection.execute(
            sql.SQL(
                "UPDATE {} SET target = %s, row_count = %s, content_sha256 = %s, snapshot_id = %s, expires_at = %s, "
                "finished_at = clock_timestamp() WHERE id = %s"
            ).format(table("recalls")),
            [target, rows, content_sha256, snapshot_id, expires_at, identity],
        )
        _outcome(
            connection,
            identity,
            "recalled",
            {"target": target, "rows": rows, "content_sha256": content_sha256, "snapshot_id": str(snapshot_id)} | more,
        )


def fail(connection: Connection, identity: uuid.UUID, error: str) -> None:
    """Complete it with what went wrong; of a file that did not get its name, beside what `finish` wrote."""
    with connection.transaction():
        connection.execute(
            sql.SQL("UPDATE {} SET error = %s, finished_at = clock_timestamp() WHERE id = %s").format(table("recalls")),
            [error[:4000], identity],
        )
        _outcome(connection, identity, "recall failed", {"error": error[:4000]})


def _outcome(connection: Connection, identity: uuid.UUID, action: str, subject: dict[str, Any]) -> None:
    row = find(connection, identity)
    note(
        connection,
        actor=row.requested_by,
        action=action,
        organization=row.organization,
        subject={"recall": str(identity), "table": row.table} | subject,
        reason=row.reason,
    )


def removed(connection: Connection, recall: Recall, *, at: datetime, by: str, reason: str) -> None:
    """Note that its rows are gone, within the caller's transaction."""
    connection.execute(sql.SQL("UPDATE {} SET removed_at = %s WHERE id = %s").format(table("recalls")), [at, recall.id])
    note(
        connection,
        actor=by,
        action="recall removed",
        organization=recall.organization,
        subject={"recall": str(recall.id), "table": recall.table, "target": recall.target},
        reason=reason,
    )


def find(connection: Connection, identity: uuid.UUID | str) -> Recall:
    """A recall by its id.

    Raises:
        RecallError: there is none.
    """
    try:
        wanted = identity if isinstance(identity, uuid.UUID) else uuid.UUID(identity)
    except ValueError:
        raise RecallError(f"{identity!r} is not the id of a recall", "`lakehouse recall list` shows them.") from None
    row = connection.execute(
        sql.SQL("SELECT {} FROM {} WHERE id = %s").format(_COLUMNS, table("recalls")), [wanted]
    ).fetchone()
    if row is None:
        raise RecallError(f"there is no recall {wanted}", "`lakehouse recall list` shows them.")
    return Recall(*row)


def recalls(connection: Connection, organization: str | None = None) -> list[Recall]:
    """Every recall, newest first."""
    rows = connection.execute(
        sql.SQL(
            "SELECT {} FROM {} WHERE %s::text IS NULL OR organization_id = %s ORDER BY requested_at DESC, id"
        ).format(_COLUMNS, table("recalls")),
        [organization, organization],
    ).fetchall()
    return [Recall(*row) for row in rows]


def expired(connection: Connection, now: datetime) -> list[Recall]:
    """Recalls into a table whose time is over and whose rows are still there."""
    rows = connection.execute(
        sql.SQL(
            "SELECT {} FROM {} WHERE removed_at IS NULL AND finished_at IS NOT NULL AND error IS NULL "
            "AND expires_at <= %s ORDER BY expires_at, id"
        ).format(_COLUMNS, table("recalls")),
        [now],
    ).fetchall()
    return [r for r in (Recall(*row) for row in rows) if r.recalled_table is not None]


def tombstoned(connection: Connection, request: Request) -> dict[str, set[datetime]]:
    """Event times of those of the ids that the archive took, by its tombstones in the hot database."""
    found: dict[str, set[datetime]] = {}
    if not request.ids:
        return found
    rows = connection.execute(
        sql.SQL(
            "SELECT DISTINCT row_key, event_time FROM {} WHERE organization_id = %s AND table_name = %s "
            "AND row_key = ANY(%s) AND event_time IS NOT NULL"
        ).format(table("cold_storage_archive")),
        [request.organization, request.contract.table, list(request.ids)],
    ).fetchall()
    for key, time in rows:
        found.setdefault(key, set()).add(time)
    return found
