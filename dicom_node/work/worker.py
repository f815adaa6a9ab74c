"""The worker process: loads one model, keeps it, segments what it is given, and may crash alone.

Started by :class:`dicom_node.work.local.LocalWorker`; it never sees a UID or a name, only voxels and their grid.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import queue
import resource
import signal
import socket
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from pydantic import TypeAdapter

from dicom_node.settings import ModelSettings, NnunetModelSettings, TissueModelSettings, WorkSettings
from dicom_node.work.channel import Channel, mapped
from dicom_node.work.models import load_segmenter
from inference.errors import InferenceError
from inference.types import Geometry, Volume

if TYPE_CHECKING:
    from inference.types import Segmenter

_PR_SET_PDEATHSIG = 1
_NICENESS = 5
"""The listener and the deliveries go first: a segmentation takes its seconds anyway."""
BROKEN_EXIT_CODE = 3

_Request = tuple[dict[str, Any], list[int]]


class _Pulse:
    """Says that the process lives while it works; a frozen or killed one is then told from a slow one."""

    def __init__(self, channel: Channel, every_s: float) -> None:
        self._channel = channel
        self._every_s = every_s
        self._working = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def __enter__(self) -> None:
        self._working.set()

    def __exit__(self, *_: object) -> None:
        self._working.clear()

    def _beat(self) -> None:
        pause = threading.Event()
        while True:
            self._working.wait()
            with contextlib.suppress(OSError):  # the node is gone: the listening thread ends this process
                self._channel.send({"alive": True})
            pause.wait(self._every_s)


def main() -> None:
    """Serve the socket whose descriptor is the first argument until the node closes it or dies."""
    descriptor, node_process, is_child_of_main_thread = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "main"
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold a patient's voxels
    os.nice(_NICENESS)
    if is_child_of_main_thread:
        _die_with(node_process)
    channel = Channel(socket.socket(fileno=descriptor))
    requests: queue.SimpleQueue[_Request] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(channel, requests), daemon=True).start()
    order = requests.get()[0]["load"]
    pulse = _Pulse(channel, order["pulse_s"])
    try:
        with pulse:
            segmenter = _load(order)
        model = segmenter.identity
        identity = {field: getattr(model, field) for field in ("name", "version", "digest", "family", "intended_use")}
        channel.send({"loaded": {"identity": identity, "names": dict(segmenter.names_by_label)}})
        while True:
            _serve(channel, requests.get(), segmenter, pulse)
    except InferenceError as error:
        channel.send({"impossible": str(error)})
    except Exception as error:  # noqa: BLE001 - whatever it is, the node shall know before this process ends
        traceback.print_exc()
        channel.send({"broken": f"{type(error).__name__}: {str(error)[:300]}"})
        sys.exit(BROKEN_EXIT_CODE)


def _load(order: dict[str, Any]) -> Segmenter:
    settings: TypeAdapter[TissueModelSettings | NnunetModelSettings] = TypeAdapter(ModelSettings)
    return load_segmenter(
        order["name"], settings.validate_python(order["model"]), WorkSettings.model_validate(order["work"])
    )


def _serve(channel: Channel, request: _Request, segmenter: Segmenter, pulse: _Pulse) -> None:
    message, descriptors = request
    order = message["segment"]
    shape = tuple(order["shape_zyx"])
    voxels = mapped(descriptors[0], shape, np.dtype(order["dtype"]))
    labels = mapped(descriptors[1], shape, np.dtype(np.uint8))
    for descriptor in descriptors:
        os.close(descriptor)
    volume = Volume(voxels, Geometry(shape, np.array(order["affine_lps"])))
    try:
        with pulse:
            result = segmenter.segment(volume, lambda done, stage: channel.send({"progress": [done, stage]}))
            labels[...] = result.labels_zyx
    except InferenceError as error:
        channel.send({"impossible": str(error)})
    else:
        channel.send({"done": True})


def _listen(channel: Channel, requests: queue.SimpleQueue[_Request]) -> NoReturn:
    """Hand requests to the working thread; when the node is gone, end at once whatever is being computed."""
    while True:
        received = channel.receive()
        if received is None:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            requests.put(received)


def _die_with(node_process: int) -> None:
    """Ask Linux to kill this process when the thread that started it ends: reaches even a stopped process."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != node_process:  # it ended before it could be asked
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
