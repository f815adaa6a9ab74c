"""How an outcome is recorded in the ledger, and the notice about it."""

from __future__ import annotations

import errno
from datetime import timedelta

import pytest
import structlog
from pydicom import dcmread

from dicom_node.pipeline.attempt import Attempt
from dicom_node.pipeline.notices import Notices
from dicom_node.pipeline.outcomes import Outcome, Settling
from dicom_node.pipeline.results import Installation, ResultStore
from dicom_node.store.clock import now_utc
from dicom_node.store.states import JobState
from dicom_node.types import Completion, Decision, ResultRequest
from tests.integration.store.rows import WORKER
from tests.support.received_series import receive

REQUESTS = {"told": ResultRequest(notice=True), "untold": ResultRequest()}


@pytest.fixture
def settling(ledger, spool, reader):
    results = ResultStore(ledger.jobs, ledger.results, spool, Installation("node-1", "2.25.1"))
    return Settling(ledger.jobs, spool, Notices(spool, reader, results))


@pytest.fixture
def attempt(ledger, spool, tmp_path):
    """The first attempt of a job on a series in the spool."""
    return first_attempt(ledger, spool, tmp_path, Completion(complete=True, reason="test"))


def first_attempt(ledger, spool, tmp_path, completion):
    receive(spool, ledger, tmp_path / "ct", 1)
    (revision,) = ledger.arrivals.due_revisions(now_utc() + timedelta(days=1))
    assert ledger.arrivals.complete(revision, completion, now_utc())
    (whole,) = ledger.routing.due_revisions()
    ledger.routing.route(whole, [Decision("all", "tissue", REQUESTS, 0)], None, now_utc())
    return Attempt(ledger.jobs.claim(WORKER, now_utc(), now_utc() + timedelta(seconds=60)))


@pytest.mark.parametrize(
    ("outcome", "reason", "attempts"),
    [
        (Outcome(JobState.REJECTED, "no CT"), "no CT", 1),
        (Outcome(JobState.FAILED, "too large"), "too large (attempt 1)", 1),
        (Outcome(JobState.QUEUED, "died", pause=timedelta(hours=1)), "died", 1),
        (Outcome(JobState.QUEUED, "stopped", counts=False), "stopped", 0),
        (Outcome(JobState.QUEUED, "disk full", pause=timedelta(hours=1), counts=False), "disk full", 1),
    ],
)
def test_each_outcome_is_recorded_in_the_ledger(ledger, settling, attempt, outcome, reason, attempts):
    with structlog.testing.capture_logs() as log:
        settling.settle(attempt, outcome)
    job = ledger.overview.job(attempt.claimed.id)
    assert (job.state, job.reason, job.attempts) == (outcome.state, reason, attempts)
    assert job.not_counted == int(bool(outcome.pause) and not outcome.counts)
    (line,) = [line for line in log if line["event"] == "job"]
    assert (line["state"], line["reason"]) == (outcome.state, outcome.reason)
    is_claimable = ledger.jobs.claim(WORKER, now_utc(), now_utc()) is not None
    assert is_claimable == (not outcome.counts and not outcome.pause)


@pytest.mark.parametrize("state", [JobState.REJECTED, JobState.FAILED])
def test_destinations_that_ask_for_notices_get_one(ledger, spool, settling, attempt, state):
    settling.settle(attempt, Outcome(state, "gap of 5 mm"))
    job = ledger.overview.job(attempt.claimed.id)
    (notice,) = job.results
    assert [delivery.destination for delivery in job.deliveries] == ["told"]
    assert "gap of 5 mm" in str(dcmread(spool.path(notice.spool_name)))


def test_no_notice_is_sent_for_an_attempt_that_is_repeated(ledger, settling, attempt, result_files):
    before = result_files()
    settling.settle(attempt, Outcome(JobState.QUEUED, "died"))
    assert (ledger.overview.job(attempt.claimed.id).results, result_files()) == ((), before)


def test_outcome_of_a_lost_job_changes_nothing(ledger, settling, attempt, result_files):
    later = now_utc() + timedelta(minutes=5)
    ledger.jobs.recover_stalled(WORKER, later, 3)
    before = result_files()
    with structlog.testing.capture_logs() as log:
        settling.settle(attempt, Outcome(JobState.FAILED, "no"))
    job = ledger.overview.job(attempt.claimed.id)
    assert (job.state, job.results, result_files()) == (JobState.QUEUED, (), before)
    assert [line["state"] for line in log if line["event"] == "job"] == [JobState.SUPERSEDED]


def test_notice_that_cannot_be_written_does_not_prevent_the_outcome(ledger, spool, settling, attempt):
    for name in attempt.claimed.revision.spool_names:
        spool.path(name).write_bytes(b"Doe^John")
    with structlog.testing.capture_logs() as log:
        settling.settle(attempt, Outcome(JobState.REJECTED, "no CT"))
    assert ledger.overview.job(attempt.claimed.id).state is JobState.REJECTED
    assert [line["event"] for line in log] == ["notice.not_written", "job"]
    assert "Doe" not in str(log)


def test_job_waits_while_there_is_no_space_for_its_notice(ledger, spool, settling, attempt, monkeypatch):
    with monkeypatch.context() as full:
        full.setattr(spool.disk, "write", no_space)
        settling.settle(attempt, Outcome(JobState.REJECTED, "no CT"))
    job = ledger.overview.job(attempt.claimed.id)
    assert (job.state, job.not_counted, job.results) == (JobState.QUEUED, 1, ())
    assert job.reason == "no CT (spool: writing a result: ENOSPC)"
    again = ledger.jobs.claim(WORKER, job.not_before, job.not_before + timedelta(seconds=60))
    settling.settle(Attempt(again), Outcome(JobState.REJECTED, "no CT"))
    job = ledger.overview.job(attempt.claimed.id)
    assert (job.state, len(job.results)) == (JobState.REJECTED, 1)


def no_space(*_):
    raise OSError(errno.ENOSPC, "")


def test_log_and_ledger_say_why_a_series_may_lack_images(ledger, spool, settling, tmp_path):
    cut_short = Completion(complete=True, reason="hard limit", is_cut_short=True)
    attempt = first_attempt(ledger, spool, tmp_path, cut_short)
    with structlog.testing.capture_logs() as log:
        settling.settle(attempt, Outcome(JobState.REJECTED, "no CT"))
    said = "incomplete series. The time limit was reached while images were still expected"
    assert [line["notes"] for line in log if line["event"] == "job"] == [[said]]
    job = ledger.overview.job(attempt.claimed.id)
    assert job.notes == (said,)
    (notice,) = job.results
    assert f"I{said[1:]}.".encode() in spool.path(notice.spool_name).read_bytes()


def test_nothing_is_said_of_a_whole_series(ledger, settling, attempt):
    with structlog.testing.capture_logs() as log:
        settling.settle(attempt, Outcome(JobState.REJECTED, "no CT"))
    assert [line["notes"] for line in log if line["event"] == "job"] == [[]]
    assert ledger.overview.job(attempt.claimed.id).notes == ()
