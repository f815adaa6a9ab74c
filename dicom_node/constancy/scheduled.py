"""Checks that the work process makes by itself: when one is due, and no job waits for the device."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import structlog

from dicom_node.constancy.baseline import last_check, read_baseline, record_check
from dicom_node.constancy.conditions import KNOWN_BEFORE_A_RUN, conditions_of
from dicom_node.constancy.run import check
from dicom_node.constancy.subject import Subject
from dicom_node.errors import DicomNodeError, Stopping
from dicom_node.operate.schedule import Sweep
from dicom_node.store.states import JobState
from dicom_node.work.pool import Order

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping
    from pathlib import Path

    from dicom_node.settings import Settings
    from dicom_node.store.ledger import Ledger
    from dicom_node.work.pool import WorkerPool
    from inference.types import ModelIdentity, Segmentation, Volume

_LOOK_S = 60.0
_IDLE_LOOK_S = 2.0
_AFTER_FAILURE_S = 3600.0
_OVERDUE = timedelta(days=1)


def sweeps(settings: Settings, ledger: Ledger, workers: WorkerPool, stop: threading.Event) -> list[Sweep]:
    """The sweep that checks ``constancy.models``."""
    return [Sweep("constancy", _LOOK_S, Scheduled(settings, ledger, workers, stop).check_due)]


class Scheduled:
    """Checks one model after the other: when it was not checked for ``constancy.every_days``, and at the first look
    after a start if model, node, libraries, driver or processor are others than at its last check.
    """

    def __init__(self, settings: Settings, ledger: Ledger, workers: WorkerPool, stop: threading.Event) -> None:
        self._settings = settings.constancy
        self._folder = settings.constancy_folder
        self._ledger, self._workers, self._stop = ledger, workers, stop
        self._seen: set[str] = set()
        self._quiet_until: dict[str, float] = {}
        self._log = structlog.get_logger()

    def check_due(self) -> None:
        """Check the models that are due, if the node is idle; ends early when the node stops."""
        for model in self._settings.models:
            if self._stop.is_set() or time.monotonic() < self._quiet_until.get(model, 0.0):
                continue
            try:
                self._check_if_due(model, self._folder / model)
            except Stopping:
                return
            except DicomNodeError as error:
                self._quiet_until[model] = time.monotonic() + _AFTER_FAILURE_S
                self._log.error("constancy.failed", model=model, reason=str(error), error=type(error).__name__)

    def _check_if_due(self, model: str, folder: Path) -> None:
        late = self._late_by(model, folder)
        if late is None:
            return
        if not self._is_idle():
            if late > _OVERDUE:
                self._quiet_until[model] = time.monotonic() + _AFTER_FAILURE_S
                self._log.warning("constancy.overdue", model=model, days=late.days)
            return
        subject = Subject(self._workers.identity(model), lambda volume: self._segment(model, volume))
        result = check(subject, folder, lambda *_: None, self._wait_until_idle)
        record_check(folder, result.as_record())
        self._seen.add(model)
        facts = {
            "model": model,
            "digest": result.model.digest,
            "conclusion": result.conclusion,
            "exceeded": len(result.exceeded),
            "lowest_dice": round(result.lowest_dice, 6),
        }
        if result.drifted:
            self._log.error("constancy.drifted", **facts)
        else:
            self._log.info("constancy.checked", **facts)

    def _late_by(self, model: str, folder: Path) -> timedelta | None:
        """How long a check of ``model`` has been due; None if none is."""
        last = last_check(folder)
        if last is None:
            baseline = read_baseline(folder)
            last = {
                "checked_at": baseline.accepted_at,
                "model": asdict(baseline.model),
                "conditions": asdict(baseline.conditions),
            }
        due = datetime.fromisoformat(last["checked_at"]) + timedelta(days=self._settings.every_days)
        late = datetime.now(UTC) - due
        if late >= timedelta(0):
            return late
        if model not in self._seen and _has_changed(last, self._workers.identity(model)):
            return timedelta(0)
        self._seen.add(model)
        return None

    def _segment(self, model: str, volume: Volume) -> Segmentation:
        with self._workers.turn() as turn:
            return turn.infer(Order(model, volume, None), self._end_on_stop)

    def _end_on_stop(self, fraction: float, stage: str) -> None:
        del fraction, stage
        if self._stop.is_set():
            raise Stopping

    def _is_idle(self) -> bool:
        jobs = self._ledger.overview.counts().jobs
        return not (jobs.get(JobState.QUEUED, 0) or jobs.get(JobState.RUNNING, 0))

    def _wait_until_idle(self) -> None:
        while not self._is_idle():
            if self._stop.wait(_IDLE_LOOK_S):
                break
        if self._stop.is_set():
            raise Stopping


def _has_changed(last: Mapping[str, Any], model: ModelIdentity) -> bool:
    then, now = last.get("conditions", {}), asdict(conditions_of(None))
    return last.get("model") != asdict(model) or any(then.get(name) != now[name] for name in KNOWN_BEFORE_A_RUN)
