"""A revision with the images of an earlier one takes over its labels: it knows which, and a job knows its labels' names

Revision: 0006, after: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("series_revision", sa.Column("same_images_as", sa.String(64), nullable=True))
    op.add_column("job", sa.Column("names_by_label", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("job", "names_by_label")
    op.drop_column("series_revision", "same_images_as")
