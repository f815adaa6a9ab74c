"""From the source grid to the network's: closest canonical RAS axes, corner-aligned linear resampling.

nnU-Net models trained on NIfTI by way of nibabel see arrays whose axes ascend to the patient's Right, Anterior and
Superior, indexed [z, y, x]; TotalSegmentator resamples them with ``scipy.ndimage.zoom(order=1, grid_mode=False)``,
which maps the centres of the outermost voxels onto each other (totalsegmentator/resampling.py).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from scipy.ndimage import zoom

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from inference.types import Geometry

_T = TypeVar("_T", bound=np.generic)
_RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True, slots=True)
class Canonical:
    """The flips and the exchange of axes that turn a source array [z, y, x] into the closest RAS one, and back.

    Axis k of the canonical array is axis ``source_axes[k]`` of the source array, reversed where ``reversed_axes[k]``.
    """

    source_axes: tuple[int, int, int]
    reversed_axes: tuple[bool, bool, bool]

    @classmethod
    def of(cls, geometry: Geometry, order: Sequence[int] = (0, 1, 2)) -> Canonical:
        """The canonical view of ``geometry``, its axes taken in the ``order`` that the network wants (of z, y, x).

        The strongest direction cosines choose first, as in ``nibabel.orientations.io_orientation``.
        """
        cosines = _RAS_FROM_LPS @ geometry.direction
        left, _, right = np.linalg.svd(cosines)
        closest = left @ right  # the nearest rotation, without shear
        source_of_patient_axis: dict[int, tuple[int, bool]] = {}
        for grid_axis in np.argsort(-np.abs(closest).max(axis=0), kind="stable"):
            patient_axis = int(np.argmax(np.abs(closest[:, grid_axis])))
            source_of_patient_axis[patient_axis] = (int(grid_axis), bool(closest[patient_axis, grid_axis] < 0))
            closest[patient_axis] = 0
        # grid and patient axes count x, y, z; arrays are indexed z, y, x
        wanted = [source_of_patient_axis[2 - axis] for axis in order]
        first, second, third = wanted
        return cls((2 - first[0], 2 - second[0], 2 - third[0]), (first[1], second[1], third[1]))

    def view(self, source: NDArray[_T]) -> NDArray[_T]:
        """The canonical view of an array on the source grid; writing to it writes to the source array."""
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.reversed_axes)
        return source.transpose(self.source_axes)[steps]

    def spacing_mm(self, geometry: Geometry) -> tuple[float, float, float]:
        """Spacing along the canonical axes."""
        zyx = geometry.spacing_xyz_mm[::-1]
        first, second, third = self.source_axes
        return zyx[first], zyx[second], zyx[third]


def resampled_shape(
    shape: Sequence[int], spacing_mm: Sequence[float], new_spacing_mm: Sequence[float]
) -> tuple[int, int, int]:
    """Shape after resampling, rounded half to even as ``scipy.ndimage.zoom`` rounds.

    Spacings count in single precision, as a NIfTI header gives them to TotalSegmentator: that decides ties.
    """
    first, second, third = (
        max(1, round(n * (float(np.float32(old)) / new)))
        for n, old, new in zip(shape, spacing_mm, new_spacing_mm, strict=True)
    )
    return first, second, third


def sample_positions(count: int, source_count: int) -> NDArray[np.float64]:
    """Where the ``count`` samples of an axis lie on an axis of ``source_count`` voxels; first and last coincide.

    As ``scipy.ndimage.zoom`` computes them, so the last may lie beyond the last voxel by a rounding error.
    """
    distance = (source_count - 1) / (count - 1) if count > 1 else 1.0
    return np.arange(count, dtype=np.float64) * distance


def neighbours(
    positions: NDArray[np.float64], source_count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Lower and upper neighbour of each position, and the weight of the upper one."""
    lower = np.clip(np.floor(positions).astype(np.int64), 0, max(source_count - 2, 0))
    upper = np.minimum(lower + 1, source_count - 1)
    return lower, upper, positions - lower


def resample(voxels_zyx: NDArray[Any], new_shape: Sequence[int], threads: int = 1) -> NDArray[np.int16]:
    """Resample by linear interpolation, the outermost voxel centres kept, and truncate to whole HU.

    Bit-equal with ``scipy.ndimage.zoom(order=1, mode="nearest")`` of the [x, y, z] array in double precision followed
    by ``astype(int32)``, which is TotalSegmentator's ``change_spacing``: products and sums come in the same order, for
    what a sum of weights just below 1 gives is truncated too, and air at -1024 HU may become -1023. HU beyond 16 bits
    are clipped. One plane at a time, so that hardly more than the result is held.
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
    """Two neighbours of every sample of an axis, and their weights."""

    voxels: tuple[NDArray[np.int64], NDArray[np.int64]]
    weights: tuple[NDArray[np.float64], NDArray[np.float64]]

    @classmethod
    def between(cls, count: int, source_count: int) -> _Linear:
        positions = sample_positions(count, source_count)
        below = np.floor(positions)
        lower = below.astype(np.int64)
        first = 1.0 - (positions - below)  # and the second is what the first leaves of 1, as in scipy's C
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


_ANISOTROPIC = 3.0
"""nnU-Net treats planes apart where they are more than three times as far from each other as their pixels."""


def shape_within_borders(
    shape: Sequence[int], spacing_mm: Sequence[float], new_spacing_mm: Sequence[float]
) -> tuple[int, int, int]:
    """Shape after nnU-Net's own resampling (compute_new_shape)."""
    first, second, third = (
        max(1, round(old / new * n)) for n, old, new in zip(shape, spacing_mm, new_spacing_mm, strict=True)
    )
    return first, second, third


def resample_within_borders(
    values_zyx: NDArray[np.float32],
    new_shape: Sequence[int],
    spacing_mm: Sequence[float],
    new_spacing_mm: Sequence[float],
) -> NDArray[np.float32]:
    """Resample as nnU-Net's preprocessing does: cubic, the outer borders of the outermost voxels kept.

    Where planes are thick, on either grid, they are resampled one by one and then the nearest is taken
    (nnunetv2/preprocessing/resampling/default_resampling.py with order 3, order_z 0).
    """
    if tuple(new_shape) == values_zyx.shape:
        return values_zyx
    values = values_zyx.astype(np.float64)
    axis = _thick_axis(spacing_mm, new_spacing_mm)
    if axis is None:
        return _cubic(values, new_shape).astype(np.float32)
    planes = np.moveaxis(values, axis, 0)
    new_plane = [n for a, n in enumerate(new_shape) if a != axis]
    resampled = np.stack([_cubic(plane, new_plane) for plane in planes])
    count, new_count = len(planes), new_shape[axis]
    nearest = np.floor((count / new_count) * (np.arange(new_count) + 0.5) - 0.5 + 0.5).astype(np.int64)
    whole: NDArray[np.float32] = np.moveaxis(resampled[np.clip(nearest, 0, count - 1)], 0, axis).astype(np.float32)
    return whole


def _thick_axis(spacing_mm: Sequence[float], new_spacing_mm: Sequence[float]) -> int | None:
    for spacing in (spacing_mm, new_spacing_mm):
        if max(spacing) / min(spacing) > _ANISOTROPIC:
            thickest = [axis for axis, mm in enumerate(spacing) if mm == max(spacing)]
            return thickest[0] if len(thickest) == 1 else None
    return None


def _cubic(values: NDArray[np.float64], new_shape: Sequence[int]) -> NDArray[np.float64]:
    """``skimage.transform.resize(order=3, mode="edge", anti_aliasing=False)``, which keeps to the range of values."""
    factors = [new / old for new, old in zip(new_shape, values.shape, strict=True)]
    zoomed: NDArray[np.float64] = zoom(values, factors, order=3, mode="nearest", grid_mode=True)
    return np.clip(zoomed, values.min(), values.max(), out=zoomed)
