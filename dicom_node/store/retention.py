"""What may be deleted from the spool, and the count of what was: never anything that is still owed to somebody."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import exists, select, update

from dicom_node.store.schema import instance, job, result, series_revision
from dicom_node.types import JobState

if TYPE_CHECKING:
    from datetime import datetime

    from dicom_node.store.database import Database

_ENDED = (JobState.DELIVERED, JobState.REJECTED, JobState.SUPERSEDED)
"""FAILED is not among them: a person must look first, and needs the images for it."""


class Retention:
    """Purging: rows stay for ever, bytes go."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def purge_due(self, before: datetime, at: datetime, limit: int) -> tuple[str, ...]:
        """Mark as purged, and name, spool files of series all of whose jobs ended before ``before``.

        The rows are marked first; a crash between mark and deletion leaves files that nobody wants, which the sweep of
        unclaimed files removes.
        """
        with self._database.write() as db:
            series = (
                db.execute(
                    select(series_revision.c.series_instance_uid)
                    .where(
                        exists().where(
                            instance.c.series_instance_uid == series_revision.c.series_instance_uid,
                            instance.c.purged_at.is_(None),
                        )
                    )
                    .group_by(series_revision.c.series_instance_uid)
                )
                .scalars()
                .all()
            )
            names: list[str] = []
            for uid in series:
                if len(names) >= limit:
                    break
                revisions = db.execute(
                    select(series_revision.c.id, series_revision.c.state, series_revision.c.last_arrival).where(
                        series_revision.c.series_instance_uid == uid
                    )
                ).all()
                jobs = db.execute(
                    select(job.c.id, job.c.state, job.c.ended_at).where(
                        job.c.revision_id.in_([r.id for r in revisions])
                    )
                ).all()
                settled = all(r.state == "ROUTED" and r.last_arrival < before for r in revisions) and all(
                    j.state in _ENDED and j.ended_at is not None and j.ended_at < before for j in jobs
                )
                if not settled:
                    continue
                names += db.execute(
                    select(instance.c.spool_name).where(
                        instance.c.series_instance_uid == uid, instance.c.purged_at.is_(None)
                    )
                ).scalars()
                db.execute(
                    update(instance)
                    .where(instance.c.series_instance_uid == uid, instance.c.purged_at.is_(None))
                    .values(purged_at=at, current=False)
                )
                job_ids = [j.id for j in jobs]
                names += db.execute(
                    select(result.c.spool_name).where(result.c.job_id.in_(job_ids), result.c.purged_at.is_(None))
                ).scalars()
                db.execute(
                    update(result)
                    .where(result.c.job_id.in_(job_ids), result.c.purged_at.is_(None))
                    .values(purged_at=at)
                )
            return tuple(names)

    def claims(self) -> dict[str, bool]:
        """For every spool name that the ledger knows, whether its bytes are still wanted."""
        with self._database.read() as db:
            return {
                str(row.spool_name): row.purged_at is None
                for table in (instance, result)
                for row in db.execute(select(table.c.spool_name, table.c.purged_at))
            }
