"""Labels on the source grid from values on the network's grid.

``smooth``: in a cell (the box between 2 x 2 x 2 neighbouring network voxels) whose eight corners agree, that label; in
any other cell the logits of the labels at its corners are interpolated trilinearly and the highest wins. Borders are
then smooth surfaces through the cells, neighbours share them without gap, a label never appears where none of the
surrounding network voxels has it, and a source voxel that coincides with a network voxel has its label. Only the cells
on borders cost time.
``nearest``: the label of the nearest network voxel, which is what TotalSegmentator does by default
(``scipy.ndimage.zoom(order=0)``).

The network's grid is cut into strips of rows. Each strip takes the planes in their order on its own, with the logits of
two planes in memory, and strips run in threads.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from inference.nnunet.contract import Head

Interpolation = Literal["smooth", "nearest"]
Alignment = Literal["corners", "centres"]
"""What the two grids share: the centres of their outermost voxels (``corners``, as ``scipy.ndimage.zoom``), or the
outer borders of these voxels (``centres``, as nnU-Net resamples: the i-th centre lies at (i + 1/2) / n of the extent).
"""

_SNAP = 1e-6
"""Source voxels nearer than this (in network voxels) to a network voxel coincide with it."""
_STRIP_BYTES = 4 << 20
_SMALLEST_STRIP = 8
_BATCH = 1 << 16
"""Source voxels per batch of border cells: the few arrays of that size stay in the second-level cache."""


class Restorer:
    """Takes slabs of a network's values in ascending order and writes labels into the view of the source label map.

    Args:
        labels: uint8 view [z, y, x] on the source grid in the network's axis order, written in place. Voxels that a
            part calls background keep what is there, so that a later part overwrites an earlier one.
        network_shape: the whole resampled grid.
        offset: first voxel of the box of that grid which the network sees; outside is background.
        shape: size of that box.
        label_by_channel: uint8, the number to write for each output channel.
        head: makes logits of the values.
        threads: how many work at once; 0: one for each processor of this process.
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
        interpolation: Interpolation,
        alignment: Alignment,
        threads: int = 0,
    ) -> None:
        nearest = interpolation == "nearest"
        # written in the order of memory: axes that run backwards are turned round together with their positions
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
            _Strip(labels, (z, y.part(first, min(first + rows, shape[1])), x), label_by_channel, head, nearest=nearest)
            for first in range(0, shape[1], rows)
        ]

    def accept(self, first: int, values: NDArray[np.float32]) -> None:
        """Restore what lies in a slab [K, plane, y, x] whose first plane is ``first`` (of the box).

        Slabs come in ascending order without gap; the slab may be overwritten after the call.

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
    """Two strips for each thread, unless they get too thin (one row of each is computed twice) or too large."""
    rows = max(_SMALLEST_STRIP, -(-shape[1] // (2 * threads)))
    return max(1, min(rows, _STRIP_BYTES // (4 * channels * shape[2])))


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """Where the source voxels of one axis lie among network voxels; cell i reaches from voxel i to i + 1.

    The last cell ends in its own voxel, so that every position is a cell and a weight below 1.
    """

    inside: slice
    """The source voxels that lie in the cells."""
    first: int
    """The first cell."""
    upper: NDArray[np.intp]
    """[cell]: the voxel at the end of each cell, counted from ``first``."""
    lower: NDArray[np.intp]
    """[source voxel of ``inside``]: its cell, counted from ``first``."""
    weight: NDArray[np.float32]
    """[source voxel of ``inside``]: of the upper voxel, 0 <= weight < 1."""

    def part(self, first: int, end: int) -> Axis:
        """The cells from ``first`` to ``end``."""
        places = np.flatnonzero((self.lower >= first) & (self.lower < end))
        here = slice(places[0], places[-1] + 1) if places.size else slice(0, 0)
        return Axis(
            slice(self.inside.start + here.start, self.inside.start + here.stop),
            first,
            self.upper[first:end] - first,
            self.lower[here] - first,
            self.weight[here],
        )

    def counts(self) -> NDArray[np.intp]:
        """[cell]: how many source voxels lie in it."""
        return np.bincount(self.lower, minlength=len(self.upper))

    def starts(self) -> NDArray[np.intp]:
        """[cell]: the first source voxel in it, counted from the start of ``inside``; 0 in an empty cell."""
        starts = np.zeros(len(self.upper), np.intp)
        cells, places = np.unique(self.lower, return_index=True)
        starts[cells] = places
        return starts

    def members(self) -> NDArray[np.intp]:
        """[member, cell]: the source voxels in each cell; in one that is not the fullest, the last repeats."""
        counts = self.counts()
        member = np.minimum(np.arange(counts.max(initial=0))[:, None], np.maximum(counts - 1, 0))
        return self.starts() + member


def axis_between(
    count: int, network_count: int, offset: int, size: int, *, alignment: Alignment, nearest: bool, backwards: bool
) -> Axis:
    """The source voxels of an axis among the ``size`` network voxels of the box, which begins at ``offset``.

    ``nearest``: each source voxel at its nearest network voxel, all weights 0. ``backwards``: the source voxels run
    against the network's.
    """
    index = np.arange(count, dtype=np.float64)
    if alignment == "corners":
        # index times step, as scipy computes it: halves then fall on the same side
        positions = index * ((network_count - 1) / (count - 1) if count > 1 else 1.0)
    else:
        positions = (index + 0.5) * (network_count / count) - 0.5
    positions = np.clip(positions, 0, network_count - 1)
    if backwards:
        positions = positions[::-1]
    rounded = np.floor(positions + 0.5) - offset
    places = np.flatnonzero((rounded >= 0) & (rounded < size))
    inside = slice(int(places[0]), int(places[-1]) + 1) if places.size else slice(0, 0)
    within = rounded[inside] if nearest else np.clip(_snapped(positions[inside] - offset), 0, size - 1)
    lower = np.floor(within).astype(np.intp)
    upper = np.minimum(np.arange(1, size + 1), size - 1)
    return Axis(inside, 0, upper, lower, (within - lower).astype(np.float32))


def _snapped(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    whole = np.rint(positions)
    return np.where(np.abs(positions - whole) < _SNAP, whole, positions)


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


class _Strip:
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
        """Restore what lies in this strip of a contiguous slab."""
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
        """The logits of plane ``k`` of the slab: computed by the head, or a view of the slab."""
        strip = values[:, k, self._y.first : self._y.first + self._rows]
        weights, bias = self._head.weights, self._head.bias
        if weights is None:
            start = (k * values.shape[2] + self._y.first) * self._columns
            flat = values.reshape(-1)[start:]
            return _Plane(flat, 1, values[0].size, _highest(strip))
        shape = (self._rows, self._columns, len(weights))
        logits = self._spare.pop() if self._spare else np.empty(shape, np.float32)
        # one small product per row, in one call: BLAS leaves those in this thread, where it would else wake its own
        np.matmul(strip.transpose(1, 2, 0), weights.T, out=logits)
        if bias is not None:
            logits += bias
        return _Plane(logits.reshape(-1), len(weights), 1, logits.argmax(axis=-1).astype(np.uint8))

    def _retire(self, plane: _Plane | None) -> None:
        if plane is not None and self._head.weights is not None:
            self._spare.append(plane.flat.reshape(self._rows, self._columns, -1))

    def _restore(self, at: int, below: _Plane, above: _Plane) -> None:
        """Write every source plane that lies in the cells between the network planes ``at`` and ``at + 1``."""
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

        They come in groups of equally many candidates and not more source voxels than a batch.
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
        if len(candidates) == 2:  # noqa: PLR2004 - of two, the sign of the difference decides
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
    """Take ``new`` where the condition holds: arithmetic modulo 256, much faster than branches on noisy borders."""
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
        # channels ascend, so the highest number that was ever higher is the last one
        np.maximum(channels, higher.view(np.uint8) * np.uint8(channel), out=channels)
    return channels


def _distinct(corners: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
    """The distinct channels [candidate, cell] of each cell's ``corners`` [corner, cell], ascending; how many there are.

    Rows beyond a cell's number are not to be read.
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
