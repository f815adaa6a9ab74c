"""Records what happens while one volume is segmented, for the report of the run."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from inference.types import RunNote, RunReport

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from inference.nnunet.contract import OpenPart, Runtime

_T = TypeVar("_T")


class RunRecord:
    """The record of one run; ``stage_seconds`` holds the wall seconds already spent on the volume."""

    def __init__(self, stage_seconds: Mapping[str, float]) -> None:
        self._seconds: dict[str, float] = defaultdict(float, stage_seconds)
        self._notes: dict[RunNote, None] = {}
        self._runtimes: dict[Runtime, None] = {}

    def note(self, *notes: RunNote) -> None:
        """Record that something went otherwise than planned; equal notes count once."""
        self._notes |= dict.fromkeys(notes)

    def ran(self, part: OpenPart) -> None:
        """Record what ran a part, once its labels are written."""
        self.note(*part.notes)
        self._runtimes |= dict.fromkeys(network.runtime for network in part.networks)

    def begin_again(self) -> None:
        """Forget what ran so far, because its labels are discarded; its time still counts."""
        self._runtimes.clear()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of the block to ``stage``, even if it fails."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[stage] += time.perf_counter() - start

    def timed_items(self, stage: str, items: Iterator[_T]) -> Iterator[_T]:
        """Yield the items and add the time that each takes to arrive to ``stage``."""
        while True:
            with self.timed(stage):
                item = next(items, None)
            if item is None:
                return
            yield item

    def report(self) -> RunReport:
        """The report; several backends, devices or precisions are joined by commas."""
        backends, devices, precisions = (
            ", ".join(dict.fromkeys(getattr(runtime, kind) for runtime in self._runtimes))
            for kind in ("backend", "device", "precision")
        )
        return RunReport(backends, devices, precisions, tuple(self._notes), dict(self._seconds))
