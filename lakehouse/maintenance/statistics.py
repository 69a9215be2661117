"""Measures a lake table after maintenance: the figures behind its bounds, and what its versions cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert

from lakehouse.control.models import TableStatistics
from lakehouse.duck import connect, literal, plain_path, quoted
from lakehouse.landing.held import unreadable
from lakehouse.maintenance.garbage import list_files, pending
from lakehouse.maintenance.references import LiveFile, References
from lakehouse.settings import MaintenanceSettings
from schemas.contract import Contract
from schemas.lake_columns import CAPTURED_AT, OP, SEQUENCE, UPSERT, WINDOW

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from catalog.lake import LakeAddress

RECENT_DAYS = 7.0
RECENT_FILES = 1000
"""At most so many of the newest files are read: what a run costs must not follow how often windows come."""


@dataclass(frozen=True)
class Measured:
    """One lake table. `recent_*`: of what windows (not the backfill) brought in the last `recent_days` days."""

    measured_at: datetime
    snapshots: int
    manifests: int
    metadata_files: int
    metadata_bytes: int
    data_files: int
    data_bytes: int
    row_count: int
    recent_versions: int
    recent_keys: int
    recent_days: float
    detail: dict[str, Any]


def measure(
    engine: Engine,
    references: References,
    contract: Contract,
    organization: str,
    address: LakeAddress,
    settings: MaintenanceSettings,
    now: datetime,
    swept_at: datetime | None,
) -> Measured:
    """Measure the table as it was last read.

    Raises:
        LakehouseError: its metadata or files cannot be read.
    """
    table = references.table
    live = references.live()
    snapshot = table.current_snapshot()
    metadata = list_files(table, "metadata")
    recent = _Recent(contract, live, now)
    recent.read(references, address)
    small = [f for f in live if f.bytes < settings.small_file_bytes]
    return Measured(
        measured_at=now,
        snapshots=len(table.metadata.snapshots),
        manifests=len(references.manifests(snapshot)) if snapshot else 0,
        metadata_files=len(metadata),
        metadata_bytes=sum(f.bytes for f in metadata),
        data_files=len(live),
        data_bytes=sum(f.bytes for f in live),
        row_count=sum(f.rows for f in live),
        recent_versions=recent.versions,
        recent_keys=recent.keys,
        recent_days=recent.days,
        detail={
            "metadata_json_files": sum(f.path.endswith(".metadata.json") for f in metadata),
            "small_files": len(small),
            "small_bytes": sum(f.bytes for f in small),
            "pending_files": pending(engine, organization, contract.table),
            "recent_bytes": recent.bytes,
            "bytes_per_day": round(recent.bytes / recent.days) if recent.days else 0,
            "refs": sorted(table.metadata.refs),
            "swept_at": swept_at.isoformat() if swept_at else None,
        },
    )


class _Recent:
    """Versions and keys that windows brought lately. A backfill's rows are no versions that a cadence made."""

    def __init__(self, contract: Contract, live: list[LiveFile], now: datetime) -> None:
        self.contract = contract
        since = now - timedelta(days=RECENT_DAYS)
        newest = sorted((f for f in live if f.captured_at >= since), key=lambda f: f.captured_at)[-RECENT_FILES:]
        # Where files were left out, the period is as long as those that are read reach back.
        whole = len(newest) < RECENT_FILES
        self.since = since if whole else newest[0].captured_at
        self.now = now
        self.files = newest
        self.first = min(live, key=lambda f: f.first_sequence, default=None)
        self.versions = self.keys = self.bytes = 0
        self.days = 0.0

    def read(self, references: References, address: LakeAddress) -> None:
        import duckdb

        if self.first is None or not self.files:
            return
        paths = ", ".join(literal(plain_path(f.path)) for f in self.files)
        first = f"read_parquet({literal(plain_path(self.first.path))}, hive_partitioning = false)"
        key = ", ".join(quoted(n) for n in self.contract.identity)
        recent = f"{CAPTURED_AT} >= TIMESTAMPTZ {literal(self.since.isoformat())}"
        with connect([address]) as connection:
            try:
                # A file without rows is not what its manifest says: whoever merges says so. Here it hides no window.
                ((backfill, began),) = connection.execute(
                    f"SELECT coalesce(arg_min({WINDOW}, {SEQUENCE}), ''), epoch_us(min({CAPTURED_AT})) FROM {first}"
                ).fetchall()
                ((self.versions, self.keys),) = connection.execute(
                    f"SELECT count(*), count(DISTINCT ({key})) FROM read_parquet([{paths}], hive_partitioning = false) "
                    f"WHERE {recent} AND {WINDOW} <> {literal(backfill)} AND {OP} = '{UPSERT}'"
                ).fetchall()
            except duckdb.Error as error:
                raise unreadable(references.table, error) from error
        start = datetime.fromtimestamp(began / 1e6, UTC) if began is not None else self.first.captured_at
        self.days = max((self.now - max(self.since, start)) / timedelta(days=1), 0.0)
        rows = sum(f.rows for f in self.files)
        self.bytes = round(sum(f.bytes for f in self.files) * self.versions / rows) if rows else 0


def save(engine: Engine, organization: str, table: str, measured: Measured) -> None:
    """Write the figures where `status` reads them."""
    values = asdict(measured)
    statement = upsert(TableStatistics).values(organization_id=organization, table_name=table, **values)
    with engine.begin() as connection:
        connection.execute(
            statement.on_conflict_do_update(index_elements=["organization_id", "table_name"], set_=values)
        )


def last_sweep(engine: Engine, organization: str, table: str) -> datetime | None:
    """When the table's folder was last listed as a whole."""
    with engine.connect() as connection:
        detail = connection.scalar(
            select(TableStatistics.detail).where(
                TableStatistics.organization_id == organization, TableStatistics.table_name == table
            )
        )
    text = (detail or {}).get("swept_at")
    return datetime.fromisoformat(text) if text else None
