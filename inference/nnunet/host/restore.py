"""Makes labels on the source grid from values on the network's grid.

``smooth``: a cell is the box between 2 x 2 x 2 neighbouring network voxels. If the eight corners of a cell agree, it
gets their label; in any other cell the logits of the corners' labels are interpolated trilinearly and the highest wins.
Borders are then smooth surfaces through the cells that neighbours share without gaps, a label never appears where none
of the surrounding network voxels has it, and a source voxel that coincides with a network voxel gets its label. Only
cells on borders cost time.
``nearest``: the label of the nearest network voxel, as TotalSegmentator does by default
(``scipy.ndimage.zoom(order=0)``).

The network's grid is cut into strips of rows, which run in threads. Each strip takes the planes in order, with the
logits of two planes in memory.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal

import numpy as np

from inference.nnunet.axes import Alignment, axis_between
from inference.nnunet.host.strip import Strip

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inference.nnunet.contract import Head


_STRIP_BYTES = 4 << 20
_SMALLEST_STRIP = 8


class Restorer:
    """Takes slabs of network values in ascending order and writes labels into a view of the source label map.

    Args:
        labels: uint8 view [z, y, x] on the source grid in the network's axis order, written in place. Voxels that are
            background to this part keep their label; elsewhere a later part overwrites an earlier one.
        network_shape: the whole resampled grid.
        offset: first voxel of the box within that grid that the network sees; outside it is background.
        shape: size of that box.
        label_by_channel: uint8, the label to write for each output channel.
        head: turns the values into logits.
        threads: number of threads; 0: one for each processor of this process.
    """

    def __init__(
        self,
        labels: NDArray[np.uint8],
        network_shape: tuple[int, int, int],
        offset: tuple[int, int, int],
        shape: tuple[int, int, int],
        label_by_channel: NDArray[np.uint8],
        head: Head,
        *,
        interpolation: Literal["smooth", "nearest"],
        alignment: Alignment,
        threads: int = 0,
    ) -> None:
        nearest = interpolation == "nearest"
        # write in memory order: an axis that runs backwards is reversed together with its positions
        backwards = [step < 0 for step in labels.strides]
        labels = labels[tuple(slice(None, None, -1 if flip else 1) for flip in backwards)]
        z, y, x = (
            axis_between(*sizes, alignment=alignment, nearest=nearest, backwards=flip)
            for *sizes, flip in zip(labels.shape, network_shape, offset, shape, backwards, strict=True)
        )
        self._shape = shape
        self._reads_slabs = head.weights is None
        self._next = 0
        self._threads = threads or len(os.sched_getaffinity(0))
        channels = len(label_by_channel)
        rows = _rows_per_strip(shape, channels, self._threads)
        self._strips = [
            Strip(labels, (z, y.part(first, min(first + rows, shape[1])), x), label_by_channel, head, nearest=nearest)
            for first in range(0, shape[1], rows)
        ]

    def accept(self, first: int, values: NDArray[np.float32]) -> None:
        """Restore the labels in a slab [K, plane, y, x] whose first plane is ``first`` (within the box).

        Slabs must be in ascending order without gaps. A slab may be overwritten after the call.

        Raises:
            ValueError: the slab is not the next one, or not as wide as the box.
        """
        if first != self._next or values.shape[2:] != self._shape[1:]:
            raise ValueError(
                f"slab {values.shape[1:]} at plane {first}; expected (any, {self._shape[1]}, {self._shape[2]}) "
                f"at plane {self._next}"
            )
        self._next += values.shape[1]
        if self._reads_slabs:
            values = np.ascontiguousarray(values)
        if self._threads == 1 or len(self._strips) == 1:
            for strip in self._strips:
                strip.accept(first, values)
            return
        with ThreadPoolExecutor(min(self._threads, len(self._strips))) as pool:
            for done in [pool.submit(strip.accept, first, values) for strip in self._strips]:
                done.result()


def _rows_per_strip(shape: tuple[int, int, int], channels: int, threads: int) -> int:
    """Two strips per thread, unless they get too thin (one row of each is computed twice) or too large."""
    rows = max(_SMALLEST_STRIP, -(-shape[1] // (2 * threads)))
    return max(1, min(rows, _STRIP_BYTES // (4 * channels * shape[2])))
