"""Decides the state of a job from the error that ended an attempt."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from dicom_node.errors import DicomNodeError, Disposition, Stopping, StoreFull, StoreUnavailable
from dicom_node.pipeline.waiting import FIRST_PAUSE, MOST_WAITS, pause_after
from dicom_node.store.clock import now_utc
from dicom_node.store.states import JobState

if TYPE_CHECKING:
    from dicom_node.pipeline.attempt import Attempt
    from dicom_node.pipeline.notices import Notices
    from dicom_node.pipeline.results import StoredResults
    from dicom_node.store.jobs import Jobs
    from dicom_node.store.spool import Spool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happens to a job whose attempt ended with an error.

    ``pause``: how long to wait before the next attempt, if there is one. ``counts``: whether the attempt counts towards
    the limit.
    """

    state: JobState
    reason: str
    pause: timedelta = timedelta()
    counts: bool = True


def outcome_of(error: Exception, *, job: int, attempt: int, attempts: int, waits: int, stopping: bool) -> Outcome:
    """The outcome of ``error`` in attempt ``attempt`` (of at most ``attempts``) of job ``job``.

    ``waits``: how many other attempts did not count. ``stopping``: the node is stopping, which may have caused the
    error.
    """
    disposition, reason = _disposition(error, job)
    if disposition is Disposition.REJECT:
        return Outcome(JobState.REJECTED, reason)
    if isinstance(error, Stopping) or (disposition is Disposition.RETRY and stopping):
        return Outcome(JobState.QUEUED, "the node was stopped; the job is queued again", counts=False)
    if isinstance(error, StoreUnavailable):
        if waits >= MOST_WAITS and not isinstance(error, StoreFull):
            return Outcome(JobState.FAILED, f"{reason}; given up after a day")
        return Outcome(JobState.QUEUED, reason, pause=pause_after(waits), counts=False)
    if disposition is Disposition.RETRY and attempt < attempts:
        return Outcome(JobState.QUEUED, reason, pause=FIRST_PAUSE * 2 ** (attempt - 1))
    return Outcome(JobState.FAILED, reason)


def _disposition(error: Exception, job: int) -> tuple[Disposition, str]:
    match error:
        case DicomNodeError():
            return error.disposition, str(error)
        case MemoryError():
            return Disposition.RETRY, "out of memory"
        case _:  # only the type: the message may quote patient data
            return Disposition.FAIL, f"unexpected error ({type(error).__name__}); see the log of job {job}"


class Settling:
    """Records outcomes in the ledger, with the notices that destinations request."""

    def __init__(self, jobs: Jobs, spool: Spool, notices: Notices) -> None:
        self._jobs = jobs
        self._spool = spool
        self._notices = notices

    def settle(self, attempt: Attempt, outcome: Outcome) -> None:
        """RUNNING -> the state of ``outcome``; writes nothing if the job was lost to another worker.

        If there is no space for a notice, the job waits, and is tried again when there is.
        """
        claimed = attempt.claimed
        notices: StoredResults = []
        if outcome.state is not JobState.QUEUED:
            try:
                notices = self._notices.write(claimed.revision, claimed.model, outcome.reason, claimed.requests)
            except StoreFull as error:
                pause = pause_after(claimed.not_counted)
                outcome = Outcome(JobState.QUEUED, f"{outcome.reason} ({error})", pause=pause, counts=False)
        changed = self._record(attempt, outcome, notices)
        if not changed:
            self._spool.discard(notices)
        state = outcome.state if changed else JobState.SUPERSEDED
        attempt.log(state, outcome.reason, [notice for notice, _ in notices])

    def _record(self, attempt: Attempt, outcome: Outcome, notices: StoredResults) -> bool:
        claimed, now = attempt.claimed, now_utc()
        if outcome.state is JobState.REJECTED:
            return self._jobs.rejected(claimed, outcome.reason, now, notices)
        if outcome.state is JobState.FAILED:
            return self._jobs.failed(claimed, f"{outcome.reason} (attempt {claimed.counted})", now, notices)
        if not (outcome.counts or outcome.pause):  # the node is stopping
            return self._jobs.give_back(claimed, outcome.reason)
        return self._jobs.put_back(claimed, outcome.reason, now + outcome.pause, counts=outcome.counts)
