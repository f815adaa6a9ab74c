"""From the source grid to the network's: closest canonical RAS axes, corner-aligned linear resampling.

nnU-Net models trained on NIfTI by way of nibabel see arrays whose axes ascend to the patient's Right, Anterior and
Superior, indexed [z, y, x]; TotalSegmentator resamples them with ``scipy.ndimage.zoom(order=1, grid_mode=False)``,
which maps the centres of the outermost voxels onto each other (totalsegmentator/resampling.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

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
    """Shape after resampling, rounded half to even as ``scipy.ndimage.zoom`` rounds."""
    first, second, third = (
        max(1, round(n * (old / new))) for n, old, new in zip(shape, spacing_mm, new_spacing_mm, strict=True)
    )
    return first, second, third


def sample_positions(count: int, source_count: int) -> NDArray[np.float64]:
    """Where the ``count`` samples of an axis lie on an axis of ``source_count`` voxels; first and last coincide."""
    return np.linspace(0.0, source_count - 1.0, count) if count > 1 else np.zeros(1)


def neighbours(
    positions: NDArray[np.float64], source_count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Lower and upper neighbour of each position, and the weight of the upper one."""
    lower = np.clip(np.floor(positions).astype(np.int64), 0, max(source_count - 2, 0))
    upper = np.minimum(lower + 1, source_count - 1)
    return lower, upper, positions - lower


def resample(voxels: NDArray[Any], new_shape: Sequence[int]) -> NDArray[np.float32]:
    """Resample by linear interpolation, the outermost voxel centres kept, and round to whole HU.

    One plane at a time, so that no more than one plane of the source is held in double precision.
    """
    if tuple(new_shape) == voxels.shape:
        return np.rint(voxels.astype(np.float32))
    planes, rows, columns = (
        neighbours(sample_positions(n, old), old) for n, old in zip(new_shape, voxels.shape, strict=True)
    )
    resampled = np.empty(tuple(new_shape), np.float32)
    for k, (lower, upper, weight) in enumerate(zip(*planes, strict=True)):
        plane = voxels[lower] * (1.0 - weight) + voxels[upper] * weight
        plane = plane[rows[0]] * (1.0 - rows[2])[:, None] + plane[rows[1]] * rows[2][:, None]
        plane = plane[:, columns[0]] * (1.0 - columns[2]) + plane[:, columns[1]] * columns[2]
        resampled[k] = np.rint(plane)
    return resampled
