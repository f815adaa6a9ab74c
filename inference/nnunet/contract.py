"""What the pieces of the engine agree on: options, a network that maps windows to channels, and its last layer.

The last layer of every nnU-Net is a 1 x 1 x 1 convolution, so ``logits = weights @ features + bias`` at each voxel. The
Gaussian average over windows and the interpolation to the source grid are linear too: wherever a network has fewer
features than classes (32 against 118), features are averaged and interpolated, and logits exist only where they are
looked at. That is the memory and much of the time of a 118-class model, and the same numbers but for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from inference.models.package import Part
    from inference.types import RunNote

Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""Of the convolutions; ``auto``: float16 on CUDA, bfloat16 on a CPU that has it, else float32."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How a model is run.

    ``parity`` answers as TotalSegmentator 2.18 does, voxel by voxel but for rounding: float32, every window,
    half-precision sums, nearest neighbour back (logits interpolated, where nnU-Net itself resamples). ``body_crop``
    leaves out the air around the patient (never in parity).
    ``memory_bytes`` bounds what one segmentation may take beside the volume; None: 80 % of what is available.
    ``cache_folder`` holds compiled networks; None: nothing is cached.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    backend: Literal["auto", "openvino", "torch"] = "auto"
    precision: Precision = "auto"
    threads: int = 0
    parity: bool = False
    body_crop: bool = True
    memory_bytes: int | None = None
    cache_folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Runtime:
    """What runs a network; the words are those of :class:`inference.types.RunReport`."""

    backend: str
    """``OpenVINO 2026.4.1`` or ``torch 2.13.0``."""
    device: str
    """``CPU`` or ``cuda:0 NVIDIA H200``."""
    precision: str
    """Of the convolutions, as they run, which may not be what was asked for."""


class WindowNetwork(Protocol):
    """A network, compiled and ready: windows of normalised HU in, channels out."""

    @property
    def channels(self) -> int:
        """K, how many channels come out: features of all folds, or classes."""
        ...

    @property
    def runtime(self) -> Runtime:
        """What runs it, where and in which precision."""
        ...

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """[n, z, y, x] -> [n, K, z, y, x]; the result may be overwritten by the next call."""
        ...

    def rest(self) -> None:
        """Give back what only running takes; the next ``run`` takes it again. No result is used after this."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """The last layer: ``logits[c] = weights[c] . values + bias[c]``; weights None where values are logits already.

    Several folds stand side by side in the values, and their mean is in the weights.
    """

    weights: NDArray[np.float32] | None
    """[C, K]"""
    bias: NDArray[np.float32] | None
    """[C]"""

    def logits(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """[K, n] -> [n, C]."""
        if self.weights is None:
            return np.ascontiguousarray(values.T)
        product: NDArray[np.float32] = values.T @ self.weights.T
        if self.bias is not None:
            product += self.bias
        return product


@dataclass(frozen=True, slots=True, eq=False)
class OpenPart:
    """A part, its networks in memory: one of all folds; in parity one of each fold, since nnU-Net rounds each."""

    part: Part
    networks: tuple[WindowNetwork, ...]
    head: Head
    label_by_channel: NDArray[np.uint8]
    notes: tuple[RunNote, ...] = ()
    """Why its networks do not run as planned."""
