"""Gantry tilt: source planes that are shifted against each other by a constant step, and the upright grid of them.

The upright grid keeps the directions, spacings and planes of the source and only widens: plane ``k`` lies where it lay,
its pixels are moved by ``-k x shift`` of the grid's columns and rows, linearly interpolated. Nothing is resampled
between planes, so labels come back to the source frames by the same shift.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from inference.types import Geometry, Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

AIR_HU = -1024
"""What lies outside of the source images."""


def upright(source: Volume, shear_xy: tuple[float, float]) -> Volume:
    """``source`` on an orthogonal grid that contains every one of its voxels; outside of them is air.

    ``shear_xy`` is the shift from plane to plane in (columns, rows), as ``Reconstruction.shear_xy_pixels_per_plane``.
    """
    geometry = _upright_geometry(source.geometry, shear_xy)
    voxels = np.full(geometry.shape_zyx, AIR_HU, dtype=source.voxels_zyx.dtype)
    first_x, first_y = _first_pixel(source.geometry.shape_zyx[0], shear_xy)
    for k, plane in enumerate(source.voxels_zyx):
        moved = _moved(plane.astype(np.float64), k * shear_xy[1] - first_y, geometry.shape_zyx[1], axis=0)
        moved = _moved(moved, k * shear_xy[0] - first_x, geometry.shape_zyx[2], axis=1)
        voxels[k] = np.rint(moved) if voxels.dtype == np.int16 else moved
    return Volume(voxels, geometry)


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


def _moved(plane: NDArray[np.float64], shift: float, size: int, axis: int) -> NDArray[np.float64]:
    """``plane`` moved by ``shift`` >= 0 pixels along ``axis`` into air of ``size`` pixels, linearly interpolated."""
    whole = math.floor(shift)
    fraction = shift - whole
    before = [(0, 0), (0, 0)]
    before[axis] = (1, 1)
    padded = np.pad(plane, before, constant_values=AIR_HU)
    near, far = (np.take(padded, range(start, start + plane.shape[axis] + 1), axis=axis) for start in (1, 0))
    blended = (1 - fraction) * near + fraction * far
    length = min(plane.shape[axis] + 1, size - whole)
    moved_shape = list(plane.shape)
    moved_shape[axis] = size
    moved = np.full(moved_shape, float(AIR_HU))
    target, taken = [slice(None), slice(None)], [slice(None), slice(None)]
    target[axis], taken[axis] = slice(whole, whole + length), slice(0, length)
    moved[tuple(target)] = blended[tuple(taken)]
    return moved
