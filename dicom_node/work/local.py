"""A loaded model in a child process, which can crash, freeze or run out of memory without affecting the node.

The first call starts the child, which loads the model once and runs until :meth:`LocalWorker.unload`. If it fails for
any reason, every volume in progress ends with :class:`~dicom_node.errors.WorkerLost`, and the next call starts a new
child.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dicom_node.errors import SegmentationImpossible, Stopping, WorkerLost
from dicom_node.work.channel import anonymous_memory, mapped, stated_padding
from dicom_node.work.process import ChildProcess
from inference.types import ModelIdentity, RunReport, Segmentation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from dicom_node.settings import NnunetModelSettings, TissueModelSettings, WorkSettings
    from inference.types import Volume

    OnProgress = Callable[[float, str], None]

_LONGEST_PULSE_S = 5.0
_LOADING = 0
"""The number of the request that loads the model; volumes count from 1."""


@dataclass(frozen=True, slots=True, eq=False)
class PreparedVolume:
    """A volume that waits in a child for its inference; also kept here, for a new child if that one is lost."""

    volume: Volume
    child: _Child
    number: int
    labels_zyx: NDArray[np.uint8]
    """Memory into which the child writes the result."""
    seconds: float
    """The part of its time limit that is used up."""


class LocalWorker:
    """A model of the configuration in a child process; may be called from several threads.

    One volume is inferred and one prepared at a time; further ones queue in the child.

    Args:
        model_name: its name in the configuration, for messages.
        model: its settings.
        work: device, threads and time limits.
    """

    def __init__(self, model_name: str, model: TissueModelSettings | NnunetModelSettings, work: WorkSettings) -> None:
        self._name = model_name
        self._model = model
        self._work = work
        self._starting = threading.Lock()
        # Linux ends the child when the thread that started it ends: this thread lives as long as the worker
        self._starter = ThreadPoolExecutor(1, thread_name_prefix=f"starter of {model_name}")
        self._child: _Child | None = None
        self._closed = False

    def segment(self, volume: Volume, on_progress: OnProgress) -> Segmentation:
        """Label every voxel of ``volume``: :meth:`prepare`, then :meth:`infer`. Raises what they raise."""
        return self.infer(self.prepare(volume, on_progress), on_progress)

    def prepare(self, volume: Volume, on_progress: OnProgress) -> PreparedVolume:
        """Send ``volume`` to the child, which prepares it while another one may be inferred.

        ``on_progress(fraction, stage)`` is called from this thread.

        Raises:
            WorkerLost: the child died, froze, failed or exceeded its time limit; the next call starts a new one.
            SegmentationImpossible: the model refuses the volume, or can't be loaded; the message has its reason.
        """
        child = self._ready_child()
        started = time.monotonic()
        try:
            number, labels_zyx = _hand_over(volume, child)
        except OSError as error:  # memory or descriptors may suffice at the next attempt
            raise WorkerLost(f"can't send a volume to the worker of model {self._name!r}: {error.strerror}") from error
        self._wait_for(child, number, "prepared", started + self._work.job_limit_s, on_progress)
        return PreparedVolume(volume, child, number, labels_zyx, time.monotonic() - started)

    def infer(self, prepared: PreparedVolume, on_progress: OnProgress) -> Segmentation:
        """The labels of a prepared volume; prepares it again if its child was lost while it waited.

        Raises: like :meth:`prepare`, and InvalidValueError if the labels contradict the names of the model.
        """
        if prepared.child.is_lost:
            prepared = self.prepare(prepared.volume, on_progress)
        deadline = time.monotonic() + self._work.job_limit_s - prepared.seconds
        child, volume = prepared.child, prepared.volume
        child.send({"infer": prepared.number})
        report = self._wait_for(child, prepared.number, "done", deadline, on_progress)
        child.forget(prepared.number)
        run = None if report is None else RunReport.from_json(report)
        return Segmentation(prepared.labels_zyx, volume.geometry, child.names_by_label, child.identity, run)

    def identity(self) -> ModelIdentity:
        """The loaded model; loads it if necessary. Raises like :meth:`prepare`."""
        return self._ready_child().identity

    @property
    def process_id(self) -> int | None:
        """The PID of the child; None if none is running."""
        child = self._child
        return child.process.pid if child is not None and not child.is_lost else None

    @property
    def is_loaded(self) -> bool:
        """Whether a child with the model in memory is running."""
        child = self._child
        return child is not None and child.is_loaded and not child.is_lost

    @property
    def device_bytes(self) -> tuple[int, int]:
        """Accelerator memory as last reported by the child: used by it, and total; zeros without an accelerator."""
        child = self._child
        return child.device_bytes if child is not None and not child.is_lost else (0, 0)

    def unload(self) -> None:
        """End the child immediately; volumes in progress in other threads end with WorkerLost."""
        child = self._child
        if child is not None:
            child.lose("was closed")
        with self._starting:
            self._discard_child()

    def close(self) -> None:
        """End the child permanently; volumes in progress, and all later calls, end with Stopping."""
        self._closed = True
        self.unload()
        self._starter.shutdown()

    def _discard_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.lose("was closed")

    def _ready_child(self) -> _Child:
        with self._starting:
            if self._child is not None and not self._child.is_lost:
                return self._child
            self._discard_child()
            if not self._closed:
                try:
                    self._child = self._starter.submit(_Child.start).result()
                except OSError as error:  # as above
                    reason = f"can't start the worker of model {self._name!r}: {error.strerror}"
                    raise WorkerLost(reason) from error
            if self._closed or self._child is None:  # `close` may have run before there was a child to end
                self._discard_child()
                raise Stopping
            self._load(self._child)
            return self._child

    def _load(self, child: _Child) -> None:
        order = {
            "name": self._name,
            "model": self._model.model_dump(mode="json"),
            "work": self._work.model_dump(mode="json"),
            "pulse_s": min(_LONGEST_PULSE_S, self._work.heartbeat_limit_s / 4),
        }
        child.send({"load": order})
        try:
            loaded = self._wait_for(
                child, _LOADING, "loaded", time.monotonic() + self._work.job_limit_s, lambda *_: None
            )
        except SegmentationImpossible:
            self._discard_child()
            raise
        child.identity = ModelIdentity(**loaded["identity"])
        child.names_by_label = {int(label): name for label, name in loaded["names"].items()}
        child.is_loaded = True

    def _wait_for(self, child: _Child, number: int, answer: str, deadline: float, on_progress: OnProgress) -> Any:
        """The child's ``answer`` to request ``number``. Any exception ends the child too, except a refused volume."""
        try:
            while True:
                message = self._next_message(child, number, deadline)
                if "progress" in message:
                    on_progress(*message["progress"])
                elif answer in message or "impossible" in message:
                    break
        except BaseException:  # even if on_progress raised or the program was interrupted: the child's state is unknown
            child.lose("was closed")
            raise
        if "impossible" not in message:
            return message[answer]
        child.forget(number)
        raise SegmentationImpossible(f"model {self._name!r}: {message['impossible']}")

    def _next_message(self, child: _Child, number: int, deadline: float) -> dict[str, Any]:
        silence_s = self._work.heartbeat_limit_s
        while True:
            now = time.monotonic()
            silent_until = child.last_sign + silence_s
            if now >= deadline:
                child.lose(f"exceeded the time limit of {self._work.job_limit_s:g} s")
            elif now >= silent_until:
                child.lose(f"sent no heartbeat for {silence_s:g} s")
            try:
                message = child.answers(number).get(timeout=max(0.0, min(deadline, silent_until) - now))
            except queue.Empty:
                continue
            if message is None:
                if self._closed:
                    raise Stopping
                raise WorkerLost(f"the worker of model {self._name!r} {child.loss}")
            return message


def _hand_over(volume: Volume, child: _Child) -> tuple[int, NDArray[np.uint8]]:
    """Send ``volume`` to ``child``; returns its number there, and the memory for the labels."""
    shape, dtype = volume.geometry.shape_zyx, volume.voxels_zyx.dtype
    voxel_count = int(np.prod(shape))
    with contextlib.ExitStack() as opened:
        hu = anonymous_memory(voxel_count * dtype.itemsize)
        opened.callback(os.close, hu)
        result = anonymous_memory(voxel_count)
        opened.callback(os.close, result)
        mapped(hu, shape, dtype)[...] = volume.voxels_zyx
        labels_zyx = mapped(result, shape, np.dtype(np.uint8))
        descriptors = [hu, result]
        region = volume.padding.region_zyx if volume.padding is not None else None
        if region is not None:
            descriptors.append(anonymous_memory(region.size))
            opened.callback(os.close, descriptors[-1])
            mapped(descriptors[-1], region.shape, np.dtype(np.bool_))[...] = region
        return child.send_volume(volume, tuple(descriptors)), labels_zyx


class _Child:
    """The child process, our end of its channel, and its stderr (which can't contain patient data).

    A separate thread reads its messages and passes each to the thread that waits for it.
    """

    def __init__(self, child: ChildProcess) -> None:
        self.process = child.process
        self.identity: ModelIdentity
        self.names_by_label: Mapping[int, str]
        self.is_loaded = False
        self.last_sign = time.monotonic()
        self.device_bytes = (0, 0)
        self.loss: str | None = None
        """Why the child is lost, worded to follow "the worker"; the first reason is kept."""
        self._child = child
        self._lock = threading.Lock()
        self._numbers = itertools.count(_LOADING + 1)
        self._answers: dict[int, queue.SimpleQueue[dict[str, Any] | None]] = {_LOADING: queue.SimpleQueue()}
        threading.Thread(target=self._read, name=f"reader of {self.process.pid}", daemon=True).start()

    @classmethod
    def start(cls) -> _Child:
        """Start it; Linux ends it together with the thread that calls this."""
        return cls(ChildProcess.start("dicom_node.work.worker"))

    @property
    def is_lost(self) -> bool:
        return self.loss is not None or self.process.poll() is not None

    def send(self, message: Mapping[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        """Send a message; if the child is gone, waiting for its answer notices that."""
        self.last_sign = time.monotonic()  # an idle child sends nothing
        with contextlib.suppress(OSError):
            self._child.channel.send(message, descriptors)

    def send_volume(self, volume: Volume, descriptors: tuple[int, ...]) -> int:
        """Have ``volume`` prepared; returns its number."""
        with self._lock:
            number = next(self._numbers)
            self._answers[number] = queue.SimpleQueue()
            if self.loss is not None:
                self._answers[number].put(None)
        order = {
            "prepare": number,
            "shape_zyx": volume.geometry.shape_zyx,
            "dtype": volume.voxels_zyx.dtype.str,
            "affine_lps": volume.geometry.affine_lps.tolist(),
            "padding": None if volume.padding is None else stated_padding(volume.padding),
        }
        self.send(order, descriptors)
        return number

    def answers(self, number: int) -> queue.SimpleQueue[dict[str, Any] | None]:
        """The messages about request ``number``; None when the child is lost."""
        return self._answers[number]

    def forget(self, number: int) -> None:
        """Expect no more messages about this volume."""
        with self._lock:
            self._answers.pop(number, None)

    def lose(self, reason: str) -> None:
        """End the process and everything in its session, and wake all threads that wait for it."""
        with self._lock:
            self.loss = self.loss or reason
            for answers in self._answers.values():
                answers.put(None)
        self._child.kill()

    def _read(self) -> None:
        """Read messages until the channel ends; runs in a thread of its own."""
        reason = None
        while reason is None:
            try:
                received = self._child.channel.receive()
            except (OSError, ValueError):
                received = None
            if received is None:
                reason = f"ended: {self._child.end()}" if self.loss is None else self.loss
                continue
            self.last_sign = time.monotonic()
            message = received[0]
            self.device_bytes = tuple(message.get("device_bytes", self.device_bytes))
            if "broken" in message:
                reason = f"failed: {message['broken']}"
            elif "alive" not in message:
                self._hand_over(message)
        self.lose(reason)
        self._child.close()

    def _hand_over(self, message: dict[str, Any]) -> None:
        with self._lock:
            answers = self._answers.get(message.get("volume", _LOADING))
            if answers is not None:
                answers.put(message)
