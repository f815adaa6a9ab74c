"""Rows for the check of the invariant: each with everything that its state depends on, some at a time.

A row and what it depends on are read by one statement, which sees one moment of the ledger whatever the node does
meanwhile. The rows of what was received and made are never deleted: up to a given id, those that are counted and those
that are read one after the other are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import and_, distinct, exists, func, select, text

from dicom_node.store.retention import purged_at_by_name
from dicom_node.store.revisions import bytes_digest
from dicom_node.store.schema import delivery, instance, job, result, revision_instance, series_revision
from dicom_node.store.states import DeliveryState, RevisionState
from dicom_node.types import ResultKind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from datetime import datetime

    from sqlalchemy import Select, Table

    from dicom_node.store.database import Database

_AT_ONCE = 2000
_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class InstanceFacts:
    """An instance, and what may become of it."""

    id: int
    spool_name: str
    dataset_sha256: str
    size_bytes: int
    current: bool
    purged_at: datetime | None
    damaged_at: datetime | None
    """When its file was found to have other bytes than those received."""
    is_member: bool
    """Of a revision that is complete."""
    is_arriving: bool
    """Whether its series has an open revision, whose members are those that are current when it is closed."""
    is_replaced: bool
    """Whether another instance with its UID is current in its series."""


@dataclass(frozen=True, slots=True)
class RevisionFacts:
    """A revision of a series, and those before and after it."""

    id: int
    series_instance_uid: str
    revision: int
    state: str
    bytes_digest: str | None
    is_latest: bool
    has_previous: bool
    """Whether there is one with the number before its own."""
    has_job: bool
    """Whether it, or an earlier one with the same content, has a job."""


@dataclass(frozen=True, slots=True)
class JobFacts:
    """A job, and how many deliveries of its results (notices apart) are in which state."""

    id: int
    state: str
    claimed_by: str | None
    lease_until: datetime | None
    ended_at: datetime | None
    waiting: int
    failed: int
    delivered: int
    superseded: int


@dataclass(frozen=True, slots=True)
class ResultFacts:
    """A result, the state of its job, and how many deliveries it has, and still has to go."""

    id: int
    spool_name: str
    sha256: str
    size_bytes: int
    purged_at: datetime | None
    job_state: str
    deliveries: int
    waiting: int


@dataclass(frozen=True, slots=True)
class DeliveryFacts:
    """A delivery, and whether the file of its result was purged."""

    id: int
    destination: str
    state: str
    claimed_by: str | None
    lease_until: datetime | None
    delivered_at: datetime | None
    purged_at: datetime | None


@dataclass(frozen=True, slots=True)
class Counted:
    """How many there are of each, and the ids up to which they were counted."""

    instances: int
    duplicates: int
    """C-STORE requests that were acknowledged without a new row, because the instance was there already."""
    series: int
    revisions: int
    jobs: int
    results: int
    deliveries: int
    last: Mapping[str, int]

    def totals(self) -> dict[str, int]:
        """How many rows of each kind there are."""
        return {
            "instances": self.instances,
            "series": self.series,
            "revisions": self.revisions,
            "jobs": self.jobs,
            "results": self.results,
            "deliveries": self.deliveries,
        }


class Consistency:
    """The part of the ledger for the check of the invariant. Reads only."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def counted(self) -> Counted:
        """All rows that there are now."""
        tables: dict[str, Table] = {
            "instances": instance,
            "revisions": series_revision,
            "jobs": job,
            "results": result,
            "deliveries": delivery,
        }
        # one statement, so that all tables are seen at the same moment
        last_ids = select(*(select(func.max(t.c.id)).scalar_subquery().label(name) for name, t in tables.items()))
        with self._database.read() as db:
            last = {name: found or 0 for name, found in db.execute(last_ids).one()._mapping.items()}  # noqa: SLF001 - SQLAlchemy's documented name
            up_to = instance.c.id <= last["instances"]
            numbers = {
                name: db.execute(select(func.count()).select_from(t).where(t.c.id <= last[name])).scalar_one()
                for name, t in tables.items()
            }
            series = db.execute(select(func.count(distinct(instance.c.series_instance_uid))).where(up_to)).scalar_one()
            duplicates = db.execute(select(func.sum(instance.c.duplicates)).where(up_to)).scalar_one() or 0
        return Counted(duplicates=duplicates, series=series, last=last, **numbers)

    def instances(self, last: int) -> Iterator[InstanceFacts]:
        """All instances up to the id ``last``."""
        other = instance.alias("other")
        of_series = series_revision.c.series_instance_uid == instance.c.series_instance_uid
        query = select(
            instance.c.id,
            instance.c.spool_name,
            instance.c.dataset_sha256,
            instance.c.size_bytes,
            instance.c.current,
            instance.c.purged_at,
            instance.c.damaged_at,
            exists().where(revision_instance.c.instance_id == instance.c.id).label("is_member"),
            exists().where(of_series, series_revision.c.state == RevisionState.OPEN).label("is_arriving"),
            exists()
            .where(
                other.c.series_instance_uid == instance.c.series_instance_uid,
                other.c.sop_instance_uid == instance.c.sop_instance_uid,
                other.c.id != instance.c.id,
                text("other.current"),  # as in the condition of its index
            )
            .label("is_replaced"),
        )
        return self._read(query, instance, last, InstanceFacts)

    def is_damaged_since(self, instance_id: int) -> bool:
        """Whether newer bytes of an instance took its place, and their file was then found to be damaged."""
        other = instance.alias("other")
        query = (
            select(other.c.id)
            .select_from(instance)
            .join(
                other,
                and_(
                    other.c.series_instance_uid == instance.c.series_instance_uid,
                    other.c.sop_instance_uid == instance.c.sop_instance_uid,
                    other.c.id != instance.c.id,
                    other.c.damaged_at.is_not(None),
                ),
            )
            .where(instance.c.id == instance_id)
            .limit(1)
        )
        with self._database.read() as db:
            return db.execute(query).one_or_none() is not None

    def revisions(self, last: int) -> Iterator[RevisionFacts]:
        """All revisions of all series up to the id ``last``."""
        other, same = series_revision.alias(), series_revision.alias()
        is_other = other.c.series_instance_uid == series_revision.c.series_instance_uid
        query = select(
            series_revision.c.id,
            series_revision.c.series_instance_uid,
            series_revision.c.revision,
            series_revision.c.state,
            series_revision.c.bytes_digest,
            (~exists().where(is_other, other.c.revision > series_revision.c.revision)).label("is_latest"),
            exists().where(is_other, other.c.revision == series_revision.c.revision - 1).label("has_previous"),
            exists()
            .where(
                same.c.series_instance_uid == series_revision.c.series_instance_uid,
                same.c.revision <= series_revision.c.revision,
                same.c.content_digest == series_revision.c.content_digest,
                job.c.revision_id == same.c.id,
            )
            .label("has_job"),
        )
        return self._read(query, series_revision, last, RevisionFacts)

    def digest_of_members(self, revision_id: int) -> str | None:
        """The digest over the data sets of the members of a revision, as it is stored when it is closed; None: none."""
        query = (
            select(instance.c.dataset_sha256)
            .select_from(revision_instance.join(instance))
            .where(revision_instance.c.revision_id == revision_id)
        )
        with self._database.read() as db:
            digests = db.execute(query).scalars().all()
        return bytes_digest(digests) if digests else None

    def jobs(self, last: int) -> Iterator[JobFacts]:
        """All jobs up to the id ``last``."""

        def deliveries(state: DeliveryState) -> Any:
            return (
                select(func.count())
                .select_from(delivery.join(result))
                .where(result.c.job_id == job.c.id, result.c.kind != ResultKind.NOTICE, delivery.c.state == state)
                .correlate(job)
                .scalar_subquery()
            )

        query = select(
            job.c.id,
            job.c.state,
            job.c.claimed_by,
            job.c.lease_until,
            job.c.ended_at,
            *(deliveries(state).label(state.lower()) for state in DeliveryState),
        )
        return self._read(query, job, last, JobFacts)

    def results(self, last: int) -> Iterator[ResultFacts]:
        """All results up to the id ``last``, notices included."""
        own = select(func.count()).select_from(delivery).where(delivery.c.result_id == result.c.id).correlate(result)
        query = select(
            result.c.id,
            result.c.spool_name,
            result.c.sha256,
            result.c.size_bytes,
            result.c.purged_at,
            job.c.state.label("job_state"),
            own.scalar_subquery().label("deliveries"),
            own.where(delivery.c.state == DeliveryState.WAITING).scalar_subquery().label("waiting"),
        ).select_from(result.join(job))
        return self._read(query, result, last, ResultFacts)

    def deliveries(self, last: int) -> Iterator[DeliveryFacts]:
        """All deliveries up to the id ``last``."""
        query = select(
            delivery.c.id,
            delivery.c.destination,
            delivery.c.state,
            delivery.c.claimed_by,
            delivery.c.lease_until,
            delivery.c.delivered_at,
            result.c.purged_at,
        ).select_from(delivery.join(result))
        return self._read(query, delivery, last, DeliveryFacts)

    def purged_at(self, names: Collection[str]) -> dict[str, datetime | None]:
        """For those of the spool ``names`` that have a row, when their files were purged; None: they are needed."""
        with self._database.read() as db:
            return purged_at_by_name(db, names)

    def _read(self, query: Select[Any], table: Table, last: int, kind: type[_Row]) -> Iterator[_Row]:
        after = 0
        while after < last:
            some = query.where(table.c.id > after, table.c.id <= last).order_by(table.c.id).limit(_AT_ONCE)
            with self._database.read() as db:
                rows = db.execute(some).all()
            if not rows:
                return
            for row in rows:
                yield kind(**row._mapping)  # noqa: SLF001 - as above
            after = rows[-1].id
