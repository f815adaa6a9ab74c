"""The lease of claimed work, renewed while it is done: what a process left undone at its death, another one does."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from dicom_node.errors import DicomNodeError
from dicom_node.store.clock import now_utc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from datetime import datetime

    from dicom_node.pipeline.attempt import Attempt
    from dicom_node.store.jobs import Jobs

LEASE = timedelta(seconds=60)
_RENEWAL_S = 1.0


def lease_renewed(jobs: Jobs, attempt: Attempt) -> AbstractContextManager[None]:
    """Renew the lease of a job and record its progress until the block ends or the job is lost."""

    def renew(until: datetime) -> bool:
        return jobs.renew_lease(attempt.claimed, until, attempt.progress, attempt.stage_name)

    return renewed(renew, _RENEWAL_S, job=attempt.claimed.id)


@contextmanager
def renewed(renew: Callable[[datetime], bool], every_s: float, **what: int | str) -> Iterator[None]:
    """Call ``renew`` with the new end of a lease until the block ends or it answers that the lease was lost.

    ``what`` it is a lease of, for the log.
    """
    ended = threading.Event()

    def renew_repeatedly() -> None:
        while not ended.wait(every_s):
            try:
                if not renew(now_utc() + LEASE):
                    return
            except DicomNodeError as error:
                structlog.get_logger().warning("lease.not_renewed", **what, reason=str(error))

    name = " ".join(f"{kind} {each}" for kind, each in what.items())
    thread = threading.Thread(target=renew_repeatedly, name=f"lease of {name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
