"""A job keeps the report of its run: backend, device, precision, notes and stage seconds

Revision: 0003, after: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("run_report", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("job", "run_report")
