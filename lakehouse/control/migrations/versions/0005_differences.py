"""Which tables of destinations were found to hold something else than the lake"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "destination_differences",
        sa.Column("destination_id", sa.Uuid(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("table_name", sa.String(length=63), nullable=False),
        sa.Column("detail", sa.String(length=500), nullable=False),
        sa.Column("found_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["destination_id"],
            ["warehouse_destinations.id"],
            name=op.f("fk_destination_differences_destination_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "destination_id", "organization_id", "table_name", name=op.f("pk_destination_differences")
        ),
    )


def downgrade() -> None:
    op.drop_table("destination_differences")
