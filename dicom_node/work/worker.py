"""The worker process: loads one model, keeps it loaded and segments volumes; it can crash without affecting the node.

Started by :class:`dicom_node.work.local.LocalWorker`; it never sees a UID or a name, only voxels and their grid. The
main thread infers, a second one prepares the next volume in parallel, a third one receives messages.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from pydantic import TypeAdapter

from dicom_node.settings import ModelSettings, NnunetModelSettings, TissueModelSettings, WorkSettings
from dicom_node.work.channel import Channel, mapped, padding_of
from dicom_node.work.models import load_segmenter
from dicom_node.work.process import become_expendable
from inference.errors import InferenceError
from inference.types import Geometry, TwoStepSegmenter, Volume

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from inference.types import Segmenter

_NICENESS = 5
"""The listener and the deliveries have priority; a segmentation takes seconds anyway."""
_EXPENDABLE = "500"
"""If memory runs out, the kernel should kill this process, which is replaced, and not the listener."""
BROKEN_EXIT_CODE = 3


@dataclass(slots=True, eq=False)
class _Request:
    """A volume in progress; ``prepared`` is None if everything is left to the inference."""

    volume: Volume
    labels_zyx: NDArray[np.uint8]
    prepared: Any = None


class _Pulse:
    """Sends heartbeats during work, which distinguish a slow process from a frozen or killed one."""

    def __init__(self, channel: Channel, every_s: float) -> None:
        self._channel = channel
        self._every_s = every_s
        self._lock = threading.Lock()
        self._works = 0
        self._working = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def __enter__(self) -> None:
        self._count(1)

    def __exit__(self, *_: object) -> None:
        self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self._works += change
            if self._works:
                self._working.set()
            else:
                self._working.clear()

    def _beat(self) -> None:
        pause = threading.Event()
        while True:
            self._working.wait()
            with contextlib.suppress(OSError):  # the node is gone: the listening thread ends this process
                self._channel.send({"alive": True})
            pause.wait(self._every_s)


class _Server:
    """Serves the node's requests with a loaded model."""

    def __init__(self, channel: Channel, segmenter: Segmenter, pulse: _Pulse) -> None:
        self._channel = channel
        self._segmenter = segmenter
        self._pulse = pulse
        self._under_way: dict[int, _Request] = {}

    def prepare(self, message: dict[str, Any], descriptors: list[int]) -> None:
        """Do the work that can run in parallel with an inference.

        Any failure other than a refusal, most likely a lack of memory, is left to :meth:`infer`, which then has the
        process to itself and ends it if it fails again.
        """
        number = message["prepare"]
        shape = tuple(message["shape_zyx"])
        voxels = mapped(descriptors[0], shape, np.dtype(message["dtype"]))
        labels = mapped(descriptors[1], shape, np.dtype(np.uint8))
        padding = None
        if message["padding"] is not None:
            planes = message["padding"]["region_planes"]
            region = None if planes is None else mapped(descriptors[2], (planes, *shape[1:]), np.dtype(np.bool_))
            padding = padding_of(message["padding"], region)
        for descriptor in descriptors:
            os.close(descriptor)
        request = _Request(Volume(voxels, Geometry(shape, np.array(message["affine_lps"])), padding), labels)
        if isinstance(self._segmenter, TwoStepSegmenter):
            try:
                with self._pulse:
                    request.prepared = self._segmenter.prepare(request.volume, self._progress(number))
            except InferenceError as error:
                self._channel.send({"volume": number, "impossible": str(error)})
                return
            except Exception:  # noqa: BLE001
                traceback.print_exc()
        self._under_way[number] = request
        self._channel.send({"volume": number, "prepared": True})

    def infer(self, number: int) -> None:
        """Label a volume that was prepared."""
        request = self._under_way.pop(number)
        progress = self._progress(number)
        try:
            with self._pulse:
                if request.prepared is not None and isinstance(self._segmenter, TwoStepSegmenter):
                    result = self._segmenter.infer(request.prepared, progress)
                else:
                    result = self._segmenter.segment(request.volume, progress)
                request.labels_zyx[...] = result.labels_zyx
        except InferenceError as error:
            self._channel.send({"volume": number, "impossible": str(error)})
        else:
            run = None if result.run is None else result.run.to_json()
            self._channel.send({"volume": number, "done": run, "device_bytes": _device_bytes()})

    def _progress(self, number: int) -> Callable[[float, str], None]:
        return lambda done, stage: self._channel.send({"volume": number, "progress": [done, stage]})


def main() -> None:
    """Serve the socket whose descriptor is the first argument until the node closes it or dies."""
    descriptor, node_process = int(sys.argv[1]), int(sys.argv[2])
    become_expendable(node_process)
    channel = Channel(socket.socket(fileno=descriptor))
    to_infer: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    to_prepare: queue.SimpleQueue[tuple[dict[str, Any], list[int]]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(channel, to_prepare, to_infer), daemon=True).start()
    order = to_infer.get()["load"]
    pulse = _Pulse(channel, order["pulse_s"])
    try:
        with pulse:
            segmenter = _load(order)
        server = _Server(channel, segmenter, pulse)
        threading.Thread(target=_prepare_all, args=(channel, server, to_prepare), daemon=True).start()
        model = segmenter.identity
        identity = {field: getattr(model, field) for field in ("name", "version", "digest", "family", "intended_use")}
        loaded = {"identity": identity, "names": dict(segmenter.names_by_label)}
        channel.send({"loaded": loaded, "device_bytes": _device_bytes()})
        while True:
            server.infer(to_infer.get()["infer"])
    except InferenceError as error:
        channel.send({"impossible": str(error)})
    except Exception as error:  # noqa: BLE001 - report any error to the node before this process ends
        _break(channel, error)


def _load(order: dict[str, Any]) -> Segmenter:
    settings: TypeAdapter[TissueModelSettings | NnunetModelSettings] = TypeAdapter(ModelSettings)
    return load_segmenter(
        order["name"], settings.validate_python(order["model"]), WorkSettings.model_validate(order["work"])
    )


def _prepare_all(
    channel: Channel, server: _Server, to_prepare: queue.SimpleQueue[tuple[dict[str, Any], list[int]]]
) -> NoReturn:
    while True:
        try:
            server.prepare(*to_prepare.get())
        except Exception as error:  # noqa: BLE001 - as above; otherwise the node would wait for a dead thread
            _break(channel, error)


def _break(channel: Channel, error: Exception) -> NoReturn:
    traceback.print_exc()
    what = "out of memory" if isinstance(error, MemoryError) else type(error).__name__
    channel.send({"broken": f"{what}: {str(error)[:300]}"})
    os._exit(BROKEN_EXIT_CODE)


def _listen(
    channel: Channel,
    to_prepare: queue.SimpleQueue[tuple[dict[str, Any], list[int]]],
    to_infer: queue.SimpleQueue[dict[str, Any]],
) -> NoReturn:
    """Pass requests to the working threads; when the node is gone, kill this process immediately."""
    while True:
        received = channel.receive()
        if received is None:
            os.kill(os.getpid(), signal.SIGKILL)
        elif "prepare" in received[0]:
            to_prepare.put(received)
        else:
            to_infer.put(received[0])


def _device_bytes() -> tuple[int, int]:
    """Memory used by this process on a CUDA device, and the device's total; zeros without a device."""
    torch = sys.modules.get("torch")  # don't import torch for a model that runs without it
    if torch is None or not torch.cuda.is_initialized():
        return 0, 0
    return torch.cuda.memory_reserved(), torch.cuda.mem_get_info()[1]


if __name__ == "__main__":
    main()
