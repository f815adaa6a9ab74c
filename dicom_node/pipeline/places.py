"""How many jobs may be where: at each of three places there is one at a time.

::

    intake ─ claim ▸ read ▸ reconstruct ▸ prepare ─▶ device ─ infer ─▶ encoding ─ measure ▸ encode ▸ store

A job leaves the intake when it reaches the device, so that no more than one volume waits for it.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dicom_node.errors import Stopping
from dicom_node.work.gate import Gate

if TYPE_CHECKING:
    from collections.abc import Iterator


class Places:
    """The intake, the place for encoding, and the count of jobs under way. The device belongs to the worker pool."""

    def __init__(self) -> None:
        self.intake = Gate()
        self.encoding = Gate()
        self._changed = threading.Condition()
        self._under_way = 0
        self._closed = False

    @contextmanager
    def job_under_way(self) -> Iterator[None]:
        """Count the block as a job."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def wait_for_others(self) -> None:
        """Wait until the caller's job is the only one; while it holds the intake no other will come.

        Raises:
            Stopping: the node is stopped meanwhile.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._under_way == 1 or self._closed)
            if self._closed:
                raise Stopping

    def wait_until_closed(self, limit_s: float) -> None:
        """Wait until the node is stopped, ``limit_s`` at most."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed, limit_s)

    @property
    def is_closed(self) -> bool:
        """Whether the node is being stopped."""
        return self._closed

    def close(self) -> None:
        """Turn away whoever waits and whoever comes; the job that is being encoded is left alone."""
        self.intake.close()
        self.encoding.close()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _count(self, by: int) -> None:
        with self._changed:
            self._under_way += by
            self._changed.notify_all()
