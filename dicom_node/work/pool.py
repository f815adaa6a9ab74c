"""The models of a node: which of them are in memory, and which one may use the device.

A model is loaded when a volume comes for it and stays until memory is wanted for another one; the one that was not used
for the longest time goes first. One volume is inferred at a time, so that two models never compete for one device.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import structlog

from dicom_node.errors import DicomNodeError, Stopping
from dicom_node.work.gate import Gate
from dicom_node.work.local import LocalWorker
from dicom_node.work.memory import machine_bytes, resident_bytes
from dicom_node.work.models import estimated_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from dicom_node.settings import NnunetModelSettings, TissueModelSettings, WorkSettings
    from dicom_node.work.gate import Pass
    from dicom_node.work.local import PreparedVolume
    from inference.types import Segmentation, Volume

    OnProgress = Callable[[float, str], None]

_LOOK_S = 1.0
"""So often is memory looked at while a volume is inferred: a worker grows then."""
_MIB = 1024**2


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """A volume for a model; ``prepared`` is None where all is left to the turn on the device."""

    model: str
    volume: Volume
    prepared: PreparedVolume | None


class _Resident:
    """A model and what the pool knows about its worker; guarded by the pool."""

    def __init__(self, worker: LocalWorker, expected_bytes: int) -> None:
        self.worker = worker
        self.expected_bytes = expected_bytes
        """What it will hold once it is loaded: the estimate of its package, then what it held the last time."""
        self.calls = 0
        self.last_used = 0.0
        self.process_id: int | None = None
        """Of the worker that was last reported."""

    @property
    def is_present(self) -> bool:
        return self.calls > 0 or self.worker.process_id is not None

    @property
    def held_bytes(self) -> int:
        process_id = self.worker.process_id
        held = 0 if process_id is None else resident_bytes(process_id)
        return held if self.worker.is_loaded else max(held, self.expected_bytes)


class WorkerPool:
    """One :class:`~dicom_node.work.local.LocalWorker` per model of the configuration, within the bound on memory.

    Args:
        models: the settings of every model, by name.
        work: device, threads, limits, and the part of the memory that the models may hold together.
    """

    def __init__(self, models: Mapping[str, TissueModelSettings | NnunetModelSettings], work: WorkSettings) -> None:
        self._residents = {
            name: _Resident(LocalWorker(name, model, work), estimated_bytes(model)) for name, model in models.items()
        }
        self._part = work.resident_memory_percent / 100
        self._limit_bytes = self._part * machine_bytes()
        self._device = Gate()
        self._changed = threading.Condition()
        self._closed = False
        self._log = structlog.get_logger()

    def __contains__(self, model: object) -> bool:
        return model in self._residents

    def prepare(self, model: str, volume: Volume, on_progress: OnProgress) -> Order:
        """Have the worker of ``model`` do what it can beside the inference of another volume.

        Nothing is done, and all is left to the turn on the device, where its model is not loaded and would not fit
        beside those in use.

        Raises:
            WorkerLost: the worker died, froze, broke or took longer than allowed.
            SegmentationImpossible: the model refuses the volume, or cannot be loaded.
        """
        resident = self._residents[model]
        if not self._begin(resident, may_wait=False):
            return Order(model, volume, None)
        try:
            return Order(model, volume, resident.worker.prepare(volume, on_progress))
        finally:
            self._end(resident)

    def turn(self) -> Turn:
        """Wait for the device, first come, first served.

        Raises:
            Stopping: the pool was closed meanwhile.
        """
        return Turn(self, self._device.enter())

    def load(self, model: str) -> None:
        """Load ``model`` if there is room; a failure is logged, and met again by the first volume."""
        resident = self._residents[model]
        try:
            if not self._begin(resident, may_wait=False):
                self._log.warning("worker.not_preloaded", model=model, reason="not enough memory", **self.state())
                return
            try:
                resident.worker.identity()
            finally:
                self._end(resident)
        except DicomNodeError as error:
            self._log.warning("worker.not_preloaded", model=model, reason=str(error))

    def state(self) -> dict[str, object]:
        """For the log: what each model in memory holds, the longest unused first, and the bound."""
        names = {id(resident): name for name, resident in self._residents.items()}
        with self._changed:
            return {
                "residents_mib": {names[id(one)]: round(one.held_bytes / _MIB) for one in self._present()},
                "limit_mib": round(self._limit_bytes / _MIB),
            }

    def close(self) -> None:
        """End all workers, at once and for good; volumes under way in other threads end with Stopping."""
        self._device.close()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for resident in self._residents.values():
            resident.worker.close()

    def _infer(self, order: Order, on_progress: OnProgress) -> Segmentation:
        resident = self._residents[order.model]
        if not self._begin(resident, may_wait=True):
            raise Stopping
        try:
            prepared = order.prepared or resident.worker.prepare(order.volume, on_progress)
            return resident.worker.infer(prepared, self._watching(on_progress))
        finally:
            self._end(resident)

    def _present(self) -> list[_Resident]:
        """Those in memory or on their way there, the longest unused first."""
        return sorted((one for one in self._residents.values() if one.is_present), key=lambda one: one.last_used)

    def _begin(self, resident: _Resident, *, may_wait: bool) -> bool:
        """Make room for ``resident`` and take it into use; False where there is none and waiting is not wanted.

        Waiting is for the one that has the device: those whom it waits for do not wait themselves.
        """
        with self._changed:
            resident.calls += 1  # from here on it is counted with what it will hold
            while not self._make_room() and not resident.worker.is_loaded:
                if not may_wait or self._closed:
                    resident.calls -= 1
                    return False
                self._changed.wait()
            resident.last_used = time.monotonic()
            return True

    def _end(self, resident: _Resident) -> None:
        with self._changed:
            resident.calls -= 1
            resident.last_used = time.monotonic()
            if resident.worker.is_loaded:
                resident.expected_bytes = resident.held_bytes
            if resident.worker.process_id not in (None, resident.process_id):
                resident.process_id = resident.worker.process_id
                self._log.info("worker.loaded", pid=resident.process_id, **self.state())
            self._make_room()
            self._changed.notify_all()

    def _make_room(self) -> bool:
        """Close what is not in use, the longest unused first, until the rest fits or one is left.

        Returns whether it does; one alone may hold more than the bound.
        """
        while len(present := self._present()) > 1 and self._exceeds(present):
            unused = next((one for one in present if not one.calls), None)
            if unused is None:
                return False
            unused.worker.unload()
            self._log.info("worker.unloaded", **self.state())
        return True

    def _exceeds(self, present: list[_Resident]) -> bool:
        if sum(one.held_bytes for one in present) > self._limit_bytes:
            return True
        on_device = [one.worker.device_bytes for one in present]
        device_limit_bytes = self._part * max(there for _, there in on_device)
        expected = sum(one.expected_bytes for one in present if not one.worker.is_loaded)
        return 0 < device_limit_bytes < sum(held for held, _ in on_device) + expected

    def _watching(self, on_progress: OnProgress) -> OnProgress:
        """``on_progress``, and a look at the memory now and then: a worker grows while it infers."""
        next_look = time.monotonic() + _LOOK_S

        def watch(fraction: float, stage: str) -> None:
            nonlocal next_look
            on_progress(fraction, stage)
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + _LOOK_S
                with self._changed:
                    self._make_room()

        return watch


class Turn:
    """The device is yours until the end of the ``with`` block."""

    def __init__(self, pool: WorkerPool, place: Pass) -> None:
        self._pool = pool
        self._place = place

    def infer(self, order: Order, on_progress: OnProgress) -> Segmentation:
        """The labels of ``order``; loads the model, and prepares the volume, where that is still to be done.

        Raises:
            WorkerLost: the worker died, froze, broke or took longer than allowed; the next call starts a new one.
            SegmentationImpossible: the model refuses the volume, or cannot be loaded.
        """
        return self._pool._infer(order, on_progress)  # noqa: SLF001 - only who has the device may infer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._place.leave()
