"""Time that no clock changes: a reading of each boot, since when a series is settled, a refusal noted, a result offered

Revision: 0015, after: 0014
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "boot",
        sa.Column("boot_id", sa.String(64), nullable=False),
        sa.Column("uptime_s", sa.Float(), nullable=False),
        sa.Column("elapsed_s", sa.Float(), nullable=False),
        sa.Column("read_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("boot_id", name=op.f("pk_boot")),
    )
    op.create_index(op.f("ix_boot_elapsed_s"), "boot", ["elapsed_s"], unique=False)
    op.create_table(
        "settled",
        sa.Column("series_instance_uid", sa.String(64), nullable=False),
        sa.Column("version", sa.String(128), nullable=False),
        sa.Column("since_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("series_instance_uid", name=op.f("pk_settled")),
    )
    op.add_column("refusal", sa.Column("noted_s", sa.Float(), nullable=True))
    op.create_index(op.f("ix_refusal_noted_s"), "refusal", ["noted_s"], unique=False)
    op.add_column("delivery", sa.Column("first_attempt_s", sa.Float(), nullable=True))


def downgrade() -> None:
    op.drop_column("delivery", "first_attempt_s")
    op.drop_index(op.f("ix_refusal_noted_s"), "refusal")
    op.drop_column("refusal", "noted_s")
    op.drop_table("settled")
    op.drop_index(op.f("ix_boot_elapsed_s"), "boot")
    op.drop_table("boot")
