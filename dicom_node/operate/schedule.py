"""Sweeps: small pieces of work that are done again and again, each on its own, by APScheduler.

A sweep that raises is logged and comes again; a slow one delays no other and is never run twice at the same time.
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
    """``run`` is called every ``every_s`` seconds, in a thread of its own."""

    name: str
    every_s: float
    run: Callable[[], None]


class Schedule:
    """The running sweeps of one process."""

    def __init__(self, sweeps: Sequence[Sweep]) -> None:
        # it warns whenever a sweep still runs as its next turn comes: every second of every long delivery
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        self._scheduler = BackgroundScheduler(
            executors={"default": ThreadPoolExecutor(max(1, len(sweeps)))},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone="UTC",
        )
        for sweep in sweeps:
            self._scheduler.add_job(_guarded(sweep), "interval", seconds=sweep.every_s, id=sweep.name, name=sweep.name)

    def start(self) -> None:
        """Begin; returns at once."""
        self._scheduler.start()

    def stop(self) -> None:
        """Let the sweeps that run end, and start no more."""
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
