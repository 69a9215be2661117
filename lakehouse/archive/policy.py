"""Whether an organization's old rows leave the hot database: off until an operator turns it on, for a reason.

A policy is one row in the hot database, changed under the organization's archive lock with a line in the audit, and
read again in each transaction that deletes: what was disabled is off from the next batch on. Turning it on checks what
would stop it anyway (keys, retention), so that it is said now and not at night.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from lakehouse.archive.age import RETENTION_COLUMN, read_retention
from lakehouse.archive.durable import Waiver
from lakehouse.archive.installation import (
    ArchiveError,
    connect,
    connect_if_installed,
    install,
    lock_organization,
    note,
    table,
)
from lakehouse.operator import operator
from schemas.contract import Contract

if TYPE_CHECKING:
    from lakehouse.app import App


class PolicyOff(ArchiveError):
    """Archiving is not enabled for this organization, or not for this table."""


@dataclass(frozen=True)
class Policy:
    """One organization's policy. `waiver`: no destination's receipt is asked for, on somebody's word."""

    organization: str
    enabled: bool
    optional_tables: tuple[str, ...]
    waiver: Waiver | None
    changed_by: str
    reason: str
    changed_at: datetime

    def covers(self, contract: Contract) -> bool:
        """Whether rows of this table go under it."""
        return self.enabled and wants(contract, self.optional_tables)


def wants(contract: Contract, optional_tables: Sequence[str]) -> bool:
    """Whether retention is for this table at all: always, or because somebody chose it."""
    return contract.retention == "applies" or (contract.retention == "optional" and contract.table in optional_tables)


_COLUMNS = sql.SQL(
    "organization_id, enabled, optional_tables, waived_by, waived_reason, changed_by, reason, changed_at"
)


def read_policy(connection: psycopg.Connection[Any], organization: str) -> Policy | None:
    """The organization's policy; None where nobody ever made one."""
    row = connection.execute(
        sql.SQL("SELECT {} FROM {} WHERE organization_id = %s").format(_COLUMNS, table("policies")), [organization]
    ).fetchone()
    return None if row is None else _policy(row)


def policies(connection: psycopg.Connection[Any]) -> dict[str, Policy]:
    """Every policy, by organization."""
    rows = connection.execute(
        sql.SQL("SELECT {} FROM {} ORDER BY organization_id").format(_COLUMNS, table("policies"))
    ).fetchall()
    return {row[0]: _policy(row) for row in rows}


def any_enabled(app: App) -> bool:
    """Whether anybody has archiving enabled; one look at a database where the archive was never set up."""
    with connect_if_installed(app) as connection:
        if connection is None:
            return False
        found = connection.execute(sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE enabled)").format(table("policies")))
        return found.fetchone() == (True,)


def _policy(row: Sequence[Any]) -> Policy:
    organization, enabled, optional, waived_by, waived_reason, changed_by, reason, changed_at = row
    waiver = Waiver(waived_by, waived_reason or "") if waived_by is not None else None
    return Policy(organization, enabled, tuple(optional), waiver, changed_by, reason, changed_at)


def enable(
    app: App,
    organization: str,
    *,
    reason: str,
    by: str | None = None,
    optional_tables: Sequence[str] = (),
    no_destination: bool = False,
) -> Policy:
    """Turn archiving on for one organization (by its id), or replace its policy; makes the archive's schema.

    Raises:
        ArchiveError: no reason, a key is missing, a table that is not optional, or no retention. Nothing was changed.
    """
    from lakehouse.archive.seal import Sealer

    reason = _reason(reason, "turning archiving on")
    for name in optional_tables:
        if (contract := app.contract(name)).retention != "optional":
            why = "always goes by the retention" if contract.retention == "applies" else "is never archived"
            raise ArchiveError(f"--optional-table {name}: it {why}", f"There are: {', '.join(_optional(app))}.")
    Sealer(app)
    install(app)
    who = operator(by)
    waiver = Waiver(who, reason) if no_destination else None
    with connect(app) as connection, connection.transaction():
        lock_organization(connection, organization)
        retention = read_retention(connection, app.settings.source, organization)
        _write(connection, organization, True, sorted(set(optional_tables)), waiver, who, reason)
        subject = {RETENTION_COLUMN: retention.days, "optional_tables": sorted(set(optional_tables))}
        subject["destination_waived"] = no_destination
        note(connection, actor=who, action="archive enabled", organization=organization, subject=subject, reason=reason)
        found = read_policy(connection, organization)
    assert found is not None  # noqa: S101 - it was written
    return found


def disable(app: App, organization: str, *, reason: str, by: str | None = None) -> Policy:
    """Turn archiving off for one organization (by its id); waits for a batch that is under way.

    Raises:
        ArchiveError: no reason, or it was never on.
    """
    reason = _reason(reason, "turning archiving off")
    who = operator(by)
    with connect(app) as connection, connection.transaction():
        lock_organization(connection, organization)
        before = read_policy(connection, organization)
        if before is None:
            raise ArchiveError(
                f"archiving was never enabled for organization {organization}", "There is nothing to do."
            )
        _write(connection, organization, False, before.optional_tables, None, who, reason)
        note(connection, actor=who, action="archive disabled", organization=organization, subject={}, reason=reason)
        found = read_policy(connection, organization)
    assert found is not None  # noqa: S101 - it was written
    return found


def _write(
    connection: psycopg.Connection[Any],
    organization: str,
    enabled: bool,
    optional_tables: Sequence[str],
    waiver: Waiver | None,
    who: str,
    reason: str,
) -> None:
    connection.execute(
        sql.SQL(
            "INSERT INTO {policies} ({columns}) VALUES (%s, %s, %s, %s, %s, %s, %s, clock_timestamp()) "
            "ON CONFLICT (organization_id) DO UPDATE SET enabled = excluded.enabled, "
            "optional_tables = excluded.optional_tables, waived_by = excluded.waived_by, "
            "waived_reason = excluded.waived_reason, changed_by = excluded.changed_by, reason = excluded.reason, "
            "changed_at = excluded.changed_at"
        ).format(policies=table("policies"), columns=_COLUMNS),
        [
            organization,
            enabled,
            list(optional_tables),
            waiver.by if waiver else None,
            waiver.reason if waiver else None,
            who,
            reason,
        ],
    )


def _reason(text: str, what: str) -> str:
    if not (kept := " ".join(text.split())):
        raise ArchiveError(f"{what} needs a reason", 'Say why: --reason "90 days, agreed with the customer".')
    return kept


def _optional(app: App) -> list[str]:
    return sorted(c.table for c in app.contracts.values() if c.retention == "optional") or ["none"]
