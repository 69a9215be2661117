"""Where the rows are that the lake could not hold: with cursors, and with the ranges of a backfill"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_JSON = postgresql.JSONB(astext_type=sa.Text())


def upgrade() -> None:
    op.add_column("cursors", sa.Column("quarantine", _JSON, nullable=True))
    op.add_column("backfill_ranges", sa.Column("quarantined", _JSON, server_default=sa.text("'[]'"), nullable=False))


def downgrade() -> None:
    op.drop_column("backfill_ranges", "quarantined")
    op.drop_column("cursors", "quarantine")
