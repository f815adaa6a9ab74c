"""Retention and the disk watermark: bytes go when nobody is owed them any more, and people hear of it in time."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from dicom_node.errors import StoreUnavailable

if TYPE_CHECKING:
    from pathlib import Path

    from dicom_node.settings import OperateSettings
    from dicom_node.store.ledger import Ledger
    from dicom_node.store.spool import Spool

_PURGE_BATCH = 5000


def purge_expired(ledger: Ledger, spool: Spool, settings: OperateSettings, now: datetime) -> int:
    """Delete the spool files of series whose last job ended more than ``retention_days`` ago; returns how many."""
    names = ledger.retention.purge_due(now - timedelta(days=settings.retention_days), now, _PURGE_BATCH)
    for name in names:
        spool.delete(name)
    if names:
        structlog.get_logger().info("retention.purged", files=len(names), retention_days=settings.retention_days)
    return len(names)


class DiskWatermark:
    """Says once when the disk of the spool is too full, and once when it has room again."""

    def __init__(self, folder: Path, settings: OperateSettings, minimum_free_bytes: int = 0) -> None:
        """``minimum_free_bytes`` are kept free whatever the percentage says."""
        self._folder = folder
        self._settings = settings
        self._minimum_free_bytes = minimum_free_bytes
        self._full = False

    def refuse_when_full(self) -> None:
        """For whoever is about to write something that the sender will offer again.

        Raises:
            StoreUnavailable: the disk is above its mark. Results are still written: sending them frees space.
        """
        if self.look():
            raise StoreUnavailable(
                f"the disk of the spool is above {self._settings.disk_stop_percent:g} % "
                f"or has less than {self._minimum_free_bytes} bytes free"
            )

    def look(self) -> bool:
        """Whether the disk is above the stop mark (or has not yet come down to the resume mark).

        Raises:
            StoreUnavailable: the file system is away.
        """
        try:
            usage = shutil.disk_usage(self._folder)
        except OSError as error:
            raise StoreUnavailable(f"the disk of the spool does not answer: {error.strerror}") from error
        percent = 100.0 * usage.used / (usage.used + usage.free)
        limit = self._settings.disk_resume_percent if self._full else self._settings.disk_stop_percent
        full = percent > limit or usage.free < self._minimum_free_bytes
        if full != self._full:
            structlog.get_logger().log(
                40 if full else 20,
                "disk.watermark",
                full=full,
                used_percent=round(percent, 1),
                free_bytes=usage.free,
                stop_percent=self._settings.disk_stop_percent,
            )
        self._full = full
        return full
