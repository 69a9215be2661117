"""Reads the audit: what people decided about an organization's rows. Lines are only added (`installation.note`)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from psycopg import sql

from lakehouse.archive.installation import connect_if_installed, table

if TYPE_CHECKING:
    from lakehouse.app import App


@dataclass(frozen=True)
class Line:
    """One decision. `subject`: what it was about; its keys depend on the action."""

    at: datetime
    actor: str
    action: str
    organization: str
    subject: dict[str, Any]
    reason: str


def read_audit(app: App, organization: str | None = None) -> list[Line]:
    """The lines of an organization, or of all, in the order in which they were written; none before any was.

    Raises:
        SourceError: the hot database does not answer.
    """
    with connect_if_installed(app) as connection:
        if connection is None:
            return []
        rows = connection.execute(
            sql.SQL(
                "SELECT at, actor, action, organization_id, subject, reason FROM {} "
                "WHERE %(organization)s::text IS NULL OR organization_id = %(organization)s ORDER BY id"
            ).format(table("audit")),
            {"organization": organization},
        ).fetchall()
    return [Line(*row) for row in rows]
