"""For how many years an organization's rows stay in the lake: a row in the archive's schema, changed by a person for a
reason, under the organization's archive lock and with a line in the audit. No row: for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from lakehouse.archive.installation import (
    ArchiveError,
    connect,
    connect_if_installed,
    install,
    lock_organization,
    note,
    table,
)

if TYPE_CHECKING:
    from lakehouse.app import App


class RetentionError(ArchiveError):
    """The lake's end of life cannot be done as asked; nothing was removed."""


@dataclass(frozen=True)
class LakeRetention:
    """One organization's policy."""

    organization: str
    years: int
    changed_by: str
    reason: str
    changed_at: datetime


_COLUMNS = sql.SQL("organization_id, years, changed_by, reason, changed_at")


def read_retention(connection: psycopg.Connection[Any], organization: str) -> LakeRetention | None:
    """The organization's policy; None where there is none."""
    row = connection.execute(
        sql.SQL("SELECT {} FROM {} WHERE organization_id = %s").format(_COLUMNS, table("lake_retention")),
        [organization],
    ).fetchone()
    return LakeRetention(*row) if row is not None else None


def retentions(app: App) -> dict[str, LakeRetention]:
    """Every policy, by organization; none where the archive was never set up."""
    with connect_if_installed(app) as connection:
        if connection is None:
            return {}
        rows = connection.execute(
            sql.SQL("SELECT {} FROM {} ORDER BY organization_id").format(_COLUMNS, table("lake_retention"))
        ).fetchall()
    return {row[0]: LakeRetention(*row) for row in rows}


def set_retention(app: App, organization: str, years: int, *, reason: str, by: str) -> LakeRetention:
    """Say for how many years an organization's rows stay in the lake, instead of what was said before.

    Raises:
        RetentionError: no reason, or no number of years. Nothing was changed.
    """
    reason = _reason(reason)
    if years < 1:
        raise RetentionError(f"--years {years}: must be at least 1")
    install(app)
    with connect(app) as connection, connection.transaction():
        lock_organization(connection, organization)
        before = read_retention(connection, organization)
        connection.execute(
            sql.SQL(
                "INSERT INTO {} ({}) VALUES (%s, %s, %s, %s, clock_timestamp()) "
                "ON CONFLICT (organization_id) DO UPDATE SET years = excluded.years, "
                "changed_by = excluded.changed_by, reason = excluded.reason, changed_at = excluded.changed_at"
            ).format(table("lake_retention"), _COLUMNS),
            [organization, years, by, reason],
        )
        subject = {"years": years, "before": before.years if before else None}
        note(
            connection,
            actor=by,
            action="lake retention set",
            organization=organization,
            subject=subject,
            reason=reason,
        )
        found = read_retention(connection, organization)
    assert found is not None  # noqa: S101 - it was written
    return found


def clear_retention(app: App, organization: str, *, reason: str, by: str) -> LakeRetention:
    """From now on an organization's rows stay in the lake for ever; returns what was said before.

    Raises:
        RetentionError: no reason, or nothing was said.
    """
    reason = _reason(reason)
    with connect_if_installed(app) as connection:
        if connection is None:
            raise _nothing(organization)
        with connection.transaction():
            lock_organization(connection, organization)
            before = read_retention(connection, organization)
            if before is None:
                raise _nothing(organization)
            connection.execute(
                sql.SQL("DELETE FROM {} WHERE organization_id = %s").format(table("lake_retention")), [organization]
            )
            note(
                connection,
                actor=by,
                action="lake retention cleared",
                organization=organization,
                subject={"before": before.years},
                reason=reason,
            )
    return before


def _nothing(organization: str) -> RetentionError:
    return RetentionError(f"organization {organization} has no lake retention: its rows stay in the lake for ever")


def _reason(text: str) -> str:
    if not (reason := " ".join(text.split())):
        raise RetentionError("this needs a reason", 'Say why: --reason "seven years, contract of 2019".')
    return reason
