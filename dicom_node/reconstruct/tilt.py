"""Gantry tilt: source planes that are shifted against each other by a constant step, and the upright grid of them.

The upright grid keeps the directions, spacings and planes of the source and only widens: plane ``k`` lies where it lay,
and its pixels are moved by ``-k x shift`` of the grid's columns and rows, rounded to whole pixels. So every HU of a
source image stays as it is, at most half a pixel from its place, and its label comes back to exactly that pixel.

Interpolation between the pixels would put each in its place, but mixes them: on a phantom with a tilt of 20 degrees,
the bone that thresholds find became 5 % more and fat 2.4 % less, and the labels came back with the same half pixel.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dicom_node.types import whole_pixels
from inference.types import AIR_HU, Geometry, Volume

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from dicom_node.reconstruct.volume import Allocate


def upright(source: Volume, shear_xy: tuple[float, float], allocate: Allocate = np.empty) -> Volume:
    """``source`` on an orthogonal grid that contains every one of its voxels; outside of them is air.

    ``shear_xy`` is the shift from plane to plane in (columns, rows), as ``Reconstruction.shear_xy_pixels_per_plane``.
    Padding keeps its values and stays padding.
    """
    geometry = _upright_geometry(source.geometry, shear_xy)
    voxels = allocate(geometry.shape_zyx, source.voxels_zyx.dtype)
    voxels[...] = AIR_HU
    padding_zyx = None if source.padding is None else np.ones(geometry.shape_zyx, dtype=bool)
    for k, place in enumerate(_places(source.geometry.shape_zyx, shear_xy)):
        voxels[k][place] = source.voxels_zyx[k]
        if source.padding is not None and padding_zyx is not None:
            padding_zyx[k][place] = source.padding.found_in(source.voxels_zyx[k : k + 1], k)[0]
    if source.padding is None:
        return Volume(voxels, geometry)
    return Volume(voxels, geometry, replace(source.padding, region_zyx=padding_zyx))


def back_on_source(
    labels_zyx: NDArray[np.uint8], source_shape_zyx: tuple[int, int, int], shear_xy: tuple[float, float]
) -> NDArray[np.uint8]:
    """Labels of the upright grid on the pixels of the source planes, each from the voxel that has its HU."""
    places = _places(source_shape_zyx, shear_xy)
    return np.stack([labels[place] for labels, place in zip(labels_zyx, places, strict=True)])


def _places(shape_zyx: tuple[int, int, int], shear_xy: tuple[float, float]) -> Iterator[tuple[slice, slice]]:
    """The rows and columns of the upright grid that hold each source plane."""
    planes, rows, columns = shape_zyx
    first_x, first_y = _first_pixel(planes, shear_xy)
    for k in range(planes):
        x, y = (whole_pixels(k * shift - first) for shift, first in zip(shear_xy, (first_x, first_y), strict=True))
        yield slice(y, y + rows), slice(x, x + columns)


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
