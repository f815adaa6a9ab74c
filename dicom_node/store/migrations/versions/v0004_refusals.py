"""What was refused is kept until it is received after all, and an instance knows the digest of its pixel data

Revision: 0004, after: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_INDEXED = ("association_id", "sop_instance_uid", "series_instance_uid", "refused_at")


def upgrade() -> None:
    op.add_column("instance", sa.Column("pixels_sha256", sa.String(64), nullable=True))
    op.create_table(
        "refusal",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("association_id", sa.String(64), nullable=False),
        sa.Column("calling_ae", sa.String(16), nullable=False),
        sa.Column("sop_instance_uid", sa.String(64), nullable=False),
        sa.Column("series_instance_uid", sa.String(64), nullable=True),
        sa.Column("dataset_sha256", sa.String(64), nullable=True),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("refused_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_refusal")),
    )
    for column in _INDEXED:
        op.create_index(op.f(f"ix_refusal_{column}"), "refusal", [column], unique=False)


def downgrade() -> None:
    for column in _INDEXED:
        op.drop_index(op.f(f"ix_refusal_{column}"), "refusal")
    op.drop_table("refusal")
    op.drop_column("instance", "pixels_sha256")
