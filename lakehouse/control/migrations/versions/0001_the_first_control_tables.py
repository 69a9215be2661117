"""The first control tables"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "backfills",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("table_name", sa.String(length=63), nullable=False),
        sa.Column("organizations", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("start", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("estimated_rows", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("status IN ('running', 'done', 'abandoned')", name=op.f("ck_backfills_status")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_backfills")),
    )
    op.create_index(
        "uq_backfills_running", "backfills", ["table_name"], unique=True, postgresql_where=sa.text("status = 'running'")
    )
    op.create_table(
        "cursors",
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("table_name", sa.String(length=63), nullable=False),
        sa.Column("position", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("fence", sa.Text(), nullable=True),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("inventory", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("captured_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("watermark", sa.DateTime(timezone=True), nullable=True),
        sa.Column("landed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("snapshot_id", sa.BigInteger(), nullable=True),
        sa.Column("last_error", sa.String(length=500), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("organization_id", "table_name", name=op.f("pk_cursors")),
    )
    op.create_table(
        "installation",
        sa.Column("singleton", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("singleton", name=op.f("ck_installation_single_row")),
        sa.PrimaryKeyConstraint("singleton", name=op.f("pk_installation")),
    )
    op.create_table(
        "lakes",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("catalog_kind", sa.Text(), nullable=False),
        sa.Column(
            "catalog_config", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False
        ),
        sa.Column("warehouse", sa.Text(), nullable=False),
        sa.Column("encrypted_credentials", sa.Text(), nullable=True),
        sa.Column("token_key_version", sa.String(length=32), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lakes")),
        sa.UniqueConstraint("namespace", name=op.f("uq_lakes_namespace")),
        sa.UniqueConstraint("organization_id", name=op.f("uq_lakes_organization_id")),
    )
    op.create_table(
        "warehouse_deliveries",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("destination_id", sa.Uuid(), nullable=False),
        sa.Column("table_name", sa.String(length=63), nullable=False),
        sa.Column("sequence_after", sa.BigInteger(), nullable=False),
        sa.Column("sequence_upto", sa.BigInteger(), nullable=False),
        sa.Column("snapshot_id", sa.BigInteger(), nullable=True),
        sa.Column("window_id", sa.Uuid(), nullable=True),
        sa.Column("watermark_start", sa.DateTime(timezone=True), nullable=True),
        sa.Column("watermark_end", sa.DateTime(timezone=True), nullable=True),
        sa.Column("row_count", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("status", sa.String(length=16), server_default=sa.text("'PENDING'"), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("max_attempts", sa.Integer(), server_default=sa.text("5"), nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("lease_owner", sa.String(length=180), nullable=True),
        sa.Column("lease_generation", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.String(length=500), nullable=True),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "status IN ('PENDING', 'PROCESSING', 'DELIVERED', 'FAILED', 'DEAD_LETTER')",
            name=op.f("ck_warehouse_deliveries_status"),
        ),
        sa.CheckConstraint("sequence_after < sequence_upto", name=op.f("ck_warehouse_deliveries_range")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_warehouse_deliveries")),
        sa.UniqueConstraint(
            "destination_id", "organization_id", "table_name", "sequence_after", name="uq_warehouse_deliveries_range"
        ),
    )
    op.create_index(
        "ix_warehouse_deliveries_claim", "warehouse_deliveries", ["status", "next_attempt_at"], unique=False
    )
    op.create_index(
        "ix_warehouse_deliveries_lease", "warehouse_deliveries", ["status", "lease_expires_at"], unique=False
    )
    op.create_table(
        "windows",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("table_name", sa.String(length=63), nullable=False),
        sa.Column("method", sa.String(length=16), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("snapshot", sa.Text(), nullable=False),
        sa.Column("captured_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_windows")),
    )
    op.create_index("ix_windows_table_name_captured_at", "windows", ["table_name", "captured_at"], unique=False)
    op.create_table(
        "backfill_ranges",
        sa.Column("backfill_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("lower", sa.Text(), nullable=True),
        sa.Column("upper", sa.Text(), nullable=True),
        sa.Column("status", sa.String(length=16), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("snapshot", sa.Text(), nullable=True),
        sa.Column("captured_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("row_count", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("files", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("status IN ('pending', 'done')", name=op.f("ck_backfill_ranges_status")),
        sa.ForeignKeyConstraint(
            ["backfill_id"], ["backfills.id"], name=op.f("fk_backfill_ranges_backfill_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("backfill_id", "number", name=op.f("pk_backfill_ranges")),
    )
    op.create_table(
        "backfill_sequences",
        sa.Column("backfill_id", sa.Uuid(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("next_sequence", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["backfill_id"], ["backfills.id"], name=op.f("fk_backfill_sequences_backfill_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("backfill_id", "organization_id", name=op.f("pk_backfill_sequences")),
    )
    op.create_table(
        "landings",
        sa.Column("window_id", sa.Uuid(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("table_name", sa.String(length=63), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("files", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("row_count", sa.BigInteger(), nullable=False),
        sa.Column("delete_count", sa.BigInteger(), nullable=False),
        sa.Column("byte_count", sa.BigInteger(), nullable=False),
        sa.Column("sequence_after", sa.BigInteger(), nullable=False),
        sa.Column("sequence_upto", sa.BigInteger(), nullable=False),
        sa.Column("watermark_start", sa.DateTime(timezone=True), nullable=True),
        sa.Column("watermark_end", sa.DateTime(timezone=True), nullable=True),
        sa.Column("snapshot_id", sa.BigInteger(), nullable=True),
        sa.Column("landed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("status IN ('staged', 'landed', 'abandoned')", name=op.f("ck_landings_status")),
        sa.ForeignKeyConstraint(["window_id"], ["windows.id"], name=op.f("fk_landings_window_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("window_id", "organization_id", name=op.f("pk_landings")),
    )
    op.create_index(
        "ix_landings_open", "landings", ["table_name"], unique=False, postgresql_where=sa.text("status = 'staged'")
    )
    op.create_table(
        "warehouse_destinations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=True),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=160), nullable=False),
        sa.Column("config", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("encrypted_credentials", sa.Text(), nullable=True),
        sa.Column("token_key_version", sa.String(length=32), server_default=sa.text("'v1'"), nullable=False),
        sa.Column("enabled_tables", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("schema_version", sa.String(length=16), server_default=sa.text("'v1'"), nullable=False),
        sa.Column("status", sa.String(length=16), server_default=sa.text("'active'"), nullable=False),
        sa.Column("cadence_seconds", sa.Integer(), server_default=sa.text("900"), nullable=False),
        sa.Column("lake_id", sa.Uuid(), nullable=True),
        sa.Column("last_delivery_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.String(length=500), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "kind IN ('SNOWFLAKE', 'BIGQUERY', 'DATABRICKS', 'ICEBERG_S3', 'PARQUET_S3', "
            "'JSONL_S3', 'POSTGRES_REPLICA')",
            name=op.f("ck_warehouse_destinations_kind"),
        ),
        sa.CheckConstraint("status IN ('active', 'paused', 'error')", name=op.f("ck_warehouse_destinations_status")),
        sa.CheckConstraint("cadence_seconds > 0", name=op.f("ck_warehouse_destinations_cadence")),
        sa.ForeignKeyConstraint(["lake_id"], ["lakes.id"], name=op.f("fk_warehouse_destinations_lake_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_warehouse_destinations")),
        sa.UniqueConstraint(
            "organization_id",
            "name",
            name=op.f("uq_warehouse_destinations_organization_id_name"),
            postgresql_nulls_not_distinct=True,
        ),
    )
    op.create_table(
        "destination_tables",
        sa.Column("destination_id", sa.Uuid(), nullable=False),
        sa.Column("table_name", sa.String(length=63), nullable=False),
        sa.Column("cadence_seconds", sa.Integer(), nullable=True),
        sa.CheckConstraint("cadence_seconds > 0", name=op.f("ck_destination_tables_cadence")),
        sa.ForeignKeyConstraint(
            ["destination_id"],
            ["warehouse_destinations.id"],
            name=op.f("fk_destination_tables_destination_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("destination_id", "table_name", name=op.f("pk_destination_tables")),
    )


def downgrade() -> None:
    op.drop_table("destination_tables")
    op.drop_table("warehouse_destinations")
    op.drop_index("ix_landings_open", table_name="landings", postgresql_where=sa.text("status = 'staged'"))
    op.drop_table("landings")
    op.drop_table("backfill_sequences")
    op.drop_table("backfill_ranges")
    op.drop_index("ix_windows_table_name_captured_at", table_name="windows")
    op.drop_table("windows")
    op.drop_index("ix_warehouse_deliveries_lease", table_name="warehouse_deliveries")
    op.drop_index("ix_warehouse_deliveries_claim", table_name="warehouse_deliveries")
    op.drop_table("warehouse_deliveries")
    op.drop_table("lakes")
    op.drop_table("installation")
    op.drop_table("cursors")
    op.drop_index("uq_backfills_running", table_name="backfills", postgresql_where=sa.text("status = 'running'"))
    op.drop_table("backfills")
