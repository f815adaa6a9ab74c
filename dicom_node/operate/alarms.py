"""When something needs a person: a table of alarms, decided from facts and limits alone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from datetime import datetime

    from dicom_node.settings import AlarmSettings
    from dicom_node.store.alarms import Facts, Undelivered

_DISK_MARGIN_PERCENT = 2.0
"""A disk that was too full is so until it is this far below the limit: an alarm must not flutter."""
_CRASH_LOOP = timedelta(hours=1)


class Kind(StrEnum):
    """The kinds of alarm; ``docs/operators/alarms.md`` explains each."""

    DISK = "disk"
    QUEUE = "queue"
    UNDELIVERED = "undelivered"
    DESTINATION_AWAY = "destination.away"
    DESTINATION_REMOVED = "destination.removed"
    CRASH_LOOP = "crash_loop"
    QUARANTINE = "quarantine"
    LEDGER = "ledger"


@dataclass(frozen=True, slots=True)
class Alarm:
    """One alarm. ``subject`` is the destination or the process that it is about, "" if there is only one such alarm.

    ``text`` has numbers, names of destinations and processes, and no patient attribute.
    """

    kind: Kind
    subject: str
    text: str

    @property
    def key(self) -> tuple[str, str]:
        """What makes it the same alarm, whatever its text."""
        return self.kind, self.subject


def alarms_of(
    facts: Facts,
    disk_percent: float | None,
    limits: AlarmSettings,
    destinations: Collection[str],
    now: datetime,
    standing: Collection[tuple[str, str]] = (),
) -> tuple[Alarm, ...]:
    """The alarms that ``facts`` mean at ``now``.

    ``disk_percent``: used space of the spool's disk, None if it can't be read. ``destinations``: the configured ones.
    ``standing``: keys of the alarms that were raised before.
    """
    return tuple(_alarms(facts, disk_percent, limits, destinations, now, standing))


def _alarms(
    facts: Facts,
    disk_percent: float | None,
    limits: AlarmSettings,
    destinations: Collection[str],
    now: datetime,
    standing: Collection[tuple[str, str]],
) -> Iterator[Alarm]:
    margin = _DISK_MARGIN_PERCENT if (Kind.DISK, "") in standing else 0.0
    if disk_percent is not None and disk_percent >= limits.disk_percent - margin:
        yield Alarm(
            Kind.DISK, "", f"{disk_percent:.0f} % of the disk is in use; the limit is {limits.disk_percent:g} %"
        )
    if facts.queued_since is not None and now - facts.queued_since >= timedelta(seconds=limits.queue_age_s):
        yield Alarm(Kind.QUEUE, "", f"{facts.queued} jobs are waiting, the oldest for {_age(now - facts.queued_since)}")
    for undelivered in facts.undelivered:
        yield from _of_destination(undelivered, limits, destinations, now)
    for process in sorted({death.process for death in facts.deaths}):
        # deaths ahead of the clock were recorded before it was set back, and would count until it has caught up
        deaths = sum(death.process == process and abs(now - death.at) < _CRASH_LOOP for death in facts.deaths)
        if deaths >= limits.crashes:
            yield Alarm(Kind.CRASH_LOOP, process, f"{process} ended unexpectedly {deaths} times within an hour")
    if facts.failed_jobs >= limits.failed_jobs:
        yield Alarm(Kind.QUARANTINE, "", f"{facts.failed_jobs} jobs failed within the last day and need attention")
    if facts.violations:
        kinds = ", ".join(f"{kind}: {number}" for kind, number in sorted(facts.violations.items()))
        yield Alarm(Kind.LEDGER, "", f"the last check of the ledger found violations ({kinds})")


def _of_destination(
    undelivered: Undelivered, limits: AlarmSettings, destinations: Collection[str], now: datetime
) -> Iterator[Alarm]:
    name, number = undelivered.destination, undelivered.waiting
    if name not in destinations:
        yield Alarm(
            Kind.DESTINATION_REMOVED, name, f"{number} results are waiting for {name}, which is no longer configured"
        )
        return
    if undelivered.since is None or now - undelivered.since < timedelta(seconds=limits.undelivered_s):
        return
    waiting = f"{number} results are waiting for {name}, the oldest for {_age(now - undelivered.since)}"
    if undelivered.answered:
        yield Alarm(Kind.UNDELIVERED, name, f"{waiting}; it answers but does not accept them")
    else:
        yield Alarm(Kind.DESTINATION_AWAY, name, f"{waiting}; it does not answer")


def _age(age: timedelta) -> str:
    minutes = int(age.total_seconds()) // 60
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"  # noqa: PLR2004 - two hours
