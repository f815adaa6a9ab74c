"""A job keeps the notes of the reconstruction of its images

Revision: 0013, after: 0012
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("image_notes", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("job", "image_notes")
