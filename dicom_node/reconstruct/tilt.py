"""Gantry tilt: source planes that are shifted against each other by a constant step, and the upright grid of them.

The upright grid keeps the directions, spacings and planes of the source and only widens: plane ``k`` lies where it lay,
its pixels are moved by ``-k x shift`` of the grid's columns and rows. They are linearly interpolated, but the nearest
one is taken beside padding and across an edge of air. Nothing is resampled between planes, so labels come back to the
source frames by the same shift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from inference.types import AIR_HU, Geometry, Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dicom_node.reconstruct.volume import Allocate

_DARKER_THAN_FAT_HU = -200.0
_LARGEST_STEP_FROM_AIR_HU = 300.0
"""Where air or lung borders on something brighter by more, there is an edge, and half way between the two would lie fat
that is not there."""


def upright(source: Volume, shear_xy: tuple[float, float], allocate: Allocate = np.empty) -> Volume:
    """``source`` on an orthogonal grid that contains every one of its voxels; outside of them is air.

    ``shear_xy`` is the shift from plane to plane in (columns, rows), as ``Reconstruction.shear_xy_pixels_per_plane``.
    Padding keeps its values and stays padding.
    """
    geometry = _upright_geometry(source.geometry, shear_xy)
    voxels = allocate(geometry.shape_zyx, source.voxels_zyx.dtype)
    voxels[...] = AIR_HU
    padding_zyx = None if source.padding is None else np.zeros(geometry.shape_zyx, dtype=bool)
    first_x, first_y = _first_pixel(source.geometry.shape_zyx[0], shear_xy)
    for k, plane in enumerate(source.voxels_zyx):
        pixels = _Pixels(plane.astype(np.float64), np.ones(plane.shape, dtype=bool))
        if source.padding is not None:
            pixels.imaged[source.padding.found_in(source.voxels_zyx[k : k + 1], k)[0]] = False
        shift_y, shift_x = k * shear_xy[1] - first_y, k * shear_xy[0] - first_x
        moved = _moved(_moved(pixels, shift_y, geometry.shape_zyx[1], 0), shift_x, geometry.shape_zyx[2], 1)
        voxels[k] = np.rint(moved.hu) if voxels.dtype == np.int16 else moved.hu
        if padding_zyx is not None:
            padding_zyx[k] = ~moved.imaged
    if source.padding is None:
        return Volume(voxels, geometry)
    return Volume(voxels, geometry, replace(source.padding, region_zyx=padding_zyx))


def back_on_source(
    labels_zyx: NDArray[np.uint8], source_shape_zyx: tuple[int, int, int], shear_xy: tuple[float, float]
) -> NDArray[np.uint8]:
    """Labels of the upright grid on the pixels of the source planes, each from its nearest upright voxel."""
    planes, rows, columns = source_shape_zyx
    first_x, first_y = _first_pixel(planes, shear_xy)
    labels = np.empty(source_shape_zyx, dtype=np.uint8)
    for k in range(planes):
        y = np.rint(np.arange(rows) + (k * shear_xy[1] - first_y)).astype(np.intp)
        x = np.rint(np.arange(columns) + (k * shear_xy[0] - first_x)).astype(np.intp)
        labels[k] = labels_zyx[k][np.ix_(y, x)]
    return labels


def _first_pixel(planes: int, shear_xy: tuple[float, float]) -> tuple[int, int]:
    """Column and row of the first plane at which the upright grid begins (whole, not above 0)."""
    x, y = (math.floor(min(0.0, (planes - 1) * shift)) for shift in shear_xy)
    return x, y


def _upright_geometry(source: Geometry, shear_xy: tuple[float, float]) -> Geometry:
    planes, rows, columns = source.shape_zyx
    extra_x, extra_y = (math.ceil(abs((planes - 1) * shift)) for shift in shear_xy)
    first_x, first_y = _first_pixel(planes, shear_xy)
    affine = source.affine_lps.copy()
    affine[:3, 3] += first_x * affine[:3, 0] + first_y * affine[:3, 1]
    affine[:3, 2] -= shear_xy[0] * affine[:3, 0] + shear_xy[1] * affine[:3, 1]
    return Geometry((planes, rows + extra_y, columns + extra_x), affine)


@dataclass(frozen=True, slots=True, eq=False)
class _Pixels:
    """One plane, [row, column], and which of its pixels were imaged."""

    hu: NDArray[np.float64]
    imaged: NDArray[np.bool_]


def _moved(plane: _Pixels, shift: float, size: int, axis: int) -> _Pixels:
    """``plane`` moved by ``shift`` >= 0 pixels along ``axis`` into air of ``size`` pixels."""
    whole = math.floor(shift)
    count = plane.hu.shape[axis]
    blended = _between_neighbours(plane, shift - whole, axis)
    length = min(count + 1, size - whole)
    moved_shape = list(plane.hu.shape)
    moved_shape[axis] = size
    moved = _Pixels(np.full(moved_shape, float(AIR_HU)), np.zeros(moved_shape, dtype=bool))
    target, taken = [slice(None), slice(None)], [slice(None), slice(None)]
    target[axis], taken[axis] = slice(whole, whole + length), slice(0, length)
    moved.hu[tuple(target)] = blended.hu[tuple(taken)]
    moved.imaged[tuple(target)] = blended.imaged[tuple(taken)]
    return moved


def _between_neighbours(plane: _Pixels, fraction: float, axis: int) -> _Pixels:
    """The pixels ``fraction`` of one before those of ``plane``, and one more at its end."""
    around = [(0, 0), (0, 0)]
    around[axis] = (1, 1)
    hu, imaged = np.pad(plane.hu, around, constant_values=AIR_HU), np.pad(plane.imaged, around, constant_values=False)
    after, before = [slice(None), slice(None)], [slice(None), slice(None)]
    after[axis], before[axis] = slice(1, None), slice(None, -1)
    near, far = hu[tuple(after)], hu[tuple(before)]
    near_imaged, far_imaged = imaged[tuple(after)], imaged[tuple(before)]
    nearest, nearest_imaged = (near, near_imaged) if fraction <= 0.5 else (far, far_imaged)  # noqa: PLR2004 - half a pixel
    is_edge = (np.minimum(near, far) < _DARKER_THAN_FAT_HU) & (np.abs(near - far) > _LARGEST_STEP_FROM_AIR_HU)
    mixes = near_imaged & far_imaged & ~is_edge
    return _Pixels(np.where(mixes, (1 - fraction) * near + fraction * far, nearest), nearest_imaged)
