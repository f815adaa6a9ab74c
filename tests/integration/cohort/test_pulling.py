"""Pulling within limits: which pulls start, which wait and why, and which are given up."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from dicom_node.cohort.collecting import Collecting
from dicom_node.cohort.definition import Definition, Limits
from dicom_node.cohort.pseudonym import Pseudonyms
from dicom_node.cohort.run import Pulling, progress_of
from dicom_node.cohort.sources import Pulled
from dicom_node.cohort.subject import Dates
from dicom_node.cohort.table import CohortTable, read_without_rows
from dicom_node.errors import ConnectionLost, NetworkError
from dicom_node.store.clock import now_utc
from dicom_node.store.cohorts import Selected
from dicom_node.store.ledger import Ledger
from dicom_node.store.routing import Order
from dicom_node.store.spool import Spool
from dicom_node.store.states import PullState
from tests.support.waiting import wait_until

PSEUDONYMS = Pseudonyms.of_key(bytes(range(32)))


class Archive:
    """Answer each pull with ``answer(series)``; ``most`` is the highest number of simultaneous pulls."""

    def __init__(self, answer=lambda series: Pulled(series.expected_count, "")):
        self.answer = answer
        self.pulled, self.most, self._now = [], 0, 0
        self._lock = threading.Lock()

    def pull(self, series):
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            return self.answer(series)
        finally:
            with self._lock:
                self._now -= 1
                self.pulled.append(series.series_instance_uid)


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool")


@pytest.fixture
def ledger(tmp_path, spool):
    opened = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite3", spool)
    opened.cohorts.begin(Order("c", "tissue", {}, -1000), "0" * 64, "NODE")
    yield opened
    opened.close()


@pytest.fixture
def pull(ledger, spool, tmp_path):
    """Pull ``count`` series until no further pull starts; return the reason."""
    table = CohortTable(tmp_path / "out")
    table.open_for(PSEUDONYMS, Dates.NONE)
    collecting = Collecting("c", ledger.cohorts, spool, table, PSEUDONYMS, Dates.NONE)

    def run(archive, count=3, **limits):
        ledger.cohorts.select("c", [Selected(f"1.2.{number}", "1.2", 10) for number in range(count)])
        definition = Definition.model_construct(
            name="c", limits=Limits(**{"free_disk_gib": 0, "in_queue": 99} | limits), stored_reports=False
        )
        with Pulling(definition, archive, ledger.cohorts, tmp_path, collecting) as pulling:
            reasons = []

            def is_over():
                reasons.append(pulling.start_due())
                waiting = ledger.cohorts.to_pull("c", now_utc(), 1) or pulling._under_way
                return reasons[-1] or not waiting

            wait_until(is_over, 20)
        return reasons[-1]

    return run


def states(ledger):
    return {state: count for state, count in ledger.cohorts.counts("c").items() if count}


def test_simultaneous_pulls_stay_within_the_archives_limit(pull, ledger):
    both = threading.Barrier(2, timeout=10)

    def answer(series):
        both.wait()
        return Pulled(series.expected_count, "")

    archive = Archive(answer)
    assert pull(archive, 6, at_once=2) == ""
    assert (archive.most, len(archive.pulled)) == (2, 6)
    assert states(ledger) == {PullState.PULLED: 6}


def test_next_series_waits_for_the_hourly_limit(pull, ledger):
    archive = Archive()
    assert pull(archive, series_per_hour=2.0) == "the limit of 2 series per hour is reached"
    assert states(ledger) == {PullState.PULLED: 1, PullState.SELECTED: 2}


def test_nothing_is_pulled_outside_the_allowed_hours_or_onto_a_full_disk(pull, ledger):
    clock = now_utc().astimezone()
    before, after = (f"{clock + timedelta(hours=hours):%H:%M}" for hours in (2, 4))
    assert pull(Archive(), hours=f"{before}-{after}") == f"series are pulled only from {before}-{after}"
    assert "GiB is free" in pull(Archive(), free_disk_gib=1e9)
    assert states(ledger) == {PullState.SELECTED: 3}


def test_unreachable_archive_costs_no_attempt(pull, ledger):
    def away(_series):
        raise ConnectionLost("PACS at 10.1.2.3:104 can't be reached")

    assert "the archive is unreachable" in pull(Archive(away), 1, attempts=1)
    (series,) = ledger.cohorts.in_state("c", PullState.PULLING)
    assert (series.attempts, series.reason) == (0, "PACS at 10.1.2.3:104 can't be reached")
    assert ledger.cohorts.to_pull("c", now_utc(), 1) == ()
    assert ledger.cohorts.to_pull("c", now_utc() + timedelta(minutes=1), 1) == (series,)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Pulled(9, "1 refused: malformed data set"), "9 of 10 instances arrived (1 refused: malformed data set)"),
        (Pulled(0, ""), "0 of 10 instances arrived"),
        (NetworkError("PACS answered a C-GET with status C001"), "PACS answered a C-GET with status C001"),
    ],
)
def test_series_that_never_arrives_completely_fails_and_is_listed_with_the_reason(
    pull, ledger, tmp_path, answer, reason
):
    def respond(_series):
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert pull(Archive(respond), 2, attempts=1) == ""
    assert {each.reason for each in ledger.cohorts.in_state("c", PullState.FAILED)} == {reason}
    listed = read_without_rows(tmp_path / "out").to_pylist()
    assert [(row["outcome"], row["reason"]) for row in listed] == [("failed", reason)] * 2
    progress = progress_of(ledger.cohorts, "c")
    assert (progress.selected, progress.failed, progress.waiting) == (2, 2, 0)


def test_interrupted_pulls_come_first(pull, ledger):
    ledger.cohorts.select("c", [Selected(f"1.2.{number}", "1.2", 10) for number in range(3)])
    last = ledger.cohorts.to_pull("c", now_utc(), 3)[-1]
    ledger.cohorts.pull_started(last, now_utc())
    archive = Archive()
    pull(archive)
    assert archive.pulled == ["1.2.2", "1.2.0", "1.2.1"]


def test_ledger_is_not_locked_during_a_request_to_an_archive(ledger):
    def slow():
        for number in range(3):
            ledger.device_uid()  # a write by another process, which would otherwise wait for the lock in vain
            yield Selected(f"1.3.{number}", "1.3", None)

    ledger.cohorts.select("c", slow())
    assert states(ledger) == {PullState.SELECTED: 3}
