"""Tasks, workers, statistics, adoptions; what a staged share needs to be landed by somebody else"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)
_JSON = postgresql.JSONB(astext_type=sa.Text())


def upgrade() -> None:
    op.create_table(
        "tasks",
        sa.Column("id", sa.String(length=180), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("table_name", sa.String(length=63), nullable=True),
        sa.Column("due_at", _MOMENT, nullable=True),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("lease_owner", sa.String(length=180), nullable=True),
        sa.Column("lease_generation", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("lease_expires_at", _MOMENT, nullable=True),
        sa.Column("takeovers", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_error", sa.String(length=500), nullable=True),
        sa.Column("detail", _JSON, server_default=sa.text("'{}'"), nullable=False),
        sa.Column("started_at", _MOMENT, nullable=True),
        sa.Column("finished_at", _MOMENT, nullable=True),
        sa.Column("updated_at", _MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tasks")),
    )
    op.create_index("ix_tasks_due", "tasks", ["due_at"])
    op.create_table(
        "workers",
        sa.Column("id", sa.String(length=180), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("started_at", _MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.Column("seen_at", _MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    op.create_table(
        "table_statistics",
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("table_name", sa.String(length=63), nullable=False),
        sa.Column("measured_at", _MOMENT, nullable=False),
        *[sa.Column(n, sa.Integer(), nullable=False) for n in ("snapshots", "manifests", "metadata_files")],
        *[
            sa.Column(n, sa.BigInteger(), nullable=False)
            for n in ("metadata_bytes", "data_files", "data_bytes", "row_count", "recent_versions", "recent_keys")
        ],
        sa.Column("recent_days", sa.Float(), nullable=False),
        sa.Column("detail", _JSON, server_default=sa.text("'{}'"), nullable=False),
        sa.PrimaryKeyConstraint("organization_id", "table_name", name=op.f("pk_table_statistics")),
    )
    op.create_table(
        "freed_files",
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("table_name", sa.String(length=63), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("reason", sa.String(length=16), nullable=False),
        sa.Column("noted_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("organization_id", "table_name", "path", name=op.f("pk_freed_files")),
    )
    op.create_table(
        "adoptions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("table_name", sa.String(length=63), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("adopted_by", sa.Text(), nullable=False),
        sa.Column("before", _JSON, nullable=False),
        sa.Column("after", _JSON, nullable=False),
        sa.Column("reconciled_at", _MOMENT, nullable=True),
        sa.Column("created_at", _MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adoptions")),
    )
    op.add_column("windows", sa.Column("changes", sa.BigInteger(), nullable=True))
    op.add_column("lakes", sa.Column("stopped_at", _MOMENT, nullable=True))
    op.add_column("lakes", sa.Column("stopped_reason", sa.String(length=500), nullable=True))
    op.add_column("warehouse_destinations", sa.Column("target", sa.Text(), nullable=True))
    op.create_index("uq_warehouse_destinations_target", "warehouse_destinations", ["kind", "target"], unique=True)
    op.create_index(
        "uq_warehouse_destinations_lake",
        "warehouse_destinations",
        ["lake_id"],
        unique=True,
        postgresql_where=sa.text("kind = 'ICEBERG_S3'"),
    )
    op.add_column(
        "warehouse_deliveries", sa.Column("takeovers", sa.Integer(), server_default=sa.text("0"), nullable=False)
    )
    op.create_index(
        "ix_warehouse_deliveries_open",
        "warehouse_deliveries",
        ["organization_id", "table_name"],
        postgresql_where=sa.text("status <> 'DELIVERED'"),
    )
    op.execute("UPDATE warehouse_destinations SET enabled_tables = '{*}' WHERE kind = 'ICEBERG_S3'")
    op.add_column("cursors", sa.Column("polled_at", _MOMENT, nullable=True))
    op.add_column("cursors", sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("cursors", sa.Column("next_attempt_at", _MOMENT, nullable=True))
    op.add_column("cursors", sa.Column("stopped", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    # Shares that the first version staged carry no cursor: they are given up and read again.
    op.alter_column("landings", "files", type_=_JSON, postgresql_using="to_jsonb(files)")
    op.add_column("landings", sa.Column("fence_before", sa.Text(), nullable=True))
    op.add_column("landings", sa.Column("cursor_before", _JSON, nullable=True))
    op.add_column("landings", sa.Column("cursor_after", _JSON, nullable=True))


def downgrade() -> None:
    for column in ("cursor_after", "cursor_before", "fence_before"):
        op.drop_column("landings", column)
    op.execute("UPDATE landings SET files = '[]'")
    op.alter_column(
        "landings", "files", type_=postgresql.ARRAY(sa.Text()), postgresql_using="ARRAY[]::text[]", nullable=False
    )
    for column in ("stopped", "next_attempt_at", "attempts", "polled_at"):
        op.drop_column("cursors", column)
    op.drop_index(
        "ix_warehouse_deliveries_open",
        table_name="warehouse_deliveries",
        postgresql_where=sa.text("status <> 'DELIVERED'"),
    )
    op.drop_column("warehouse_deliveries", "takeovers")
    op.drop_index(
        "uq_warehouse_destinations_lake",
        table_name="warehouse_destinations",
        postgresql_where=sa.text("kind = 'ICEBERG_S3'"),
    )
    op.drop_index("uq_warehouse_destinations_target", table_name="warehouse_destinations")
    op.drop_column("warehouse_destinations", "target")
    op.drop_column("windows", "changes")
    for column in ("stopped_reason", "stopped_at"):
        op.drop_column("lakes", column)
    for table in ("adoptions", "freed_files", "table_statistics", "workers", "tasks"):
        op.drop_table(table)
