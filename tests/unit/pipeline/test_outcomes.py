"""What ends an attempt, and the state that its job gets."""

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
    StoreUnavailable,
    WorkerLost,
)
from dicom_node.pipeline.outcomes import FIRST_PAUSE, Outcome, outcome_of
from dicom_node.store.states import JobState

PARTS = {"job": 7, "attempt": 1, "attempts": 3, "stopping": False}
STOPPED = Outcome(JobState.QUEUED, "the node was stopped; the job is queued again", counts=False)


def every_error() -> list[type[DicomNodeError]]:
    return [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, DicomNodeError)]


def made(kind: type[DicomNodeError]) -> DicomNodeError:
    """An error of that class, whatever its constructor wants."""
    error = kind.__new__(kind)
    Exception.__init__(error, "why")
    return error


@pytest.mark.parametrize("kind", every_error())
def test_each_class_ends_as_it_says(kind):
    expected = {
        Disposition.REJECT: Outcome(JobState.REJECTED, "why"),
        Disposition.RETRY: Outcome(JobState.QUEUED, "why", pause=FIRST_PAUSE),
        Disposition.FAIL: Outcome(JobState.FAILED, "why"),
    }[kind.disposition]
    assert outcome_of(made(kind), **PARTS) == (STOPPED if kind is Stopping else expected)


@given(st.integers(1, 12))
def test_the_pause_doubles_with_each_attempt(attempt):
    outcome = outcome_of(WorkerLost("died"), **PARTS | {"attempt": attempt, "attempts": attempt + 1})
    assert outcome.pause == timedelta(seconds=5) * 2 ** (attempt - 1)
    assert outcome.counts


@pytest.mark.parametrize("error", [WorkerLost("died"), StoreUnavailable("disk full")])
def test_the_last_attempt_fails(error):
    assert outcome_of(error, **PARTS | {"attempt": 3}) == Outcome(JobState.FAILED, str(error))


@pytest.mark.parametrize("error", [Stopping(), WorkerLost("died"), StoreUnavailable("away"), MemoryError()])
def test_what_a_stop_interrupts_does_not_count(error):
    assert outcome_of(error, **PARTS | {"attempt": 3, "stopping": True}) == STOPPED


@pytest.mark.parametrize(
    ("error", "state"),
    [(NotEligible("no CT"), JobState.REJECTED), (SegmentationImpossible("too small"), JobState.FAILED)],
)
def test_what_is_final_is_final_during_a_stop_too(error, state):
    assert outcome_of(error, **PARTS | {"stopping": True}).state is state


def test_memory_may_be_there_another_time():
    assert outcome_of(MemoryError(), **PARTS) == Outcome(JobState.QUEUED, "out of memory", pause=FIRST_PAUSE)


def test_an_unexpected_error_is_not_quoted():
    outcome = outcome_of(ValueError("Doe^John is no number"), **PARTS)
    assert outcome == Outcome(JobState.FAILED, "unexpected error (ValueError); see the log of job 7")
