"""Sweeps: small periodic tasks, run independently of each other by APScheduler.

A sweep that raises is logged and runs again at its next turn. A slow sweep does not delay others and never overlaps
with itself.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from dicom_node.errors import DicomNodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, slots=True)
class Sweep:
    """A task: ``run`` is called every ``every_s`` seconds, in a thread of its own."""

    name: str
    every_s: float
    run: Callable[[], None]


class Schedule:
    """The running sweeps of one process."""

    def __init__(self, sweeps: Sequence[Sweep]) -> None:
        # APScheduler warns whenever a sweep is still running at its next turn: every second during a long delivery
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        self._scheduler = BackgroundScheduler(
            executors={"default": ThreadPoolExecutor(max(1, len(sweeps)))},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone="UTC",
        )
        for sweep in sweeps:
            self._scheduler.add_job(_guarded(sweep), "interval", seconds=sweep.every_s, id=sweep.name, name=sweep.name)

    def start(self) -> None:
        """Start the sweeps; returns immediately."""
        self._scheduler.start()

    def stop(self) -> None:
        """Start no more sweeps, and wait for those that are running."""
        self._scheduler.shutdown(wait=True)


def _guarded(sweep: Sweep) -> Callable[[], None]:
    log = structlog.get_logger().bind(sweep=sweep.name)

    def run() -> None:
        try:
            sweep.run()
        except DicomNodeError as error:
            log.warning("sweep.failed", reason=str(error), error=type(error).__name__)
        except Exception:
            log.exception("sweep.crashed")

    return run
