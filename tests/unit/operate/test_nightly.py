"""The daily check: once a day, not at once after a start, and what it says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import structlog

from dicom_node.errors import Stopping, StoreUnavailable
from dicom_node.operate.ledger_check import Kind, LedgerReport, Violation
from dicom_node.operate.nightly import Nightly, local_now

DAY = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _every_line_is_logged():
    structlog.reset_defaults()  # an earlier test may have set the log level to warnings only


class Clock:
    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


def report(*violations):
    kinds = {each.kind: 1 for each in violations}
    return LedgerReport(DAY, 1.5, False, {}, {"instances": 3}, 0, 3, 100, kinds, violations)


def times_checked(start, hours):
    """When a node that was started at ``start`` checks, in the hours after it; it looks every half hour."""
    clock, checked = Clock(start), []

    def check():
        checked.append(clock.now)
        return report()

    nightly = Nightly("02:30", check, lambda _: None, clock)
    for _ in range(2 * hours):
        nightly.check_due()
        clock.now += timedelta(minutes=30)
    return checked


@pytest.mark.parametrize("started_at", [0, 2, 3, 12, 23])
def test_ledger_is_checked_once_a_day_at_its_time(started_at):
    checked = times_checked(DAY + timedelta(hours=started_at), 72)
    assert [f"{at:%H:%M}" for at in checked] == ["02:30"] * 3
    assert len({at.date() for at in checked}) == 3


def test_late_look_is_made_up_for():
    clock, checked = Clock(DAY), []
    nightly = Nightly("02:30", lambda: checked.append(1) or report(), lambda _: None, clock)
    clock.now = DAY + timedelta(hours=20)
    nightly.check_due()
    nightly.check_due()
    assert checked == [1]


def test_check_of_the_last_minute_is_made_although_the_look_comes_after_midnight():
    clock, checked = Clock(DAY), []
    nightly = Nightly("23:59", lambda: checked.append(clock.now) or report(), lambda _: None, clock)
    for clock.now in (DAY + timedelta(seconds=each) for each in (23 * 3600, 86339.9, 86400.1, 86460.2)):
        nightly.check_due()
    assert checked == [DAY + timedelta(seconds=86400.1)]


@pytest.mark.parametrize("away", ["check", "tell"])
def test_check_is_made_again_if_the_ledger_was_away(away):
    clock, told, failures = Clock(DAY), [], [StoreUnavailable("ledger: locked")]

    def fail_once(where):
        if where == away and failures:
            raise failures.pop()

    nightly = Nightly(
        "00:30", lambda: fail_once("check") or report(), lambda each: fail_once("tell") or told.append(each), clock
    )
    clock.now += timedelta(hours=1)
    with pytest.raises(StoreUnavailable):
        nightly.check_due()
    for _ in range(3):
        nightly.check_due()
    assert told == [report()]


@pytest.mark.parametrize(
    ("violations", "event", "level"),
    [
        ((), "ledger.checked", "info"),
        ((Violation(Kind.FILE_MISSING, "instance 7", "it is gone"),), "ledger.violated", "error"),
    ],
)
def test_outcome_is_logged(violations, event, level):
    clock = Clock(DAY)
    told = []
    nightly = Nightly("00:30", lambda: report(*violations), told.append, clock)
    clock.now += timedelta(hours=1)
    with structlog.testing.capture_logs() as log:
        nightly.check_due()
    (line,) = log
    assert told == [report(*violations)]
    assert (line["event"], line["log_level"], line["counted"]) == (event, level, {"instances": 3})
    if violations:
        assert line["violations"] == {"file.missing": 1}
        assert line["examples"] == ["file.missing: instance 7: it is gone"]


def test_check_that_the_stop_of_the_node_ends_says_nothing():
    def stopped():
        raise Stopping

    clock = Clock(DAY)
    nightly = Nightly("00:30", stopped, lambda _: pytest.fail("there is nothing to tell"), clock)
    clock.now += timedelta(hours=1)
    with structlog.testing.capture_logs() as log:
        nightly.check_due()
    assert log == []


def test_local_time_has_a_zone():
    assert local_now().tzinfo is not None
