"""Labels on the source grid from slabs of channels, densely and on the device.

The result is that of :class:`inference.nnunet.host.restore.Restorer`: in each cell of the network's grid, the channels
that win at its corners compete by interpolated logits. A GPU computes the logits of all source voxels faster than it
would find the voxels on borders. The values (features, if there are fewer of these than classes) are interpolated, the
head turns them into logits, and the best channel of the eight corners is taken, a few source planes at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from inference.nnunet.axes import axis_between
from inference.nnunet.device.source import uploaded

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inference.nnunet.axes import Alignment, Interpolation
    from inference.nnunet.contract import Head

_CORNERS = 8


@dataclass(frozen=True, slots=True)
class DeviceHead:
    """The last layer on a device, see :class:`inference.nnunet.contract.Head`."""

    weights: torch.Tensor | None
    bias: torch.Tensor | None

    @classmethod
    def of(cls, head: Head, device: torch.device) -> DeviceHead:
        """``head`` on ``device``."""
        return cls(*(None if array is None else uploaded(array, device) for array in (head.weights, head.bias)))

    def logits(self, values: torch.Tensor) -> torch.Tensor:
        """[K, …] -> [C, …]."""
        if self.weights is None:
            return values
        flat = values.reshape(values.shape[0], -1)
        product = self.weights @ flat
        if self.bias is not None:
            product += self.bias[:, None]
        return product.reshape(-1, *values.shape[1:])


class DeviceRestorer:
    """Takes slabs of network values in ascending order and writes labels into a view of the source label map.

    Args:
        labels: uint8 view [z, y, x] on the source grid in the network's axis order, written in place. Voxels that are
            background to this part keep their label.
        backwards: the axes of ``labels`` that run against those of the network.
        network_shape: the whole resampled grid.
        offset: first voxel of the box within that grid that the network sees; outside it is background.
        shape: size of that box.
        label_by_channel: uint8, the label to write for each output channel.
        head: turns the values into logits.
        interpolation, alignment: see :mod:`inference.nnunet.axes`.
        thick_axis: an axis along which the nearest network voxel is taken in any case.
        working_bytes: memory to use besides the slab and the labels.
    """

    def __init__(
        self,
        labels: torch.Tensor,
        backwards: tuple[bool, bool, bool],
        network_shape: tuple[int, int, int],
        offset: tuple[int, int, int],
        shape: tuple[int, int, int],
        label_by_channel: NDArray[np.uint8],
        head: DeviceHead,
        *,
        interpolation: Interpolation,
        alignment: Alignment,
        working_bytes: int,
        thick_axis: int | None = None,
    ) -> None:
        self._nearest = interpolation == "nearest"
        self._every_class = interpolation == "linear"
        sizes = zip(labels.shape, network_shape, offset, shape, backwards, strict=True)
        self._z, y, x = (
            axis_between(*of_axis, alignment=alignment, nearest=self._nearest or axis == thick_axis, backwards=flip)
            for axis, (*of_axis, flip) in enumerate(sizes)
        )
        self._labels = labels[self._z.inside, y.inside, x.inside]
        self._y, self._x = (
            _DeviceAxis.of(axis.lower, axis.upper[axis.lower], axis.weight, labels.device) for axis in (y, x)
        )
        self._planes = shape[0]
        self._label_by_channel = uploaded(label_by_channel, labels.device)
        self._head = head
        self._working_bytes = working_bytes
        self._last: torch.Tensor | None = None

    def accept(self, first: int, values: torch.Tensor) -> None:
        """Restore the labels in a slab [K, plane, y, x] whose first plane is ``first`` (within the box).

        Slabs must be in ascending order without gaps. A slab may be overwritten after the call.
        """
        slab = values if self._last is None else torch.cat([self._last, values], dim=1)
        base, end = first + values.shape[1] - slab.shape[1], first + values.shape[1]
        self._last = values[:, -1:].clone()
        cells_end = end if self._nearest or end == self._planes else end - 1
        cells_start = first if self._nearest else base
        wanted = np.flatnonzero((self._z.lower >= cells_start) & (self._z.lower < cells_end))
        if wanted.size == 0 or self._labels.numel() == 0:
            return
        channels = self._highest(slab)
        step = max(1, self._working_bytes // self._bytes_per_plane(slab.shape[0]))
        for start in range(int(wanted[0]), int(wanted[-1]) + 1, step):
            source = slice(start, min(start + step, int(wanted[-1]) + 1))
            cells = self._z.lower[source]
            z = _DeviceAxis.of(cells - base, self._z.upper[cells] - base, self._z.weight[source], slab.device)
            self._write(source, self._chosen(slab, channels, z))

    def _highest(self, slab: torch.Tensor) -> torch.Tensor:
        """uint8 [plane, y, x]: the channel with the highest logit, the first of equals; 0 where no window looked."""
        channels = torch.empty(slab.shape[1:], dtype=torch.uint8, device=slab.device)
        classes = slab.shape[0] if self._head.weights is None else self._head.weights.shape[0]
        step = max(1, self._working_bytes // (4 * (slab.shape[0] + 2 * classes) * slab[0, 0].numel()))
        for first in range(0, slab.shape[1], step):
            logits = self._head.logits(slab[:, first : first + step])
            highest = logits.argmax(dim=0).to(torch.uint8)
            channels[first : first + step] = highest.masked_fill_(logits[0].isnan(), 0)
        return channels

    def _bytes_per_plane(self, values: int) -> int:
        """Memory of one source plane: interpolated values twice, the logits, and the competing channels."""
        logits = 0 if self._head.weights is None else self._head.weights.shape[0]
        per_voxel = 4 * (2 * values + 2 * logits + 1) + 13 * _CORNERS
        return int(per_voxel * self._labels[0].numel())

    def _chosen(self, slab: torch.Tensor, channels: torch.Tensor, z: _DeviceAxis) -> torch.Tensor:
        """The channel of each source voxel of some planes."""
        y, x = self._y, self._x
        if self._nearest:
            return channels.index_select(0, z.lower).index_select(1, y.lower).index_select(2, x.lower)
        values = slab.float()
        for dimension, axis in enumerate((z, y, x), start=1):
            values = axis.between(values, dimension)
        logits = self._head.logits(values)
        if self._every_class:
            return logits.half().argmax(dim=0).to(torch.uint8)
        candidates = torch.stack(
            [
                channels.index_select(0, planes).index_select(1, rows).index_select(2, columns)
                for planes in (z.lower, z.upper)
                for rows in (y.lower, y.upper)
                for columns in (x.lower, x.upper)
            ]
        ).to(torch.int64)
        best = logits.gather(0, candidates).argmax(dim=0, keepdim=True)
        chosen = candidates.gather(0, best)[0].to(torch.uint8)
        return chosen.masked_fill_(logits[0].isnan(), 0)

    def _write(self, source: slice, channels: torch.Tensor) -> None:
        seen = self._label_by_channel[channels.to(torch.int64)]
        target = self._labels[source]
        target.copy_(torch.where(seen != 0, seen, target))


@dataclass(frozen=True, slots=True)
class _DeviceAxis:
    """The two network voxels around each source voxel along an axis, and the weight of the upper one."""

    lower: torch.Tensor
    upper: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def of(
        cls, lower: NDArray[np.intp], upper: NDArray[np.intp], weight: NDArray[np.float32], device: torch.device
    ) -> _DeviceAxis:
        """``lower`` and ``weight`` for each source voxel, ``upper`` for each of them too."""
        return cls(*(uploaded(array, device) for array in (lower, upper, weight)))

    def between(self, values: torch.Tensor, dimension: int) -> torch.Tensor:
        """``values`` interpolated along a dimension."""
        shape = [-1 if d == dimension else 1 for d in range(values.ndim)]
        below = values.index_select(dimension, self.lower)
        return below.lerp_(values.index_select(dimension, self.upper), self.weight.reshape(shape))
