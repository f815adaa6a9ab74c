"""Cohorts: which series a research run wants, and what became of each.

::

    SELECTED ──pull──▶ PULLING ──as many as the archive counts──▶ PULLED ──its jobs ended──▶ DONE | REFUSED | FAILED
                          │ └──not whole, attempts used up──▶ FAILED
                          └──not whole, or the process was killed──▶ PULLING again

Only a revision that was opened after ``pull_started_at``, and of whose series nothing was sent to the node since, is
routed by the order of the cohort (:meth:`dicom_node.store.routing.Routing.order_for`). What a pull brings is known by
``retrieves_as``, the AE title that asks for it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, func, insert, or_, select, update

from dicom_node.errors import ConfigurationError
from dicom_node.store.revisions import CompleteRevision, complete_revision
from dicom_node.store.routing import insert_job, order_of
from dicom_node.store.schema import IS_CURRENT, cohort, cohort_series, instance, job, result, series_revision
from dicom_node.store.states import JobState, PullState, RevisionState
from dicom_node.types import Decision, ResultKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from sqlalchemy import Connection

    from dicom_node.store.database import Database
    from dicom_node.store.routing import Order

_SELECTED_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Selected:
    """A series that an archive or a folder has; ``expected_count`` is its own count of instances, if it states one."""

    series_instance_uid: str
    study_instance_uid: str
    expected_count: int | None


@dataclass(frozen=True, slots=True)
class CohortSeries:
    """One series of a cohort."""

    id: int
    series_instance_uid: str
    study_instance_uid: str
    state: PullState
    reason: str
    expected_count: int | None
    attempts: int

    @property
    def selected(self) -> Selected:
        """As it was selected."""
        return Selected(self.series_instance_uid, self.study_instance_uid, self.expected_count)


@dataclass(frozen=True, slots=True)
class Answer:
    """A job that answers the order of a cohort. ``report`` is the spool name of its SR, None if it has none."""

    job_id: int
    state: JobState
    reason: str
    model_identity: Mapping[str, Any] | None
    report: str | None


@dataclass(frozen=True, slots=True)
class Answers:
    """All jobs that answer the order for one series, and the images that they are about."""

    revision: CompleteRevision
    jobs: tuple[Answer, ...]


class Cohorts:
    """The part of the ledger for cohorts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, order: Order, definition_sha256: str, retrieves_as: str) -> bool:
        """Create the cohort, or find it as it was; returns whether its series are selected already.

        ``retrieves_as``: the AE title that asks for its series.

        Raises:
            ConfigurationError: it was begun with another definition.
        """
        with self._database.write() as db:
            row = db.execute(select(cohort).where(cohort.c.name == order.cohort)).one_or_none()
            if row is None:
                destinations = {name: asdict(request) for name, request in order.requests.items()}
                values = {"model": order.model, "destinations": destinations, "priority": order.priority}
                values["retrieves_as"] = retrieves_as
                db.execute(insert(cohort).values(name=order.cohort, definition_sha256=definition_sha256, **values))
                return False
            db.execute(update(cohort).where(cohort.c.name == order.cohort).values(retrieves_as=retrieves_as))
        if row.definition_sha256 != definition_sha256:
            raise ConfigurationError(
                f"cohort {order.cohort!r} was begun with another selection, model, destination or data set; "
                "a cohort can't be changed; give the new one another name"
            )
        return row.selected_at is not None

    def select(self, name: str, found: Iterable[Selected]) -> None:
        """Add the series of ``found`` that the cohort does not have, some at a time.

        The ledger is not held while the next ones are found: that may take an archive hours.
        """
        series = iter(found)
        while some := list(islice(series, _SELECTED_AT_ONCE)):
            with self._database.write() as db:
                uids = {each.series_instance_uid for each in some}
                mine = select(cohort_series.c.series_instance_uid).where(
                    cohort_series.c.cohort == name, cohort_series.c.series_instance_uid.in_(uids)
                )
                known = set(db.execute(mine).scalars())
                for each in some:
                    if each.series_instance_uid not in known:
                        known.add(each.series_instance_uid)
                        values = {"state": PullState.SELECTED, "reason": "", "attempts": 0, **asdict(each)}
                        db.execute(insert(cohort_series).values(cohort=name, **values))

    def end_selection(self, name: str, at: datetime) -> None:
        """The selection is whole."""
        with self._database.write() as db:
            db.execute(update(cohort).where(cohort.c.name == name).values(selected_at=at))

    def counts(self, name: str) -> dict[PullState, int]:
        """How many series of the cohort are in each state."""
        query = (
            select(cohort_series.c.state, func.count())
            .where(cohort_series.c.cohort == name)
            .group_by(cohort_series.c.state)
        )
        with self._database.read() as db:
            found = {PullState(state): int(count) for state, count in db.execute(query)}
        return {state: found.get(state, 0) for state in PullState}

    def in_state(self, name: str, state: PullState) -> tuple[CohortSeries, ...]:
        """The series of the cohort in ``state``, in the order of their selection."""
        with self._database.read() as db:
            return _series(db, cohort_series.c.cohort == name, cohort_series.c.state == state)

    def to_pull(self, name: str, now: datetime, limit: int) -> tuple[CohortSeries, ...]:
        """The next series to pull: first those whose pull was interrupted, or did not bring all."""
        is_due = or_(cohort_series.c.not_before.is_(None), cohort_series.c.not_before <= now)
        of_cohort = (cohort_series.c.cohort == name, is_due)
        with self._database.read() as db:
            interrupted = _series(db, *of_cohort, cohort_series.c.state == PullState.PULLING, limit=limit)
            fresh = _series(db, *of_cohort, cohort_series.c.state == PullState.SELECTED, limit=limit)
        return (*interrupted, *fresh)[:limit]

    def pull_started(self, series: CohortSeries, at: datetime) -> None:
        """SELECTED or PULLING -> PULLING."""
        first = func.coalesce(cohort_series.c.pull_started_at, at)
        self._change(series, state=PullState.PULLING, pull_started_at=first)

    def pulled(self, series: CohortSeries) -> None:
        """PULLING -> PULLED: the images are whole."""
        self._change(series, state=PullState.PULLED, reason="", not_before=None)

    def pull_again(self, series: CohortSeries, reason: str, not_before: datetime, *, counts: bool) -> None:
        """PULLING: another attempt later. ``counts``: this one counts towards the limit."""
        self._change(series, reason=reason, not_before=not_before, attempts=series.attempts + counts)

    def ended(self, series: CohortSeries, state: PullState, reason: str, at: datetime) -> None:
        """The series is DONE, REFUSED or FAILED."""
        self._change(series, state=state, reason=reason, ended_at=at)

    def retry(self, name: str) -> int:
        """FAILED -> SELECTED, at a person's request; returns how many."""
        with self._database.write() as db:
            return int(
                db.execute(
                    update(cohort_series)
                    .where(cohort_series.c.cohort == name, cohort_series.c.state == PullState.FAILED)
                    .values(state=PullState.SELECTED, attempts=0, reason="", not_before=None, pull_started_at=None)
                ).rowcount
            )

    def stored_count(self, series_instance_uid: str) -> int:
        """How many current instances of the series are in the spool."""
        query = select(func.count()).where(instance.c.series_instance_uid == series_instance_uid, IS_CURRENT)
        with self._database.read() as db:
            return int(db.execute(query.select_from(instance)).scalar_one())

    def is_under_way(self, series_instance_uid: str) -> bool:
        """Whether a job of the series is still to run or runs: :meth:`answers`, which reads much more, can wait."""
        query = (
            select(job.c.id)
            .select_from(job.join(series_revision))
            .where(
                series_revision.c.series_instance_uid == series_instance_uid,
                job.c.state.in_((JobState.QUEUED, JobState.RUNNING)),
            )
        )
        with self._database.read() as db:
            return db.execute(query.limit(1)).one_or_none() is not None

    def answers(self, name: str, series_instance_uid: str, at: datetime) -> Answers | None:
        """The jobs that answer the order for a series that is PULLED; None while it is not routed.

        If the node had the series already and its rules gave it to other models, the missing job is queued.
        """
        with self._database.read() as db:
            found = _found(db, name, series_instance_uid)
        if found is None or found.answers.jobs or (decision := found.order.decision()) is None:
            return found.answers if found else None
        with self._database.write() as db:
            found = _found(db, name, series_instance_uid)
            if found is not None and not found.answers.jobs:
                insert_job(db, found.answers.revision, decision, None, at)
                found = _found(db, name, series_instance_uid)
        return found.answers if found else None

    def _change(self, series: CohortSeries, **values: Any) -> None:
        with self._database.write() as db:
            db.execute(update(cohort_series).where(cohort_series.c.id == series.id).values(**values))


@dataclass(frozen=True, slots=True)
class _Found:
    order: Order
    answers: Answers


def _found(db: Connection, name: str, series_instance_uid: str) -> _Found | None:
    """The jobs of the latest revision of the series; None while it is not routed."""
    latest = db.execute(
        select(series_revision.c.id, series_revision.c.state)
        .where(series_revision.c.series_instance_uid == series_instance_uid)
        .order_by(series_revision.c.revision.desc())
        .limit(1)
    ).one_or_none()
    if latest is None or latest.state != RevisionState.ROUTED:
        return None
    order = order_of(db.execute(select(cohort).where(cohort.c.name == name)).one())
    revision = complete_revision(db, latest.id)
    return _Found(order, Answers(revision, _answers(db, revision, order.model)))


def _series(db: Connection, *where: Any, limit: int | None = None) -> tuple[CohortSeries, ...]:
    rows = db.execute(select(cohort_series).where(*where).order_by(cohort_series.c.id).limit(limit))
    return tuple(
        CohortSeries(
            row.id,
            row.series_instance_uid,
            row.study_instance_uid,
            PullState(row.state),
            row.reason,
            row.expected_count,
            row.attempts,
        )
        for row in rows
    )


def _answers(db: Connection, revision: CompleteRevision, model: str | None) -> tuple[Answer, ...]:
    """The newest job of ``model`` (None: of each) on the content of ``revision`` whose results are still stored.

    Images of which nothing can be made, such as two under one UID, were refused for every model.
    """
    of_content = (
        series_revision.c.series_instance_uid == revision.series_instance_uid,
        series_revision.c.revision >= revision.unchanged_since,
        series_revision.c.revision <= revision.revision,
        job.c.state != JobState.SUPERSEDED,
    )
    of_model = or_(job.c.model == model, and_(job.c.model.is_(None), job.c.rule.is_(None)))
    rows = db.execute(
        select(job.c.id, job.c.model, job.c.state, job.c.reason, job.c.model_identity, job.c.decision)
        .select_from(job.join(series_revision))
        .where(*of_content, *(() if model is None else (of_model,)))
        .order_by(job.c.id)
    ).all()
    newest = {}
    for row in rows:
        if model is not None and row.model is None and not _is_of_images(row):
            continue
        results = db.execute(
            select(result.c.kind, result.c.spool_name, result.c.purged_at).where(result.c.job_id == row.id)
        ).all()
        if any(each.purged_at is not None for each in results):
            continue
        reports = [each.spool_name for each in results if each.kind == ResultKind.REPORT]
        report = reports[0] if reports else None
        newest[row.model] = Answer(row.id, JobState(row.state), row.reason, row.model_identity, report)
    return tuple(newest.values())


def _is_of_images(row: Any) -> bool:
    """Whether the images were refused before any rule was asked."""
    return not row.decision and row.reason != Decision(None, None, {}, 0).reason
