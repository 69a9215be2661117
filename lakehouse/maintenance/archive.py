"""What the archive's records want from time to time, for all organizations: holds and batches go to the lake,
tombstones that are old enough are pruned.

Invariants: a tombstone is pruned from the hot database only when the audit window is over and the lake's `_archive`
has its batch, which is asked of the lake itself; pruning goes in the order of batches and never past one that must
stay. Batches, with their receipts, stay for ever: capture and `receipts verify` ask the lake about those that have no
tombstones here. Killed anywhere, the rest goes next time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from lakehouse.archive.archive_table import Standing, open_archive, read_standing
from lakehouse.archive.export import export_all
from lakehouse.archive.holds import mirror_holds
from lakehouse.archive.hot_records import audit_cutoff
from lakehouse.archive.installation import connect_if_installed, table
from lakehouse.recall.run import expire_recalls
from schemas.errors import LakehouseError

if TYPE_CHECKING:
    from datetime import datetime

    from lakehouse.app import App


def keep_archive(app: App) -> tuple[dict[str, int], list[LakehouseError]]:
    """Bring the lake after the archive's records, and prune what is there. Returns what was done, and what could not.

    Idempotent, can be killed anywhere, and costs nothing where the archive was never set up.

    Raises:
        SourceError: the hot database does not answer.
    """
    mirrored, errors = mirror_holds(app)
    exported, faults = export_all(app)
    pruned, more = _prune_all(app)
    done = {"holds_mirrored": mirrored, "batches_exported": exported, "tombstones_pruned": pruned}
    done |= expire_recalls(app)
    return done, [*errors, *faults, *more]


def _prune_all(app: App) -> tuple[int, list[LakehouseError]]:
    count = 0
    errors: list[LakehouseError] = []
    with connect_if_installed(app) as connection:
        if connection is None:
            return 0, []
        cutoff = audit_cutoff(connection, app)
        organizations = connection.execute(
            sql.SQL("SELECT DISTINCT organization_id FROM {} ORDER BY 1").format(table("batches"))
        ).fetchall()
        for (organization,) in organizations:
            try:
                pruned = _prune(app, connection, organization, cutoff)
            except LakehouseError as error:
                errors.append(error)
                continue
            if pruned:
                app.events.emit("maintenance", what="archive_tombstones", organization=organization, rows=pruned)
            count += pruned
    return count, errors


def _prune(app: App, connection: psycopg.Connection[Any], organization: str, cutoff: datetime) -> int:
    count = 0
    exported: Standing | None = None
    while (oldest := _oldest(connection, organization)) is not None:
        number, archived_at = oldest
        if archived_at >= cutoff:
            break
        if exported is None:
            archive = open_archive(app.lake(organization))
            exported = read_standing(archive) if archive is not None else Standing()
        if number > exported.number or not _is_exported(connection, organization, number, exported):
            break
        deleted = connection.execute(
            sql.SQL("DELETE FROM {} WHERE organization_id = %s AND batch = %s").format(table("cold_storage_archive")),
            [organization, number],
        )
        count += deleted.rowcount
    return count


def _oldest(connection: psycopg.Connection[Any], organization: str) -> tuple[int, datetime] | None:
    """The first batch that has tombstones here, and when it took its rows."""
    return connection.execute(
        sql.SQL(
            "SELECT batch, max(archived_at) FROM {t} WHERE organization_id = %s AND batch = "
            "(SELECT min(batch) FROM {t} WHERE organization_id = %s) GROUP BY batch"
        ).format(t=table("cold_storage_archive")),
        [organization, organization],
    ).fetchone()


def _is_exported(connection: psycopg.Connection[Any], organization: str, number: int, lake: Standing) -> bool:
    """The batch is noted as exported, and the lake's last batch is the one that this database has under its number."""
    row = connection.execute(
        sql.SQL(
            "SELECT EXISTS (SELECT FROM {b} WHERE organization_id = %s AND number = %s AND exported_at IS NOT NULL) "
            "AND EXISTS (SELECT FROM {b} WHERE organization_id = %s AND number = %s AND chain = %s)"
        ).format(b=table("batches")),
        [organization, number, organization, lake.number, lake.chain],
    ).fetchone()
    return bool(row and row[0])
