"""When a failed delivery is tried again, as pure functions of the attempts so far.

There are two schedules. A destination that is away, busy or out of resources is tried for days (exponential back-off
with jitter). An object that a destination refuses is offered a few times within an hour, because people may correct
the configuration of their archive, and is then FAILED.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from dicom_node.settings import DeliverySettings

REFUSALS_SPREAD_OVER = timedelta(hours=1)
_SHORTEST_S = 1e-3
"""Two clocks differ by more: no attempt is made for so little time that is left."""


def next_attempt(
    *,
    attempts: int,
    refusals: int,
    refused: bool,
    waited_s: float,
    now: datetime,
    policy: DeliverySettings,
    give_up_after_s: float,
    jitter: float,
) -> datetime | None:
    """When to try again after an attempt that was ``refused`` or failed transiently; None: the delivery is FAILED.

    ``attempts`` and ``refusals`` include this attempt. ``waited_s`` have passed since the first one, by a clock that
    nobody can set.
    """
    if refused:
        return after_refusal(refusals=refusals, now=now, policy=policy, jitter=jitter)
    return after_delay(
        attempts=attempts,
        waited_s=waited_s,
        now=now,
        policy=policy,
        give_up_after_s=give_up_after_s,
        jitter=jitter,
    )


def after_delay(
    *,
    attempts: int,
    waited_s: float,
    now: datetime,
    policy: DeliverySettings,
    give_up_after_s: float,
    jitter: float,
) -> datetime | None:
    """When to try again after ``attempts`` (>= 1) transient failures in ``waited_s``; None: give up.

    The wait doubles from ``policy.first_retry_s`` to ``policy.longest_retry_s``; ``jitter`` (0..1, drawn by the caller)
    shortens it by up to half, so that many results are not retried in one burst. The last attempt is made exactly at
    the deadline, ``give_up_after_s`` after the first.
    """
    _check(attempts, jitter)
    left_s = give_up_after_s - waited_s
    if left_s < _SHORTEST_S:
        return None
    doublings = min(attempts - 1, 60)  # more than any sensible limit; keeps the power finite
    whole_s = min(policy.longest_retry_s, policy.first_retry_s * 2.0**doublings)
    return now + timedelta(seconds=min(whole_s * (1.0 - jitter / 2.0), left_s))


def after_refusal(*, refusals: int, now: datetime, policy: DeliverySettings, jitter: float) -> datetime | None:
    """When to offer an object again that was refused ``refusals`` (>= 1) times; None: it is FAILED.

    ``policy.refused_attempts`` offers are spread over an hour; ``jitter`` (0..1) shortens a wait by up to a tenth.
    """
    _check(refusals, jitter)
    if refusals >= policy.refused_attempts:
        return None
    return now + REFUSALS_SPREAD_OVER / (policy.refused_attempts - 1) * (1.0 - jitter / 10.0)


def _check(count: int, jitter: float) -> None:
    if count < 1 or not 0.0 <= jitter <= 1.0:
        raise ValueError(f"expected a count >= 1 and a jitter within 0..1, not {count} and {jitter}")
