"""Labels on the source grid as nnU-Net's own export makes them: all logits are interpolated, and the highest wins.

:class:`inference.nnunet.host.restore.Restorer` lets only the classes at the corners of a cell compete. Here all classes
compete everywhere, and the interpolated logits are rounded to half precision before they are compared; of equal ones,
the first wins. That is slower, and only needed where the labels must be those of nnU-Net.
Sources: nnunetv2/inference/export_prediction.py; default_resampling.py with order 1, order_z 0.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from inference.nnunet.axes import ROWS_BYTES, axis_between

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inference.nnunet.axes import Axis
    from inference.nnunet.contract import Head


class LinearRestorer:
    """Takes slabs of network values in ascending order and writes labels into a view of the source label map.

    Args:
        labels: uint8 view [z, y, x] on the source grid in the network's axis order, written in place. Voxels that are
            background to this part keep their label.
        shape: of the network's grid, which shares its outer borders with that of ``labels``.
        label_by_channel: uint8, the label to write for each output channel.
        head: turns the values into logits.
        thick_axis: the axis along which the nearest network voxel is taken, as nnU-Net does between thick planes.
        threads: how many work in parallel.
    """

    def __init__(
        self,
        labels: NDArray[np.uint8],
        shape: tuple[int, int, int],
        label_by_channel: NDArray[np.uint8],
        head: Head,
        *,
        thick_axis: int | None,
        threads: int,
    ) -> None:
        self._z, self._y, self._x = (
            axis_between(count, size, 0, size, alignment="centres", nearest=axis == thick_axis, backwards=False)
            for axis, (count, size) in enumerate(zip(labels.shape, shape, strict=True))
        )
        self._labels = labels
        self._label_by_channel = label_by_channel
        self._head = head
        self._threads = max(1, threads)
        row_bytes = 4 * len(label_by_channel) * labels.shape[2]
        self._rows = max(1, ROWS_BYTES // row_bytes)
        self._last: NDArray[np.float32] | None = None

    def accept(self, first: int, values: NDArray[np.float32]) -> None:
        """Restore the labels in a slab [K, plane, y, x] whose first plane is ``first``.

        Slabs must be in ascending order without gaps. A slab may be overwritten after the call.
        """
        slab = values if self._last is None else np.concatenate([self._last, values], axis=1)
        base, end = first + values.shape[1] - slab.shape[1], first + values.shape[1]
        self._last = values[:, -1:].copy()
        complete = end if end == len(self._z.upper) else end - 1
        wanted = np.flatnonzero((self._z.lower >= base) & (self._z.lower < complete))
        starts = range(0, self._labels.shape[1], self._rows)
        with ThreadPoolExecutor(self._threads) as pool:
            for k in wanted:
                cell = self._z.lower[k]
                below, above = (slab[:, plane - base] for plane in (cell, self._z.upper[cell]))
                plane = below + (above - below) * self._z.weight[k]
                list(pool.map(lambda first, k=k, plane=plane: self._restore(k, first, plane), starts))

    def _restore(self, k: int, first: int, plane: NDArray[np.float32]) -> None:
        """Write some rows of source plane ``k``, from values [K, y, x] that lie in it."""
        rows = slice(first, first + self._rows)
        values = _between(_between(plane, self._y, rows, 1), self._x, slice(None), 2)
        logits = self._head.logits(values.reshape(len(values), -1)).astype(np.float16)
        found = self._label_by_channel[logits.argmax(axis=1)].reshape(values.shape[1:])
        np.copyto(self._labels[k, rows], found, where=found != 0)


def _between(values: NDArray[np.float32], axis: Axis, some: slice, dimension: int) -> NDArray[np.float32]:
    """``values`` interpolated along a dimension, at some of the source voxels of ``axis``."""
    cells = axis.lower[some]
    below, above = values.take(cells, dimension), values.take(axis.upper[cells], dimension)
    above -= below
    above *= axis.weight[some].reshape([-1 if d == dimension else 1 for d in range(values.ndim)])
    above += below
    return above
