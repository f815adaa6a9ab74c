"""Positions of source voxels among network voxels along one axis, as both ways back to the source grid need them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Interpolation = Literal["smooth", "nearest", "linear"]
"""``smooth``: of the classes at the corners of a cell, the one with the highest interpolated logit; ``nearest``: the
class of the nearest network voxel, as in TotalSegmentator; ``linear``: of all classes, as in nnU-Net's own export.
"""
ROWS_BYTES = 16 << 20
"""``linear``: the interpolated logits of the rows that one thread works on; it holds about four times as much."""
Alignment = Literal["corners", "centres"]
"""What the two grids share: the centres of their outermost voxels (``corners``, as in ``scipy.ndimage.zoom``), or the
outer borders of these voxels (``centres``, as in nnU-Net: the i-th centre lies at (i + 1/2) / n of the extent).
"""
_SNAP = 1e-6
"""A source voxel closer than this (in network voxels) to a network voxel coincides with it."""


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """Positions of the source voxels of one axis among network voxels; cell i reaches from voxel i to i + 1.

    The last cell ends at its own voxel, so that every position is a cell and a weight below 1.
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
    """[source voxel of ``inside``]: weight of the upper voxel, 0 <= weight < 1."""

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
        """[member, cell]: the source voxels in each cell; cells with fewer than the fullest repeat their last one."""
        counts = self.counts()
        member = np.minimum(np.arange(counts.max(initial=0))[:, None], np.maximum(counts - 1, 0))
        return self.starts() + member


def axis_between(
    count: int, network_count: int, offset: int, size: int, *, alignment: Alignment, nearest: bool, backwards: bool
) -> Axis:
    """Position the source voxels of an axis among the ``size`` network voxels of the box that begins at ``offset``.

    ``nearest`` puts each source voxel at its nearest network voxel, with all weights 0. ``backwards`` means that the
    source axis and the network axis run in opposite directions.
    """
    index = np.arange(count, dtype=np.float64)
    if alignment == "corners":
        # index times step, as scipy computes it, so that halves round the same way
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
