"""What may be deleted from the spool: nothing that still has to be delivered.

How long something has been settled is counted in elapsed time (:mod:`dicom_node.store.elapsed`) from the sweep that
first found it so. A clock that is set deletes nothing, and nothing is deleted that was not found settled twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, delete, exists, insert, select, update

from dicom_node.store.schema import IS_CURRENT, delivery, instance, job, refusal, result, series_revision, settled
from dicom_node.store.states import DeliveryState, JobState, RevisionState

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from dicom_node.store.database import Database

_ENDED = (JobState.DELIVERED, JobState.KEPT, JobState.REJECTED, JobState.SUPERSEDED)
"""FAILED is not included: a person must look first, and needs the images."""


class Retention:
    """Purging deletes files and keeps the rows of what was received and made."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def purge_due(self, now_s: float, kept_s: float, at: datetime, limit: int) -> tuple[str, ...]:
        """Mark as purged, and return, the spool files of series that have been settled for ``kept_s``.

        ``now_s`` is the elapsed time. Rows are marked before files are deleted; the sweep of unclaimed files removes
        what a crash in between leaves.
        """
        due: dict[str, str] = {}
        changed: dict[str, str | None] = {}
        with self._database.read() as db:
            # without the write lock, which arriving instances need
            for uid in _kept_series(db):
                version, mark = _settled_version(db, uid), _mark(db, uid)
                if version != (None if mark is None else mark.version):
                    changed[uid] = version
                elif version is not None and mark is not None and now_s - mark.since_s >= kept_s:
                    due[uid] = version
        self._note(changed, now_s)
        names: list[str] = []
        for uid, version in due.items():
            if len(names) >= limit:
                break
            with self._database.write() as db:
                if _settled_version(db, uid) == version:  # checked again: a late instance may have arrived
                    names += _mark_purged(db, uid, at)
        return tuple(names)

    def _note(self, changed: Mapping[str, str | None], now_s: float) -> None:
        """Note since when series are settled, or that they are not."""
        if not changed:
            return
        since = [
            {"series_instance_uid": uid, "version": version, "since_s": now_s}
            for uid, version in changed.items()
            if version is not None
        ]
        with self._database.write() as db:
            for uid in changed:
                db.execute(delete(settled).where(settled.c.series_instance_uid == uid))
            if since:
                db.execute(insert(settled), since)

    def forget_refusals(self, now_s: float, kept_s: float) -> int:
        """Delete refusals that were noted ``kept_s`` ago and concern no series whose images are stored; how many.

        A sender that repeats an unsound instance makes a row each time.
        """
        with self._database.write() as db:
            db.execute(update(refusal).where(refusal.c.noted_s.is_(None)).values(noted_s=now_s))
            return int(
                db.execute(
                    delete(refusal).where(
                        refusal.c.noted_s <= now_s - kept_s,
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


def _mark(db: Connection, series_uid: str) -> Any:
    return db.execute(select(settled).where(settled.c.series_instance_uid == series_uid)).one_or_none()


def _settled_version(db: Connection, series_uid: str) -> str | None:
    """A text that changes with what happens to the series; None unless everything of it ended and was delivered."""
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
    ends = [r.last_arrival for r in revisions if r.state == RevisionState.ROUTED]
    ends += [j.ended_at for j in jobs if j.state in _ENDED and j.ended_at is not None]
    if owed is not None or not ends or len(ends) < len(revisions) + len(jobs):
        return None
    return f"{len(revisions)} {len(jobs)} {max(ends).isoformat()}"


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
    db.execute(delete(settled).where(settled.c.series_instance_uid == series_uid))
    return names
