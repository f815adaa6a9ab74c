"""The reading child: carries out one order of the node at a time, within its limits, and may be ended by them.

Started by :class:`dicom_node.reading.reader.ImageReader`. An order names files whose headers are wanted, one file whose
content is to be compared, or a series to reconstruct. The result is in shared memory: the answer as JSON, small
arrays, and voxels, which are created there, in a separate block.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import mmap
import os
import resource
import socket
import sys
import traceback
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dicom_node.errors import DicomNodeError
from dicom_node.reading.plain import Packer, plain_header
from dicom_node.reconstruct import reconstruct
from dicom_node.reconstruct.content import content_of
from dicom_node.standard.files import read_headers
from dicom_node.standard.headers import Allowance
from dicom_node.types import Series, SourceInstance
from dicom_node.work.channel import Channel, anonymous_memory, mapped
from dicom_node.work.process import become_expendable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dicom_node.types import Reconstruction

LONGEST_TRACE = 20
_PAGE_BYTES = resource.getpagesize()


@dataclass(slots=True)
class _Memory:
    """Arrays created in shared memory, by address."""

    descriptors: dict[int, int] = field(default_factory=dict)

    def allocate(self, shape: Sequence[int], dtype: Any) -> NDArray[Any]:
        """Like ``numpy.empty``."""
        dtype = np.dtype(dtype)
        descriptor = anonymous_memory(max(1, math.prod(shape) * dtype.itemsize))
        array = mapped(descriptor, shape, dtype)
        self.descriptors[array.ctypes.data] = descriptor
        return array

    def close(self) -> None:
        """Close the descriptors; the memory stays valid while it is mapped somewhere."""
        for descriptor in self.descriptors.values():
            os.close(descriptor)


class _Reading:
    """Carries out orders; the headers of the last series read are kept for its reconstruction."""

    def __init__(self) -> None:
        self._number = 0
        self._kept: dict[Path, SourceInstance] = {}

    @property
    def keeps_headers(self) -> bool:
        """Whether a reconstruction is expected next."""
        return bool(self._kept)

    def headers(self, paths: Sequence[str], number: int) -> list[Any]:
        """The headers of files in plain form, each with its remark; kept if they have a number."""
        self._kept = {}
        instances = read_headers(map(Path, paths))
        allowance = Allowance.of_series()
        plain = [[plain_header(instance.header, allowance), instance.remark] for instance in instances]
        if number:
            self._number, self._kept = number, {instance.path: instance for instance in instances}
        return plain

    def reconstruction(self, series: Mapping[str, Any], number: int, memory: _Memory) -> tuple[Any, list[NDArray[Any]]]:
        """The volume of a series, packed, and its arrays."""
        read, self._kept = self._kept, {}
        paths = [Path(path) for path in series["paths"]]
        if number != self._number or not all(path in read for path in paths):
            read = {instance.path: instance for instance in read_headers(paths)}
        instances = tuple(read[path] for path in paths)
        stated = {**series["stated"], "notes": tuple(series["stated"]["notes"])}
        made: Reconstruction = reconstruct(Series(**stated, instances=instances), allocate=memory.allocate)
        packer = Packer({id(instance.header): number for number, instance in enumerate(instances)})
        return packer.packed(made), packer.arrays


def main() -> None:
    """Serve the socket whose descriptor is the first argument until the node closes it or ends."""
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    become_expendable(node_process=int(sys.argv[2]))
    _keep_values_out_of_output()
    gc.disable()  # it would inspect hundreds of thousands of elements repeatedly
    gc.freeze()
    reading = _Reading()
    while (received := channel.receive()) is not None:
        message, (descriptor,) = received
        order = json.loads(mmap.mmap(descriptor, 0).read(message["order"]))
        os.close(descriptor)
        _answer(channel, reading, order)
        if not reading.keeps_headers:
            gc.collect()


def _keep_values_out_of_output() -> None:
    """The node quotes stderr when this process is lost, and warnings of pydicom quote element values."""
    warnings.simplefilter("ignore")
    logging.disable()


def _answer(channel: Channel, reading: _Reading, order: dict[str, Any]) -> None:
    memory = _Memory()
    _limit(order["limits"])
    try:
        answer: Any
        arrays: list[NDArray[Any]] = []
        if "read" in order:
            answer = reading.headers(order["read"], order["number"])
        elif "content" in order:
            (instance,) = read_headers([Path(order["content"])])
            answer = asdict(content_of(instance, with_pixels=order["with_pixels"]))
        else:
            answer, arrays = reading.reconstruction(order["reconstruct"], order["number"], memory)
        _unlimit()
        _send(channel, answer, arrays, memory)
    except DicomNodeError as error:
        channel.send({"refused": type(error).__name__, "reason": str(error)})
    except MemoryError:
        channel.send({"memory": True})
    except Exception as error:  # noqa: BLE001 - whatever it is, the next series comes; values may be a patient's
        frames = traceback.extract_tb(error.__traceback__)[-LONGEST_TRACE:]
        where = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
        channel.send({"unexpected": type(error).__name__, "where": where})
    finally:
        _unlimit()
        memory.close()


def _send(channel: Channel, answer: Any, arrays: list[NDArray[Any]], memory: _Memory) -> None:
    """Send the answer, then keep nothing of it: the node looks at how much memory this process has left."""
    message, descriptors = _in_shared_memory(answer, arrays, memory)
    arrays.clear()
    channel.send(message, descriptors)
    os.close(descriptors[0])


def _in_shared_memory(answer: Any, arrays: list[NDArray[Any]], memory: _Memory) -> tuple[dict[str, int], list[int]]:
    """Large arrays where they are; small ones before the answer, in the first block."""
    own = [memory.descriptors.get(array.ctypes.data) for array in arrays]
    descriptors = [descriptor for descriptor in own if descriptor is not None]
    places: list[tuple[int, int, str, tuple[int, ...]]] = []
    offset = 0
    for array, descriptor in zip(arrays, own, strict=True):
        block = 0 if descriptor is None else 1 + descriptors.index(descriptor)
        places.append((block, 0 if block else offset, array.dtype.str, array.shape))
        offset += 0 if block else -(-array.nbytes // 64) * 64
    text = json.dumps({"answer": answer, "arrays": places}, ensure_ascii=False, separators=(",", ":")).encode()
    common = anonymous_memory(max(1, offset + len(text)))
    with mmap.mmap(common, 0) as shared:
        for array, (number, start, _, _) in zip(arrays, places, strict=True):
            if not number:
                shared[start : start + array.nbytes] = np.ascontiguousarray(array).tobytes()
        shared[offset:] = text
    return {"made": len(text), "offset": offset}, [common, *descriptors]


def _limit(limits: Mapping[str, float]) -> None:
    """From now on, more memory fails and more CPU time ends this process with SIGXCPU."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = math.ceil(used.ru_utime + used.ru_stime + limits["cpu_s"])
    size_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE_BYTES
    _set_soft(resource.RLIMIT_CPU, cpu_s)
    _set_soft(resource.RLIMIT_AS, size_bytes + int(limits["memory_bytes"]))


def _unlimit() -> None:
    _set_soft(resource.RLIMIT_CPU, resource.RLIM_INFINITY)
    _set_soft(resource.RLIMIT_AS, resource.RLIM_INFINITY)


def _set_soft(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    resource.setrlimit(which, (value if hard == resource.RLIM_INFINITY else min(value % 2**63, hard), hard))


if __name__ == "__main__":
    main()
