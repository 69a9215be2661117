"""The control tables as SQLAlchemy 2 models. Migrations are in `migrations/`; a test compares the two."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from federation.kinds import DeliveryStatus, DestinationKind, DestinationStatus

ERROR_LENGTH = 500
"""Characters of an error that are kept."""


def _one_of(column: str, values: type[DestinationKind] | type[DestinationStatus] | type[DeliveryStatus]) -> str:
    allowed = ", ".join(f"'{v.value}'" for v in values)
    return f"{column} IN ({allowed})"


class Base(DeclarativeBase):
    """Naming conventions make constraint names the same in models and migrations."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own interface
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[dict[str, Any]]: JSONB,
        list[str]: ARRAY(Text),
        str: Text,
        UUID: Uuid,
    }


class Installation(Base):
    """The one installation that these control tables belong to. Its id comes from the settings."""

    __tablename__ = "installation"
    singleton: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"))
    id: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (CheckConstraint("singleton", name="single_row"),)


class Lake(Base):
    """Where an organization's canonical tables live. Empty credentials: those of the settings.

    Stopped: nothing is captured for it any more (the host deleted the organization); the lake is kept.
    """

    __tablename__ = "lakes"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(unique=True)
    namespace: Mapped[str] = mapped_column(unique=True)
    catalog_kind: Mapped[str]
    catalog_config: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    warehouse: Mapped[str]
    encrypted_credentials: Mapped[str | None]
    token_key_version: Mapped[str | None] = mapped_column(String(32))
    stopped_at: Mapped[datetime | None]
    stopped_reason: Mapped[str | None] = mapped_column(String(500))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WarehouseDestination(Base):
    """Where an organization wants its tables. No organization: vendor-wide, the operator's own."""

    __tablename__ = "warehouse_destinations"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    organization_id: Mapped[str | None]
    kind: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(String(160))
    config: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    encrypted_credentials: Mapped[str | None]
    token_key_version: Mapped[str] = mapped_column(String(32), server_default=text("'v1'"))
    enabled_tables: Mapped[list[str]] = mapped_column(server_default=text("'{}'"))
    schema_version: Mapped[str] = mapped_column(String(16), server_default=text("'v1'"))
    status: Mapped[str] = mapped_column(String(16), server_default=text("'active'"))
    cadence_seconds: Mapped[int] = mapped_column(Integer, server_default=text("900"))
    target: Mapped[str | None]
    """What it writes to, normalized: two destinations never share one."""
    lake_id: Mapped[UUID | None] = mapped_column(ForeignKey("lakes.id"))
    last_delivery_at: Mapped[datetime | None]
    last_error: Mapped[str | None] = mapped_column(String(500))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (
        UniqueConstraint("organization_id", "name", postgresql_nulls_not_distinct=True),
        Index("uq_warehouse_destinations_target", "kind", "target", unique=True),
        Index("uq_warehouse_destinations_lake", "lake_id", unique=True, postgresql_where=text("kind = 'ICEBERG_S3'")),
        CheckConstraint(_one_of("kind", DestinationKind), name="kind"),
        CheckConstraint(_one_of("status", DestinationStatus), name="status"),
        CheckConstraint("cadence_seconds > 0", name="cadence"),
    )


class DestinationTable(Base):
    """What one destination wants otherwise for one table."""

    __tablename__ = "destination_tables"
    destination_id: Mapped[UUID] = mapped_column(
        ForeignKey("warehouse_destinations.id", ondelete="CASCADE"), primary_key=True
    )
    table_name: Mapped[str] = mapped_column(String(63), primary_key=True)
    cadence_seconds: Mapped[int | None] = mapped_column(Integer)
    __table_args__ = (CheckConstraint("cadence_seconds > 0", name="cadence"),)


class DestinationFilling(Base):
    """How far a table is that is being filled anew, for whoever looks; the target itself knows where it goes on."""

    __tablename__ = "destination_fillings"
    destination_id: Mapped[UUID] = mapped_column(
        ForeignKey("warehouse_destinations.id", ondelete="CASCADE"), primary_key=True
    )
    organization_id: Mapped[str] = mapped_column(primary_key=True)
    table_name: Mapped[str] = mapped_column(String(63), primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger)
    row_count: Mapped[int] = mapped_column(BigInteger)
    of_rows: Mapped[int] = mapped_column(BigInteger)
    """Versions that the lake held when it was begun."""
    reached: Mapped[str | None]
    begun_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class DestinationDifference(Base):
    """A table of a destination that was found to hold something else than the lake. No row: nothing is known of it."""

    __tablename__ = "destination_differences"
    destination_id: Mapped[UUID] = mapped_column(
        ForeignKey("warehouse_destinations.id", ondelete="CASCADE"), primary_key=True
    )
    organization_id: Mapped[str] = mapped_column(primary_key=True)
    table_name: Mapped[str] = mapped_column(String(63), primary_key=True)
    detail: Mapped[str] = mapped_column(String(500))
    found_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WarehouseDelivery(Base):
    """An outbox row: the range (`sequence_after`, `sequence_upto`] of one table for one destination.

    No foreign key to the destination: removing one does not remove what was delivered to it.
    """

    __tablename__ = "warehouse_deliveries"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    organization_id: Mapped[str]
    destination_id: Mapped[UUID]
    table_name: Mapped[str] = mapped_column(String(63))
    sequence_after: Mapped[int] = mapped_column(BigInteger)
    sequence_upto: Mapped[int] = mapped_column(BigInteger)
    snapshot_id: Mapped[int | None] = mapped_column(BigInteger)
    window_id: Mapped[UUID | None]
    watermark_start: Mapped[datetime | None]
    watermark_end: Mapped[datetime | None]
    row_count: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    status: Mapped[str] = mapped_column(String(16), server_default=text("'PENDING'"))
    attempts: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    max_attempts: Mapped[int] = mapped_column(Integer, server_default=text("5"))
    next_attempt_at: Mapped[datetime] = mapped_column(server_default=func.now())
    lease_owner: Mapped[str | None] = mapped_column(String(180))
    lease_generation: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    lease_expires_at: Mapped[datetime | None]
    takeovers: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    """How often a lease ran out and another worker took the row."""
    last_error: Mapped[str | None] = mapped_column(String(500))
    delivered_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (
        UniqueConstraint(
            "destination_id", "organization_id", "table_name", "sequence_after", name="uq_warehouse_deliveries_range"
        ),
        CheckConstraint(_one_of("status", DeliveryStatus), name="status"),
        CheckConstraint("sequence_after < sequence_upto", name="range"),
        Index("ix_warehouse_deliveries_claim", "status", "next_attempt_at"),
        Index("ix_warehouse_deliveries_lease", "status", "lease_expires_at"),
        Index(
            "ix_warehouse_deliveries_open",
            "organization_id",
            "table_name",
            postgresql_where=text("status <> 'DELIVERED'"),
        ),
    )


class Cursor(Base):
    """Where one table of one organization stands; a copy of what the lake table's own property says.

    `position` is what a group of organizations shares; the rest is this organization's.
    """

    __tablename__ = "cursors"
    organization_id: Mapped[str] = mapped_column(primary_key=True)
    table_name: Mapped[str] = mapped_column(String(63), primary_key=True)
    position: Mapped[dict[str, Any]]
    fence: Mapped[str | None]
    sequence: Mapped[int] = mapped_column(BigInteger)
    inventory: Mapped[dict[str, Any] | None]
    quarantine: Mapped[dict[str, Any] | None]
    captured_at: Mapped[datetime]
    watermark: Mapped[datetime | None]
    landed_at: Mapped[datetime | None]
    snapshot_id: Mapped[int | None] = mapped_column(BigInteger)
    polled_at: Mapped[datetime | None]
    """By the database's clock: when a window last covered this organization. The cadence counts from here."""
    attempts: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    next_attempt_at: Mapped[datetime | None]
    """In the future: it failed, has left its group and is tried alone then."""
    stopped: Mapped[bool] = mapped_column(server_default=text("false"))
    """A person must look: no window reads this table of this organization until `deliveries retry`."""
    last_error: Mapped[str | None] = mapped_column(String(500))
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Window(Base):
    """One capture of one table. A person reads the watermarks; completeness rests on the snapshot."""

    __tablename__ = "windows"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    table_name: Mapped[str] = mapped_column(String(63))
    method: Mapped[str] = mapped_column(String(16))
    kind: Mapped[str] = mapped_column(String(16))
    snapshot: Mapped[str]
    captured_at: Mapped[datetime]
    changes: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (Index("ix_windows_table_name_captured_at", "table_name", "captured_at"),)


class Landing(Base):
    """One organization's share of a window: staged, then landed or abandoned. Empty shares have no row."""

    __tablename__ = "landings"
    window_id: Mapped[UUID] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(primary_key=True)
    table_name: Mapped[str] = mapped_column(String(63))
    status: Mapped[str] = mapped_column(String(16))
    files: Mapped[list[dict[str, Any]]]
    fence_before: Mapped[str | None]
    cursor_before: Mapped[dict[str, Any] | None]
    cursor_after: Mapped[dict[str, Any] | None]
    """What `files` were read from and lead to: whoever holds the lease can commit them."""
    row_count: Mapped[int] = mapped_column(BigInteger)
    delete_count: Mapped[int] = mapped_column(BigInteger)
    byte_count: Mapped[int] = mapped_column(BigInteger)
    sequence_after: Mapped[int] = mapped_column(BigInteger)
    sequence_upto: Mapped[int] = mapped_column(BigInteger)
    watermark_start: Mapped[datetime | None]
    watermark_end: Mapped[datetime | None]
    snapshot_id: Mapped[int | None] = mapped_column(BigInteger)
    landed_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (
        ForeignKeyConstraint(["window_id"], ["windows.id"], ondelete="CASCADE"),
        CheckConstraint("status IN ('staged', 'landed', 'abandoned')", name="status"),
        Index("ix_landings_open", "table_name", postgresql_where=text("status = 'staged'")),
    )


class Task(Base):
    """A standing piece of work (`capture:events`, `backfill:events`, `maintain:events`): due at a time, leased."""

    __tablename__ = "tasks"
    id: Mapped[str] = mapped_column(String(180), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    table_name: Mapped[str | None] = mapped_column(String(63))
    due_at: Mapped[datetime | None]
    """Null: nothing to do until somebody makes it due."""
    attempts: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    lease_owner: Mapped[str | None] = mapped_column(String(180))
    lease_generation: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    lease_expires_at: Mapped[datetime | None]
    takeovers: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    last_error: Mapped[str | None] = mapped_column(String(500))
    detail: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    """The error by organization; under "" the whole table's."""
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (Index("ix_tasks_due", "due_at"),)


class Worker(Base):
    """A program that works or schedules; `seen_at` is its heartbeat, by the database's clock."""

    __tablename__ = "workers"
    id: Mapped[str] = mapped_column(String(180), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())


class TableStatistics(Base):
    """What maintenance last measured of one lake table: the figures behind its bounds."""

    __tablename__ = "table_statistics"
    organization_id: Mapped[str] = mapped_column(primary_key=True)
    table_name: Mapped[str] = mapped_column(String(63), primary_key=True)
    measured_at: Mapped[datetime]
    snapshots: Mapped[int] = mapped_column(Integer)
    manifests: Mapped[int] = mapped_column(Integer)
    metadata_files: Mapped[int] = mapped_column(Integer)
    metadata_bytes: Mapped[int] = mapped_column(BigInteger)
    data_files: Mapped[int] = mapped_column(BigInteger)
    data_bytes: Mapped[int] = mapped_column(BigInteger)
    row_count: Mapped[int] = mapped_column(BigInteger)
    """Rows of the history: versions and deletes."""
    recent_versions: Mapped[int] = mapped_column(BigInteger)
    """Versions that landed in the measured days."""
    recent_keys: Mapped[int] = mapped_column(BigInteger)
    """Different keys among them."""
    recent_days: Mapped[float]
    detail: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))


class FreedFile(Base):
    """A file below a lake table that nothing needs any more; removed once the grace period is over.

    Noted before it is freed, so that whoever dies between leaves it known.
    """

    __tablename__ = "freed_files"
    organization_id: Mapped[str] = mapped_column(primary_key=True)
    table_name: Mapped[str] = mapped_column(String(63), primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    reason: Mapped[str] = mapped_column(String(16))
    noted_at: Mapped[datetime]


class Adoption(Base):
    """A person took a lake table over from another source, for a reason. Never deleted."""

    __tablename__ = "adoptions"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    organization_id: Mapped[str]
    table_name: Mapped[str] = mapped_column(String(63))
    reason: Mapped[str]
    adopted_by: Mapped[str]
    before: Mapped[dict[str, Any]]
    after: Mapped[dict[str, Any]]
    reconciled_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Backfill(Base):
    """The first reading of one table for some organizations. `start`: what its first window will go on from."""

    __tablename__ = "backfills"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    table_name: Mapped[str] = mapped_column(String(63))
    organizations: Mapped[list[str]]
    status: Mapped[str] = mapped_column(String(16))
    start: Mapped[dict[str, Any]]
    estimated_rows: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]
    __table_args__ = (
        CheckConstraint("status IN ('running', 'done', 'abandoned')", name="status"),
        Index("uq_backfills_running", "table_name", unique=True, postgresql_where=text("status = 'running'")),
    )


class BackfillRange(Base):
    """A key range [lower, upper) of a backfill; bounds are the first key column's text, null at the ends."""

    __tablename__ = "backfill_ranges"
    backfill_id: Mapped[UUID] = mapped_column(ForeignKey("backfills.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    lower: Mapped[str | None]
    upper: Mapped[str | None]
    status: Mapped[str] = mapped_column(String(16), server_default=text("'pending'"))
    attempt: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    snapshot: Mapped[str | None]
    captured_at: Mapped[datetime | None]
    row_count: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    files: Mapped[list[dict[str, Any]]] = mapped_column(server_default=text("'[]'"))
    quarantined: Mapped[list[dict[str, Any]]] = mapped_column(server_default=text("'[]'"))
    """Files of rows that the lake cannot hold; they become the log of quarantined rows."""
    finished_at: Mapped[datetime | None]
    __table_args__ = (CheckConstraint("status IN ('pending', 'done')", name="status"),)


class BackfillSequence(Base):
    """The next `_sequence` that a range of this backfill may take for an organization."""

    __tablename__ = "backfill_sequences"
    backfill_id: Mapped[UUID] = mapped_column(ForeignKey("backfills.id", ondelete="CASCADE"), primary_key=True)
    organization_id: Mapped[str] = mapped_column(primary_key=True)
    next_sequence: Mapped[int] = mapped_column(BigInteger)
