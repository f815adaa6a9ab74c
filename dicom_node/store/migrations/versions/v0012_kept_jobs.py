"""A job whose results no destination asked for is KEPT; it counted as DELIVERED

Revision: 0012, after: 0011
"""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "UPDATE job SET state = 'KEPT' WHERE state = 'DELIVERED' AND NOT EXISTS (SELECT 1 FROM delivery"
        " JOIN result ON result.id = delivery.result_id WHERE result.job_id = job.id AND result.kind <> 'NOTICE')"
    )


def downgrade() -> None:
    op.execute("UPDATE job SET state = 'DELIVERED' WHERE state = 'KEPT'")
