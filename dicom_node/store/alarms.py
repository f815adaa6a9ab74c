"""What alarms are about, and which alarms were raised: facts of the ledger, kept over restarts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import case, delete, exists, func, insert, select

from dicom_node.store.schema import delivery, installation, job, series_revision
from dicom_node.store.states import DeliveryState, JobState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from sqlalchemy import Connection

    from dicom_node.store.database import Database

_BOOK, _DEATHS, _CHECK = "alarms", "deaths", "ledger check"
"""Names of JSON texts in the table ``installation``."""
_MOST_DEATHS = 20
FAILED_LATELY = timedelta(days=1)
"""Jobs stay FAILED for ever; an alarm that never ends says nothing of the next one."""


@dataclass(frozen=True, slots=True)
class Undelivered:
    """The results that wait for one destination.

    ``attempted``: how many of them were offered to it, the oldest first ``since``; ``answered``: at how many it
    answered the last attempt.
    """

    destination: str
    waiting: int
    attempted: int
    answered: int
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Death:
    """A process of the node that ended unexpectedly."""

    process: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Facts:
    """What the alarms are decided from.

    ``queued`` and ``queued_since``: jobs that wait for their turn or for another attempt, without those of cohorts. One
    that had ended, or whose results are made again, waits since it was queued anew.
    ``failed_jobs``: within the last day, and not replaced since. ``violations``: of the last daily check of the ledger,
    by kind.
    """

    queued: int
    queued_since: datetime | None
    undelivered: tuple[Undelivered, ...]
    failed_jobs: int
    deaths: tuple[Death, ...]
    violations: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Standing:
    """An alarm that was raised, and is not forgotten yet: some of the channels in ``told`` may not know of its end."""

    kind: str
    subject: str
    text: str
    since: datetime
    cleared_at: datetime | None = None
    told: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """What makes it the same alarm, whatever its text."""
        return self.kind, self.subject


class Alarms:
    """The part of the ledger for alarms."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def facts(self, now: datetime) -> Facts:
        """The facts at this moment."""
        since = func.coalesce(job.c.requeued_at, job.c.created_at)
        queued = select(func.count().label("n"), func.min(since).label("since")).where(
            job.c.state == JobState.QUEUED, job.c.priority >= 0
        )
        failed = (
            select(func.count())
            .select_from(job.join(series_revision))
            .where(
                job.c.state == JobState.FAILED,
                # a later end was recorded before the clock was set back
                job.c.ended_at.between(now - FAILED_LATELY, now + FAILED_LATELY),
                ~_has_later_job(),
            )
        )
        waiting = (
            select(
                delivery.c.destination,
                func.count().label("waiting"),
                func.sum(case((delivery.c.attempts > 0, 1), else_=0)).label("attempted"),
                func.count(delivery.c.last_status).label("answered"),
                func.min(delivery.c.first_attempt_at).label("since"),
            )
            .where(delivery.c.state == DeliveryState.WAITING)
            .group_by(delivery.c.destination)
            .order_by(delivery.c.destination)
        )
        with self._database.read() as db:
            in_queue = db.execute(queued).one()
            return Facts(
                queued=in_queue.n,
                queued_since=in_queue.since,
                undelivered=tuple(Undelivered(**row._mapping) for row in db.execute(waiting)),  # noqa: SLF001 - SQLAlchemy's documented name
                failed_jobs=db.execute(failed).scalar_one(),
                deaths=_deaths(db),
                violations=_kept(db, _CHECK, {}),
            )

    def record_death(self, process: str, at: datetime) -> None:
        """Record that a process ended unexpectedly; the last twenty are kept."""
        with self._database.write() as db:
            kept = [*_deaths(db), Death(process, at)][-_MOST_DEATHS:]
            _keep(db, _DEATHS, [{"process": each.process, "at": each.at.isoformat()} for each in kept])

    def record_check(self, violations: Mapping[str, int]) -> None:
        """Record the outcome of the daily check of the ledger."""
        with self._database.write() as db:
            _keep(db, _CHECK, dict(violations))

    def standing(self) -> tuple[Standing, ...]:
        """The alarms that were raised and are not forgotten, in the order in which they were raised."""
        with self._database.read() as db:
            return _book(db)

    def change(self, changed: Callable[[tuple[Standing, ...]], tuple[Standing, ...]]) -> tuple[Standing, ...]:
        """Replace the standing alarms by what ``changed`` makes of them, in one transaction; returns those."""
        with self._database.write() as db:
            before = _book(db)
            after = changed(before)
            if after != before:
                _keep(db, _BOOK, [_written(each) for each in after])
        return after

    def told(self, channel: str, raised: Collection[Standing], cleared: Collection[Standing], at: datetime) -> None:
        """Record that ``channel`` was told of these alarms; those that nobody has to hear of any more are forgotten.

        An alarm that was over before it was told is kept until the channel was told that, too.
        """
        self.change(lambda book: _told(book, channel, raised, {each.key for each in cleared}, at))


def _has_later_job() -> Any:
    """Whether a later revision of the series of a job has a job, so that this one can't be tried again."""
    later, other = series_revision.alias(), job.alias()
    return exists().where(
        later.c.series_instance_uid == series_revision.c.series_instance_uid,
        later.c.revision > series_revision.c.revision,
        other.c.revision_id == later.c.id,
    )


def _told(
    book: tuple[Standing, ...],
    channel: str,
    raised: Collection[Standing],
    cleared: set[tuple[str, str]],
    at: datetime,
) -> tuple[Standing, ...]:
    kept = {each.key: each for each in book}
    for each in raised:
        known = kept.get(each.key, replace(each, cleared_at=at, told=()))
        kept[each.key] = replace(known, told=tuple(dict.fromkeys((*known.told, channel))))
    for key in cleared & kept.keys():
        # one that was raised again meanwhile is new to the channel
        kept[key] = replace(kept[key], told=tuple(name for name in kept[key].told if name != channel))
    return tuple(each for each in kept.values() if each.cleared_at is None or each.told)


def _deaths(db: Connection) -> tuple[Death, ...]:
    return tuple(Death(each["process"], datetime.fromisoformat(each["at"])) for each in _kept(db, _DEATHS, []))


def _book(db: Connection) -> tuple[Standing, ...]:
    return tuple(
        Standing(
            kind=each["kind"],
            subject=each["subject"],
            text=each["text"],
            since=datetime.fromisoformat(each["since"]),
            cleared_at=datetime.fromisoformat(each["cleared_at"]) if each["cleared_at"] else None,
            told=tuple(each["told"]),
        )
        for each in _kept(db, _BOOK, [])
    )


def _written(alarm: Standing) -> dict[str, Any]:
    cleared_at = alarm.cleared_at.isoformat() if alarm.cleared_at else None
    return {**asdict(alarm), "since": alarm.since.isoformat(), "cleared_at": cleared_at}


def _kept(db: Connection, name: str, otherwise: Any) -> Any:
    text = db.execute(select(installation.c.value).where(installation.c.name == name)).scalar()
    return otherwise if text is None else json.loads(text)


def _keep(db: Connection, name: str, value: Any) -> None:
    db.execute(delete(installation).where(installation.c.name == name))
    db.execute(insert(installation).values(name=name, value=json.dumps(value)))
