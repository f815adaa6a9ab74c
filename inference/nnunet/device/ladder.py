"""What is tried next when memory runs out: smaller batches, then sums on the host, then the CPU. Knows no device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Place = Literal["device", "host sums", "cpu"]
"""``device``: everything. ``host sums``: only the network runs on the device. ``cpu``: nothing does."""
_ALLOCATION_FAILED = (
    "out of memory",
    "cudaerrormemoryallocation",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cudnn_status_internal_error_host_allocation_failed",
    "unable to find an engine to execute this computation",  # cuDNN, when no plan's workspace fits
    "can't allocate memory",  # torch's allocator of CPU memory
)


@dataclass(frozen=True, slots=True)
class Rung:
    """Where the work is done, and how many windows at a time."""

    place: Place
    batch: int


class Ladder:
    """Batches of ``batch`` windows on the device, halved down to 1, then the host's sums, then the CPU.

    ``notes`` says in plain words why each step was taken. A step is never taken back: what did not fit for one part of
    a model will not fit for the next.
    """

    def __init__(self, batch: int) -> None:
        if batch < 1:
            raise ValueError(f"a batch holds at least one window, not {batch}")
        self._rung = Rung("device", batch)
        self._notes: list[str] = []

    @property
    def rung(self) -> Rung:
        """The highest rung that has not failed."""
        return self._rung

    @property
    def notes(self) -> tuple[str, ...]:
        """One sentence for each step down."""
        return tuple(self._notes)

    def step_down(self, work: str, reason: str, *, leave_device: bool = False) -> bool:
        """Go one rung down because ``work`` ran out of memory; False where there is none below.

        ``leave_device``: smaller batches would not help, for the batch was not what failed.
        """
        below = self._below(leave_device=leave_device)
        if below is None:
            return False
        self._notes.append(f"{work}: {_described(self._rung)} failed ({reason}); went on with {_described(below)}")
        self._rung = below
        return True

    def _below(self, *, leave_device: bool) -> Rung | None:
        match self._rung:
            case Rung("device", batch) if batch > 1 and not leave_device:
                return Rung("device", batch // 2)
            case Rung("device"):
                return Rung("host sums", 1)
            case Rung("host sums"):
                return Rung("cpu", 1)
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory could not be allocated, in the words of torch, CUDA, cuBLAS or cuDNN."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in message for words in _ALLOCATION_FAILED)


def _described(rung: Rung) -> str:
    match rung.place:
        case "device":
            return f"{rung.batch} windows at a time" if rung.batch > 1 else "one window at a time"
        case "host sums":
            return "sums on the host"
        case "cpu":
            return "the CPU"
