"""The channel between node and worker: lines of JSON on a socket pair, voxels in shared anonymous memory.

The memory has no name and no file, so that it is released when both processes have ended for any reason. A volume is
sent as the descriptors of two blocks of memory, the HU (read) and the labels (written). A third
block describes the region of padding, unless its HU alone tell it.

Every volume has a number. Two volumes may be in progress: one is prepared while another one is inferred.

============== ====================================================================================================
node to worker ``{"load": {...}}`` once; ``{"prepare": number, shape_zyx, dtype, affine_lps, padding}`` with two or
               three descriptors; ``{"infer": number}`` for a volume that was prepared
worker to node ``{"loaded": ...}``, ``{"alive": true}``, ``{"broken": reason}`` (and the worker ends); of one volume:
               ``{"volume": number}`` with ``progress: [fraction, stage]``, ``prepared``,
               ``done: {...}`` (the labels are written; the report of the run, or null), or
               ``impossible: reason`` (the model refuses; the volume is dropped)
============== ====================================================================================================
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.types import Padding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

_MESSAGE_LIMIT_BYTES = 256 * 1024
_DESCRIPTORS = 3


class Channel:
    """One end of the socket pair; any thread may send, but only one may receive."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._lock = threading.Lock()
        self._unread = b""
        self._unclaimed: deque[int] = deque()
        """Descriptors of messages not returned yet; one read may receive those of a later message too."""

    def send(self, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send one message; raises OSError if the other end is closed."""
        line = json.dumps({**message, "descriptors": len(descriptors)}).encode() + b"\n"
        with self._lock:
            if descriptors:
                sent = socket.send_fds(self._socket, [line], list(descriptors))
                line = line[sent:]
            self._socket.sendall(line)

    def receive(self, timeout_s: float | None = None) -> tuple[dict[str, Any], list[int]] | None:
        """The next message and its descriptors; None if the other end is closed.

        Raises:
            TimeoutError: no complete message arrived in time.
            ValueError: it is not a message.
        """
        self._socket.settimeout(timeout_s)
        try:
            while b"\n" not in self._unread:
                content, received, _, _ = socket.recv_fds(self._socket, 65536, _DESCRIPTORS)
                self._unclaimed += received
                if not content or len(self._unread) > _MESSAGE_LIMIT_BYTES:
                    return None
                self._unread += content
        except ConnectionError:
            return None
        finally:
            self._socket.settimeout(None)
        line, self._unread = self._unread.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        stated, came = message.pop("descriptors"), len(self._unclaimed)
        if stated > came:
            raise ValueError(f"expected {stated} descriptors, received {came}")
        return message, [self._unclaimed.popleft() for _ in range(stated)]

    def close(self) -> None:
        """Close this end; the other end receives None, and so does a thread that is receiving at this end."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        while self._unclaimed:
            os.close(self._unclaimed.popleft())


def anonymous_memory(size_bytes: int) -> int:
    """A descriptor of ``size_bytes`` of zeroed anonymous memory; the caller closes it."""
    descriptor = os.memfd_create("voxels", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, size_bytes)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def mapped(descriptor: int, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array in the memory of ``descriptor``, which stays mapped as long as the array exists."""
    return np.frombuffer(mmap.mmap(descriptor, 0), dtype=dtype).reshape(shape)


def stated_padding(padding: Padding) -> dict[str, Any]:
    """The padding of a volume as values of JSON, but for its region, which travels as memory."""
    bounds = np.stack([padding.lowest_hu, padding.highest_hu], axis=1)
    return {
        "bounds_hu": [None if np.isnan(pair).any() else pair for pair in bounds.tolist()],
        "region_planes": None if padding.region_zyx is None else len(padding.region_zyx),
    }


def padding_of(stated: Mapping[str, Any], region_zyx: NDArray[np.bool_] | None) -> Padding:
    """The padding that :func:`stated_padding` stated."""
    bounds = np.array([pair or (np.nan, np.nan) for pair in stated["bounds_hu"]])
    return Padding(bounds[:, 0], bounds[:, 1], region_zyx)
