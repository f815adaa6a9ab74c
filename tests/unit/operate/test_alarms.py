"""Which facts mean an alarm: at each limit, and not before it."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dicom_node.operate.alarms import Kind, alarms_of
from dicom_node.settings import AlarmSettings
from dicom_node.store.alarms import Death, Facts, Undelivered

PAGE = Path(__file__).parents[3] / "docs" / "operators" / "alarms.md"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LIMITS = AlarmSettings(disk_percent=80, queue_age_s=3600, undelivered_s=900, crashes=3, failed_jobs=2)
NOTHING = Facts(queued=0, queued_since=None, undelivered=(), failed_jobs=0, deaths=(), violations={})


def ago(seconds):
    return NOW - timedelta(seconds=seconds)


def waiting(destination="pacs", since=None, answered=0):
    return Undelivered(destination, waiting=7, attempted=0 if since is None else 5, answered=answered, since=since)


def deaths(process, *seconds):
    return tuple(Death(process, ago(each)) for each in seconds)


def kinds(facts=NOTHING, disk_percent=50.0, standing=()):
    found = alarms_of(facts, disk_percent, LIMITS, {"pacs", "archive"}, NOW, standing)
    return [(alarm.kind, alarm.subject) for alarm in found]


def test_sound_node_has_no_alarm():
    assert kinds() == []
    assert kinds(disk_percent=None) == []


CASES = {
    "queue": ({"queued": 3, "queued_since": ago(3600)}, {"queued": 3, "queued_since": ago(3599)}, (Kind.QUEUE, "")),
    "destination that is away": (
        {"undelivered": (waiting(since=ago(900)),)},
        {"undelivered": (waiting(since=ago(899)),)},
        (Kind.DESTINATION_AWAY, "pacs"),
    ),
    "destination that refuses": (
        {"undelivered": (waiting(since=ago(900), answered=1),)},
        {"undelivered": (waiting(since=ago(899), answered=1),)},
        (Kind.UNDELIVERED, "pacs"),
    ),
    "destination that is gone": (
        {"undelivered": (waiting("old"),)},
        {"undelivered": (waiting("archive"),)},
        (Kind.DESTINATION_REMOVED, "old"),
    ),
    "crash loop": (
        {"deaths": deaths("work", 3599, 60, 1)},
        {"deaths": (*deaths("work", 3600, 60, 1), *deaths("listen", 5, 4))},
        (Kind.CRASH_LOOP, "work"),
    ),
    "crash loop before the clock was set back": (
        {"deaths": deaths("work", -3599, 60, 1)},
        {"deaths": deaths("work", -3600, -7200, -9999, 60, 1)},
        (Kind.CRASH_LOOP, "work"),
    ),
    "failed jobs": ({"failed_jobs": 2}, {"failed_jobs": 1}, (Kind.QUARANTINE, "")),
    "ledger": ({"violations": {"file.missing": 2}}, {"violations": {}}, (Kind.LEDGER, "")),
}


@pytest.mark.parametrize("case", CASES)
def test_alarm_is_raised_at_its_limit_and_not_before(case):
    beyond, within, alarm = CASES[case]
    assert kinds(replace(NOTHING, **beyond)) == [alarm]
    assert kinds(replace(NOTHING, **within)) == []


def test_disk_alarm_does_not_flutter():
    raised = [(Kind.DISK, "")]
    assert kinds(disk_percent=79.9) == []
    assert kinds(disk_percent=80.0) == raised
    assert kinds(disk_percent=78.5, standing=raised) == raised
    assert kinds(disk_percent=77.9, standing=raised) == []


def test_each_destination_and_process_has_its_own_alarm():
    facts = replace(
        NOTHING,
        undelivered=(waiting("archive", ago(9000)), waiting("pacs", ago(9000), answered=2), waiting("old")),
        deaths=(*deaths("listen", 1, 2, 3), *deaths("work", 1, 2, 3, 4)),
    )
    assert kinds(facts) == [
        (Kind.DESTINATION_AWAY, "archive"),
        (Kind.UNDELIVERED, "pacs"),
        (Kind.DESTINATION_REMOVED, "old"),
        (Kind.CRASH_LOOP, "listen"),
        (Kind.CRASH_LOOP, "work"),
    ]


def test_text_says_how_many_and_how_long():
    facts = replace(NOTHING, queued=3, queued_since=ago(3 * 3600), undelivered=(waiting(since=ago(1000)),))
    queue, away = alarms_of(facts, None, LIMITS, {"pacs"}, NOW)
    assert queue.text == "3 jobs are waiting, the oldest for 3 h"
    assert away.text == "7 results are waiting for pacs, the oldest for 16 min; it does not answer"


def test_every_kind_of_alarm_is_explained():
    explained = re.findall(r"^\| `([a-z_.]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(explained) == sorted(Kind)
    assert {alarm[0] for _, _, alarm in CASES.values()} | {Kind.DISK} == set(Kind)
