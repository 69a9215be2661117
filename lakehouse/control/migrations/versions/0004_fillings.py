"""How far the tables of destinations are that are being filled anew"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "destination_fillings",
        sa.Column("destination_id", sa.Uuid(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("table_name", sa.String(length=63), nullable=False),
        *[sa.Column(n, sa.BigInteger(), nullable=False) for n in ("sequence", "row_count", "of_rows")],
        sa.Column("reached", sa.Text(), nullable=True),
        sa.Column("begun_at", _MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", _MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["destination_id"],
            ["warehouse_destinations.id"],
            name=op.f("fk_destination_fillings_destination_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "destination_id", "organization_id", "table_name", name=op.f("pk_destination_fillings")
        ),
    )


def downgrade() -> None:
    op.drop_table("destination_fillings")
