"""Read-only views of the ledger: counts, lists of jobs, and one job in detail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import func, select

from dicom_node.store.schema import association, delivery, instance, job, result, series_revision
from dicom_node.store.states import DeliveryState, JobState, RevisionState
from dicom_node.store.views import Counts, DeliveryView, JobRow, JobView, OpenSeries, ResultView, RevisionView
from dicom_node.types import ConditionOutcome, ResultKind, notes_on_missing_images
from inference.types import ModelIdentity, RunReport

if TYPE_CHECKING:
    from collections.abc import Mapping
    from enum import StrEnum

    from sqlalchemy import Connection

    from dicom_node.store.database import Database

_State = TypeVar("_State", bound="StrEnum")


class Overview:
    """Read-only views of the ledger."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def counts(self) -> Counts:
        """How many associations, instances, series revisions, jobs and deliveries are in which state."""
        with self._database.read() as db:
            return Counts(
                associations={"open": _count(db, association, association.c.closed_at.is_(None))},
                instances={
                    "current": _count(db, instance, instance.c.current),
                    "replaced": _count(
                        db,
                        instance,
                        ~instance.c.current,
                        instance.c.purged_at.is_(None),
                        instance.c.damaged_at.is_(None),
                    ),
                    "damaged": _count(db, instance, instance.c.damaged_at.is_not(None), instance.c.purged_at.is_(None)),
                    "purged": _count(db, instance, instance.c.purged_at.is_not(None)),
                },
                series=_by_state(db, series_revision.c.state, RevisionState),
                jobs=_by_state(db, job.c.state, JobState),
                deliveries=_by_state(db, delivery.c.state, DeliveryState),
            )

    def jobs(
        self, limit: int, state: JobState | None = None, series_instance_uid: str | None = None
    ) -> tuple[JobRow, ...]:
        """The newest ``limit`` jobs, newest first, optionally of one state or series."""
        query = (
            select(
                job.c.id,
                job.c.state,
                job.c.model,
                job.c.rule,
                job.c.priority,
                job.c.attempts,
                job.c.progress,
                job.c.stage,
                job.c.reason,
                job.c.created_at,
                job.c.ended_at,
                series_revision.c.series_instance_uid,
                series_revision.c.study_instance_uid,
                series_revision.c.revision,
                series_revision.c.sending_ae,
            )
            .select_from(job.join(series_revision))
            .order_by(job.c.id.desc())
            .limit(limit)
        )
        if state is not None:
            query = query.where(job.c.state == state)
        if series_instance_uid is not None:
            query = query.where(series_revision.c.series_instance_uid == series_instance_uid)
        with self._database.read() as db:
            return tuple(JobRow(**_values(row, state=JobState(row.state))) for row in db.execute(query))

    def open_series(self) -> tuple[OpenSeries, ...]:
        """The series that are still arriving, and when they are checked again."""
        with self._database.read() as db:
            rows = db.execute(
                select(
                    series_revision.c.series_instance_uid,
                    series_revision.c.revision,
                    series_revision.c.sending_ae,
                    series_revision.c.first_arrival,
                    series_revision.c.last_arrival,
                    series_revision.c.look_again_at,
                    series_revision.c.expected_count,
                )
                .where(series_revision.c.state == RevisionState.OPEN)
                .order_by(series_revision.c.id)
            )
            return tuple(OpenSeries(**_values(row)) for row in rows)

    def job(self, job_id: int) -> JobView | None:
        """Everything about one job: its series and evidence, the rules' decision, its results and deliveries."""
        with self._database.read() as db:
            row = db.execute(select(job).where(job.c.id == job_id)).one_or_none()
            if row is None:
                return None
            revision = db.execute(select(series_revision).where(series_revision.c.id == row.revision_id)).one()
            results = db.execute(select(result).where(result.c.job_id == job_id).order_by(result.c.id)).all()
            deliveries = db.execute(
                select(delivery)
                .where(delivery.c.result_id.in_([r.id for r in results]))
                .order_by(delivery.c.destination, delivery.c.id)
            ).all()
        values = _values(
            row,
            state=JobState(row.state),
            decision=_decision(row.decision),
            model_identity=ModelIdentity(**row.model_identity) if row.model_identity else None,
            run_report=RunReport.from_json(row.run_report) if row.run_report else None,
            image_notes=tuple(row.image_notes or ()),
        )
        return JobView(
            **values,
            series=RevisionView(**_values(revision, state=RevisionState(revision.state))),
            results=tuple(ResultView(**_values(r, kind=ResultKind(r.kind))) for r in results),
            deliveries=tuple(DeliveryView(**_values(d, state=DeliveryState(d.state))) for d in deliveries),
            notes=_notes_on_missing(revision.evidence or {}),
        )


def _notes_on_missing(evidence: Mapping[str, Any]) -> tuple[str, ...]:
    missing = (evidence.get("expected_count") or 0) - evidence.get("instance_count", 0)
    refused, is_cut_short = evidence.get("refused_instances", 0), evidence.get("is_cut_short", False)
    return notes_on_missing_images(max(0, missing), refused, is_cut_short=is_cut_short)


def _count(db: Connection, table: Any, *where: Any) -> int:
    return int(db.execute(select(func.count()).select_from(table).where(*where)).scalar_one())


def _by_state(db: Connection, column: Any, states: type[_State]) -> dict[_State, int]:
    query = select(column, func.count()).group_by(column).order_by(column)
    return {states(state): int(n) for state, n in db.execute(query)}


def _values(row: Any, **converted: Any) -> dict[str, Any]:
    """The columns of ``row`` by name, with ``converted`` in place of those that are not plain values."""
    return {**row._mapping, **converted}  # noqa: SLF001 - SQLAlchemy's documented name


def _decision(kept: Mapping[str, list[dict[str, Any]]]) -> dict[str, tuple[ConditionOutcome, ...]]:
    return {rule: tuple(ConditionOutcome(**outcome) for outcome in outcomes) for rule, outcomes in kept.items()}
