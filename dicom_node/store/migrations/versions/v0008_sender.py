"""The recent series of a sender are found by an index

Revision: 0008, after: 0007
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_series_revision_sender", "series_revision", ["sending_ae", "id"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_series_revision_sender", "series_revision")
