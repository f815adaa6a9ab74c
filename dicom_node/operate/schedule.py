"""Sweeps: small periodic tasks, each in a thread of its own.

A sweep that raises is logged and runs again at its next turn. A slow sweep does not delay others and never overlaps
with itself. The time between two turns is elapsed time, whatever the clock of the machine is set to. This is why it is
not APScheduler 3, which computes every next run from the time of day: when the clock was set back, nothing was
completed, routed or sent until it had caught up.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from itertools import chain, repeat
from typing import TYPE_CHECKING

import structlog

from dicom_node.errors import DicomNodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, slots=True)
class Sweep:
    """A task: ``run`` is called every ``every_s`` seconds, for the first time after as many.

    ``first_pauses_s``: seconds before each of its first turns, where they are others.
    """

    name: str
    every_s: float
    run: Callable[[], None]
    first_pauses_s: tuple[float, ...] = ()


class Schedule:
    """The running sweeps of one process."""

    def __init__(self, sweeps: Sequence[Sweep]) -> None:
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(sweep,), name=f"sweep {sweep.name}", daemon=True)
            for sweep in sweeps
        ]

    def start(self) -> None:
        """Start the sweeps; returns immediately."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Start no more sweeps, and wait for those that are running."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, sweep: Sweep) -> None:
        log = structlog.get_logger().bind(sweep=sweep.name)
        for pause_s in chain(sweep.first_pauses_s, repeat(sweep.every_s)):
            if self._stopping.wait(pause_s):
                return
            try:
                sweep.run()
            except DicomNodeError as error:
                log.warning("sweep.failed", reason=str(error), error=type(error).__name__)
            except Exception:
                log.exception("sweep.crashed")
