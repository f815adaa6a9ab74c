"""What may be deleted from the spool: nothing that still has to be delivered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import and_, delete, exists, select, update

from dicom_node.store.schema import IS_CURRENT, delivery, instance, job, refusal, result, series_revision
from dicom_node.store.states import DeliveryState, JobState, RevisionState

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from dicom_node.store.database import Database

_ENDED = (JobState.DELIVERED, JobState.KEPT, JobState.REJECTED, JobState.SUPERSEDED)
"""FAILED is not included: a person must look first, and needs the images."""


class Retention:
    """Purging deletes files and keeps the rows of what was received and made."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def purge_due(self, before: datetime, at: datetime, limit: int) -> tuple[str, ...]:
        """Mark as purged, and return, the spool files of series whose jobs all ended before ``before``.

        Rows are marked before files are deleted; the sweep of unclaimed files removes what a crash in between leaves.
        """
        with self._database.read() as db:
            # without the write lock, which arriving instances need
            due = [uid for uid in _kept_series(db) if _is_settled(db, uid, before)]
        names: list[str] = []
        for uid in due:
            if len(names) >= limit:
                break
            with self._database.write() as db:
                if _is_settled(db, uid, before):  # checked again: a late instance may have arrived
                    names += _mark_purged(db, uid, at)
        return tuple(names)

    def forget_refusals(self, before: datetime) -> int:
        """Delete refusals before ``before`` that concern no series whose images are stored; returns how many.

        A sender that repeats an unsound instance makes a row each time.
        """
        with self._database.write() as db:
            return int(
                db.execute(
                    delete(refusal).where(
                        refusal.c.refused_at < before,
                        ~exists().where(instance.c.association_id == refusal.c.association_id, IS_CURRENT),
                        ~exists().where(instance.c.series_instance_uid == refusal.c.series_instance_uid, IS_CURRENT),
                    )
                ).rowcount
            )

    def claims(self, names: Collection[str]) -> dict[str, bool]:
        """For those of the spool ``names`` that are in the ledger, whether their files are still needed."""
        with self._database.read() as db:
            return {name: purged_at is None for name, purged_at in purged_at_by_name(db, names).items()}


def purged_at_by_name(db: Connection, names: Collection[str]) -> dict[str, datetime | None]:
    """For those of the spool ``names`` that are in the ledger, when their files were purged; None: never."""
    return {
        str(row.spool_name): row.purged_at
        for table in (instance, result)
        for row in db.execute(select(table.c.spool_name, table.c.purged_at).where(table.c.spool_name.in_(names)))
    }


def _kept_series(db: Connection) -> Sequence[str]:
    return db.execute(select(instance.c.series_instance_uid).where(IS_CURRENT).distinct()).scalars().all()


def _is_settled(db: Connection, series_uid: str, before: datetime) -> bool:
    """Whether everything of the series ended and was delivered before ``before``."""
    revisions = db.execute(
        select(series_revision.c.state, series_revision.c.last_arrival).where(
            series_revision.c.series_instance_uid == series_uid
        )
    ).all()
    jobs = db.execute(
        select(job.c.state, job.c.ended_at)
        .select_from(job.join(series_revision))
        .where(series_revision.c.series_instance_uid == series_uid)
    ).all()
    owed = db.execute(
        select(delivery.c.id)
        .select_from(delivery.join(result).join(job).join(series_revision))
        .where(
            series_revision.c.series_instance_uid == series_uid,
            # a notice of a job that has ended
            delivery.c.state == DeliveryState.WAITING,
        )
        .limit(1)
    ).one_or_none()
    return (
        owed is None
        and all(r.state == RevisionState.ROUTED and r.last_arrival < before for r in revisions)
        and all(j.state in _ENDED and j.ended_at is not None and j.ended_at < before for j in jobs)
    )


def _mark_purged(db: Connection, series_uid: str, at: datetime) -> list[str]:
    """Mark the instances (including replaced ones) and the results of the series; returns their spool names."""
    own_instances = and_(instance.c.series_instance_uid == series_uid, instance.c.purged_at.is_(None))
    own_jobs = (
        select(job.c.id)
        .select_from(job.join(series_revision))
        .where(series_revision.c.series_instance_uid == series_uid)
    )
    own_results = and_(result.c.job_id.in_(own_jobs), result.c.purged_at.is_(None))
    names = [
        *db.execute(select(instance.c.spool_name).where(own_instances)).scalars(),
        *db.execute(select(result.c.spool_name).where(own_results)).scalars(),
    ]
    db.execute(update(instance).where(own_instances).values(purged_at=at, current=False))
    db.execute(update(result).where(own_results).values(purged_at=at))
    return names
