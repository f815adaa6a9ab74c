"""The networks of a model on a device: loaded ahead of their turn, captured or compiled on request, released."""

from __future__ import annotations

import importlib.util
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from inference.nnunet.device.restore import DeviceHead

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from inference.models.package import Part
    from inference.nnunet.contract import OpenPart, Runtime, TensorNetwork


class ResidentParts:
    """Keeps the parts of a model on a device; while one part runs, the next is read and uploaded on another stream."""

    def __init__(self, parts: Sequence[Part], device: torch.device, opened: Callable[[Part], OpenPart]) -> None:
        self._parts = parts
        self._device = device
        self._open = opened
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._by_number: dict[int, Future[tuple[OpenPart, DeviceHead]]] = {}

    def load(self) -> None:
        """Load every part that is not loaded yet.

        Raises:
            ModelPackageError: the weights do not fit the network of a part.
        """
        for number in range(len(self._parts)):
            self.get(number)

    def get(self, number: int) -> tuple[OpenPart, DeviceHead]:
        """A part and its head on the device; starts to load the next part."""
        for wanted in (number, (number + 1) % len(self._parts)):
            if wanted not in self._by_number:
                self._by_number[wanted] = self._pool.submit(self._uploaded, wanted)
        try:
            return self._by_number[number].result()
        except BaseException:
            del self._by_number[number]
            raise

    def release(self) -> None:
        """Free the memory of all parts; the next :meth:`get` loads them again."""
        for future in self._by_number.values():
            if not future.cancel():
                future.exception()  # waits
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # queued kernels still read them
        self._by_number.clear()

    def _uploaded(self, number: int) -> tuple[OpenPart, DeviceHead]:
        with torch.cuda.stream(self._stream):
            part = self._open(self._parts[number])
            head = DeviceHead.of(part.head, self._device)
        if self._stream is not None:
            self._stream.synchronize()  # of this thread only: the running part goes on
        return part, head


class CapturedNetwork:
    """A network whose kernels are recorded once per batch size and then launched together (a CUDA graph)."""

    def __init__(self, network: TensorNetwork) -> None:
        self._network = network
        self._pool = torch.cuda.graph_pool_handle()
        self._by_shape: dict[torch.Size, tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]] = {}

    @property
    def channels(self) -> int:
        """K, how many channels come out."""
        return self._network.channels

    @property
    def runtime(self) -> Runtime:
        """What runs it, where and in which precision."""
        return replace(self._network.runtime, backend=f"{self._network.runtime.backend} with CUDA graphs")

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """[n, z, y, x] -> [n, K, z, y, x], both on the host, without a graph."""
        return self._network.run(windows)

    def rest(self) -> None:
        """Free the memory that only running on the host needs."""
        self._network.rest()

    def run_tensor(self, windows: torch.Tensor) -> torch.Tensor:
        """[n, 1, z, y, x] -> [n, K, z, y, x], overwritten by the next call."""
        if windows.shape not in self._by_shape:
            self._by_shape[windows.shape] = self._captured(windows)
        graph, static_windows, static_values = self._by_shape[windows.shape]
        static_windows.copy_(windows)
        graph.replay()
        return static_values

    def _captured(self, windows: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]:
        static_windows = windows.clone()
        stream = torch.cuda.Stream(windows.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(windows.device))
        with torch.cuda.stream(stream):
            for _ in range(2):  # cuDNN chooses its algorithms before anything is recorded
                self._network.run_tensor(static_windows)
        torch.cuda.current_stream(windows.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # of this thread only: another thread may be uploading the next part
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            static_values = self._network.run_tensor(static_windows)
        return graph, static_windows, static_values


class CompiledNetwork:
    """A network compiled by torch.compile for the shapes it sees."""

    def __init__(self, network: TensorNetwork) -> None:
        self._network = network
        self.run_tensor = torch.compile(network.run_tensor, dynamic=False)

    @property
    def channels(self) -> int:
        """K, how many channels come out."""
        return self._network.channels

    @property
    def runtime(self) -> Runtime:
        """What runs it, where and in which precision."""
        return replace(self._network.runtime, backend=f"{self._network.runtime.backend} compiled")

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """[n, z, y, x] -> [n, K, z, y, x], both on the host, not compiled."""
        return self._network.run(windows)

    def rest(self) -> None:
        """Free the memory that only running on the host needs."""
        self._network.rest()


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile can make kernels for ``device``: it needs triton on CUDA."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None
