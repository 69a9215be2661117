"""Snapshots: the newest, the last of each day and every tagged one are kept; the others expire.

Of what was before days ended by the lake's own retention, only the last of each day and the tagged ones are kept.

Expiry commits only "remove these snapshots" (and bounds among the table's properties): the catalog applies that to
the newest metadata, so a landing beside it loses at worst one attempt, and the cursor, a property that expiry never
sends, stays what it is. A commit gets dearer with every snapshot that the table keeps; this is what keeps it flat.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

from catalog.errors import CatalogError, lake_errors
from lakehouse.failpoints import failpoint
from lakehouse.landing.ended import ENDED_SUMMARY
from lakehouse.maintenance.garbage import EXPIRED, note
from lakehouse.maintenance.references import References
from lakehouse.settings import MaintenanceSettings
from schemas.errors import LakehouseError, Retry

if TYPE_CHECKING:
    from pyiceberg.table import Table
    from pyiceberg.table.metadata import TableMetadata
    from pyiceberg.table.snapshots import Snapshot
    from sqlalchemy import Engine

ATTEMPTS = 5


def kept_snapshots(metadata: TableMetadata, newest: int, daily: int, now: datetime) -> set[int]:
    """Ids of the snapshots to keep: the newest `newest`, the last of each of `daily` days, whatever a ref names.

    The newest do not reach back beyond the last one by which days ended: of those, a table that is quiet would keep the
    rows for ever.
    """
    ordered = sorted(metadata.snapshots, key=lambda s: (s.sequence_number or 0, s.timestamp_ms))
    ended = max((n for n, s in enumerate(ordered) if _took_days(s)), default=0)
    latest = {s.snapshot_id for s in ordered[max(ended, len(ordered) - newest) :]}
    kept = latest | {ref.snapshot_id for ref in metadata.refs.values()}
    first = now.date() - timedelta(days=daily)
    last_of_day: dict[date, int] = {}
    for snapshot in ordered:
        day = datetime.fromtimestamp(snapshot.timestamp_ms / 1000, UTC).date()
        if day > first:
            last_of_day[day] = snapshot.snapshot_id
    return kept | set(last_of_day.values())


def _took_days(snapshot: Snapshot) -> bool:
    return snapshot.summary is not None and ENDED_SUMMARY in snapshot.summary.additional_properties


def bounds(settings: MaintenanceSettings) -> dict[str, str]:
    """Properties by which pyiceberg itself bounds metadata at every commit."""
    return {
        "write.metadata.delete-after-commit.enabled": "true",
        "write.metadata.previous-versions-max": str(settings.keep_metadata),
    }


def expirable(table: Table, settings: MaintenanceSettings, now: datetime) -> list[int]:
    """Ids of snapshots that expire now, as the table was last read."""
    kept = kept_snapshots(table.metadata, settings.keep_snapshots, settings.keep_daily, now)
    return [s.snapshot_id for s in table.metadata.snapshots if s.snapshot_id not in kept]


def expire(
    engine: Engine, references: References, organization: str, name: str, settings: MaintenanceSettings, now: datetime
) -> int:
    """Expire what is not kept and note the files that this frees; returns how many snapshots went.

    Raises:
        CatalogError: other writers won every attempt, or the catalog does not answer.
    """
    from pyiceberg.exceptions import CommitFailedException

    table = references.table
    where = ".".join(table.name())
    for _ in range(ATTEMPTS):
        with lake_errors(where):
            table.refresh()
        going = set(expirable(table, settings, now))
        wanted = {k: v for k, v in bounds(settings).items() if table.properties.get(k) != v}
        if not going and not wanted:
            return 0
        snapshots = table.metadata.snapshots
        freed = references.of(s for s in snapshots if s.snapshot_id in going)
        freed -= references.of(s for s in snapshots if s.snapshot_id not in going)
        note(engine, organization, name, freed, EXPIRED, now)
        failpoint("maintain.noted")
        try:
            _commit(table, going, wanted)
        except CommitFailedException:
            continue
        except LakehouseError:
            # A reply that was lost, or another maintenance that was first: the table knows.
            if _still_there(table, going) == going:
                raise
            continue
        failpoint("maintain.expired")
        return len(going)
    raise CatalogError(
        f"{where}: {ATTEMPTS} attempts to expire snapshots lost against other writers",
        "The next maintenance tries again.",
        retry=Retry.TIMED,
    )


def _commit(table: Table, going: set[int], properties: Mapping[str, str]) -> None:
    from pyiceberg.table.update.snapshot import ExpireSnapshots

    with lake_errors(".".join(table.name())), table.transaction() as transaction:
        if properties:
            transaction.set_properties(dict(properties))
        if going:
            expiry = ExpireSnapshots(transaction)
            for snapshot in going:
                expiry.by_id(snapshot)
            expiry.commit()


def _still_there(table: Table, snapshots: set[int]) -> set[int]:
    with lake_errors(".".join(table.name())):
        table.refresh()
    return {s.snapshot_id for s in table.metadata.snapshots} & snapshots
