"""The models of a node: which of them are in memory, and which one may use the device.

A model is loaded for its first volume and stays loaded until another model needs the memory; the least recently used
model is unloaded first. One volume is inferred at a time, so that two models never compete for a device.
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
from dicom_node.work.models import describe_model, estimated_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from dicom_node.settings import NnunetModelSettings, TissueModelSettings, WorkSettings
    from dicom_node.work.gate import Pass
    from dicom_node.work.local import PreparedVolume
    from inference.types import ModelIdentity, Segmentation, Volume

    OnProgress = Callable[[float, str], None]

_LOOK_S = 1.0
"""How often memory is checked while a volume is inferred, because the worker grows during inference."""
_MIB = 1024**2


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """A volume for a model; ``prepared`` is None if it is prepared during its turn on the device."""

    model: str
    volume: Volume
    prepared: PreparedVolume | None


class _Resident:
    """A model and the state of its worker; guarded by the pool's lock."""

    def __init__(self, worker: LocalWorker, expected_bytes: int) -> None:
        self.worker = worker
        self.expected_bytes = expected_bytes
        """Its memory once it is loaded: estimated from its package, later what it used the last time."""
        self.calls = 0
        self.last_used = 0.0
        self.process_id: int | None = None
        """The PID of the worker that was last logged."""

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
        work: device, threads, limits, and the share of memory for all models together.
    """

    def __init__(self, models: Mapping[str, TissueModelSettings | NnunetModelSettings], work: WorkSettings) -> None:
        self._residents = {
            name: _Resident(LocalWorker(name, model, work), estimated_bytes(model)) for name, model in models.items()
        }
        self._models, self._work = models, work
        self._part = work.resident_memory_percent / 100
        self._limit_bytes = self._part * machine_bytes()
        self._device = Gate()
        self._changed = threading.Condition()
        self._closed = False
        self._log = structlog.get_logger()

    def identity(self, model: str) -> ModelIdentity:
        """What results of ``model`` name, from its files as they are now; nothing is loaded.

        Raises:
            ConfigurationError: the files are not sound or not the approved ones.
        """
        return describe_model(model, self._models[model], self._work)

    def prepare(self, model: str, volume: Volume, on_progress: OnProgress) -> Order:
        """Have the worker of ``model`` prepare the volume while another one may be inferred.

        If the model is not loaded and does not fit into memory with the models in use, this does nothing; the volume is
        then prepared during its turn on the device.

        Raises:
            WorkerLost: the worker died, froze, failed or exceeded its time limit.
            SegmentationImpossible: the model refuses the volume, or can't be loaded.
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
            Stopping: the pool was closed.
        """
        return Turn(self, self._device.enter())

    def load(self, model: str) -> None:
        """Load ``model`` if it fits into memory; a failure is logged, and recurs with the first volume."""
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
        """For the log: the memory of each loaded model, least recently used first, and the limit."""
        names = {id(resident): name for name, resident in self._residents.items()}
        with self._changed:
            return {
                "residents_mib": {names[id(one)]: round(one.held_bytes / _MIB) for one in self._present()},
                "limit_mib": round(self._limit_bytes / _MIB),
            }

    def close(self) -> None:
        """End all workers immediately and permanently; volumes in progress in other threads end with Stopping."""
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
        """The models that are loaded or loading, least recently used first."""
        return sorted((one for one in self._residents.values() if one.is_present), key=lambda one: one.last_used)

    def _begin(self, resident: _Resident, *, may_wait: bool) -> bool:
        """Make room for ``resident`` and mark it as in use; False if there is no room and it may not wait.

        Only the thread that has the device may wait: the threads it waits for never wait themselves.
        """
        with self._changed:
            resident.calls += 1  # from here on its expected memory counts
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
        """Unload unused models, least recently used first, until the others fit or only one is left.

        Returns whether they fit; a single model may exceed the limit.
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
        """``on_progress`` with periodic checks of the memory, because a worker grows during inference."""
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
    """Exclusive use of the device until the end of the ``with`` block."""

    def __init__(self, pool: WorkerPool, place: Pass) -> None:
        self._pool = pool
        self._place = place

    def infer(self, order: Order, on_progress: OnProgress) -> Segmentation:
        """The labels of ``order``; first loads the model and prepares the volume if necessary.

        Raises:
            WorkerLost: the worker died, froze, failed or exceeded its time limit; the next call starts a new one.
            SegmentationImpossible: the model refuses the volume, or can't be loaded.
        """
        return self._pool._infer(order, on_progress)  # noqa: SLF001 - only the holder of the device may infer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._place.leave()
