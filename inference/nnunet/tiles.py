"""Overlapping windows over a volume, averaged with Gaussian weights as nnU-Net does, in bounded memory.

Windows are visited by ascending first axis; as soon as no further window reaches a plane, its averaged channels are
handed on and its memory is used again. So one window's depth of planes is held, never the whole volume.
Sources: nnunetv2/inference/sliding_window_prediction.py and predict_from_raw_data.py; acvl_utils' pad_nd_image.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import gaussian_filter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from inference.nnunet.contract import WindowNetwork

_SIGMA = 1 / 8
_TOP_WEIGHT = 10.0
_CHUNK_VOXELS = 1 << 16
"""Voxels that are weighted and added at once: what they need stays in the cache of a core."""
SLAB_PLANES = 16
"""Most planes that are handed on at once: who takes them may need a copy of them."""


def window_starts(size: int, window: int, step: float) -> list[int]:
    """First voxels of the windows along one axis, evenly spread from edge to edge; ``size`` is at least ``window``.

    Neighbours are at most ``step`` windows apart.
    """
    count = int(np.ceil((size - window) / (window * step))) + 1
    distance = (size - window) / (count - 1) if count > 1 else 0.0
    return [int(np.round(distance * k)) for k in range(count)]


@lru_cache(maxsize=4)
def gaussian_weights(window: tuple[int, ...]) -> NDArray[np.float16]:
    """Importance of each voxel of a window: highest in its middle, nowhere 0; in half precision as nnU-Net keeps it."""
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
    """For each first plane, ascending, the first row and column of the windows that are run there."""

    @classmethod
    def of(
        cls, shape: Sequence[int], patch: Sequence[int], step: float, needed: NDArray[np.bool_] | None = None
    ) -> Windows:
        """The windows of nnU-Net, without those that hold no voxel of ``needed`` (a mask of the volume)."""
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
        """How many windows are run."""
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
        """What of the planes [K, plane, y, x] from ``first`` on of the padded volume lies in the volume, in slabs."""
        low = max(self.before[0] - first, 0)
        high = min(self.before[0] + self.shape[0] - first, planes.shape[1])
        for start in range(low, high, SLAB_PLANES):
            some = slice(start, min(start + SLAB_PLANES, high))
            yield first + start - self.before[0], planes[(slice(None), some, *self.inside[1:])]


def averaged(
    image_zyx: NDArray[np.float32],
    windows: Windows,
    network: WindowNetwork,
    on_window: Callable[[], None],
    threads: int = 1,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Channels of ``image_zyx``, a slab of planes at a time, in ascending order and without gap.

    Args:
        image_zyx: normalised HU on the network's grid and axes.
        windows: where the network looks.
        network: windows in, channels out.
        on_window: called after each window.
        threads: how many add channels at the same time.

    Yields:
        The first plane of the slab, and its channels [K, plane, y, x]; NaN where no window looked. A slab may be
        overwritten when the next one is asked for.
    """
    image_zyx = _padded(image_zyx, windows)  # under one name, so that only one is held
    if windows.padded == windows.patch:  # the weights of a single window cancel out
        values = network.run(image_zyx[None])[0]
        on_window()
        yield from windows.without_padding(0, values)
        return
    weights = gaussian_weights(windows.patch).astype(np.float32)
    total = windows.total(weights)
    depth = windows.patch[0]
    sums = np.zeros((network.channels, depth, *windows.padded[1:]), np.float32)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for number, (z, row) in enumerate(windows.starts):
            for y, x in row:
                at = windows.at(z, y, x)
                values = network.run(np.ascontiguousarray(image_zyx[at])[None])[0]
                share = weights / total[at]
                target = sums[(slice(None), slice(None), *at[1:])]
                list(pool.map(lambda k, v=values, s=share, t=target: _add(v[k], s, t[k]), range(network.channels)))
                on_window()
            done = windows.finished(number)
            slab = sums[:, :done]
            unseen = total[z : z + done] == 0
            if unseen.any():
                slab[:, unseen] = np.nan
            yield from windows.without_padding(z, slab)
            _move_up(sums, done)


def averaged_half(
    image_zyx: NDArray[np.float32], windows: Windows, networks: Sequence[WindowNetwork], on_window: Callable[[], None]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """As :func:`averaged`, in nnU-Net's own arithmetic: sums, weights, quotients and the mean of folds in half.

    Each of ``networks``, the folds, must give logits, not features: what is rounded must be what nnU-Net rounds.
    """
    image_zyx = _padded(image_zyx, windows)
    half = gaussian_weights(windows.patch)
    weights = half.astype(np.float32)
    total = windows.total(half)
    of_folds = [np.zeros((network.channels, windows.patch[0], *windows.padded[1:]), np.float16) for network in networks]
    for number, (z, row) in enumerate(windows.starts):
        for y, x in row:
            at = windows.at(z, y, x)
            window = np.ascontiguousarray(image_zyx[at])[None]
            for network, sums in zip(networks, of_folds, strict=True):
                values = network.run(window)[0]
                for k in range(network.channels):
                    _add(values[k], weights, sums[(k, slice(None), *at[1:])])
            on_window()
        done = windows.finished(number)
        for first in range(0, done, SLAB_PLANES):
            planes = slice(first, min(first + SLAB_PLANES, done))
            mean, *others = [sums[:, planes] / total[z + planes.start : z + planes.stop] for sums in of_folds]
            for other in others:
                mean += other
            if others:
                mean /= np.float16(len(of_folds))
            yield from windows.without_padding(z + first, mean.astype(np.float32))
        for sums in of_folds:
            _move_up(sums, done)


def _padded(image_zyx: NDArray[np.float32], windows: Windows) -> NDArray[np.float32]:
    if windows.padded == image_zyx.shape:
        return np.ascontiguousarray(image_zyx)
    padded = np.zeros(windows.padded, np.float32)
    padded[windows.inside] = image_zyx
    return padded


def _add(values: NDArray[np.float32], weights: NDArray[np.float32], sums: NDArray[Any]) -> None:
    """Add one weighted channel [z, y, x] of a window; the product is rounded to single precision as torch does."""
    planes = max(1, _CHUNK_VOXELS // (values.shape[1] * values.shape[2]))
    for first in range(0, len(values), planes):
        chunk = slice(first, first + planes)
        np.add(sums[chunk], values[chunk] * weights[chunk], out=sums[chunk], casting="same_kind")


def _move_up(sums: NDArray[Any], count: int) -> None:
    """Drop the first ``count`` planes of every channel; the rest move to the front and what follows them is 0."""
    kept = sums.shape[1] - count
    for channel in sums:
        channel[:kept] = channel[count:]
        channel[kept:] = 0
