"""How an attempt ends, and the resulting state of its job."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node import errors
from dicom_node.errors import (
    DicomNodeError,
    Disposition,
    NotEligible,
    SegmentationImpossible,
    Stopping,
    StoreFull,
    StoreUnavailable,
    WorkerLost,
)
from dicom_node.pipeline.outcomes import Outcome, outcome_of
from dicom_node.pipeline.waiting import FIRST_PAUSE, LONGEST_PAUSE, MOST_WAITS, pause_after
from dicom_node.store.states import JobState

PARTS = {"job": 7, "attempt": 1, "attempts": 3, "waits": 0, "stopping": False}
STOPPED = Outcome(JobState.QUEUED, "the node was stopped; the job is queued again", counts=False)


def every_error() -> list[type[DicomNodeError]]:
    return [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, DicomNodeError)]


def made(kind: type[DicomNodeError]) -> DicomNodeError:
    """An error of that class, whatever arguments its constructor needs."""
    error = kind.__new__(kind)
    Exception.__init__(error, "why")
    return error


@pytest.mark.parametrize("kind", every_error())
def test_each_error_class_has_its_outcome(kind):
    expected = {
        Disposition.REJECT: Outcome(JobState.REJECTED, "why"),
        Disposition.RETRY: Outcome(
            JobState.QUEUED, "why", pause=FIRST_PAUSE, counts=not issubclass(kind, StoreUnavailable)
        ),
        Disposition.FAIL: Outcome(JobState.FAILED, "why"),
    }[kind.disposition]
    assert outcome_of(made(kind), **PARTS) == (STOPPED if kind is Stopping else expected)


@given(st.integers(1, 12))
def test_pause_doubles_with_each_attempt(attempt):
    outcome = outcome_of(WorkerLost("died"), **PARTS | {"attempt": attempt, "attempts": attempt + 1})
    assert outcome.pause == timedelta(seconds=5) * 2 ** (attempt - 1)
    assert outcome.counts


def test_error_in_the_last_attempt_fails_the_job():
    assert outcome_of(WorkerLost("died"), **PARTS | {"attempt": 3}) == Outcome(JobState.FAILED, "died")


@given(waits=st.integers(0, MOST_WAITS - 1), attempt=st.integers(1, 3))
def test_fault_of_the_machine_is_waited_out_without_using_up_attempts(waits, attempt):
    outcome = outcome_of(StoreUnavailable("EIO"), **PARTS | {"waits": waits, "attempt": attempt})
    assert outcome == Outcome(JobState.QUEUED, "EIO", pause=pause_after(waits), counts=False)


def test_fault_of_a_day_is_shown_to_a_person_but_not_lack_of_space():
    pauses = [pause_after(waits) for waits in range(MOST_WAITS)]
    assert timedelta(hours=23) < sum(pauses, timedelta()) < timedelta(hours=25)
    assert sorted(pauses) == pauses
    assert (pauses[0], pauses[-1]) == (FIRST_PAUSE, LONGEST_PAUSE)
    gone, full = (outcome_of(kind("why"), **PARTS | {"waits": MOST_WAITS}) for kind in (StoreUnavailable, StoreFull))
    assert gone == Outcome(JobState.FAILED, "why; given up after a day")
    assert full == Outcome(JobState.QUEUED, "why", pause=LONGEST_PAUSE, counts=False)


@pytest.mark.parametrize("error", [Stopping(), WorkerLost("died"), StoreUnavailable("away"), MemoryError()])
def test_attempt_interrupted_by_a_stop_does_not_count(error):
    assert outcome_of(error, **PARTS | {"attempt": 3, "stopping": True}) == STOPPED


@pytest.mark.parametrize(
    ("error", "state"),
    [(NotEligible("no CT"), JobState.REJECTED), (SegmentationImpossible("too small"), JobState.FAILED)],
)
def test_final_outcome_is_final_even_during_a_stop(error, state):
    assert outcome_of(error, **PARTS | {"stopping": True}).state is state


def test_lack_of_memory_is_tried_again():
    assert outcome_of(MemoryError(), **PARTS) == Outcome(JobState.QUEUED, "out of memory", pause=FIRST_PAUSE)


def test_unexpected_error_is_not_quoted():
    outcome = outcome_of(ValueError("Doe^John is no number"), **PARTS)
    assert outcome == Outcome(JobState.FAILED, "unexpected error (ValueError); see the log of job 7")
