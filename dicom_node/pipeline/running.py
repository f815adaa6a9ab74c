"""Claims jobs and runs one attempt of each; every attempt ends in a recorded outcome."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from dicom_node.analysis import analyse
from dicom_node.errors import DicomNodeError, ImagesAway, Stopping, StoredBytesChanged, StoreUnavailable
from dicom_node.pipeline.attempt import Attempt
from dicom_node.pipeline.job import JobCase
from dicom_node.pipeline.lease import LEASE, lease_renewed
from dicom_node.pipeline.outcomes import outcome_of
from dicom_node.store.clock import now_utc
from dicom_node.store.states import JobState

if TYPE_CHECKING:
    from dicom_node.pipeline.job import Means
    from dicom_node.pipeline.outcomes import Outcome, Settling
    from dicom_node.store.jobs import Jobs
    from dicom_node.store.workers import WorkerName
    from dicom_node.work.gate import Pass


class Running:
    """Runs jobs; several threads may call it.

    Args:
        jobs: the queue.
        means: what all jobs share.
        settling: records the outcome of a job that ends with an error.
        worker: the name under which this process claims jobs.
        attempts: the maximum number of attempts per job.
    """

    def __init__(self, jobs: Jobs, means: Means, settling: Settling, worker: WorkerName, attempts: int) -> None:
        self._jobs = jobs
        self._means = means
        self._settling = settling
        self._worker = worker
        self._attempts = attempts
        self._log = structlog.get_logger()

    def run_next_job(self, idle_pause_s: float = 0.0) -> bool:
        """Claim the most urgent job and take it to ENCODED, REJECTED, FAILED or back into the queue.

        Returns whether there was a job. If there is none, waits ``idle_pause_s`` while holding the intake, so that only
        one thread polls the ledger.
        """
        places = self._means.places
        try:
            intake = places.intake.enter()
        except Stopping:
            return False
        with intake:
            now = now_utc()
            claimed = self._jobs.claim(self._worker, now, now + LEASE)
            if claimed is None:
                places.wait_until_closed(idle_pause_s)
                return False
            with places.job_under_way():
                self._run(Attempt(claimed), intake)
        return True

    def stop(self) -> None:
        """End the running jobs, from another thread: they are queued again, and the attempts do not count.

        A job that is already encoding finishes.
        """
        self._means.places.close()
        self._means.reader.close()
        self._means.workers.close()

    def recover_jobs(self) -> None:
        """Requeue jobs whose worker died, or fail them if they have no attempts left."""
        requeued, failed = self._jobs.recover_stalled(self._worker, now_utc(), self._attempts)
        if requeued or failed:
            self._log.warning("jobs.recovered", requeued=requeued, failed=failed)

    def _run(self, attempt: Attempt, intake: Pass) -> None:
        try:
            with lease_renewed(self._jobs, attempt):
                if attempt.is_alone:
                    with attempt.stage("wait"):
                        self._means.places.wait_for_others()
                analyse(JobCase(attempt, intake, self._means))
        except Exception as error:  # noqa: BLE001 - no job may end the node; each gets a state and a reason
            if not isinstance(error, DicomNodeError | MemoryError):
                self._log.exception("job.crashed", job=attempt.claimed.id)
            outcome = outcome_of(
                error,
                job=attempt.claimed.id,
                attempt=attempt.claimed.counted,
                waits=attempt.claimed.not_counted,
                attempts=self._attempts,
                stopping=self._means.places.is_closed,
            )
            self._note_damage(error, attempt, outcome)
            self._settling.settle(attempt, outcome)

    def _note_damage(self, error: Exception, attempt: Attempt, outcome: Outcome) -> None:
        """Images that changed, or that are not there when they are given up, may be sent again."""
        with suppress(StoreUnavailable):
            if isinstance(error, StoredBytesChanged):
                self._jobs.note_damage(error.spool_names, now_utc())
            elif isinstance(error, ImagesAway) and outcome.state is JobState.FAILED:
                missing = self._means.spool.missing(attempt.claimed.revision.files)
                self._jobs.note_damage(missing, now_utc())
