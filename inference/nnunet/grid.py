"""From the source grid to the network's: closest axes of the model's orientation, corner-aligned linear resampling.

nnU-Net models see arrays indexed [z, y, x]. Those that were trained on what nibabel reoriented, as TotalSegmentator's,
see axes that ascend towards the patient's Right, Anterior and Superior; others see what their training files had
(:mod:`inference.models.orientation`). TotalSegmentator resamples them with ``scipy.ndimage.zoom(order=1,
grid_mode=False)``, which maps the centres of the outermost voxels onto each other (totalsegmentator/resampling.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from inference.models.orientation import CANONICAL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from inference.types import Geometry

_T = TypeVar("_T", bound=np.generic)
_ANISOTROPIC = 3.0
"""nnU-Net resamples planes one by one if they are more than this many times as far apart as their pixels."""
_RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True, slots=True)
class Canonical:
    """The flips and the permutation of axes between a source array [z, y, x] and the closest array of an orientation.

    Axis k of the canonical array is axis ``source_axes[k]`` of the source array, reversed where ``reversed_axes[k]``.
    """

    source_axes: tuple[int, int, int]
    reversed_axes: tuple[bool, bool, bool]

    @classmethod
    def of(cls, geometry: Geometry, order: Sequence[int] = (0, 1, 2), orientation: str = CANONICAL) -> Canonical:
        """The canonical view of ``geometry``, with its axes (z, y, x) in the ``order`` that the network expects.

        ``orientation``: the directions towards which its x, y and z ascend, as in a package.
        The strongest direction cosine is assigned first, as in ``nibabel.orientations.io_orientation``.
        """
        cosines = _RAS_FROM_LPS @ geometry.direction
        left, _, right = np.linalg.svd(cosines)
        closest = left @ right  # the nearest rotation, without shear
        source_of_patient_axis: dict[int, tuple[int, bool]] = {}
        for grid_axis in np.argsort(-np.abs(closest).max(axis=0), kind="stable"):
            patient_axis = int(np.argmax(np.abs(closest[:, grid_axis])))
            descends = bool(closest[patient_axis, grid_axis] < 0)
            turned = orientation[patient_axis] != CANONICAL[patient_axis]
            source_of_patient_axis[patient_axis] = (int(grid_axis), descends != turned)
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
    """Shape after resampling, rounded half to even as in ``scipy.ndimage.zoom``.

    Spacings are taken in single precision, as TotalSegmentator reads them from a NIfTI header; this decides ties.
    """
    first, second, third = (
        max(1, round(n * (float(np.float32(old)) / new)))
        for n, old, new in zip(shape, spacing_mm, new_spacing_mm, strict=True)
    )
    return first, second, third


def sample_positions(count: int, source_count: int) -> NDArray[np.float64]:
    """Positions of ``count`` samples on an axis of ``source_count`` voxels; the first and last voxels coincide.

    Computed as in ``scipy.ndimage.zoom``, so the last may lie beyond the last voxel by a rounding error.
    """
    distance = (source_count - 1) / (count - 1) if count > 1 else 1.0
    return np.arange(count, dtype=np.float64) * distance


def shape_within_borders(
    shape: Sequence[int], spacing_mm: Sequence[float], new_spacing_mm: Sequence[float]
) -> tuple[int, int, int]:
    """Shape after nnU-Net's own resampling (compute_new_shape)."""
    first, second, third = (
        max(1, round(old / new * n)) for n, old, new in zip(shape, spacing_mm, new_spacing_mm, strict=True)
    )
    return first, second, third


def thick_axis(spacing_mm: Sequence[float], new_spacing_mm: Sequence[float]) -> int | None:
    """The axis along which nnU-Net takes the nearest plane, because either grid is so much coarser there; or None.

    (determine_do_sep_z_and_axis in nnunetv2/preprocessing/resampling/default_resampling.py)
    """
    for spacing in (spacing_mm, new_spacing_mm):
        if max(spacing) / min(spacing) > _ANISOTROPIC:
            thickest = [axis for axis, mm in enumerate(spacing) if mm == max(spacing)]
            return thickest[0] if len(thickest) == 1 else None
    return None
