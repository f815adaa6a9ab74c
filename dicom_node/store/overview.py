"""What people and programs read: jobs, one job, counts. Plain values, ready for a table or JSON; no patient data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from dicom_node.store.schema import association, delivery, instance, job, result, series_revision
from dicom_node.store.states import RevisionState

if TYPE_CHECKING:
    from sqlalchemy import RowMapping

    from dicom_node.store.database import Database


class Overview:
    """Read-only views of the ledger."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def counts(self) -> dict[str, dict[str, int]]:
        """How many associations, instances, series revisions, jobs and deliveries are in which state."""
        with self._database.read() as db:

            def by_state(column: Any) -> dict[str, int]:
                query = select(column, func.count()).group_by(column).order_by(column)
                return {str(state): int(n) for state, n in db.execute(query)}

            def count(table: Any, *where: Any) -> int:
                return int(db.execute(select(func.count()).select_from(table).where(*where)).scalar_one())

            return {
                "associations": {"open": count(association, association.c.closed_at.is_(None))},
                "instances": {
                    "current": count(instance, instance.c.current),
                    "replaced": count(instance, ~instance.c.current, instance.c.purged_at.is_(None)),
                    "purged": count(instance, instance.c.purged_at.is_not(None)),
                },
                "series": by_state(series_revision.c.state),
                "jobs": by_state(job.c.state),
                "deliveries": by_state(delivery.c.state),
            }

    def jobs(
        self, limit: int, state: str | None = None, series_instance_uid: str | None = None
    ) -> list[dict[str, Any]]:
        """The newest ``limit`` jobs, newest first, narrowed by state or series where given."""
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
            return [_plain(row._mapping) for row in db.execute(query)]  # noqa: SLF001 - SQLAlchemy's documented name

    def open_series(self) -> list[dict[str, Any]]:
        """The series that are still arriving, and when they are looked at again."""
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
            return [_plain(row._mapping) for row in rows]  # noqa: SLF001

    def job(self, job_id: int) -> dict[str, Any] | None:
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
        answer = _plain(row._mapping)  # noqa: SLF001
        answer["series"] = _plain(revision._mapping)  # noqa: SLF001
        answer["results"] = [_plain(r._mapping) for r in results]  # noqa: SLF001
        answer["deliveries"] = [_plain(d._mapping) for d in deliveries]  # noqa: SLF001
        return answer


def _plain(row: RowMapping) -> dict[str, Any]:
    return {str(key): value.isoformat() if hasattr(value, "isoformat") else value for key, value in row.items()}
