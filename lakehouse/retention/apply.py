"""Lets old days leave the lake, table by table, as the policy says.

Of each commit: (1) what its days hold is read and hashed; (2) it is written into the lake's `_ended`; (3) under the
organization's archive lock, so that no hold comes in between, policy, holds and the hot table are asked again, and one
fenced commit takes the days' files and says so in a property (`lakehouse.landing.ended`); (4) the audit gets its line,
when the lock is given back. Cursor and `_sequence` stay as they are. A landing or compaction in between is seen: what
was hashed is not what is there any more, and it is planned again.

Killed before (3), nothing has left; after it, the next `apply` adds the line that is missing in the audit. Files go
when the snapshots that have them expire (`lakehouse.maintenance.expiry`).
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from catalog.errors import lake_errors
from lakehouse.archive.installation import connect, lock_organization, note, table
from lakehouse.archive.records import ContentDigest
from lakehouse.duck import connect as connect_duck
from lakehouse.duck import literal, plain_path
from lakehouse.failpoints import failpoint
from lakehouse.landing.commit import COMPACTED_PART_SUMMARY, landed_part
from lakehouse.landing.cursor import read_cursor
from lakehouse.landing.ended import ENDED_SUMMARY, Ending, as_ranges, ended_property, read_endings
from lakehouse.landing.held import unreadable
from lakehouse.maintenance.references import References
from lakehouse.retention.plan import Day, TablePlan, cutoff, keepers, plan_table
from lakehouse.retention.policy import LakeRetention, RetentionError, read_retention
from lakehouse.retention.records import EndedDay, read_days, write_days
from schemas.canonical import duckdb_hash
from schemas.contract import Contract
from schemas.errors import LakehouseError, Retry
from schemas.keys import duckdb_key
from schemas.lake_columns import arrow_schema
from schemas.views import latest_view_sql

if TYPE_CHECKING:
    from lakehouse.app import App

    Connection = psycopg.Connection[tuple[Any, ...]]

COMMIT_DAYS = 100
"""Days that one commit takes at most: their files are named one by one."""
ATTEMPTS = 5
AUDIT_ACTION = "lake days ended"


@dataclass
class Applied:
    """What an end of life did to one table of one organization."""

    organization: str
    table: str
    days: list[EndedDay] = field(default_factory=list)
    plan: TablePlan | None = None
    """What stays, and until when the rest can still be read."""
    error: LakehouseError | None = None

    @property
    def rows(self) -> int:
        return sum(d.rows for d in self.days)


def apply(app: App, organization: str, *, reason: str, by: str) -> list[Applied]:
    """Let every old day of an organization leave the lake, but for those that something keeps. Idempotent.

    Errors that are understood are in the result of their table; the others are done.

    Raises:
        RetentionError: the organization has no policy, or no reason was given. Nothing was removed.
        SourceError: the hot database does not answer.
    """
    reason = " ".join(reason.split())
    if not reason:
        raise RetentionError("an end of life needs a reason", 'Say why: --reason "yearly, as the policy says".')
    results = []
    with connect(app) as connection:
        policy = read_retention(connection, organization)
        if policy is None:
            raise RetentionError(
                f"organization {organization} has no lake retention: nothing ends",
                "`lakehouse lake retention set --years …` says after how long rows leave the lake.",
            )
        for contract in app.contracts.values():
            result = Applied(organization, contract.table)
            with app.events.unit("lake_retention", organization=organization, table=contract.table) as event:
                try:
                    _apply(app, connection, contract, policy, reason, by, result)
                except LakehouseError as error:
                    result.error = error
                    event |= {"outcome": "error", "error": error.detail[:500]}
                event |= {"days": len(result.days), "rows": result.rows}
            if result.days or result.error or (result.plan and result.plan.kept):
                results.append(result)
    return results


def _apply(
    app: App,
    connection: Connection,
    contract: Contract,
    policy: LakeRetention,
    reason: str,
    by: str,
    result: Applied,
) -> None:
    attempts = 0
    while True:
        found = TablePlan(policy.organization, contract.table, policy.years, cutoff(app.clock(), policy.years))
        references = plan_table(app, contract, policy, found)
        result.plan = result.plan or found
        result.plan.kept = found.kept
        if references is None:
            return
        _complete_audit(app, connection, contract, policy, references)
        if not found.ends:
            return
        ended = _end(app, connection, contract, policy, references, found.ends[:COMMIT_DAYS], reason, by)
        result.days += ended
        attempts = 0 if ended else attempts + 1
        if attempts == ATTEMPTS:
            raise RetentionError(
                f"{contract.table} of {policy.organization}: {ATTEMPTS} attempts met changes by others",
                "Nothing of the rest was removed: try again when the table is quieter.",
                retry=Retry.TIMED,
            )


def _end(
    app: App,
    connection: Connection,
    contract: Contract,
    policy: LakeRetention,
    references: References,
    days: Sequence[Day],
    reason: str,
    by: str,
) -> list[EndedDay]:
    """Let these days go in one commit; empty where something has changed since they were planned."""
    lake_table = references.table
    snapshot, cursor = lake_table.current_snapshot(), read_cursor(lake_table)
    assert snapshot is not None  # noqa: S101 - it has files
    if cursor is None:
        raise RetentionError(f"{contract.table} of {policy.organization}: the lake holds no complete history yet")
    ending = Ending(str(uuid.uuid4()), cursor.sequence, app.clock(), as_ranges(d.number for d in days))
    ended = [
        EndedDay(
            ending=ending.id,
            table_name=contract.table,
            day=day.date,
            versions=day.versions,
            rows=digest.rows,
            content_sha256=digest.hexdigest(),
            files=len(day.files),
            bytes=day.bytes,
            sequence=ending.sequence,
            snapshot_id=snapshot.snapshot_id,
            contract_version=contract.version,
            years=policy.years,
            reason=reason,
            operator=by,
            at=ending.at,
        )
        for day, digest in zip(days, _digests(app, contract, policy.organization, references, days), strict=True)
    ]
    write_days(app.lake(policy.organization), ended)
    failpoint("retention.recorded")
    with connection.transaction():
        # From here on no hold is placed and no policy changed until the days are gone.
        try:
            lock_organization(connection, policy.organization)
        except psycopg.errors.LockNotAvailable as error:
            raise RetentionError(
                f"{policy.organization}: the archive is at work", "Try again in a moment.", retry=Retry.TIMED
            ) from error
        if read_retention(connection, policy.organization) != policy:
            raise RetentionError(f"the lake retention of {policy.organization} was changed meanwhile", "Plan it again.")
        before = cutoff(app.clock(), policy.years)
        keep = keepers(app, contract, policy.organization, lake_table, before, days)
        if any(k(day) is not None for k in keep for day in days):
            return []
        if not _commit(references, days, ending):
            return []
        failpoint("retention.committed")
        _note(connection, policy.organization, contract, ended)
    return ended


def _digests(
    app: App, contract: Contract, organization: str, references: References, days: Sequence[Day]
) -> list[ContentDigest]:
    """Of each day, its rows' content in their latest state."""
    import duckdb

    found = []
    with connect_duck(app.addresses_of([organization])) as connection:
        connection.register("ended_no_rows", arrow_schema(contract).empty_table())
        try:
            for day in days:
                paths = ", ".join(literal(plain_path(f.path)) for f in day.files)
                relation = (
                    "(SELECT * FROM ended_no_rows UNION ALL BY NAME "
                    f"SELECT * FROM read_parquet([{paths}], union_by_name = true, hive_partitioning = false))"
                )
                latest = latest_view_sql(contract, relation=relation)
                digest = ContentDigest()
                for batch in connection.execute(
                    f"SELECT {duckdb_hash(contract)} AS h FROM ({latest}) ORDER BY {duckdb_key(contract)}, h"
                ).to_arrow_reader(10_000):
                    digest.add(batch["h"].to_pylist())
                found.append(digest)
        except duckdb.Error as error:
            raise unreadable(references.table, error) from error
    return found


def _commit(references: References, days: Sequence[Day], ending: Ending) -> bool:
    """Take the days' files in one snapshot that says so. False: they are not what they were, and nothing was done."""
    from pyiceberg.exceptions import CommitFailedException

    lake_table = references.table
    where = ".".join(lake_table.name())
    old = {file.path for day in days for file in day.files}
    numbers = {day.number for day in days}
    for _ in range(ATTEMPTS):
        with lake_errors(where):
            lake_table.refresh()
        endings = read_endings(lake_table)
        if any(e.id == ending.id for e in endings):
            # A reply that was lost.
            return True
        if {f.path for f in references.live() if f.day in numbers} != old:
            return False
        summary = {ENDED_SUMMARY: ending.id, COMPACTED_PART_SUMMARY: landed_part(lake_table)}
        try:
            with lake_errors(where), lake_table.transaction() as transaction:
                transaction.set_properties(ended_property([*endings, ending]))
                with transaction.update_snapshot(snapshot_properties=summary).overwrite() as overwrite:
                    for file in references.data_files(old):
                        overwrite.delete_data_file(file)
        except CommitFailedException:
            # A landing was first; we go on top of it, if it left these days alone.
            continue
        except Exception:  # the reply may be lost: only the table knows
            with lake_errors(where):
                lake_table.refresh()
            if any(e.id == ending.id for e in read_endings(lake_table)):
                return True
            raise
        return True
    return False


def _note(connection: Connection, organization: str, contract: Contract, days: Sequence[EndedDay]) -> None:
    subject = {
        "table": contract.table,
        "ending": days[0].ending,
        "years": days[0].years,
        "days": len(days),
        "from": min(d.day for d in days).isoformat(),
        "upto": max(d.day for d in days).isoformat(),
        "versions": sum(d.versions for d in days),
        "rows": sum(d.rows for d in days),
        "sequence": days[0].sequence,
    }
    note(
        connection,
        actor=days[0].operator,
        action=AUDIT_ACTION,
        organization=organization,
        subject=subject,
        reason=days[0].reason,
    )


def _complete_audit(
    app: App, connection: Connection, contract: Contract, policy: LakeRetention, references: References
) -> None:
    """Add the lines of endings that happened and whose program died before it said so."""
    endings = {e.id for e in read_endings(references.table)}
    if not endings:
        return
    known = connection.execute(
        sql.SQL("SELECT subject->>'ending' FROM {} WHERE organization_id = %s AND action = %s").format(table("audit")),
        [policy.organization, AUDIT_ACTION],
    ).fetchall()
    if not (missing := endings - {row[0] for row in known}):
        return
    days = read_days(app.lake(policy.organization), contract.table)
    with connection.transaction():
        for ending in sorted(missing):
            _note(connection, policy.organization, contract, [d for d in days if d.ending == ending])
