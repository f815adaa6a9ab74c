"""Pending deliveries and the answers of the destinations.

A delivery is claimed like a job, so that two processes never send it at the same time: by the name of the process and
the number of the attempt, which is counted before it is made. A process whose claim was given to another can no longer
record an answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, exists, func, or_, select, update

from dicom_node.store.clock import LONGEST_WAIT
from dicom_node.store.schema import delivery, job, result, series_revision
from dicom_node.store.states import DeliveryState, JobState, RevisionState
from dicom_node.store.workers import dead_and_living
from dicom_node.types import DeliveryOutcome, ResultInstance, ResultKind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Connection, Select

    from dicom_node.store.database import Database
    from dicom_node.store.spool import Spool
    from dicom_node.store.workers import WorkerName


@dataclass(frozen=True, slots=True)
class DueDelivery:
    """One result that is due at one destination; ``attempts`` includes the one that ``claimed_by`` is making."""

    id: int
    job_id: int
    instance: ResultInstance
    attempts: int
    refusals: int
    first_attempt_s: float | None
    """The elapsed time (:mod:`dicom_node.store.elapsed`) at the first attempt."""
    claimed_by: str | None = None


class Deliveries:
    """The part of the ledger for deliveries."""

    def __init__(self, database: Database, spool: Spool) -> None:
        self._database = database
        self._spool = spool

    def due(self, destination: str, now: datetime, limit: int) -> tuple[DueDelivery, ...]:
        """What ``destination`` should be offered now, oldest first.

        Results of a series of which more is arriving wait: they may be superseded before anybody has read them.
        """
        with self._database.read() as db:
            return self._found(db, _due(destination, now).limit(limit))

    def claim(
        self,
        destination: str,
        worker: WorkerName,
        now: datetime,
        lease_until: datetime,
        limit: int,
        elapsed_s: float,
    ) -> tuple[DueDelivery, ...]:
        """Claim what is due at ``destination``, and count the attempts before they are made.

        ``elapsed_s`` is the elapsed time, which is noted with a first attempt.
        """
        if not self.due(destination, now, 1):  # most calls: without the write lock, which arriving instances need
            return ()
        with self._database.write() as db:
            due = _due(destination, now).limit(limit).with_for_update(of=delivery, skip_locked=True)
            found = self._found(db, due)
            db.execute(
                update(delivery)
                .where(delivery.c.id.in_([each.id for each in found]))
                .values(
                    attempts=delivery.c.attempts + 1,
                    claimed_by=str(worker),
                    lease_until=lease_until,
                    first_attempt_at=func.coalesce(delivery.c.first_attempt_at, now),
                    first_attempt_s=func.coalesce(delivery.c.first_attempt_s, elapsed_s),
                )
            )
        return tuple(
            replace(
                each,
                attempts=each.attempts + 1,
                claimed_by=str(worker),
                first_attempt_s=elapsed_s if each.first_attempt_s is None else each.first_attempt_s,
            )
            for each in found
        )

    def renew_lease(self, claimed: Sequence[DueDelivery], lease_until: datetime) -> bool:
        """Extend the lease of those that are not answered yet. False: there are none."""
        with self._database.write() as db:
            renewed = update(delivery).where(_of_claim(claimed)).values(lease_until=lease_until)
            return bool(db.execute(renewed).rowcount)

    def holds(self, claimed: DueDelivery) -> bool:
        """Whether it is still to be made, of the same file, by the process that claimed it."""
        mine = and_(_held(claimed), delivery.c.state == DeliveryState.WAITING)
        with self._database.read() as db:
            return db.execute(select(delivery.c.id).where(mine)).one_or_none() is not None

    def is_lost(self, claimed: DueDelivery) -> bool:
        """Whether another process may have claimed it meanwhile, because the lease had expired."""
        with self._database.read() as db:
            return db.execute(select(delivery.c.id).where(_held(claimed))).one_or_none() is None

    def has_no_file(self, due: DueDelivery) -> bool:
        """Whether the file of a result is gone, and not only away for a moment with its disk."""
        return self._spool.lacks(due.instance.path)

    def give_back(self, claimed: Sequence[DueDelivery]) -> None:
        """Let those that are not answered yet be sent again at once, by any process."""
        with self._database.write() as db:
            db.execute(update(delivery).where(_of_claim(claimed)).values(claimed_by=None, lease_until=None))

    def recover_stalled(self, worker: WorkerName, now: datetime) -> int:
        """Let those be sent again whose lease has expired or whose claimant ``worker`` can tell is dead; how many."""
        waiting = and_(delivery.c.state == DeliveryState.WAITING, delivery.c.claimed_by.is_not(None))
        claimants = select(delivery.c.claimed_by).where(waiting).distinct()
        with self._database.read() as db:  # most calls: there are none
            if not db.execute(claimants.limit(1)).all():
                return 0
        with self._database.write() as db:
            dead, _ = dead_and_living(db.execute(claimants).scalars(), worker)
            is_over = or_(delivery.c.lease_until < now, delivery.c.lease_until > now + LONGEST_WAIT)
            stalled = or_(is_over, delivery.c.claimed_by.in_(dead))
            freed = update(delivery).where(waiting, stalled).values(claimed_by=None, lease_until=None)
            return int(db.execute(freed).rowcount)

    def record(
        self, due: DueDelivery, outcome: DeliveryOutcome, next_attempt_at: datetime | None, at: datetime
    ) -> bool:
        """Record the answer: delivered, tried again at ``next_attempt_at``, or (None) FAILED.

        False: nothing was written, because the claim was given to another process or the result superseded. A claim
        that was only freed, as when the clock was set forward or this machine slept, is still that of this answer.
        """
        state = DeliveryState.WAITING if next_attempt_at is not None else DeliveryState.FAILED
        open_states = {DeliveryState.WAITING}
        if outcome.delivered:
            state = DeliveryState.DELIVERED
            # a newer revision may have replaced it during the transfer; the destination has it anyway
            open_states.add(DeliveryState.SUPERSEDED)
        refused = not outcome.delivered and not outcome.retry
        with self._database.write() as db:
            # if two destinations answer at once, the later transaction sees the other's answer
            db.execute(held_for_change(select(job.c.id).where(job.c.id == due.job_id))).all()
            recorded = db.execute(
                update(delivery)
                .where(_is_latest(due), delivery.c.state.in_(open_states))
                .values(
                    state=state,
                    claimed_by=None,
                    lease_until=None,
                    next_attempt_at=next_attempt_at,
                    delivered_at=at if outcome.delivered else None,
                    last_status=outcome.status,
                    last_reason=outcome.reason,
                    refusals=delivery.c.refusals + int(refused),
                )
            ).rowcount
            settle_job(db, due.job_id, at)
            return bool(recorded)

    def _found(self, db: Connection, due: Select[Any]) -> tuple[DueDelivery, ...]:
        return tuple(
            DueDelivery(
                id=row.id,
                job_id=row.job_id,
                instance=ResultInstance(
                    kind=ResultKind(row.kind),
                    sop_class_uid=row.sop_class_uid,
                    sop_instance_uid=row.sop_instance_uid,
                    series_instance_uid=row.series_instance_uid,
                    transfer_syntax_uid=row.transfer_syntax_uid,
                    path=self._spool.path(row.spool_name),
                    sha256=row.sha256,
                    size_bytes=row.size_bytes,
                ),
                attempts=row.attempts,
                refusals=row.refusals,
                first_attempt_s=row.first_attempt_s,
            )
            for row in db.execute(due)
        )


def _due(destination: str, now: datetime) -> Select[Any]:
    return (
        select(
            delivery.c.id,
            delivery.c.attempts,
            delivery.c.refusals,
            delivery.c.first_attempt_s,
            result.c.job_id,
            result.c.kind,
            result.c.sop_class_uid,
            result.c.sop_instance_uid,
            result.c.series_instance_uid,
            result.c.transfer_syntax_uid,
            result.c.spool_name,
            result.c.sha256,
            result.c.size_bytes,
        )
        .select_from(delivery.join(result).join(job).join(series_revision))
        .where(
            delivery.c.state == DeliveryState.WAITING,
            delivery.c.destination == destination,
            delivery.c.claimed_by.is_(None),
            or_(
                delivery.c.next_attempt_at.is_(None),
                delivery.c.next_attempt_at <= now,
                delivery.c.next_attempt_at > now + LONGEST_WAIT,
            ),
            ~_more_is_arriving(),
        )
        .order_by(delivery.c.id)
    )


def _held(due: DueDelivery) -> Any:
    """Whether the row is still at the attempt that ``due`` is, made by the same process."""
    claimant = delivery.c.claimed_by.is_not_distinct_from(due.claimed_by)
    return and_(delivery.c.id == due.id, delivery.c.attempts == due.attempts, claimant)


def _is_latest(due: DueDelivery) -> Any:
    """Whether no other attempt was begun since ``due``, whose claim may have been freed, and the result is the same.

    A result that was made again waits with as many attempts; what was answered to the bytes before says nothing of it.
    """
    own = or_(delivery.c.claimed_by.is_(None), delivery.c.claimed_by == due.claimed_by)
    same_bytes = exists().where(result.c.id == delivery.c.result_id, result.c.sha256 == due.instance.sha256)
    return and_(delivery.c.id == due.id, delivery.c.attempts == due.attempts, own, same_bytes)


def _of_claim(claimed: Sequence[DueDelivery]) -> Any:
    """Those of ``claimed``, which one process claimed together, that it still has."""
    return and_(delivery.c.id.in_([each.id for each in claimed]), delivery.c.claimed_by == claimed[0].claimed_by)


def _more_is_arriving() -> Any:
    """Whether the series of a delivery has a revision that is not routed yet."""
    newer = series_revision.alias()
    return exists().where(
        newer.c.series_instance_uid == series_revision.c.series_instance_uid,
        newer.c.revision > series_revision.c.revision,
        newer.c.state != RevisionState.ROUTED,
    )


def held_for_change(jobs: Select[Any]) -> Select[Any]:
    """``jobs`` with their rows locked until this transaction ends.

    SQLite has one writer at a time and needs no lock. A transaction that changes jobs and deliveries locks the jobs
    first, so that two of them can't deadlock.
    """
    return jobs.with_for_update(of=job, key_share=True)


def delivery_count(number: int) -> str:
    """``number`` deliveries, in words."""
    return "1 delivery" if number == 1 else f"{number} deliveries"


def settle_job(db: Connection, job_id: int, at: datetime) -> None:
    """ENCODED -> DELIVERED or FAILED. Notices of earlier attempts do not count."""
    counts = {
        row.state: row.n
        for row in db.execute(
            select(delivery.c.state, func.count().label("n"))
            .select_from(delivery.join(result))
            .where(result.c.job_id == job_id, result.c.kind != ResultKind.NOTICE)
            .group_by(delivery.c.state)
        )
    }
    if counts.get(DeliveryState.WAITING):
        return
    failed = counts.get(DeliveryState.FAILED, 0)
    state = JobState.FAILED if failed else JobState.DELIVERED
    reason = f"gave up on {delivery_count(failed)}; see the deliveries of this job" if failed else ""
    db.execute(
        update(job)
        .where(job.c.id == job_id, job.c.state == JobState.ENCODED)
        .values(state=state, reason=reason, ended_at=at)
    )
