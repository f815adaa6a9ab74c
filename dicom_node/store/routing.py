"""From a whole revision to its jobs, which supersede those of earlier revisions of the series."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, insert, select, update

from dicom_node.store.deliveries import held_for_change
from dicom_node.store.results import insert_result, new_id
from dicom_node.store.revisions import CompleteRevision, complete_revision
from dicom_node.store.schema import delivery, instance, job, result, revision_instance, series_revision
from dicom_node.store.states import DeliveryState, JobState, RevisionState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from dicom_node.store.database import Database
    from dicom_node.types import Decision, ResultInstance


class Routing:
    """The routing side of the ledger: COMPLETE -> ROUTED."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def due_revisions(self) -> tuple[CompleteRevision, ...]:
        """The COMPLETE revisions, oldest first."""
        with self._database.read() as db:
            rows = db.execute(
                select(series_revision.c.id)
                .where(series_revision.c.state == RevisionState.COMPLETE)
                .order_by(series_revision.c.id)
            ).all()
            return tuple(complete_revision(db, row.id) for row in rows)

    def content_already_routed(self, revision: CompleteRevision) -> bool:
        """Whether the latest earlier revision has the same content and live jobs, so that there is nothing to do."""
        with self._database.read() as db:
            previous = db.execute(
                select(series_revision.c.id, series_revision.c.content_digest)
                .where(
                    series_revision.c.series_instance_uid == revision.series_instance_uid,
                    series_revision.c.revision < revision.revision,
                )
                .order_by(series_revision.c.revision.desc())
                .limit(1)
            ).one_or_none()
            if previous is None or previous.content_digest != revision.content_digest:
                return False
            jobs = db.execute(
                select(func.count()).select_from(job).where(job.c.revision_id == previous.id)
            ).scalar_one()
            return bool(jobs) and not is_purged(db, previous.id)

    def route(
        self,
        revision: CompleteRevision,
        decisions: Sequence[Decision],
        reason: str | None,
        at: datetime,
        notices: Sequence[tuple[ResultInstance, str]] = (),
    ) -> tuple[int, ...]:
        """COMPLETE -> ROUTED: a job per decision that names a model, else one REJECTED row with the ``reason``.

        ``notices`` say that the one decision refuses, and wait for delivery from now on. Waiting and running jobs of
        earlier revisions, and their unsent results, are superseded by the new one. Returns the ids of the new jobs,
        none when another process routed the revision first.
        """
        with self._database.write() as db:
            changed = db.execute(
                update(series_revision)
                .where(series_revision.c.id == revision.id, series_revision.c.state == RevisionState.COMPLETE)
                .values(state=RevisionState.ROUTED)
            ).rowcount
            if not changed:
                return ()
            _supersede_earlier(db, revision, at)
            made = tuple(_insert_job(db, revision, decision, reason, at) for decision in decisions)
            for notice, spool_name in notices:
                insert_result(db, made[0], notice, spool_name, revision.due_at(at))
            return made

    def skip(self, revision: CompleteRevision) -> None:
        """COMPLETE -> ROUTED without a job: the same content was routed before."""
        with self._database.write() as db:
            db.execute(
                update(series_revision)
                .where(series_revision.c.id == revision.id, series_revision.c.state == RevisionState.COMPLETE)
                .values(state=RevisionState.ROUTED)
            )


def is_purged(db: Connection, revision_id: int) -> bool:
    """Whether retention has deleted images of the revision."""
    purged = (
        select(instance.c.id)
        .select_from(revision_instance.join(instance))
        .where(revision_instance.c.revision_id == revision_id, instance.c.purged_at.is_not(None))
    )
    return db.execute(purged.limit(1)).one_or_none() is not None


def has_successor(db: Connection, revision_id: int) -> bool:
    """Whether a later revision of the same series has jobs."""
    own = select(series_revision.c.series_instance_uid, series_revision.c.revision).where(
        series_revision.c.id == revision_id
    )
    row = db.execute(own).one()
    later = (
        select(job.c.id)
        .select_from(job.join(series_revision))
        .where(
            series_revision.c.series_instance_uid == row.series_instance_uid,
            series_revision.c.revision > row.revision,
        )
    )
    return db.execute(later.limit(1)).one_or_none() is not None


def _insert_job(
    db: Connection, revision: CompleteRevision, decision: Decision, reason: str | None, at: datetime
) -> int:
    runs = decision.model is not None and reason is None
    inserted = db.execute(
        insert(job).values(
            revision_id=revision.id,
            rule=decision.rule,
            model=decision.model,
            destinations={name: asdict(request) for name, request in decision.requests.items()},
            priority=decision.priority,
            decision={name: [asdict(o) for o in outcomes] for name, outcomes in decision.outcomes.items()},
            state=JobState.QUEUED if runs else JobState.REJECTED,
            reason="" if runs else (reason or decision.reason),
            attempts=0,
            created_at=at,
            ended_at=None if runs else at,
            progress=0.0,
            stage="",
        )
    )
    return new_id(inserted)


def _earlier_jobs(revision: CompleteRevision) -> Any:
    return select(job.c.id).where(
        job.c.revision_id.in_(
            select(series_revision.c.id).where(
                series_revision.c.series_instance_uid == revision.series_instance_uid,
                series_revision.c.revision < revision.revision,
            )
        )
    )


def _supersede_earlier(db: Connection, revision: CompleteRevision, at: datetime) -> None:
    earlier = _earlier_jobs(revision)
    # whoever is writing the results of one of them ends first: what it writes is to be seen below
    db.execute(held_for_change(select(job.c.id).where(job.c.id.in_(earlier)).order_by(job.c.id))).all()
    db.execute(
        update(delivery)
        .where(
            delivery.c.state == DeliveryState.WAITING,
            delivery.c.result_id.in_(select(result.c.id).where(result.c.job_id.in_(earlier))),
        )
        .values(state=DeliveryState.SUPERSEDED, last_reason=f"superseded by revision {revision.revision}")
    )
    db.execute(
        update(job)
        .where(job.c.id.in_(earlier), job.c.state.in_((JobState.QUEUED, JobState.RUNNING, JobState.ENCODED)))
        .values(
            state=JobState.SUPERSEDED,
            reason=f"superseded by revision {revision.revision} of the series",
            ended_at=at,
            lease_until=None,
        )
    )
