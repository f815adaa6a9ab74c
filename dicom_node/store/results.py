"""The results of jobs, and which of them each destination already has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, or_, select, update

from dicom_node.store.schema import delivery, job, result, series_revision
from dicom_node.store.states import DeliveryState
from dicom_node.types import EarlierResult, ResultInstance, ResultKind, ResultRequest, SegmentationForm
from inference.types import ModelIdentity, RunReport

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy import Connection, CursorResult, Select

    from dicom_node.store.database import Database
    from dicom_node.store.revisions import CompleteRevision


@dataclass(frozen=True, slots=True)
class KnownLabels:
    """The SEG of an earlier job on the same images, with all structures that were found, and what ran then."""

    job_id: int
    spool_name: str
    sha256: str
    names_by_label: Mapping[int, str]
    model: ModelIdentity
    run: RunReport | None


class Results:
    """The results of earlier jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def earlier(self, revision: CompleteRevision, model: str | None) -> Mapping[str | None, tuple[EarlierResult, ...]]:
        """The results at each destination that those of ``model`` on ``revision`` replace (None: those of every model).

        A destination has the results that it accepted, the newest of each family of kinds; the key None has the results
        of jobs without a destination. Notices of the revision itself are included: a job that is retried may succeed.
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

    def known_labels(self, revision: CompleteRevision, model: str) -> KnownLabels | None:
        """The newest labels of ``model`` for the images of ``revision``, where they are still in the spool.

        Images that only patient or study tell apart are the same: those of the original, and of every correction of it.
        """
        same_images = [digest for digest in (revision.content_digest, revision.same_images_as) if digest is not None]
        query = (
            select(
                job.c.id,
                job.c.destinations,
                job.c.names_by_label,
                job.c.model_identity,
                job.c.run_report,
                result.c.spool_name,
                result.c.sha256,
                delivery.c.destination,
            )
            .select_from(result.join(job).join(series_revision).outerjoin(delivery))
            .where(
                series_revision.c.series_instance_uid == revision.series_instance_uid,
                series_revision.c.revision < revision.revision,
                or_(
                    series_revision.c.content_digest.in_(same_images),
                    series_revision.c.same_images_as.in_(same_images),
                ),
                job.c.model == model,
                job.c.model_identity.is_not(None),
                result.c.kind.in_((ResultKind.SEGMENTATION, ResultKind.LABELMAP)),
                result.c.purged_at.is_(None),
            )
            .order_by(job.c.id.desc(), result.c.id)
        )
        with self._database.read() as db:
            rows = db.execute(query).all()
        return next((_known_labels(row) for row in rows if row.names_by_label and _has_all_structures(row)), None)


def _known_labels(row: Any) -> KnownLabels:
    return KnownLabels(
        job_id=row.id,
        spool_name=row.spool_name,
        sha256=row.sha256,
        names_by_label={int(label): name for label, name in row.names_by_label.items()},
        model=ModelIdentity(**row.model_identity),
        run=None if row.run_report is None else RunReport.from_json(row.run_report),
    )


def _has_all_structures(row: Any) -> bool:
    """Whether the destination of a SEG, if it has one, asked for all structures in one object."""
    asked = row.destinations.get(row.destination, {})
    return asked.get("structures") is None and not asked.get("split_by_group")


def insert_result(db: Connection, job_id: int, instance: ResultInstance, spool_name: str, at: datetime) -> None:
    """Insert a row for the result, and one delivery, due at ``at``, for each of its destinations.

    A result that is made again, because its file changed, keeps its row and the deliveries that were made.
    """
    stored = {"spool_name": spool_name, "sha256": instance.sha256, "size_bytes": instance.size_bytes}
    lost = (
        result.c.job_id == job_id,
        result.c.sop_instance_uid == instance.sop_instance_uid,
        result.c.purged_at.is_not(None),
    )
    again = update(result).where(*lost).values(**stored, purged_at=None).returning(result.c.id)
    result_id = db.execute(again).scalar()
    if result_id is None:
        inserted = db.execute(
            insert(result).values(
                job_id=job_id,
                kind=instance.kind,
                sop_class_uid=instance.sop_class_uid,
                sop_instance_uid=instance.sop_instance_uid,
                series_instance_uid=instance.series_instance_uid,
                transfer_syntax_uid=instance.transfer_syntax_uid,
                **stored,
            )
        )
        result_id = new_id(inserted)
    waiting = {"state": DeliveryState.WAITING, "next_attempt_at": at, "last_reason": ""}
    own = delivery.c.result_id == result_id
    rows = db.execute(select(delivery.c.destination, delivery.c.state).where(own))
    known = {row.destination: row.state for row in rows}
    for destination in instance.destinations:
        if destination not in known:
            made = {"result_id": result_id, "destination": destination, "attempts": 0, "refusals": 0}
            db.execute(insert(delivery).values(**made, **waiting))
        elif known[destination] == DeliveryState.SUPERSEDED:
            is_it = (own, delivery.c.destination == destination)
            db.execute(update(delivery).where(*is_it).values(**waiting, claimed_by=None, lease_until=None))


def results_of(job_id: int, *, are_notices: bool) -> Select[tuple[int]]:
    """The ids of the notices of a job, or of its other results."""
    is_notice = result.c.kind == ResultKind.NOTICE
    return select(result.c.id).where(result.c.job_id == job_id, is_notice if are_notices else ~is_notice)


def withdraw_notices(db: Connection, job_id: int) -> None:
    """Cancel the notices of an attempt that is repeated."""
    db.execute(
        update(delivery)
        .where(
            delivery.c.state == DeliveryState.WAITING,
            delivery.c.result_id.in_(results_of(job_id, are_notices=True)),
        )
        .values(state=DeliveryState.SUPERSEDED, last_reason="the job was queued again")
    )


def request_of(options: Mapping[str, Any]) -> ResultRequest:
    """The request in the JSON written when the series was routed; older versions wrote fewer options."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    if "segmentation" in values:
        values["segmentation"] = SegmentationForm(values["segmentation"])
    return ResultRequest(**values)


def new_id(inserted: CursorResult[Any]) -> int:
    """The primary key of the inserted row."""
    key = inserted.inserted_primary_key
    assert key is not None
    return int(key[0])


def _earlier_results(revision: CompleteRevision, model: str | None) -> Select[Any]:
    """Results of earlier revisions that were delivered, or that had no destination, in the order of their jobs.

    A revision with the same content as the one before it has the same results, which do not replace themselves.
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
                series_revision.c.revision < revision.unchanged_since,
                result.c.kind == ResultKind.NOTICE,
            ),
            or_(delivery.c.id.is_(None), delivery.c.state == DeliveryState.DELIVERED),
        )
        .order_by(result.c.job_id, result.c.id)
    )
    # a refusal by a rule has no model; the results of any model replace it
    return found if model is None else found.where(or_(job.c.model == model, job.c.model.is_(None)))
