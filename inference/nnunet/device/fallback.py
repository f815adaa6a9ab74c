"""What is tried next when memory runs out: smaller batches, then sums on the host, then the CPU. Knows no device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from inference.types import RunNote

Place = Literal["device", "host sums", "cpu"]
"""``device``: everything. ``host sums``: only the network runs on the device. ``cpu``: nothing does."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the work is done, and how many windows at a time."""

    place: Place
    batch: int


class MemoryFallback:
    """Batches of ``batch`` windows on the device, halved down to 1, then the host's sums, then the CPU.

    A choice is never taken back: what did not fit for one part of a model will not fit for the next.
    """

    def __init__(self, batch: int) -> None:
        if batch < 1:
            raise ValueError(f"a batch holds at least one window, not {batch}")
        self._placement = Placement("device", batch)

    @property
    def placement(self) -> Placement:
        """The first placement that has not failed."""
        return self._placement

    def reduce(self, work: str, reason: str, *, leave_device: bool = False) -> RunNote | None:
        """Choose the placement that needs less memory, because ``work`` ran out of it; None where there is none.

        The note says so. Smaller batches leave the arithmetic as it is; elsewhere sums may round in another way.
        ``leave_device``: smaller batches would not help, for the batch was not what failed.
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
