"""The alarms of a configured node: raised by the supervisor, or by a work process that has none, and shown by
``dicom-node status``. The supervisor looks because a process that dies again and again could not.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dicom_node.errors import StoreUnavailable
from dicom_node.operate.alarming import Alarming, channels_of
from dicom_node.operate.alarms import alarms_of
from dicom_node.store.clock import now_utc
from dicom_node.store.disk import usage_of

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from dicom_node.settings import Settings
    from dicom_node.store.ledger import Ledger

ALARM_LOOK_S = 30.0


@dataclass(frozen=True, slots=True)
class ShownAlarm:
    """An alarm that holds now; ``since``: when it was raised, None if it was not yet."""

    kind: str
    subject: str
    text: str
    since: datetime | None


def alarming(settings: Settings, ledger: Ledger) -> Alarming:
    """What raises the alarms and tells people."""
    folder = settings.node.data_folder
    return Alarming(
        ledger.alarms,
        lambda: _disk_percent(folder),
        settings.alarms,
        settings.destinations.keys(),
        settings.node.station_name,
        channels_of(settings.alarms),
    )


def alarms_now(settings: Settings, ledger: Ledger) -> tuple[ShownAlarm, ...]:
    """The alarms that hold now, also while the node does not run."""
    since = {each.key: each.since for each in ledger.alarms.standing() if each.cleared_at is None}
    now = now_utc()
    found = alarms_of(
        ledger.alarms.facts(now),
        _disk_percent(settings.node.data_folder),
        settings.alarms,
        settings.destinations.keys(),
        now,
        since.keys(),
    )
    return tuple(ShownAlarm(each.kind, each.subject, each.text, since.get(each.key)) for each in found)


def _disk_percent(folder: Path) -> float | None:
    with suppress(StoreUnavailable):
        return usage_of(folder)[0]
    return None
