"""The clock for all times in the ledger, and one that nobody can set."""

from __future__ import annotations

import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock:
    """The clock of this machine."""

    def now_ns(self) -> int:
        """Nanoseconds since 1970-01-01 UTC, as the clock is set."""
        return time.time_ns()

    def uptime_s(self) -> float:
        """Seconds since this machine was booted, whatever its clock was set to meanwhile (clock_getres(2))."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)


_clocks = [Clock()]


def now_utc() -> datetime:
    """The current time in UTC."""
    return _EPOCH + timedelta(microseconds=now_ns() // 1000)


def now_ns() -> int:
    """Nanoseconds since 1970-01-01 UTC, the time scale of files."""
    return _clocks[-1].now_ns()


def uptime_s() -> float:
    """Seconds since this machine was booted, whatever its clock was set to meanwhile."""
    return _clocks[-1].uptime_s()


@contextmanager
def told_by(clock: Clock) -> Iterator[None]:
    """Have all times told by ``clock`` during the block; for simulations."""
    _clocks.append(clock)
    try:
        yield
    finally:
        _clocks.pop()
