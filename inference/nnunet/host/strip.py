"""Restores labels for some rows of the network's grid: the work of one thread of a :class:`Restorer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from inference.nnunet.axes import Axis
    from inference.nnunet.contract import Head

_BATCH = 1 << 16
"""Source voxels per batch of border cells: the few arrays of that size fit in the second-level cache."""


@dataclass(frozen=True, slots=True, eq=False)
class _Plane:
    """The logits of a strip of one plane: channel c at voxel p is ``flat[p * place_step + c * channel_step]``."""

    flat: NDArray[np.float32]
    place_step: int
    channel_step: int
    channels: NDArray[np.uint8]
    """[row, column]: the channel with the highest logit."""

    def logits(self, places: NDArray[np.intp], channels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[candidate, corner, cell] of ``places`` [corner, cell] and ``channels`` [candidate, cell]."""
        return self.flat.take(places[None] * self.place_step + channels[:, None].astype(np.intp) * self.channel_step)


class Strip:
    """Some rows of cells, through all planes."""

    def __init__(
        self,
        labels: NDArray[np.uint8],
        axes: tuple[Axis, Axis, Axis],
        label_by_channel: NDArray[np.uint8],
        head: Head,
        *,
        nearest: bool,
    ) -> None:
        self._z, self._y, self._x = axes
        self._labels = labels[tuple(axis.inside for axis in axes)]
        self._label_by_channel = label_by_channel
        self._head = head
        self._nearest = nearest
        self._plane_starts = self._z.starts()
        self._plane_counts = self._z.counts()
        self._occupied = (self._y.counts() > 0)[:, None] & (self._x.counts() > 0)
        self._row_members = self._y.members()
        self._column_members = self._x.members()
        self._rows = int(self._y.upper[-1]) + 1
        self._columns = len(self._x.upper)
        members = len(self._row_members) * len(self._column_members)
        self._batch = max(1, _BATCH // max(members, 1))
        self._scratch = np.empty((2, self._batch * members), np.float32)
        self._spare: list[NDArray[np.float32]] = []
        self._last: _Plane | None = None

    def accept(self, first: int, values: NDArray[np.float32]) -> None:
        """Restore this strip's part of a contiguous slab."""
        if self._labels.size == 0:
            return
        for k in range(values.shape[1]):
            here = self._plane(values, k)
            at = first + k
            if self._nearest:
                self._restore(at, here, here)
            elif self._last is not None:
                self._restore(at - 1, self._last, here)
            if not self._nearest and at == len(self._z.upper) - 1:
                self._restore(at, here, here)
            self._retire(self._last)
            self._last = here
        if self._last is not None and self._head.weights is None:
            kept = values[:, -1, self._y.first : self._y.first + self._rows].copy()
            self._last = _Plane(kept.reshape(-1), 1, kept[0].size, self._last.channels)

    def _plane(self, values: NDArray[np.float32], k: int) -> _Plane:
        """The logits of plane ``k`` of the slab, computed by the head or a view of the slab."""
        strip = values[:, k, self._y.first : self._y.first + self._rows]
        weights, bias = self._head.weights, self._head.bias
        if weights is None:
            start = (k * values.shape[2] + self._y.first) * self._columns
            flat = values.reshape(-1)[start:]
            return _Plane(flat, 1, values[0].size, _highest(strip))
        shape = (self._rows, self._columns, len(weights))
        logits = self._spare.pop() if self._spare else np.empty(shape, np.float32)
        # one small product per row, in one call: BLAS runs these in this thread instead of waking its own
        np.matmul(strip.transpose(1, 2, 0), weights.T, out=logits)
        if bias is not None:
            logits += bias
        return _Plane(logits.reshape(-1), len(weights), 1, logits.argmax(axis=-1).astype(np.uint8))

    def _retire(self, plane: _Plane | None) -> None:
        if plane is not None and self._head.weights is not None:
            self._spare.append(plane.flat.reshape(self._rows, self._columns, -1))

    def _restore(self, at: int, below: _Plane, above: _Plane) -> None:
        """Write every source plane in the cells between the network planes ``at`` and ``at + 1``."""
        start, count = int(self._plane_starts[at]), int(self._plane_counts[at])
        if count == 0:
            return
        heights = self._z.weight[start : start + count]
        plain = self._label_by_channel[below.channels[: len(self._y.upper)]]
        restored = np.empty((count, *self._labels.shape[1:]), np.uint8)
        restored[:] = plain[:, self._x.lower][self._y.lower]
        if not self._nearest:
            for cells, candidates in self._border(below, above):
                self._cut(restored.reshape(count, -1), cells, candidates, (below, above), heights)
        target = self._labels[start : start + count]
        if target.any():
            _overwrite(target, restored, where=restored != 0)
        else:
            target[...] = restored

    def _border(self, below: _Plane, above: _Plane) -> Iterator[tuple[NDArray[np.intp], NDArray[np.uint8]]]:
        """The cells whose corners disagree, with the channels at their corners [candidate, cell] ascending.

        They are grouped by number of candidates, each group with no more source voxels than a batch.
        """
        corners = np.stack([corner for plane in (below, above) for corner in self._corners(plane.channels)])
        lowest = corners.min(axis=0)
        highest = corners.max(axis=0)
        cells = np.flatnonzero(((lowest != highest) & self._occupied).reshape(-1))
        if cells.size == 0:
            return
        corners = corners.reshape(len(corners), -1)[:, cells]
        lowest, highest = lowest.reshape(-1)[cells], highest.reshape(-1)[cells]
        of_two = ((corners == lowest) | (corners == highest)).all(axis=0)
        pairs = np.stack([lowest, highest])[:, of_two]
        yield from self._batches(cells[of_two], pairs)
        if of_two.all():
            return
        cells, candidates, counts = cells[~of_two], *_distinct(corners[:, ~of_two])
        for count in range(3, len(candidates) + 1):
            chosen = counts == count
            yield from self._batches(cells[chosen], candidates[:count, chosen])

    def _batches(
        self, cells: NDArray[np.intp], candidates: NDArray[np.uint8]
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.uint8]]]:
        for start in range(0, len(cells), self._batch):
            batch = slice(start, start + self._batch)
            yield cells[batch], candidates[:, batch]

    def _corners(self, channels: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        for rows in (channels[: len(self._y.upper)], channels[self._y.upper]):
            yield rows
            yield rows[:, self._x.upper]

    def _cut(
        self,
        restored: NDArray[np.uint8],
        cells: NDArray[np.intp],
        candidates: NDArray[np.uint8],
        planes: tuple[_Plane, _Plane],
        heights: NDArray[np.float32],
    ) -> None:
        """Write the labels of the source voxels in ``cells`` into ``restored`` [plane, voxel].

        Arrays run over the cells last, so that each step is one pass over contiguous memory.
        """
        row, column = np.divmod(cells, self._columns)
        rows, columns = self._row_members[:, row], self._column_members[:, column]
        voxels = (rows * self._labels.shape[2])[:, None] + columns
        row_weights, column_weights = self._y.weight[rows], self._x.weight[columns]
        places = np.stack(
            [y * self._columns + x for y in (row, self._y.upper[row]) for x in (column, self._x.upper[column])]
        )
        below, above = (plane.logits(places, candidates) for plane in planes)
        labels = self._label_by_channel[candidates]
        if len(candidates) == 2:  # noqa: PLR2004 - with two, the sign of the difference decides
            below, above = below[1:] - below[:1], above[1:] - above[:1]
        slope = above - below
        best, logits = (part[: voxels.size].reshape(voxels.shape) for part in self._scratch)
        for k, height in enumerate(heights):
            at_corners = below + slope * height
            _bilinear(at_corners[0], row_weights, column_weights, out=best)
            chosen = np.broadcast_to(labels[0], best.shape).copy()
            if len(candidates) == 2:  # noqa: PLR2004
                _overwrite(chosen, labels[1], where=best > 0)
            for label, corners in zip(labels[1:], at_corners[1:], strict=False):
                _bilinear(corners, row_weights, column_weights, out=logits)
                _overwrite(chosen, label, where=logits > best)
                np.maximum(best, logits, out=best)
            restored[k][voxels] = chosen


def _overwrite(labels: NDArray[np.uint8], new: NDArray[np.uint8], where: NDArray[np.bool_]) -> None:
    """Take ``new`` where the condition holds, by arithmetic modulo 256: much faster than branches on noisy borders."""
    labels += (new - labels) * where.view(np.uint8)


def _bilinear(
    corners: NDArray[np.float32],
    row_weights: NDArray[np.float32],
    column_weights: NDArray[np.float32],
    *,
    out: NDArray[np.float32],
) -> None:
    """[row, column, cell] from four corners [corner, cell] and the weights [row, cell] and [column, cell]."""
    left = corners[0] + (corners[2] - corners[0]) * row_weights
    right = corners[1] + (corners[3] - corners[1]) * row_weights
    right -= left
    np.multiply(right[:, None], column_weights, out=out)
    out += left[:, None]


def _highest(logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The channel [row, column] with the highest of ``logits`` [channel, row, column], the first of equals.

    One pass per channel: ``argmax`` over the first axis would copy everything.
    """
    best = logits[0].copy()
    channels = np.zeros(best.shape, np.uint8)
    for channel in range(1, len(logits)):
        higher = logits[channel] > best
        np.maximum(best, logits[channel], out=best)
        # channels ascend, so the last channel that was higher has the largest number
        np.maximum(channels, higher.view(np.uint8) * np.uint8(channel), out=channels)
    return channels


def _distinct(corners: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
    """The distinct channels [candidate, cell] of each cell's ``corners`` [corner, cell], ascending, and their number.

    Rows beyond a cell's number are undefined.
    """
    wide = corners.astype(np.int16)
    none = np.int16(np.iinfo(np.int16).max)
    rows = [wide.min(axis=0)]
    counts = np.ones(wide.shape[1], np.intp)
    while True:
        following = np.where(wide > rows[-1], wide, none).min(axis=0)
        more = following != none
        if not more.any():
            return np.stack(rows).astype(np.uint8), counts
        counts += more
        rows.append(following)
