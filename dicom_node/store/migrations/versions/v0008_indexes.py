"""The instances of a series, the recent series of a sender, and a result by its file are found by an index

Revision: 0008, after: 0007
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(op.f("ix_instance_series_instance_uid"), "instance", ["series_instance_uid"], unique=False)
    op.create_index("ix_series_revision_sender", "series_revision", ["sending_ae", "id"], unique=False)
    op.create_index(op.f("ix_result_spool_name"), "result", ["spool_name"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_result_spool_name"), "result")
    op.drop_index("ix_series_revision_sender", "series_revision")
    op.drop_index(op.f("ix_instance_series_instance_uid"), "instance")
