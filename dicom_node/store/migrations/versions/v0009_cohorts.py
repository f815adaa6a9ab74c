"""Cohorts: the series that a research run pulls from an archive, what becomes of each, and by whose rule they run

Revision: 0009, after: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "cohort",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("definition_sha256", sa.String(64), nullable=False),
        sa.Column("model", sa.String(255)),
        sa.Column("destinations", sa.JSON(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("selected_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_cohort")),
    )
    op.create_table(
        "cohort_series",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("cohort", sa.String(64), nullable=False),
        sa.Column("series_instance_uid", sa.String(64), nullable=False),
        sa.Column("study_instance_uid", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("expected_count", sa.Integer()),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("not_before", sa.DateTime(timezone=True)),
        sa.Column("pull_started_at", sa.DateTime(timezone=True)),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.ForeignKeyConstraint(["cohort"], ["cohort.name"], name=op.f("fk_cohort_series_cohort")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cohort_series")),
        sa.UniqueConstraint("cohort", "series_instance_uid", name=op.f("uq_cohort_series_cohort_series_instance_uid")),
    )
    op.create_index(
        op.f("ix_cohort_series_series_instance_uid"), "cohort_series", ["series_instance_uid"], unique=False
    )


def downgrade() -> None:
    op.drop_index(op.f("ix_cohort_series_series_instance_uid"), "cohort_series")
    op.drop_table("cohort_series")
    op.drop_table("cohort")
