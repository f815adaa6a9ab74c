"""The requested results are stored with each destination of a job

Revision: 0002, after: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


_job = sa.table("job", sa.column("id", sa.BigInteger()), sa.column("destinations", sa.JSON()))


def upgrade() -> None:
    connection = op.get_bind()
    for row in connection.execute(sa.select(_job)).all():
        requests: dict[str, dict[str, object]] = {name: {} for name in row.destinations}
        connection.execute(sa.update(_job).where(_job.c.id == row.id).values(destinations=requests))


def downgrade() -> None:
    connection = op.get_bind()
    for row in connection.execute(sa.select(_job)).all():
        connection.execute(sa.update(_job).where(_job.c.id == row.id).values(destinations=list(row.destinations)))
