"""Decides what to try when memory runs out: smaller batches, then sums on the host, then the CPU. Uses no device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from inference.types import RunNote

Place = Literal["device", "host sums", "cpu"]
"""``device``: everything runs there. ``host sums``: only the network does. ``cpu``: nothing does."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the work is done, and the number of windows at a time."""

    place: Place
    batch: int


class MemoryFallback:
    """Batches of ``batch`` windows on the device, halved down to 1, then sums on the host, then the CPU.

    A step is never taken back: what did not fit for one part of a model will not fit for the next.
    """

    def __init__(self, batch: int) -> None:
        if batch < 1:
            raise ValueError(f"a batch needs at least one window, not {batch}")
        self._placement = Placement("device", batch)

    @property
    def placement(self) -> Placement:
        """The first placement that has not failed."""
        return self._placement

    def reduce(self, work: str, reason: str, *, leave_device: bool = False) -> RunNote | None:
        """Switch to the next placement with less memory, because ``work`` ran out of it; None if there is none.

        The note reports the switch. Smaller batches do not change the arithmetic; the other placements may round sums
        differently. ``leave_device``: smaller batches would not help, because the batch was not what failed.
        """
        smaller = self._smaller(leave_device=leave_device)
        if smaller is None:
            return None
        failed, chosen = _described(self._placement), _described(smaller)
        self._placement = smaller
        text = f"{work}: {failed} failed ({reason}); continued with {chosen}"
        return RunNote(text, changes_answer=smaller.place != "device")

    def _smaller(self, *, leave_device: bool) -> Placement | None:
        match self._placement:
            case Placement("device", batch) if batch > 1 and not leave_device:
                return Placement("device", batch // 2)
            case Placement("device"):
                return Placement("host sums", 1)
            case Placement("host sums"):
                return Placement("cpu", 1)
        return None


def _described(placement: Placement) -> str:
    match placement.place:
        case "device":
            return f"{placement.batch} windows at a time" if placement.batch > 1 else "one window at a time"
        case "host sums":
            return "sums on the host"
        case "cpu":
            return "the CPU"
