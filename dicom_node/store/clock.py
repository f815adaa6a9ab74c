"""The clock for all times in the ledger, and one that nobody can set."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now_utc() -> datetime:
    """The current time in UTC."""
    return datetime.now(UTC)


def uptime_s() -> float:
    """Seconds since this machine was booted, whatever its clock was set to meanwhile (clock_getres(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
