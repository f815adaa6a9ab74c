"""Free space on the spool's disk; logged once when the disk is too full and once when it has space again."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING

import structlog

from dicom_node.errors import StoreUnavailable

if TYPE_CHECKING:
    from pathlib import Path

    from dicom_node.settings import OperateSettings


class DiskWatermark:
    """Tells whether the spool's disk is too full; logs each change once."""

    def __init__(self, folder: Path, settings: OperateSettings, minimum_free_bytes: int = 0) -> None:
        """``minimum_free_bytes`` are kept free regardless of the percentage."""
        self._folder = folder
        self._settings = settings
        self._minimum_free_bytes = minimum_free_bytes
        self._full = False

    def refuse_when_full(self) -> None:
        """Call this before writing something that its sender will offer again.

        Raises:
            StoreUnavailable: the disk is too full. Results are still written, because sending them frees space.
        """
        if self.look():
            raise StoreUnavailable(
                f"the spool's disk is more than {self._settings.disk_stop_percent:g} % full "
                f"or has less than {self._minimum_free_bytes} bytes free"
            )

    def look(self) -> bool:
        """Whether disk usage is above the stop mark (or has not yet fallen to the resume mark).

        Raises:
            StoreUnavailable: the file system can't be read.
        """
        percent, free_bytes = usage_of(self._folder)
        limit = self._settings.disk_resume_percent if self._full else self._settings.disk_stop_percent
        full = percent > limit or free_bytes < self._minimum_free_bytes
        if full != self._full:
            structlog.get_logger().log(
                logging.ERROR if full else logging.INFO,
                "disk.watermark",
                full=full,
                used_percent=round(percent, 1),
                free_bytes=free_bytes,
                stop_percent=self._settings.disk_stop_percent,
            )
        self._full = full
        return full


def usage_of(folder: Path) -> tuple[float, int]:
    """How much of the disk of `folder` is used, in percent of what this user may use, and how many bytes are free.

    Raises:
        StoreUnavailable: the file system can't be read.
    """
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        raise StoreUnavailable(f"the spool's disk can't be read: {error.strerror}") from error
    return 100.0 * usage.used / (usage.used + usage.free), usage.free
