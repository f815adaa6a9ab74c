"""What was sent to the node is told from what a cohort pulled

Revision: 0017, after: 0016
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("series_revision", sa.Column("sent", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.add_column("cohort", sa.Column("retrieves_as", sa.String(16), nullable=True))
    # until now, everything that came after a pull had begun was taken for pulled
    op.execute(
        "UPDATE series_revision SET sent = false WHERE EXISTS (SELECT 1 FROM cohort_series WHERE "
        "cohort_series.series_instance_uid = series_revision.series_instance_uid AND "
        "cohort_series.pull_started_at <= series_revision.first_arrival)"
    )


def downgrade() -> None:
    op.drop_column("cohort", "retrieves_as")
    op.drop_column("series_revision", "sent")
