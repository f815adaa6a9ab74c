"""The queue of jobs: the ledger is queue and truth.

One conditional ``UPDATE ... WHERE state = ?`` per arrow of the state drawing in ARCHITECTURE.md. ``attempts`` is
counted before the work and serves as fencing token: a worker that lost its lease holds an older number and changes
nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, insert, or_, select, update

from dicom_node.store.arrivals import CompleteRevision, complete_revision
from dicom_node.store.deliveries import held_for_change
from dicom_node.store.schema import delivery, job, result, series_revision
from dicom_node.store.states import DeliveryState, JobState, RevisionState
from dicom_node.types import (
    Decision,
    EarlierResult,
    ResultInstance,
    ResultKind,
    ResultRequest,
    SegmentationForm,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection, CursorResult, Select

    from dicom_node.store.database import Database
    from inference.types import ModelIdentity, RunReport


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job that this worker may run until its lease ends; ``attempt`` is the fencing token."""

    id: int
    attempt: int
    model: str
    rule: str
    requests: Mapping[str, ResultRequest]
    """What each destination gets."""
    revision: CompleteRevision


class Jobs:
    """Routing results in, claimed work out, outcomes back in."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # ---- routing

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
            for instance, spool_name in notices:
                _insert_result(db, made[0], instance, spool_name, at)
            return made

    def skip(self, revision: CompleteRevision) -> None:
        """COMPLETE -> ROUTED without a job: the same content was routed before."""
        with self._database.write() as db:
            db.execute(
                update(series_revision).where(series_revision.c.id == revision.id).values(state=RevisionState.ROUTED)
            )

    # ---- work

    def claim(self, worker: str, now: datetime, lease_until: datetime) -> ClaimedJob | None:
        """QUEUED -> RUNNING for the most urgent job that may start; the attempt is counted before it starts."""
        with self._database.write() as db:
            row = db.execute(
                select(job)
                .where(job.c.state == JobState.QUEUED, or_(job.c.not_before.is_(None), job.c.not_before <= now))
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
                    claimed_by=worker,
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
            requests={name: _request_of(options) for name, options in row.destinations.items()},
            revision=revision,
        )

    def earlier_results(
        self, revision: CompleteRevision, model: str | None
    ) -> Mapping[str | None, tuple[EarlierResult, ...]]:
        """What each destination holds that the results of ``model`` on ``revision`` replace (None: of every model).

        A destination holds what it took, of each family of kinds the newest; the key None has the results of jobs
        without any destination. Notices of the revision itself are among them: a job that is tried again may succeed.
        """
        with self._database.read() as db:
            rows = db.execute(_earlier_results(revision, model)).all()
        # a notice of two attempts that ended alike is one instance
        newest: dict[tuple[str | None, ResultKind, str | None], tuple[int, dict[EarlierResult, None]]] = {}
        for row in rows:
            key = (row.destination, ResultKind(row.kind).family, row.model if model is None else None)
            job_id, found = newest.get(key, (row.job_id, {}))
            if job_id != row.job_id:
                found = {}
            each = EarlierResult(
                kind=ResultKind(row.kind),
                sop_class_uid=row.sop_class_uid,
                sop_instance_uid=row.sop_instance_uid,
                series_instance_uid=row.series_instance_uid,
                study_instance_uid=row.study_instance_uid,
                revision=row.revision,
            )
            newest[key] = (row.job_id, found | {each: None})
        held: dict[str | None, tuple[EarlierResult, ...]] = {}
        for (destination, _, _), (_, found) in newest.items():
            held[destination] = (*held.get(destination, ()), *found)
        return held

    def renew_lease(self, claimed: ClaimedJob, lease_until: datetime, progress: float, stage: str) -> bool:
        """Still at it. False: the lease was lost (superseded, cancelled or given away): stop."""
        return self._change(claimed, lease_until=lease_until, progress=progress, stage=stage)

    def encoded(
        self,
        claimed: ClaimedJob,
        results: Sequence[tuple[ResultInstance, str]],
        identity: ModelIdentity,
        run: RunReport | None,
        stage_seconds: Mapping[str, float],
        at: datetime,
    ) -> bool:
        """RUNNING -> ENCODED with its results (instance, spool name) and a delivery to each of their destinations.

        ``run`` says what ran, where that is known; ``stage_seconds`` are the wall seconds of the node's own stages.

        False: the lease was lost; nothing was written and the results must be thrown away.
        """
        with self._database.write() as db:
            is_owed = any(instance.destinations for instance, _ in results)
            state = JobState.ENCODED if is_owed else JobState.DELIVERED
            changed = db.execute(
                update(job)
                .where(_held(claimed))
                .values(
                    state=state,
                    progress=1.0,
                    stage="",
                    lease_until=None,
                    ended_at=at if state is JobState.DELIVERED else None,
                    reason=_reason(claimed, is_owed=is_owed),
                    stage_seconds=dict(stage_seconds),
                    model_identity=asdict(identity),
                    run_report=_run_json(run),
                )
            ).rowcount
            if not changed:
                return False
            for instance, spool_name in results:
                _insert_result(db, claimed.id, instance, spool_name, at)
            return True

    def rejected(
        self, claimed: ClaimedJob, reason: str, at: datetime, notices: Sequence[tuple[ResultInstance, str]] = ()
    ) -> bool:
        """RUNNING -> REJECTED: not a series for this model. ``notices`` that say so wait for delivery from now on."""
        return self._ended(claimed, JobState.REJECTED, reason, at, notices)

    def failed(
        self, claimed: ClaimedJob, reason: str, at: datetime, notices: Sequence[tuple[ResultInstance, str]] = ()
    ) -> bool:
        """RUNNING -> FAILED: a person must look. ``notices`` that say so wait for delivery from now on."""
        return self._ended(claimed, JobState.FAILED, reason, at, notices)

    def put_back(self, claimed: ClaimedJob, reason: str, not_before: datetime) -> bool:
        """RUNNING -> QUEUED: another attempt later."""
        return self._change(claimed, state=JobState.QUEUED, reason=reason, not_before=not_before, lease_until=None)

    def give_back(self, claimed: ClaimedJob, reason: str) -> bool:
        """RUNNING -> QUEUED by a worker that is stopped: the attempt is not counted. Its holder writes no more."""
        return self._change(
            claimed,
            state=JobState.QUEUED,
            reason=reason,
            attempts=claimed.attempt - 1,
            not_before=None,
            lease_until=None,
        )

    def recover_stalled(self, now: datetime, attempts_limit: int, claimed_by: str | None = None) -> tuple[int, int]:
        """RUNNING without a live worker -> QUEUED, or FAILED when its attempts are used up.

        Stalled is a job whose lease has ended, or any job of ``claimed_by`` (at the start of that very worker).
        Returns (requeued, failed).
        """
        stalled = and_(
            job.c.state == JobState.RUNNING,
            or_(job.c.lease_until < now, job.c.claimed_by == claimed_by) if claimed_by else job.c.lease_until < now,
        )
        with self._database.write() as db:
            failed = db.execute(
                update(job)
                .where(stalled, job.c.attempts >= attempts_limit)
                .values(
                    state=JobState.FAILED,
                    ended_at=now,
                    lease_until=None,
                    reason=f"the worker was lost {attempts_limit} times while it ran this job",
                )
            ).rowcount
            requeued = db.execute(
                update(job)
                .where(stalled)
                .values(state=JobState.QUEUED, lease_until=None, reason="the worker was lost; queued again")
            ).rowcount
            return requeued, failed

    def retry(self, job_id: int, now: datetime) -> str | None:
        """A person wants it again. Returns what happens now in words, or None when the job's state allows nothing.

        Nor is anything tried again once a newer revision of the series was routed: the old result would come last.
        """
        with self._database.write() as db:
            row = db.execute(held_for_change(select(job).where(job.c.id == job_id))).one_or_none()
            if row is None or _has_successor(db, row.revision_id):
                return None
            waiting = db.execute(
                update(delivery)
                .where(
                    delivery.c.state.in_((DeliveryState.FAILED, DeliveryState.WAITING)),
                    delivery.c.result_id.in_(_results_of(job_id, are_notices=False)),
                )
                .values(state=DeliveryState.WAITING, next_attempt_at=now, attempts=0, refusals=0, first_attempt_at=None)
            ).rowcount
            if waiting:
                db.execute(
                    update(job).where(job.c.id == job_id).values(state=JobState.ENCODED, reason="", ended_at=None)
                )
                return f"{waiting} deliveries are tried again now"
            if row.model is None and row.state == JobState.REJECTED:
                _withdraw_notices(db, job_id)
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
                return "the series goes through the rules again"
            if row.state in (JobState.FAILED, JobState.REJECTED):
                _withdraw_notices(db, job_id)
                db.execute(
                    update(job)
                    .where(job.c.id == job_id)
                    .values(state=JobState.QUEUED, attempts=0, not_before=None, ended_at=None, reason="on request")
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
                _insert_result(db, claimed.id, instance, spool_name, at)
            return True

    def _change(self, claimed: ClaimedJob, **values: Any) -> bool:
        with self._database.write() as db:
            return bool(db.execute(update(job).where(_held(claimed)).values(**values)).rowcount)


def _held(claimed: ClaimedJob) -> Any:
    return and_(job.c.id == claimed.id, job.c.state == JobState.RUNNING, job.c.attempts == claimed.attempt)


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
    return _new_id(inserted)


def _insert_result(db: Connection, job_id: int, instance: ResultInstance, spool_name: str, at: datetime) -> None:
    inserted = db.execute(
        insert(result).values(
            job_id=job_id,
            kind=instance.kind,
            sop_class_uid=instance.sop_class_uid,
            sop_instance_uid=instance.sop_instance_uid,
            series_instance_uid=instance.series_instance_uid,
            transfer_syntax_uid=instance.transfer_syntax_uid,
            spool_name=spool_name,
            sha256=instance.sha256,
            size_bytes=instance.size_bytes,
        )
    )
    result_id = _new_id(inserted)
    for destination in instance.destinations:
        db.execute(
            insert(delivery).values(
                result_id=result_id,
                destination=destination,
                state=DeliveryState.WAITING,
                attempts=0,
                refusals=0,
                next_attempt_at=at,
                last_reason="",
            )
        )


def _request_of(options: Mapping[str, Any]) -> ResultRequest:
    """What was asked for when the series was routed, as JSON; a version that knew fewer options left the others out."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    if "segmentation" in values:
        values["segmentation"] = SegmentationForm(values["segmentation"])
    return ResultRequest(**values)


def _run_json(run: RunReport | None) -> dict[str, Any] | None:
    if run is None:
        return None
    return {
        "backend": run.backend,
        "device": run.device,
        "precision": run.precision,
        "notes": [asdict(note) for note in run.notes],
        "stage_seconds": dict(run.stage_seconds),
    }


def _reason(claimed: ClaimedJob, *, is_owed: bool) -> str:
    if is_owed:
        return ""
    return "no destination asked for what was found" if claimed.requests else "the rule names no destination"


def _results_of(job_id: int, *, are_notices: bool) -> Select[tuple[int]]:
    is_notice = result.c.kind == ResultKind.NOTICE
    return select(result.c.id).where(result.c.job_id == job_id, is_notice if are_notices else ~is_notice)


def _withdraw_notices(db: Connection, job_id: int) -> None:
    """What said that the job came to nothing is not sent any more."""
    db.execute(
        update(delivery)
        .where(
            delivery.c.state == DeliveryState.WAITING,
            delivery.c.result_id.in_(_results_of(job_id, are_notices=True)),
        )
        .values(state=DeliveryState.SUPERSEDED, last_reason="the job was queued again")
    )


def _new_id(inserted: CursorResult[Any]) -> int:
    key = inserted.inserted_primary_key
    assert key is not None
    return int(key[0])


def _earlier_jobs(revision: CompleteRevision) -> Any:
    return select(job.c.id).where(
        job.c.revision_id.in_(
            select(series_revision.c.id).where(
                series_revision.c.series_instance_uid == revision.series_instance_uid,
                series_revision.c.revision < revision.revision,
            )
        )
    )


def _has_successor(db: Connection, revision_id: int) -> bool:
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


def _earlier_results(revision: CompleteRevision, model: str | None) -> Select[Any]:
    """Results of earlier revisions that were delivered, or that nobody was to have, in the order of their jobs.

    A revision with the content of an earlier one repeats that one's results, which are not replaced by themselves.
    """
    found = (
        select(
            result.c.job_id,
            result.c.kind,
            result.c.sop_class_uid,
            result.c.sop_instance_uid,
            result.c.series_instance_uid,
            series_revision.c.study_instance_uid,
            series_revision.c.revision,
            job.c.model,
            delivery.c.destination,
        )
        .select_from(result.join(job).join(series_revision).outerjoin(delivery))
        .where(
            series_revision.c.series_instance_uid == revision.series_instance_uid,
            or_(
                series_revision.c.revision < revision.first_revision_with_content,
                result.c.kind == ResultKind.NOTICE,
            ),
            or_(delivery.c.id.is_(None), delivery.c.state == DeliveryState.DELIVERED),
        )
        .order_by(result.c.job_id, result.c.id)
    )
    # a refusal by rule has no model, and is what every model's results replace
    return found if model is None else found.where(or_(job.c.model == model, job.c.model.is_(None)))
