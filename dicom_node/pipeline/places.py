"""Limits on concurrent jobs: each of three places admits one job at a time.

::

    intake ─ claim ▸ read ▸ reconstruct ▸ prepare ─▶ device ─ infer ─▶ encoding ─ measure ▸ encode ▸ store

A job leaves the intake when it reaches the device, so that at most one volume waits for the device.
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
    """The intake, the place for encoding, and the number of running jobs. The device belongs to the worker pool."""

    def __init__(self) -> None:
        self.intake = Gate()
        self.encoding = Gate()
        self._changed = threading.Condition()
        self._under_way = 0
        self._closed = False

    @contextmanager
    def job_under_way(self) -> Iterator[None]:
        """Count one more running job during the block."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def wait_for_others(self) -> None:
        """Wait until the caller's job is the only one; no other can start while it holds the intake.

        Raises:
            Stopping: the node is stopping.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._under_way == 1 or self._closed)
            if self._closed:
                raise Stopping

    def wait_until_closed(self, limit_s: float) -> None:
        """Wait until the node is stopping, at most ``limit_s``."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed, limit_s)

    @property
    def is_closed(self) -> bool:
        """Whether the node is stopping."""
        return self._closed

    def close(self) -> None:
        """Turn away all current and future waiters; a job that is already encoding finishes."""
        self.intake.close()
        self.encoding.close()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _count(self, by: int) -> None:
        with self._changed:
            self._under_way += by
            self._changed.notify_all()
