"""The queue of jobs, kept in the ledger.

Each transition of the state diagram in ARCHITECTURE.md is one conditional ``UPDATE ... WHERE state = ?``. ``attempts``
is incremented before the work and serves as a fencing token: a worker that lost its lease has an older number and can't
change anything.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, case, or_, select, update

from dicom_node.store.clock import LONGEST_WAIT
from dicom_node.store.damage import note_damage, trust_again
from dicom_node.store.deliveries import delivery_count, held_for_change, settle_job
from dicom_node.store.results import insert_result, request_of, results_of, withdraw_notices
from dicom_node.store.revisions import CompleteRevision, complete_revision
from dicom_node.store.routing import has_successor, lacks_images
from dicom_node.store.schema import delivery, job, result, series_revision
from dicom_node.store.states import DeliveryState, JobState, RevisionState
from dicom_node.store.workers import dead_and_living

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Select

    from dicom_node.store.database import Database
    from dicom_node.store.workers import WorkerName
    from dicom_node.types import ResultInstance, ResultRequest
    from inference.types import ModelIdentity, RunReport


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job that this worker may run until its lease ends; ``attempt`` is the fencing token."""

    id: int
    attempt: int
    model: str
    rule: str
    requests: Mapping[str, ResultRequest]
    """The results that each destination gets."""
    revision: CompleteRevision
    unchecked_hu: bool = False
    not_counted: int = 0
    """How many of the attempts were cut off by what is no fault of the job."""

    @property
    def counted(self) -> int:
        """The number of this attempt among those that count towards the limit."""
        return self.attempt - self.not_counted


class Jobs:
    """The part of the ledger for workers: claim jobs, record outcomes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, worker: WorkerName, now: datetime, lease_until: datetime) -> ClaimedJob | None:
        """QUEUED -> RUNNING for the most urgent job that may start; counts the attempt before it starts."""
        with self._database.write() as db:
            row = db.execute(
                select(job)
                .where(job.c.state == JobState.QUEUED, _may_start(now))
                .order_by(job.c.priority.desc(), job.c.id)
                .limit(1)
                .with_for_update(skip_locked=True)
            ).one_or_none()
            if row is None:
                return None
            attempt = row.attempts + 1
            db.execute(
                update(job)
                .where(job.c.id == row.id)
                .values(
                    state=JobState.RUNNING,
                    attempts=attempt,
                    claimed_by=str(worker),
                    lease_until=lease_until,
                    started_at=now,
                    reason="",
                    progress=0.0,
                    stage="",
                )
            )
            revision = complete_revision(db, row.revision_id)
        return ClaimedJob(
            id=row.id,
            attempt=attempt,
            model=row.model,
            rule=row.rule,
            requests={name: request_of(options) for name, options in row.destinations.items()},
            revision=revision,
            unchecked_hu=row.unchecked_hu,
            not_counted=row.not_counted,
        )

    def renew_lease(self, claimed: ClaimedJob, lease_until: datetime, progress: float, stage: str) -> bool:
        """Extend the lease. False: the job was lost (superseded, cancelled or given to another worker); stop."""
        return self._change(claimed, lease_until=lease_until, progress=progress, stage=stage)

    def encoded(
        self,
        claimed: ClaimedJob,
        results: Sequence[tuple[ResultInstance, str]],
        identity: ModelIdentity,
        run: RunReport | None,
        stage_seconds: Mapping[str, float],
        at: datetime,
        names_by_label: Mapping[int, str] | None = None,
        image_notes: Sequence[str] = (),
        check_files: Callable[[], None] = lambda: None,
    ) -> bool:
        """RUNNING -> ENCODED with its results (instance, spool name) and a delivery to each of their destinations.

        RUNNING -> KEPT if none of them has a destination.

        ``run`` describes the run, if known; ``stage_seconds`` are the wall seconds of the node's own stages.
        ``check_files`` raises if one of them is gone; it is called while no sweep can remove one (see
        :meth:`~dicom_node.store.arrivals.Arrivals.nothing_recorded`).
        ``names_by_label`` are those of the label map, with which another job can take it over; ``image_notes`` those of
        the reconstruction.

        False: the lease was lost; nothing was written, and the caller must discard the results.
        """
        with self._database.write() as db:
            is_owed = any(instance.destinations for instance, _ in results)
            state = JobState.ENCODED if is_owed else JobState.KEPT
            changed = db.execute(
                update(job)
                .where(_held(claimed))
                .values(
                    state=state,
                    progress=1.0,
                    stage="",
                    lease_until=None,
                    ended_at=None if is_owed else at,
                    reason=_reason(claimed, is_owed=is_owed),
                    stage_seconds=dict(stage_seconds),
                    model_identity=asdict(identity),
                    run_report=None if run is None else run.to_json(),
                    names_by_label=None if names_by_label is None else dict(names_by_label),
                    image_notes=list(image_notes),
                )
            ).rowcount
            if not changed:
                return False
            check_files()
            for instance, spool_name in results:
                insert_result(db, claimed.id, instance, spool_name, claimed.revision.due_at(at))
            settle_job(db, claimed.id, at)  # results that were made again may all have been delivered before
            return True

    def encode_again(self, job_id: int, attempts_limit: int, at: datetime) -> bool:
        """ENCODED -> QUEUED: a stored result is not what was written, or gone, so all are made again from the images.

        Those that were delivered stay delivered. False: the job has no attempts left, or its images are gone.
        """
        with self._database.write() as db:
            row = db.execute(held_for_change(select(job).where(job.c.id == job_id))).one()
            has_attempts = row.attempts - row.not_counted < attempts_limit
            if row.state in (JobState.QUEUED, JobState.RUNNING):  # because of another of its results
                return True
            if row.state != JobState.ENCODED or not has_attempts or lacks_images(db, row.revision_id):
                return False
            reason = "a stored result changed on the disk or is gone; the results are made again"
            own = results_of(job_id, are_notices=False)
            db.execute(
                update(delivery)
                .where(delivery.c.state == DeliveryState.WAITING, delivery.c.result_id.in_(own))
                .values(state=DeliveryState.SUPERSEDED, last_reason=reason)
            )
            db.execute(update(result).where(result.c.id.in_(own)).values(purged_at=at))
            again = {"state": JobState.QUEUED, "requeued_at": at, "reason": reason, "not_before": None}
            db.execute(update(job).where(job.c.id == job_id).values(**again))
            return True

    def note_damage(self, spool_names: Sequence[str], at: datetime) -> None:
        """The files no longer have the bytes that were received: they may be received again."""
        with self._database.write() as db:
            note_damage(db, spool_names, at)

    def rejected(
        self, claimed: ClaimedJob, reason: str, at: datetime, notices: Sequence[tuple[ResultInstance, str]] = ()
    ) -> bool:
        """RUNNING -> REJECTED: not a series for this model. Queues ``notices`` for delivery."""
        return self._ended(claimed, JobState.REJECTED, reason, at, notices)

    def failed(
        self, claimed: ClaimedJob, reason: str, at: datetime, notices: Sequence[tuple[ResultInstance, str]] = ()
    ) -> bool:
        """RUNNING -> FAILED: a person must look. Queues ``notices`` for delivery."""
        return self._ended(claimed, JobState.FAILED, reason, at, notices)

    def put_back(self, claimed: ClaimedJob, reason: str, not_before: datetime, *, counts: bool = True) -> bool:
        """RUNNING -> QUEUED: another attempt later. ``counts``: whether this one counts towards the limit."""
        return self._change(
            claimed,
            state=JobState.QUEUED,
            reason=reason,
            not_before=not_before,
            lease_until=None,
            not_counted=claimed.not_counted + int(not counts),
        )

    def give_back(self, claimed: ClaimedJob, reason: str) -> bool:
        """RUNNING -> QUEUED by a worker that is stopping; the attempt does not count. The worker writes no more."""
        return self._change(
            claimed,
            state=JobState.QUEUED,
            reason=reason,
            attempts=claimed.attempt - 1,
            not_before=None,
            lease_until=None,
        )

    def recover_stalled(self, worker: WorkerName, now: datetime, attempts_limit: int) -> tuple[int, int]:
        """RUNNING without a live worker -> QUEUED, or FAILED if it has no attempts left.

        A job is stalled when its lease has expired, or as soon as the caller, ``worker``, can tell that the process
        that claimed it is dead. If that process is known to live, it was held up, which says nothing of the job: the
        attempt does not count. Returns (requeued, failed).
        """
        with self._database.write() as db:
            claimants = select(job.c.claimed_by).where(job.c.state == JobState.RUNNING).distinct()
            dead, living = dead_and_living(db.execute(claimants).scalars(), worker)
            stalled = and_(job.c.state == JobState.RUNNING, or_(_lease_is_over(now), job.c.claimed_by.in_(dead)))
            requeued = {"state": JobState.QUEUED, "lease_until": None}
            spared = db.execute(
                update(job)
                .where(stalled, job.c.claimed_by.in_(living))
                .values(
                    **requeued,
                    not_counted=job.c.not_counted + 1,
                    reason="the worker did not renew its lease; the job is queued again",
                )
            ).rowcount
            failed = db.execute(
                update(job)
                .where(stalled, job.c.attempts - job.c.not_counted >= attempts_limit)
                .values(
                    state=JobState.FAILED,
                    ended_at=now,
                    lease_until=None,
                    reason=f"the worker was lost {attempts_limit} times while running this job",
                )
            ).rowcount
            lost = db.execute(
                update(job).where(stalled).values(**requeued, reason="the worker was lost; the job is queued again")
            ).rowcount
            return spared + lost, failed

    def retry(self, job_id: int, now: datetime) -> str | None:
        """Retry a job at a person's request. Returns what happens now, in words; None if there is nothing to retry.

        Nothing is retried once a newer revision of the series was routed, because the old result would arrive last, or
        once the images were deleted, or while the job runs: it may be making results again that were damaged. Damaged
        images are read again, since somebody may have put them back. A delivery that is being sent keeps its number of
        attempts, by which the answer is known.
        """
        with self._database.write() as db:
            row = db.execute(held_for_change(select(job).where(job.c.id == job_id))).one_or_none()
            if row is None or has_successor(db, row.revision_id):
                return None
            trust_again(db, row.revision_id)
            if lacks_images(db, row.revision_id) or row.state in (JobState.QUEUED, JobState.RUNNING):
                return None
            own = results_of(job_id, are_notices=False)
            given_up = and_(delivery.c.state == DeliveryState.FAILED, delivery.c.result_id.in_(_without_files(own)))
            db.execute(update(delivery).where(given_up).values(state=DeliveryState.SUPERSEDED))
            waiting = db.execute(
                update(delivery)
                .where(
                    delivery.c.state.in_((DeliveryState.FAILED, DeliveryState.WAITING)),
                    delivery.c.result_id.in_(own),
                )
                .values(
                    state=DeliveryState.WAITING,
                    next_attempt_at=now,
                    attempts=case((delivery.c.claimed_by.is_(None), 0), else_=delivery.c.attempts),
                    refusals=0,
                    first_attempt_at=None,
                    first_attempt_s=None,
                )
            ).rowcount
            if waiting:
                # results that are damaged are made again, which needs attempts
                again = {"state": JobState.ENCODED, "reason": "", "ended_at": None, "not_counted": job.c.attempts}
                db.execute(update(job).where(job.c.id == job_id).values(**again))
                return f"retrying {delivery_count(waiting)} now"
            if row.model is None and row.state in (JobState.FAILED, JobState.REJECTED):
                withdraw_notices(db, job_id)
                db.execute(
                    update(series_revision)
                    .where(series_revision.c.id == row.revision_id)
                    .values(state=RevisionState.COMPLETE)
                )
                db.execute(
                    update(job)
                    .where(job.c.id == job_id)
                    .values(state=JobState.SUPERSEDED, reason="routed again on request", ended_at=now)
                )
                return "the series is routed again"
            if row.state in (JobState.FAILED, JobState.REJECTED):
                withdraw_notices(db, job_id)
                db.execute(
                    update(job)
                    .where(job.c.id == job_id)
                    .values(
                        state=JobState.QUEUED,
                        attempts=0,
                        not_counted=0,
                        not_before=None,
                        requeued_at=now,
                        ended_at=None,
                        reason="retried on request",
                    )
                )
                return "the job is queued again"
            return None

    def _ended(
        self,
        claimed: ClaimedJob,
        state: JobState,
        reason: str,
        at: datetime,
        notices: Sequence[tuple[ResultInstance, str]],
    ) -> bool:
        values = {"state": state, "reason": reason, "ended_at": at, "lease_until": None}
        with self._database.write() as db:
            if not db.execute(update(job).where(_held(claimed)).values(**values)).rowcount:
                return False
            for instance, spool_name in notices:
                insert_result(db, claimed.id, instance, spool_name, claimed.revision.due_at(at))
            return True

    def _change(self, claimed: ClaimedJob, **values: Any) -> bool:
        with self._database.write() as db:
            return bool(db.execute(update(job).where(_held(claimed)).values(**values)).rowcount)


def _without_files(results: Select[tuple[int]]) -> Select[tuple[int]]:
    """Those of ``results`` that are to be made again."""
    return results.where(result.c.purged_at.is_not(None))


def _may_start(now: datetime) -> Any:
    return or_(job.c.not_before.is_(None), job.c.not_before <= now, job.c.not_before > now + LONGEST_WAIT)


def _lease_is_over(now: datetime) -> Any:
    return or_(job.c.lease_until < now, job.c.lease_until > now + LONGEST_WAIT)


def _held(claimed: ClaimedJob) -> Any:
    return and_(job.c.id == claimed.id, job.c.state == JobState.RUNNING, job.c.attempts == claimed.attempt)


def _reason(claimed: ClaimedJob, *, is_owed: bool) -> str:
    if is_owed:
        return ""
    return "no destination requested these results" if claimed.requests else "the rule names no destination"
