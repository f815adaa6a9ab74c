"""A network that also looks at every window mirrored: nnU-Net's test-time augmentation.

The windows are mirrored along every combination of the axes that the model was trained with, the results are mirrored
back, and the mean is taken; three axes take eight times as long. Features may be averaged as well as logits, since the
last layer is linear. Source: nnUNetPredictor._internal_maybe_mirror_and_predict in
nnunetv2/inference/predict_from_raw_data.py.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

    from inference.nnunet.contract import Runtime, TensorNetwork, WindowNetwork

_SPATIAL = 2
"""Axes before those of a window: its number and its channels."""


class MirroredNetwork:
    """``network`` on windows and their mirror images along all combinations of ``axes`` (0, 1, 2: z, y, x of a window).

    On a device, ``network`` must be a :class:`inference.nnunet.contract.TensorNetwork`.
    """

    def __init__(self, network: WindowNetwork, axes: Sequence[int]) -> None:
        self._network = network
        self._mirrored = [chosen for count in range(1, len(axes) + 1) for chosen in combinations(axes, count)]

    @property
    def channels(self) -> int:
        """K, how many channels come out."""
        return self._network.channels

    @property
    def runtime(self) -> Runtime:
        """What runs the network, where and in which precision."""
        return self._network.runtime

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """[n, z, y, x] -> [n, K, z, y, x], the mean."""
        total = self._network.run(windows).copy()
        for axes in self._mirrored:
            turned = np.ascontiguousarray(np.flip(windows, tuple(axis + 1 for axis in axes)))
            total += np.flip(self._network.run(turned), tuple(axis + _SPATIAL for axis in axes))
        total /= np.float32(len(self._mirrored) + 1)
        return total

    def run_tensor(self, windows: torch.Tensor) -> torch.Tensor:
        """[n, 1, z, y, x] -> [n, K, z, y, x] on the device, the mean in single precision."""
        total = self._run_tensor(windows).float()
        for axes in self._mirrored:
            places = [axis + _SPATIAL for axis in axes]
            total = total + self._run_tensor(windows.flip(places)).flip(places)
        return total / (len(self._mirrored) + 1)

    def _run_tensor(self, windows: torch.Tensor) -> torch.Tensor:
        on_device = cast("TensorNetwork", self._network)
        return on_device.run_tensor(windows)

    def rest(self) -> None:
        """Free what only running needs."""
        self._network.rest()
