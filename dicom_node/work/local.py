"""A warm model in a child process of this one: it may crash, freeze or run out of memory without taking the node along.

The child is started by the first call, loads the model once and is kept. Whatever ends it badly becomes
:class:`~dicom_node.errors.WorkerLost`, and the next call starts a new one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from dicom_node.errors import SegmentationImpossible, WorkerLost
from dicom_node.work.channel import Channel, anonymous_memory, mapped
from dicom_node.work.models import describe_model
from inference.types import InvalidValueError, ModelIdentity, Segmentation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dicom_node.settings import NnunetModelSettings, TissueModelSettings, WorkSettings
    from inference.types import Volume

__all__ = ["LocalWorker", "describe_model"]

_LONGEST_PULSE_S = 5.0
_EXIT_WAIT_S = 5.0
_TAIL_BYTES = 1500


class LocalWorker:
    """A model of the configuration in a child process. One segmentation at a time; calls from several threads queue.

    Args:
        model_name: its name in the configuration; becomes the name in results.
        model: its settings.
        work: device, threads and time limits.
    """

    def __init__(self, model_name: str, model: TissueModelSettings | NnunetModelSettings, work: WorkSettings) -> None:
        self._name = model_name
        self._model = model
        self._work = work
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._closing = False

    def segment(self, volume: Volume, on_progress: Callable[[float, str], None]) -> Segmentation:
        """Label every voxel of ``volume``; ``on_progress(fraction, stage)`` is called from this thread.

        Raises:
            WorkerLost: the child died, froze, broke or took longer than allowed; it is gone, the next call starts anew.
            SegmentationImpossible: the model refuses the volume, or cannot be loaded; the reason is its own.
        """
        with self._lock:
            deadline = time.monotonic() + self._work.job_limit_s
            child = self._ready_child(deadline)
            shape = volume.geometry.shape_zyx
            voxel_count = int(np.prod(shape))
            hu = anonymous_memory(voxel_count * volume.voxels_zyx.dtype.itemsize)
            result = anonymous_memory(voxel_count)
            try:
                mapped(hu, shape, volume.voxels_zyx.dtype)[...] = volume.voxels_zyx
                child.send(
                    {
                        "segment": {
                            "shape_zyx": shape,
                            "dtype": volume.voxels_zyx.dtype.str,
                            "affine_lps": volume.geometry.affine_lps.tolist(),
                        }
                    },
                    (hu, result),
                )
                self._wait_for(child, "done", deadline, on_progress)
                labels = mapped(result, shape, np.dtype(np.uint8))
            finally:
                os.close(hu)
                os.close(result)
            try:
                return Segmentation(labels, volume.geometry, child.names_by_label, child.identity)
            except InvalidValueError as error:
                raise SegmentationImpossible(f"model {self._name!r} gave an invalid label map: {error}") from error

    def identity(self) -> ModelIdentity:
        """Which model is loaded; loads it where it is not yet. Raises like :meth:`segment`."""
        with self._lock:
            return self._ready_child(time.monotonic() + self._work.job_limit_s).identity

    def names_by_label(self) -> Mapping[int, str]:
        """Every label that the model can give; loads it where it is not yet. Raises like :meth:`segment`."""
        with self._lock:
            return self._ready_child(time.monotonic() + self._work.job_limit_s).names_by_label

    @property
    def process_id(self) -> int | None:
        """Of the child; None where none is running."""
        child = self._child
        return child.process.pid if child is not None and child.process.poll() is None else None

    def close(self) -> None:
        """End the child, at once; a segmentation that is under way in another thread ends with WorkerLost."""
        self._closing = True
        child = self._child
        if child is not None:
            child.kill()
        with self._lock:
            self._discard_child()
            self._closing = False

    def _discard_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.close()

    def _ready_child(self, deadline: float) -> _Child:
        if self._child is not None and self._child.process.poll() is None:
            return self._child
        self._discard_child()
        child = self._child = _Child.start()
        if self._closing:  # it began while `close` looked for a child to kill
            self._discard_child()
            raise WorkerLost(f"the worker of model {self._name!r} is being closed")
        order = {
            "name": self._name,
            "model": self._model.model_dump(mode="json"),
            "work": self._work.model_dump(mode="json"),
            "pulse_s": min(_LONGEST_PULSE_S, self._work.heartbeat_limit_s / 4),
        }
        child.send({"load": order})
        loaded = self._wait_for(child, "loaded", deadline, lambda *_: None)
        child.identity = ModelIdentity(**loaded["identity"])
        child.names_by_label = {int(label): name for label, name in loaded["names"].items()}
        return child

    def _wait_for(self, child: _Child, answer: str, deadline: float, on_progress: Callable[[float, str], None]) -> Any:
        """The child's ``answer``; whatever else ends the waiting ends the child too, except a volume refused."""
        try:
            message = self._answer_or_refusal(child, answer, deadline, on_progress)
        except BaseException:  # also when on_progress fails or the program is interrupted: its state is unknown
            self._discard_child()
            raise
        if "impossible" not in message:
            return message[answer]
        if answer == "loaded":
            self._discard_child()
        raise SegmentationImpossible(f"model {self._name!r}: {message['impossible']}")

    def _answer_or_refusal(
        self, child: _Child, answer: str, deadline: float, on_progress: Callable[[float, str], None]
    ) -> dict[str, Any]:
        while True:
            message = self._next_message(child, deadline)
            if "progress" in message:
                on_progress(*message["progress"])
            elif "broken" in message:
                raise WorkerLost(f"the worker of model {self._name!r} broke: {message['broken']}")
            elif answer in message or "impossible" in message:
                return message

    def _next_message(self, child: _Child, deadline: float) -> dict[str, Any]:
        silence_s = self._work.heartbeat_limit_s
        left_s = deadline - time.monotonic()
        try:
            received = child.channel.receive(max(0.001, min(silence_s, left_s)))
        except TimeoutError:
            if left_s < silence_s:
                reason = f"took longer than the limit of {self._work.job_limit_s:g} s"
            else:
                reason = f"gave no sign of life for {silence_s:g} s"
            raise WorkerLost(f"the worker of model {self._name!r} {reason}") from None
        if received is None:
            raise WorkerLost(f"the worker of model {self._name!r} ended: {child.end()}")
        if time.monotonic() > deadline:
            raise WorkerLost(
                f"the worker of model {self._name!r} took longer than the limit of {self._work.job_limit_s:g} s"
            )
        return received[0]


class _Child:
    """The process, our end of its channel, and what it writes to stderr (which no patient data can reach)."""

    def __init__(self, process: subprocess.Popen[bytes], channel: Channel, stderr: IO[bytes]) -> None:
        self.process = process
        self.channel = channel
        self._stderr = stderr
        self.identity: ModelIdentity
        self.names_by_label: Mapping[int, str]

    @classmethod
    def start(cls) -> _Child:
        """Start it in a session of its own, so that all that it may start itself can be ended with it."""
        ours, theirs = socket.socketpair()
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        started_by = "main" if threading.current_thread() is threading.main_thread() else "thread"
        with theirs:
            process = subprocess.Popen(
                [
                    sys.executable, "-P", "-m", "dicom_node.work.worker",
                    str(theirs.fileno()), str(os.getpid()), started_by,
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
                env=_environment(),
            )  # fmt: skip
        return cls(process, Channel(ours), stderr)

    def send(self, message: Mapping[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        """Send; a child that is gone is noticed when its answer is awaited."""
        with contextlib.suppress(OSError):
            self.channel.send(message, descriptors)

    def end(self) -> str:
        """How it ended: signal or exit status, and the last lines it wrote."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_EXIT_WAIT_S)
        code = self.process.poll()
        if code is None:
            how = "it closed its channel and hangs"
        elif code < 0:
            how = f"signal {signal.Signals(-code).name}"
        else:
            how = f"exit status {code}"
        tail = self._tail()
        return f"{how}; last words: {tail}" if tail else how

    def _tail(self) -> str:
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _TAIL_BYTES))
        text = self._stderr.read().decode(errors="replace")
        return " | ".join(line.strip() for line in text.splitlines() if line.strip())

    def kill(self) -> None:
        """End the process and everything in its session."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_EXIT_WAIT_S)

    def close(self) -> None:
        """Give back what belongs to a child that has ended."""
        self.channel.close()
        self._stderr.close()


def _environment() -> dict[str, str]:
    """Ours, without the node's settings (a database's password may stand there), and with this package importable."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DICOM_NODE__")}
    paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [kept.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths)}
