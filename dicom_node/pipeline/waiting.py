"""How long work waits that met a fault of the machine: files that are away, a full disk, a ledger that is locked.

That says nothing of the series, so its attempts are not used up. Waits are counted, and not timed, so that neither a
restart nor a clock that is set ends them early.
"""

from __future__ import annotations

from datetime import timedelta

FIRST_PAUSE = timedelta(seconds=5)
"""Before the second attempt; doubles with each further one."""
LONGEST_PAUSE = timedelta(minutes=5)
MOST_WAITS = 290
"""With these pauses, a day."""
_MOST_DOUBLINGS = 16


def pause_after(waits: int) -> timedelta:
    """How long to wait after ``waits`` earlier waits."""
    doublings: int = min(waits, _MOST_DOUBLINGS)
    return min(FIRST_PAUSE * (1 << doublings), LONGEST_PAUSE)
