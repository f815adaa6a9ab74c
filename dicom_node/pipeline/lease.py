"""The lease of a running job, renewed during the work: a job whose process died goes to another worker."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from dicom_node.errors import DicomNodeError
from dicom_node.store.clock import now_utc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dicom_node.pipeline.attempt import Attempt
    from dicom_node.store.jobs import Jobs

LEASE = timedelta(seconds=60)
_RENEWAL_S = 1.0


@contextmanager
def lease_renewed(jobs: Jobs, attempt: Attempt) -> Iterator[None]:
    """Renew the lease and record the progress until the block ends or the job is lost."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(_RENEWAL_S):
            try:
                if not jobs.renew_lease(attempt.claimed, now_utc() + LEASE, attempt.progress, attempt.stage_name):
                    return
            except DicomNodeError as error:
                structlog.get_logger().warning("lease.not_renewed", job=attempt.claimed.id, reason=str(error))

    thread = threading.Thread(target=renew, name=f"lease of job {attempt.claimed.id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
