"""Turns a complete revision into jobs, which supersede those of earlier revisions of the series."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, insert, or_, select, update

from dicom_node.store.damage import note_damage
from dicom_node.store.deliveries import held_for_change
from dicom_node.store.results import insert_result, new_id, request_of
from dicom_node.store.revisions import (
    CompleteRevision,
    Member,
    Repeated,
    complete_revision,
    members_of,
    repeated_in,
)
from dicom_node.store.schema import (
    cohort,
    cohort_series,
    delivery,
    instance,
    job,
    result,
    revision_instance,
    series_revision,
)
from dicom_node.store.states import DeliveryState, JobState, PullState, RevisionState
from dicom_node.types import Decision

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from dicom_node.store.database import Database
    from dicom_node.types import ResultInstance, ResultRequest


@dataclass(frozen=True, slots=True)
class Order:
    """What a cohort wants of its series: ``model``, or (None) what the rules of the node decide, at this priority.

    ``given_up``: why it wants a series no more, which could not be pulled as a whole; "" if it does.
    """

    cohort: str
    model: str | None
    requests: Mapping[str, ResultRequest]
    priority: int
    given_up: str = ""

    def decision(self) -> Decision | None:
        """The decision that stands in place of the rules; None if they decide."""
        if self.model is None:
            return None
        return Decision(f"cohort {self.cohort}", self.model, self.requests, self.priority)


def order_of(row: Any) -> Order:
    """The order in a row of the cohort."""
    requests = {name: request_of(options) for name, options in row.destinations.items()}
    return Order(row.name, row.model, requests, row.priority)


@dataclass(frozen=True, slots=True)
class EarlierBytes:
    """An earlier revision of the same instances: its content, and the old and new version of each changed instance."""

    content_digest: str
    changed: tuple[tuple[Member, Member], ...]


_is_of_cohort = series_revision.c.series_instance_uid == cohort_series.c.series_instance_uid


class Routing:
    """The part of the ledger for routing: COMPLETE -> ROUTED."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def due_revisions(self) -> tuple[CompleteRevision, ...]:
        """The COMPLETE revisions, oldest first; those whose headers could not be read yet come after the others."""
        with self._database.read() as db:
            rows = db.execute(
                select(series_revision.c.id)
                .where(series_revision.c.state == RevisionState.COMPLETE)
                .order_by(series_revision.c.routing_attempts, series_revision.c.id)
            ).all()
            return tuple(complete_revision(db, row.id) for row in rows)

    def count_attempt(self, revision: CompleteRevision) -> int:
        """Count an attempt to route ``revision`` before it begins; returns its number, from 1."""
        with self._database.write() as db:
            counted = (
                update(series_revision)
                .where(series_revision.c.id == revision.id)
                .values(routing_attempts=series_revision.c.routing_attempts + 1)
                .returning(series_revision.c.routing_attempts)
            )
            return int(db.execute(counted).scalar_one())

    def give_back_attempt(self, revision: CompleteRevision) -> None:
        """The attempt was cut off by the stop of the node and does not count."""
        with self._database.write() as db:
            db.execute(
                update(series_revision)
                .where(series_revision.c.id == revision.id)
                .values(routing_attempts=series_revision.c.routing_attempts - 1)
            )

    def in_other_bytes(self, revision: CompleteRevision) -> Iterator[EarlierBytes]:
        """Earlier revisions of the same instances with different bytes that are still stored, newest first."""
        with self._database.read() as db:
            rows = db.execute(
                select(series_revision.c.id, series_revision.c.content_digest)
                .where(
                    series_revision.c.series_instance_uid == revision.series_instance_uid,
                    series_revision.c.revision < revision.revision,
                    series_revision.c.content_digest.is_not(None),
                    series_revision.c.content_digest != revision.content_digest,
                )
                .order_by(series_revision.c.revision.desc())
            ).all()
            own = members_of(db, revision.id)
        for row in rows:
            with self._database.read() as db:
                earlier = {} if lacks_images(db, row.id) else members_of(db, row.id)
            if earlier.keys() == own.keys():
                pairs = ((earlier[uid], member) for uid, member in own.items())
                changed = tuple(pair for pair in pairs if pair[0].dataset_sha256 != pair[1].dataset_sha256)
                yield EarlierBytes(row.content_digest, changed)

    def repeated(self, revision: CompleteRevision) -> tuple[Repeated, ...]:
        """See :func:`~dicom_node.store.revisions.repeated_in`."""
        with self._database.read() as db:
            return tuple(repeated_in(db, revision.id))

    def has_content(self, revision: CompleteRevision, content_digest: str) -> CompleteRevision:
        """``revision`` with ``content_digest``, because its content is equivalent to that of the earlier revision."""
        return self._known(revision, content_digest=content_digest)

    def has_images(self, revision: CompleteRevision, content_digest: str) -> CompleteRevision:
        """``revision``, which differs from the earlier one with ``content_digest`` in patient and study only."""
        return self._known(revision, same_images_as=content_digest)

    def _known(self, revision: CompleteRevision, **values: str) -> CompleteRevision:
        with self._database.write() as db:
            _change_complete(db, revision, **values)
            return complete_revision(db, revision.id)

    def content_already_routed(self, revision: CompleteRevision) -> bool:
        """Whether the latest content routed was the same, and its images are still stored.

        What was sent to the node is not settled by what was done with it for a cohort.
        """
        unchanged = (
            series_revision.c.series_instance_uid == revision.series_instance_uid,
            series_revision.c.revision >= revision.unchanged_since,
            series_revision.c.revision < revision.revision,
            *((series_revision.c.sent,) if revision.sent else ()),
        )
        with self._database.read() as db:
            routed = db.execute(
                select(job.c.revision_id).select_from(job.join(series_revision)).where(*unchanged).distinct()
            ).scalars()
            return any(not lacks_images(db, revision_id) for revision_id in routed.all())

    def route(
        self,
        revision: CompleteRevision,
        decisions: Sequence[Decision],
        reason: str | None,
        at: datetime,
        notices: Sequence[tuple[ResultInstance, str]] = (),
        *,
        is_fault: bool = False,
    ) -> tuple[int, ...]:
        """COMPLETE -> ROUTED: one job per decision with a model, otherwise one row with the ``reason``.

        The row is REJECTED, or FAILED if the reason is a fault that a person must look at and not the series.

        ``notices`` of a refusal are queued for delivery. The new jobs supersede waiting and running jobs of earlier
        revisions and their undelivered results. Returns the ids of the new jobs, or none if another process routed the
        revision first.
        """
        with self._database.write() as db:
            if not _change_complete(db, revision, state=RevisionState.ROUTED):
                return ()
            _supersede_earlier(db, revision, at)
            made = tuple(insert_job(db, revision, decision, reason, at, is_fault=is_fault) for decision in decisions)
            for notice, spool_name in notices:
                insert_result(db, made[0], notice, spool_name, revision.due_at(at))
            return made

    def order_for(self, revision: CompleteRevision) -> Order | None:
        """The order of the cohort whose pull brought ``revision``; None for a series that was sent to the node.

        One that is sent while it is pulled was sent: its jobs must not wait for, or be superseded by, those of a
        cohort. What arrives after a pull was given up was sent, too.
        """
        sent = series_revision.alias()
        is_sent = (
            select(sent.c.id)
            .where(
                sent.c.series_instance_uid == cohort_series.c.series_instance_uid,
                sent.c.sent,
                sent.c.last_arrival >= cohort_series.c.pull_started_at,
            )
            .exists()
        )
        is_wanted = cohort_series.c.state.in_((PullState.PULLING, PullState.PULLED))
        is_given_up = and_(
            cohort_series.c.state == PullState.FAILED, cohort_series.c.ended_at >= series_revision.c.first_arrival
        )
        query = (
            select(cohort, cohort_series.c.state, cohort_series.c.reason)
            .select_from(cohort_series.join(cohort).join(series_revision, _is_of_cohort))
            .where(
                series_revision.c.id == revision.id, cohort_series.c.pull_started_at <= series_revision.c.first_arrival
            )
            .where(or_(is_wanted, is_given_up), ~is_sent)
            .order_by(cohort_series.c.pull_started_at.desc())
        )
        with self._database.read() as db:
            row = db.execute(query.limit(1)).one_or_none()
        if row is None:
            return None
        return replace(order_of(row), given_up=row.reason if row.state == PullState.FAILED else "")

    def note_damage(self, spool_names: Sequence[str], at: datetime) -> None:
        """The files no longer have the bytes that were received: they may be received again."""
        with self._database.write() as db:
            note_damage(db, spool_names, at)

    def skip(self, revision: CompleteRevision) -> None:
        """COMPLETE -> ROUTED without a job: the same content was already routed."""
        with self._database.write() as db:
            _change_complete(db, revision, state=RevisionState.ROUTED)


def lacks_images(db: Connection, revision_id: int) -> bool:
    """Whether images of the revision were deleted by retention, or changed on the disk."""
    is_gone = or_(instance.c.purged_at.is_not(None), instance.c.damaged_at.is_not(None))
    gone = (
        select(instance.c.id)
        .select_from(revision_instance.join(instance))
        .where(revision_instance.c.revision_id == revision_id, is_gone)
    )
    return db.execute(gone.limit(1)).one_or_none() is not None


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


def _change_complete(db: Connection, revision: CompleteRevision, **values: str) -> bool:
    """Change a revision that is still COMPLETE. False: another process routed it first."""
    is_complete = and_(series_revision.c.id == revision.id, series_revision.c.state == RevisionState.COMPLETE)
    return bool(db.execute(update(series_revision).where(is_complete).values(**values)).rowcount)


def insert_job(
    db: Connection,
    revision: CompleteRevision,
    decision: Decision,
    reason: str | None,
    at: datetime,
    *,
    is_fault: bool = False,
) -> int:
    """Insert the job that ``decision`` makes of ``revision``, or a row with the ``reason``; returns its id."""
    runs = decision.model is not None and reason is None
    otherwise = JobState.FAILED if is_fault else JobState.REJECTED
    inserted = db.execute(
        insert(job).values(
            revision_id=revision.id,
            rule=decision.rule,
            model=decision.model,
            destinations={name: asdict(request) for name, request in decision.requests.items()},
            priority=decision.priority,
            unchecked_hu=decision.unchecked_hu,
            decision={name: [asdict(o) for o in outcomes] for name, outcomes in decision.outcomes.items()},
            state=JobState.QUEUED if runs else otherwise,
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
    # a transaction that is writing results of one of them must end first, so that its results are seen below
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
