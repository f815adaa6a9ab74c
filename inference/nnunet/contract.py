"""The types that the pieces of the engine share: options, a network that maps windows to channels, its last layer.

The last layer of every nnU-Net is a 1 x 1 x 1 convolution: ``logits = weights @ features + bias`` at each voxel. The
Gaussian average over windows and the interpolation to the source grid are linear, too. If a network has fewer features
than classes (32 against 118), the features are therefore averaged and interpolated, and logits are computed only where
they are needed. This saves a 118-class model most of its memory and much of its time; the results differ only by
rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from inference.models.package import Part
    from inference.types import RunNote

Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""Precision of the convolutions; ``auto`` is float16 on CUDA, bfloat16 on a CPU that supports it, else float32."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How a model is run.

    ``parity`` gives the labels of TotalSegmentator 2.18, voxel by voxel apart from rounding: float32, every window,
    half-precision sums, nearest neighbour back to the source grid (interpolated logits where nnU-Net itself resamples),
    and padding with the values that the images give it instead of air.
    ``body_crop`` skips the air around the patient (never in parity).
    ``mirroring`` averages over mirrored windows, as nnU-Net does by default, where the model was trained for it.
    ``memory_bytes`` limits the memory of one segmentation, not counting the volume; None: 80 % of what is available.
    ``cache_folder`` holds compiled networks; None: no cache.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    backend: Literal["auto", "openvino", "torch"] = "auto"
    precision: Precision = "auto"
    threads: int = 0
    parity: bool = False
    body_crop: bool = True
    mirroring: bool = False
    memory_bytes: int | None = None
    cache_folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Runtime:
    """What runs a network, in the terms of :class:`inference.types.RunReport`."""

    backend: str
    """``OpenVINO 2026.4.1`` or ``torch 2.13.0``."""
    device: str
    """``CPU`` or ``cuda:0 NVIDIA H200``."""
    precision: str
    """Precision in which the convolutions run, which may differ from the requested one."""


class WindowNetwork(Protocol):
    """A network that is ready to run: windows of normalised HU in, channels out."""

    @property
    def channels(self) -> int:
        """K, the number of output channels: the features of all folds, or the classes."""
        ...

    @property
    def runtime(self) -> Runtime:
        """Backend, device and precision."""
        ...

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """[n, z, y, x] -> [n, K, z, y, x]; the next call may overwrite the result."""
        ...

    def rest(self) -> None:
        """Free the memory that only running needs; earlier results become invalid. The next ``run`` takes it again."""
        ...


class TensorNetwork(WindowNetwork, Protocol):
    """A network on a device."""

    def run_tensor(self, windows: torch.Tensor) -> torch.Tensor:
        """[n, 1, z, y, x] float32 -> [n, K, z, y, x], both on the device; the next call may overwrite the result."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """The last layer: ``logits[c] = weights[c] . values + bias[c]``; ``weights`` is None if the values are logits.

    The values of several folds are concatenated; the weights include the division that makes the logits a mean.
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
    """A part with its networks in memory: one for all folds; in parity one per fold, because nnU-Net rounds each."""

    part: Part
    networks: tuple[WindowNetwork, ...]
    head: Head
    label_by_channel: NDArray[np.uint8]
    notes: tuple[RunNote, ...] = ()
    """Why its networks run otherwise than planned."""
