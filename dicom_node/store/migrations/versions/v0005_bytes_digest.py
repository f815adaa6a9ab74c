"""A revision keeps the digest of its bytes apart from that of its content, which an earlier revision may share

Revision: 0005, after: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("series_revision", sa.Column("bytes_digest", sa.String(64), nullable=True))
    op.execute("UPDATE series_revision SET bytes_digest = content_digest")


def downgrade() -> None:
    op.execute("UPDATE series_revision SET content_digest = bytes_digest")
    op.drop_column("series_revision", "bytes_digest")
