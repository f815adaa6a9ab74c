"""Resamples HU to the network's grid: linearly as TotalSegmentator does, or cubically as nnU-Net does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import zoom

from inference.nnunet.grid import sample_positions, thick_axis

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def resample(voxels_zyx: NDArray[Any], new_shape: Sequence[int], threads: int = 1) -> NDArray[np.int16]:
    """Resample by linear interpolation, keeping the outermost voxel centres, and truncate to whole HU.

    Bit-equal with ``scipy.ndimage.zoom(order=1, mode="nearest")`` of the [x, y, z] array in double precision followed
    by ``astype(int32)``, which is TotalSegmentator's ``change_spacing``. The order of products and sums is the same,
    because truncation exposes rounding: if weights sum to just below 1, air at -1024 HU becomes -1023. HU beyond
    16 bits are clipped. Works one plane at a time, so it needs little memory beyond the result.
    """
    axes = [_Linear.between(n, old) for n, old in zip(new_shape, voxels_zyx.shape, strict=True)]
    resampled = np.empty(tuple(new_shape), np.int16)
    bounds = np.iinfo(np.int16)
    workers = max(1, min(threads, len(resampled)))

    def every_nth_plane(first: int) -> None:
        for k in range(first, len(resampled), workers):
            resampled[k] = np.clip(_plane(voxels_zyx, k, *axes), bounds.min, bounds.max)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(every_nth_plane, range(workers)))
    return resampled


@dataclass(frozen=True, slots=True)
class _Linear:
    """The two neighbours of every sample of an axis, and their weights."""

    voxels: tuple[NDArray[np.int64], NDArray[np.int64]]
    weights: tuple[NDArray[np.float64], NDArray[np.float64]]

    @classmethod
    def between(cls, count: int, source_count: int) -> _Linear:
        positions = sample_positions(count, source_count)
        below = np.floor(positions)
        lower = below.astype(np.int64)
        first = 1.0 - (positions - below)  # the second is 1 minus the first, as in scipy's C code
        return cls((lower, np.minimum(lower + 1, source_count - 1)), (first, 1.0 - first))


def _plane(voxels_zyx: NDArray[Any], k: int, z: _Linear, y: _Linear, x: _Linear) -> NDArray[np.float64]:
    """Plane ``k`` of the resampled volume, summed over its 2 x 2 x 2 neighbours with x outermost and z innermost."""
    rows = len(y.voxels[0])
    every_row = np.concatenate(y.voxels)
    lines = [voxels_zyx[plane[k]][every_row] for plane in z.voxels]
    total = np.zeros((rows, len(x.voxels[0])))
    term = np.empty_like(total)
    for columns, x_weight in zip(x.voxels, x.weights, strict=True):
        values = [line[:, columns] for line in lines]
        for part, y_weight in zip((slice(0, rows), slice(rows, None)), y.weights, strict=True):
            for value, z_weight in zip(values, z.weights, strict=True):
                np.multiply(value[part], x_weight, out=term)
                term *= y_weight[:, None]
                term *= z_weight[k]
                total += term
    return total


def resample_within_borders(
    values_zyx: NDArray[np.float32],
    new_shape: Sequence[int],
    spacing_mm: Sequence[float],
    new_spacing_mm: Sequence[float],
) -> NDArray[np.float32]:
    """Resample as nnU-Net's preprocessing does: cubically, keeping the outer borders of the outermost voxels.

    If planes are thick on either grid, each is resampled in its plane and then the nearest plane is taken
    (nnunetv2/preprocessing/resampling/default_resampling.py with order 3, order_z 0).
    """
    if tuple(new_shape) == values_zyx.shape:
        return values_zyx
    values = values_zyx.astype(np.float64)
    axis = thick_axis(spacing_mm, new_spacing_mm)
    if axis is None:
        return _cubic(values, new_shape).astype(np.float32)
    planes = np.moveaxis(values, axis, 0)
    new_plane = [n for a, n in enumerate(new_shape) if a != axis]
    resampled = np.stack([_cubic(plane, new_plane) for plane in planes])
    count, new_count = len(planes), new_shape[axis]
    nearest = np.floor((count / new_count) * (np.arange(new_count) + 0.5) - 0.5 + 0.5).astype(np.int64)
    whole: NDArray[np.float32] = np.moveaxis(resampled[np.clip(nearest, 0, count - 1)], 0, axis).astype(np.float32)
    return whole


def _cubic(values: NDArray[np.float64], new_shape: Sequence[int]) -> NDArray[np.float64]:
    """``skimage.transform.resize(order=3, mode="edge", anti_aliasing=False)``, which clips to the input's range."""
    factors = [new / old for new, old in zip(new_shape, values.shape, strict=True)]
    zoomed: NDArray[np.float64] = zoom(values, factors, order=3, mode="nearest", grid_mode=True)
    return np.clip(zoomed, values.min(), values.max(), out=zoomed)
