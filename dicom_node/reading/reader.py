"""The node's interface to the reading children: headers and volumes, or the reason why there are none."""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import signal
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog

from dicom_node import errors
from dicom_node.errors import DicomNodeError, LimitExceeded, ReaderLost, ReadingFailed, Stopping
from dicom_node.reading.limits import Budget, declared_voxels
from dicom_node.reading.plain import Unpacker, header_of
from dicom_node.reconstruct.content import InstanceContent
from dicom_node.types import Reconstruction, Series, SourceInstance
from dicom_node.work.channel import anonymous_memory
from dicom_node.work.memory import resident_bytes
from dicom_node.work.process import ChildProcess

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Self

    from numpy.typing import NDArray
    from pydicom import Dataset

    from dicom_node.reading.limits import Limits

_MODULE = "dicom_node.reading.child"
_MOST_IDLE = 2
"""The number of children kept: one for the job at the intake, one for routing."""
_LARGEST_IDLE_BYTES = 512 * 2**20
"""A child that uses more memory than this is not kept."""
_REFUSALS: dict[str, type[DicomNodeError]] = {
    name: each
    for name, each in vars(errors).items()
    if isinstance(each, type) and issubclass(each, errors.SeriesRejected | errors.StoreUnavailable)
}
_MIB = 2**20


@dataclass(slots=True, eq=False)
class _Child:
    """A child, and the first header of the series it still has; the child knows that series as ``number``."""

    process: ChildProcess
    number: int = 0
    first: weakref.ref[Dataset] | None = None

    def has(self, header: Dataset | None) -> bool:
        """Whether it still has the series of ``header``; for None, whether it has no series that may be needed."""
        return header is (self.first() if self.first is not None else None)


class ImageReader:
    """Reads headers and reconstructs volumes in children; each of several calling threads gets its own child.

    Args:
        budget: what a series may cost.
    """

    def __init__(self, budget: Budget | None = None) -> None:
        self._budget = budget or Budget()
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._all: list[_Child] = []
        self._numbers = 0
        self._closed = False
        # Linux ends a child together with the thread that started it; this thread lives as long as the reader
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="starter of readers")
        weakref.finalize(self, _end_all, self._all)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self) -> None:
        """Start a child that loads its libraries while nobody waits; does not wait for it.

        A child that can't be started is reported by the first call that needs one.
        """
        self._starter.submit(self._start_ahead)

    def _start_ahead(self) -> None:
        with contextlib.suppress(OSError):
            child = _Child(ChildProcess.start(_MODULE))
            with self._lock:
                self._all.append(child)
                if not self._closed:
                    self._idle.append(child)
                    return
            self._discard(child)

    def read(self, paths: Sequence[Path], *, keep: bool = False) -> tuple[SourceInstance, ...]:
        """The headers (all but pixel data) of instances, in the order given.

        ``keep``: the child keeps them too, because :meth:`reconstruct` follows.

        Raises:
            PixelDataInvalid: a file is not readable as DICOM.
            LimitExceeded: the headers exceed what any CT needs, or took too much memory or CPU time.
            StoreUnavailable: a file is missing or the disk fails.
            ReaderLost: the child died or took too long.
            ReadingFailed: an internal error; the log has its location.
            Stopping: the reader was closed.
        """
        what = f"reading the headers of {len(paths)} files"
        with self._lock:
            self._numbers += 1
            number = self._numbers if keep else 0
        order = {"read": [str(path) for path in paths], "number": number}
        child = self._taken(None)
        answer, _ = self._call(child, order, self._budget.of_headers(len(paths)), what)
        instances = tuple(
            SourceInstance(path, header_of(plain), remark) for path, (plain, remark) in zip(paths, answer, strict=True)
        )
        if keep and instances:
            child.number, child.first = number, weakref.ref(instances[0].header)
        return instances

    def reconstruct(self, series: Series) -> Reconstruction:
        """:func:`dicom_node.reconstruct.reconstruct`; the voxels are in shared memory.

        Raises: what that raises, and what :meth:`read` raises.
        """
        headers = [instance.header for instance in series.instances]
        paths = [str(instance.path) for instance in series.instances]
        stated = {one.name: getattr(series, one.name) for one in fields(Series) if one.name != "instances"}
        child = self._taken(headers[0] if headers else None)
        order = {"reconstruct": {"stated": stated, "paths": paths}, "number": child.number}
        voxels = declared_voxels(headers)
        what = f"decoding {voxels} pixels of {len(paths)} files"
        answer, arrays = self._call(child, order, self._budget.of_pixels(voxels), what)
        made = Unpacker(arrays, headers).unpacked(answer)
        assert isinstance(made, Reconstruction)
        return made

    def content(self, path: Path, *, with_pixels: bool = True) -> InstanceContent:
        """:func:`dicom_node.reconstruct.content.content_of` the instance in a file.

        Raises: what that raises, and what :meth:`read` raises.
        """
        order = {"content": str(path), "with_pixels": with_pixels}
        answer, _ = self._call(self._taken(None), order, self._budget.of_content(), "comparing a file")
        return InstanceContent(**answer)

    def close(self) -> None:
        """End all children permanently; running calls in other threads end with Stopping."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            busy = [child for child in self._all if child not in idle]
        for child in busy:
            child.process.kill()  # the thread that waits for the child does the rest
        for child in idle:
            self._discard(child)
        self._starter.shutdown()

    def _call(self, child: _Child, order: dict[str, Any], limits: Limits, what: str) -> tuple[Any, list[NDArray[Any]]]:
        """Have ``child`` carry out ``order``, and keep it for the next one unless it was lost."""
        try:
            received = self._exchange(child.process, order, limits, what)
        except BaseException:
            self._discard(child)
            raise
        child.first = None
        try:
            return _answer(*received, limits, what)
        finally:
            self._put_back(child)

    def _exchange(
        self, process: ChildProcess, order: dict[str, Any], limits: Limits, what: str
    ) -> tuple[dict[str, Any], list[int]]:
        """Send ``order`` and wait for the answer; a child that gives none is discarded."""
        try:
            _send(process, {**order, "limits": limits.to_json()})
            received = process.channel.receive(limits.wall_s)
        except TimeoutError as error:
            raise ReaderLost(f"{what} took longer than the limit of {limits.wall_s:g} s") from error
        except (OSError, ValueError):  # it has ended, or sent an invalid message
            received = None
        if self._closed:
            raise Stopping
        if received is None:
            raise _loss(process, limits, what)
        return received

    def _taken(self, header: Dataset | None) -> _Child:
        """The idle child that still has the series of ``header``; else one that has none; else a new one."""
        with self._lock:
            if self._closed:
                raise Stopping
            suitable = [one for one in self._idle if one.has(header)] or [one for one in self._idle if one.has(None)]
            for child in suitable:
                self._idle.remove(child)
                if child.process.is_running:
                    return child
                self._all.remove(child)
                child.process.close()
        try:
            child = _Child(self._starter.submit(ChildProcess.start, _MODULE).result())
        except OSError as error:
            raise ReaderLost(f"the process that reads images can't be started: {error.strerror}") from error
        except RuntimeError as error:  # the reader was closed in the meantime
            raise Stopping from error
        with self._lock:
            self._all.append(child)
        return child

    def _put_back(self, child: _Child) -> None:
        is_large = resident_bytes(child.process.process.pid) > _LARGEST_IDLE_BYTES
        with self._lock:
            if not self._closed and not is_large:
                self._idle.append(child)
                child = self._idle.pop(0) if len(self._idle) > _MOST_IDLE else child
                if child in self._idle:
                    return
        self._discard(child)

    def _discard(self, child: _Child) -> None:
        child.process.kill()
        child.process.close()
        with self._lock:
            if child in self._all:
                self._all.remove(child)


def _end_all(children: list[_Child]) -> None:
    """End the children of a reader that was never closed."""
    for child in children:
        child.process.kill()
        child.process.close()


def _send(process: ChildProcess, order: dict[str, Any]) -> None:
    """Orders may be longer than a message, so they are sent in shared memory."""
    text = json.dumps(order).encode()
    descriptor = anonymous_memory(len(text))
    try:
        with mmap.mmap(descriptor, 0) as block:
            block[:] = text
        process.channel.send({"order": len(text)}, [descriptor])
    finally:
        os.close(descriptor)


def _answer(
    message: dict[str, Any], descriptors: list[int], limits: Limits, what: str
) -> tuple[Any, list[NDArray[Any]]]:
    """The child's result; its arrays are views of shared memory."""
    blocks = [mmap.mmap(descriptor, 0) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    if "made" in message:
        answer = json.loads(blocks[0][message["offset"] : message["offset"] + message["made"]])
        arrays = [
            np.frombuffer(blocks[block], dtype, count=math.prod(shape), offset=offset).reshape(shape)
            for block, offset, dtype, shape in answer["arrays"]
        ]
        return answer["answer"], arrays
    if "refused" in message:
        raise _REFUSALS.get(message["refused"], ReadingFailed)(message["reason"])
    if "memory" in message:
        raise LimitExceeded(f"{what} took more than the limit of {limits.memory_bytes // _MIB} MiB of memory")
    structlog.get_logger().error("reading.crashed", error=message["unexpected"], where=message["where"])
    raise ReadingFailed(f"{what}: unexpected {message['unexpected']}; see the log")


def _loss(process: ChildProcess, limits: Limits, what: str) -> DicomNodeError:
    """Why a child ended on its own."""
    if process.signal == signal.SIGXCPU:
        return LimitExceeded(f"{what} took more than the limit of {limits.cpu_s:g} s of CPU time")
    return ReaderLost(f"the image reader stopped unexpectedly while {what}: {process.end()}")
