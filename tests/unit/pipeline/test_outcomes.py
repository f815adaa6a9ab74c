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
    """An error of that class, whatever arguments its constructor needs."""
    error = kind.__new__(kind)
    Exception.__init__(error, "why")
    return error


@pytest.mark.parametrize("kind", every_error())
def test_each_error_class_has_its_outcome(kind):
    expected = {
        Disposition.REJECT: Outcome(JobState.REJECTED, "why"),
        Disposition.RETRY: Outcome(JobState.QUEUED, "why", pause=FIRST_PAUSE),
        Disposition.FAIL: Outcome(JobState.FAILED, "why"),
    }[kind.disposition]
    assert outcome_of(made(kind), **PARTS) == (STOPPED if kind is Stopping else expected)


@given(st.integers(1, 12))
def test_pause_doubles_with_each_attempt(attempt):
    outcome = outcome_of(WorkerLost("died"), **PARTS | {"attempt": attempt, "attempts": attempt + 1})
    assert outcome.pause == timedelta(seconds=5) * 2 ** (attempt - 1)
    assert outcome.counts


@pytest.mark.parametrize("error", [WorkerLost("died"), StoreUnavailable("disk full")])
def test_error_in_the_last_attempt_fails_the_job(error):
    assert outcome_of(error, **PARTS | {"attempt": 3}) == Outcome(JobState.FAILED, str(error))


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
