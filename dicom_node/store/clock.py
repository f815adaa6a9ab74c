"""The clock for all times in the ledger, and one that nobody can set."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST_WAIT = timedelta(days=30)
"""A wait that ends later than this was written before the clock was set back, and is over."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Clock:
    """The clock of this machine."""

    def now_ns(self) -> int:
        """Nanoseconds since 1970-01-01 UTC, as the clock is set."""
        return time.time_ns()

    def uptime_s(self) -> float:
        """Seconds since this machine was booted, whatever its clock was set to meanwhile (clock_getres(2))."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def boot_id(self) -> str:
        """Identifies the boot since which the uptime is counted (random(4)).

        Raises:
            OSError: ``/proc`` can't be read.
        """
        return _boot_id()


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


def boot_id() -> str:
    """Identifies this boot of this machine.

    Raises:
        OSError: ``/proc`` can't be read.
    """
    return _clocks[-1].boot_id()


@dataclass(frozen=True, slots=True)
class Moment:
    """Now, by the clock and by what nobody can set."""

    at: datetime
    boot_id: str
    uptime_s: float

    @classmethod
    def now(cls) -> Self:
        """This moment.

        Raises:
            OSError: ``/proc`` can't be read.
        """
        return cls(now_utc(), boot_id(), uptime_s())


@contextmanager
def told_by(clock: Clock) -> Iterator[None]:
    """Have all times told by ``clock`` during the block; for simulations."""
    _clocks.append(clock)
    try:
        yield
    finally:
        _clocks.pop()


@cache
def _boot_id() -> str:
    return _BOOT_ID.read_text("ascii").strip()
