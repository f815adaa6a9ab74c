"""A delivery is claimed like a job, a process holds its role, and an attempt that was cut off need not count

Revision: 0011, after: 0010
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("delivery", sa.Column("claimed_by", sa.String(255), nullable=True))
    op.add_column("delivery", sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True))
    op.create_index(op.f("ix_delivery_claimed_by"), "delivery", ["claimed_by"], unique=False)
    op.add_column("job", sa.Column("not_counted", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.create_table(
        "process",
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("folder", sa.String(1024), nullable=False),
        sa.Column("boot_id", sa.String(64), nullable=False),
        sa.Column("worker", sa.String(255), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("heartbeat_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("role", "folder", "boot_id", name=op.f("pk_process")),
    )


def downgrade() -> None:
    op.drop_table("process")
    op.drop_column("job", "not_counted")
    op.drop_index(op.f("ix_delivery_claimed_by"), "delivery")
    op.drop_column("delivery", "lease_until")
    op.drop_column("delivery", "claimed_by")
