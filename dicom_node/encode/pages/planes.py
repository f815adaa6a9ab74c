"""A CT along the patient's axes for images: the planes that show most, and the edges of structures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inference.types import Volume

_LABELS = 256
_VOXELS_LOOKED_AT = 4_000_000
"""Planes of larger volumes are compared on every n-th voxel: what this misses is too small to choose a plane for."""


@dataclass(frozen=True, slots=True, eq=False)
class Upright:
    """Voxels along the patient's axes: x to the Left, y to the Posterior, z to the Superior; sizes in mm.

    ``affine_lps`` maps an index (x, y, z) to mm, as that of a :class:`~inference.types.Geometry`.
    """

    hu_zyx: NDArray[np.int16] | NDArray[np.float32]
    labels_zyx: NDArray[np.uint8]
    spacing_zyx_mm: tuple[float, float, float]
    affine_lps: NDArray[np.float64]


def upright(volume: Volume, labels_zyx: NDArray[np.uint8]) -> Upright:
    """Axes permuted and flipped (nothing resampled) so that each lies along the patient axis it is closest to."""
    direction = volume.geometry.direction
    spacing_xyz = volume.geometry.spacing_xyz_mm
    order: list[int] = []
    for patient_axis in range(3):
        free = [axis for axis in range(3) if axis not in order]
        order.append(max(free, key=lambda axis: abs(direction[patient_axis, axis])))
    flips = [direction[patient_axis, axis] < 0 for patient_axis, axis in enumerate(order)]
    # array axis of grid axis a (x, y, z) is 2 - a
    transpose = [2 - order[patient_axis] for patient_axis in (2, 1, 0)]
    affine = np.eye(4)
    affine[:3, 3] = volume.geometry.affine_lps[:3, 3]
    for patient_axis, (axis, flip) in enumerate(zip(order, flips, strict=True)):
        along = volume.geometry.affine_lps[:3, axis]
        affine[:3, patient_axis] = -along if flip else along
        affine[:3, 3] += along * (volume.geometry.shape_zyx[2 - axis] - 1 if flip else 0)
    step = tuple(slice(None, None, -1 if flips[patient_axis] else 1) for patient_axis in (2, 1, 0))
    return Upright(
        volume.voxels_zyx.transpose(transpose)[step],
        labels_zyx.transpose(transpose)[step],
        (spacing_xyz[order[2]], spacing_xyz[order[1]], spacing_xyz[order[0]]),
        affine,
    )


def telling_planes(labels_zyx: NDArray[np.uint8], of: tuple[int, ...]) -> tuple[int, int, int]:
    """For each axis, the plane that shows most of the labels ``of``; among equals, that with most of their voxels."""
    k, j, i = (_telling_plane(labels_zyx, of, axis) for axis in range(3))
    return k, j, i


def _telling_plane(labels_zyx: NDArray[np.uint8], of: tuple[int, ...], axis: int) -> int:
    every = max(1, round((labels_zyx.size / _VOXELS_LOOKED_AT) ** 0.5))
    looked_at = tuple(slice(None) if own == axis else slice(None, None, every) for own in range(3))
    planes = np.moveaxis(labels_zyx[looked_at], axis, 0)
    counts = np.stack([np.bincount(plane.ravel(), minlength=_LABELS)[list(of)] for plane in planes])
    if not counts.any():
        return len(planes) // 2
    return max(range(len(planes)), key=lambda index: ((counts[index] > 0).sum(), counts[index].sum()))


def edges(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Labelled pixels that are next to another label."""
    found = np.zeros(labels.shape, dtype=np.bool_)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    found[:, 1:] |= across
    found[:, :-1] |= across
    found[1:] |= down
    found[:-1] |= down
    found &= labels > 0
    return found
