"""Pending deliveries and the answers of the destinations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import exists, func, or_, select, update

from dicom_node.store.schema import delivery, job, result, series_revision
from dicom_node.store.states import DeliveryState, JobState, RevisionState
from dicom_node.types import DeliveryOutcome, ResultInstance, ResultKind

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection, Select

    from dicom_node.store.database import Database
    from dicom_node.store.spool import Spool


@dataclass(frozen=True, slots=True)
class DueDelivery:
    """One result that is due at one destination."""

    id: int
    job_id: int
    instance: ResultInstance
    attempts: int
    refusals: int
    first_attempt_at: datetime | None


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
            rows = db.execute(
                select(
                    delivery.c.id,
                    delivery.c.attempts,
                    delivery.c.refusals,
                    delivery.c.first_attempt_at,
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
                    or_(delivery.c.next_attempt_at.is_(None), delivery.c.next_attempt_at <= now),
                    ~_more_is_arriving(),
                )
                .order_by(delivery.c.id)
                .limit(limit)
            ).all()
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
                first_attempt_at=row.first_attempt_at,
            )
            for row in rows
        )

    def starting(self, deliveries: tuple[DueDelivery, ...], now: datetime) -> None:
        """Count the attempts before they are made."""
        with self._database.write() as db:
            for due in deliveries:
                db.execute(
                    update(delivery)
                    .where(delivery.c.id == due.id)
                    .values(attempts=delivery.c.attempts + 1, first_attempt_at=due.first_attempt_at or now)
                )

    def record(
        self, due: DueDelivery, outcome: DeliveryOutcome, next_attempt_at: datetime | None, at: datetime
    ) -> None:
        """Record the answer: delivered, tried again at ``next_attempt_at``, or (None) FAILED."""
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
            db.execute(
                update(delivery)
                .where(delivery.c.id == due.id, delivery.c.state.in_(open_states))
                .values(
                    state=state,
                    next_attempt_at=next_attempt_at,
                    delivered_at=at if outcome.delivered else None,
                    last_status=outcome.status,
                    last_reason=outcome.reason,
                    refusals=delivery.c.refusals + int(refused),
                )
            )
            _settle_job(db, due.job_id, at)


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


def _settle_job(db: Connection, job_id: int, at: datetime) -> None:
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
