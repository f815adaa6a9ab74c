"""Positions of nnU-Net's overlapping windows on a volume, and the Gaussian weights within a window.

Sources: nnunetv2/inference/sliding_window_prediction.py and predict_from_raw_data.py; acvl_utils' pad_nd_image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import gaussian_filter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_SIGMA = 1 / 8
_TOP_WEIGHT = 10.0
SLAB_PLANES = 16
"""Most planes to pass on at once, since the receiver may need a copy of them."""


def window_starts(size: int, window: int, step: float) -> list[int]:
    """First voxels of the windows along one axis, evenly spread from edge to edge; ``size`` is at least ``window``.

    Neighbours are at most ``step`` windows apart.
    """
    count = int(np.ceil((size - window) / (window * step))) + 1
    distance = (size - window) / (count - 1) if count > 1 else 0.0
    return [int(np.round(distance * k)) for k in range(count)]


@lru_cache(maxsize=4)
def gaussian_weights(window: tuple[int, ...]) -> NDArray[np.float16]:
    """Weight of each voxel of a window: highest in the middle, nowhere 0; in half precision as in nnU-Net."""
    impulse = np.zeros(window)
    impulse[tuple(n // 2 for n in window)] = 1
    weights = gaussian_filter(impulse, [n * _SIGMA for n in window], 0, mode="constant", cval=0)
    weights /= weights.max() / _TOP_WEIGHT
    half: NDArray[np.float16] = weights.astype(np.float32).astype(np.float16)  # in two steps, as torch rounds
    half[half == 0] = half[half > 0].min()
    half.setflags(write=False)
    return half


@dataclass(frozen=True, slots=True)
class Windows:
    """Where the windows of one volume lie, on the volume padded to at least one window."""

    shape: tuple[int, ...]
    patch: tuple[int, ...]
    padded: tuple[int, ...]
    before: tuple[int, ...]
    """Voxels of padding before the volume along each axis."""
    starts: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]
    """For each first plane, ascending, the first row and column of the windows to run there."""

    @classmethod
    def of(
        cls, shape: Sequence[int], patch: Sequence[int], step: float, needed: NDArray[np.bool_] | None = None
    ) -> Windows:
        """The windows of nnU-Net, except those without any voxel of ``needed`` (a mask of the volume)."""
        padded = tuple(max(n, w) for n, w in zip(shape, patch, strict=True))
        before = tuple((m - n) // 2 for m, n in zip(padded, shape, strict=True))
        z_starts, y_starts, x_starts = (window_starts(n, w, step) for n, w in zip(padded, patch, strict=True))

        def is_run(start: tuple[int, int, int]) -> bool:
            if needed is None or padded == tuple(patch):
                return True
            inside = (slice(max(s - b, 0), s - b + w) for s, b, w in zip(start, before, patch, strict=True))
            return bool(needed[tuple(inside)].any())

        rows = ((z, tuple((y, x) for y, x in product(y_starts, x_starts) if is_run((z, y, x)))) for z in z_starts)
        return cls(tuple(shape), tuple(patch), padded, before, tuple(rows))

    @property
    def count(self) -> int:
        """Number of windows to run."""
        return sum(len(row) for _, row in self.starts)

    @property
    def inside(self) -> tuple[slice, ...]:
        """The volume within the padded volume."""
        return tuple(slice(b, b + n) for b, n in zip(self.before, self.shape, strict=True))

    def at(self, z: int, y: int, x: int) -> tuple[slice, slice, slice]:
        """The slices of a window."""
        depth, height, width = self.patch
        return slice(z, z + depth), slice(y, y + height), slice(x, x + width)

    def total(self, weights: NDArray[Any]) -> NDArray[Any]:
        """The sum of the windows' weights at every voxel of the padded volume, in the precision of ``weights``."""
        total = np.zeros(self.padded, weights.dtype)
        for z, row in self.starts:
            for y, x in row:
                total[self.at(z, y, x)] += weights
        return total

    def finished(self, number: int) -> int:
        """How many planes no window needs any more after the windows of ``starts[number]``."""
        end = self.starts[number + 1][0] if number + 1 < len(self.starts) else self.padded[0]
        return end - self.starts[number][0]

    def without_padding(self, first: int, planes: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield, in slabs, what lies in the volume of the padded planes [K, plane, y, x] from ``first`` on."""
        low = max(self.before[0] - first, 0)
        high = min(self.before[0] + self.shape[0] - first, planes.shape[1])
        for start in range(low, high, SLAB_PLANES):
            some = slice(start, min(start + SLAB_PLANES, high))
            yield first + start - self.before[0], planes[(slice(None), some, *self.inside[1:])]
