"""Shape of structures, as defined by the Image Biomarker Standardisation Initiative (reference manual, section 3.1).

The surface mesh is that of marching cubes halfway between voxel centres (IBSI 3.1.1). How much a cell of 2 x 2 x 2
voxel centres adds to area and volume depends only on which of its corners are inside: scikit-image triangulates each of
these 256 cases once, and the cells of a structure are counted. The mesh itself is never built.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from inference.types import ShapeMeasurement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from inference.types import Segmentation

_CASES = 256
_HULL_POINTS_AT_ONCE = 2000


def measure_shape(segmentation: Segmentation) -> Mapping[int, ShapeMeasurement]:
    """The shape of each structure of ``segmentation``, by label.

    A structure whose voxels lie in one line or plane has axes of length 0; a single voxel has neither elongation nor
    flatness.
    """
    from scipy.ndimage import find_objects  # noqa: PLC0415 - few runs need it, and the import takes a second

    labels_zyx, affine = segmentation.labels_zyx, segmentation.geometry.affine_lps[:3, :3]
    boxes = find_objects(labels_zyx)
    return {
        label: _shape_of(labels_zyx[boxes[label - 1]] == label, affine)
        for label in segmentation.names_by_label
        if label <= len(boxes) and boxes[label - 1] is not None
    }


def _shape_of(inside_zyx: NDArray[np.bool_], affine: NDArray[np.float64]) -> ShapeMeasurement:
    """The shape of the true voxels, at least one; ``affine`` maps steps along (column, row, plane) to mm."""
    cases_by_plane = _cases_by_plane(inside_zyx)
    volume = _mesh_volume(cases_by_plane) * abs(float(np.linalg.det(affine)))
    area = float(cases_by_plane.sum(axis=0) @ _areas(affine))
    # rounding can make the smallest variance of a flat structure negative
    variances = np.maximum(np.linalg.eigvalsh(affine @ _covariance_xyz(inside_zyx) @ affine.T), 0.0)
    least, minor, major = np.sqrt(variances).tolist()
    return ShapeMeasurement(
        mesh_volume_mm3=volume,
        surface_area_mm2=area,
        sphericity=float((36 * np.pi * volume**2) ** (1 / 3) / area),
        maximum_diameter_mm=_maximum_diameter(inside_zyx, affine),
        major_axis_mm=4 * major,
        minor_axis_mm=4 * minor,
        least_axis_mm=4 * least,
        elongation=minor / major if major else None,
        flatness=least / major if major else None,
    )


# ---- the surface


@cache
def _cells() -> tuple[NDArray[np.float64], ...]:
    """The triangles of each case, (triangles, 3 corners, xyz), in voxels relative to the first corner of the cell."""
    from skimage.measure import marching_cubes  # noqa: PLC0415 - as above

    cells = [np.empty((0, 3, 3))]
    for case in range(1, _CASES - 1):
        inside = np.array([case >> bit & 1 for bit in range(8)], dtype=np.float32).reshape(2, 2, 2)
        corners_zyx, triangles, _, _ = marching_cubes(inside, 0.5)
        cells.append(corners_zyx[triangles][..., ::-1].astype(np.float64))
    return (*cells, cells[0])


def _areas(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """The area of each case, in mm2."""
    areas = []
    for triangles in _cells():
        a, b, c = np.moveaxis(triangles @ affine.T, 1, 0)
        areas.append(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)
    return np.array(areas)


@cache
def _volumes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How much each case adds to the volume, in voxels, and how much more for each plane below it.

    By Gauss's theorem, a volume is the integral of z over the z component of its outward surface.
    """
    here, per_plane = [], []
    for triangles in _cells():
        a, b, c = np.moveaxis(triangles, 1, 0)
        projected = np.cross(b - a, c - a)[:, 2] / 2
        here.append(float(projected @ triangles[:, :, 2].mean(axis=1)))
        per_plane.append(float(projected.sum()))
    return np.array(here), np.array(per_plane)


def _mesh_volume(cases_by_plane: NDArray[np.int64]) -> float:
    here, per_plane = _volumes()
    planes = np.arange(len(cases_by_plane))
    return abs(float((cases_by_plane @ here).sum() + planes @ (cases_by_plane @ per_plane)))


def _cases_by_plane(inside_zyx: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How often each case occurs between two neighbouring planes, (planes + 1, 256); beyond the array is outside."""
    planes, rows, columns = inside_zyx.shape
    counts = np.empty((planes + 1, _CASES), dtype=np.int64)
    below = np.zeros((rows + 1, columns + 1), dtype=np.uint8)
    padded = np.zeros((rows + 2, columns + 2), dtype=np.uint8)
    for k in range(planes + 1):
        above = np.zeros_like(below)
        if k < planes:
            padded[1:-1, 1:-1] = inside_zyx[k]
            # bits in the memory order of a cell of 2 x 2 x 2
            above = padded[:-1, :-1] | padded[:-1, 1:] << 1 | padded[1:, :-1] << 2 | padded[1:, 1:] << 3
        counts[k] = np.bincount((below | above << 4).ravel(), minlength=_CASES)
        below = above
    return counts


def _maximum_diameter(inside_zyx: NDArray[np.bool_], affine: NDArray[np.float64]) -> float:
    """The largest distance between two vertices of the mesh, in mm."""
    from scipy.spatial import ConvexHull  # noqa: PLC0415 - as above
    from scipy.spatial.distance import cdist  # noqa: PLC0415

    points = np.concatenate([_outermost(inside_zyx, axis) for axis in range(3)])[:, ::-1] @ affine.T
    corners = points[ConvexHull(points).vertices]
    return max(
        float(cdist(corners[start : start + _HULL_POINTS_AT_ONCE], corners).max())
        for start in range(0, len(corners), _HULL_POINTS_AT_ONCE)
    )


def _outermost(inside_zyx: NDArray[np.bool_], axis: int) -> NDArray[np.float64]:
    """The first and last mesh vertex on each line along ``axis``, (n, zyx): only these can be corners of the hull."""
    moved = np.moveaxis(inside_zyx, axis, 0)
    lines = np.nonzero(moved.any(axis=0))
    first = moved.argmax(axis=0)[lines]
    last = len(moved) - 1 - moved[::-1].argmax(axis=0)[lines]
    ends = [np.stack([place, *lines], axis=1) for place in (first - 0.5, last + 0.5)]
    order = np.argsort([axis, *(other for other in range(3) if other != axis)])
    return np.concatenate(ends)[:, order]


# ---- the voxel centres


def _covariance_xyz(inside_zyx: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Covariance of the voxel centres, in voxels; divisor N - 1, as in the reference values of IBSI."""
    planes, rows, columns = (np.arange(size, dtype=np.float64) - (size - 1) / 2 for size in inside_zyx.shape)
    total, first, second = 0.0, np.zeros(3), np.zeros((3, 3))
    for z, plane in zip(planes, inside_zyx, strict=True):
        held = plane.astype(np.float64)
        per_row, per_column = held.sum(axis=1), held.sum(axis=0)
        n, y, x = per_row.sum(), per_row @ rows, per_column @ columns
        xy = rows @ (held @ columns)
        total += n
        first += (x, y, n * z)
        second += np.array(
            [
                (per_column @ columns**2, xy, x * z),
                (xy, per_row @ rows**2, y * z),
                (x * z, y * z, n * z * z),
            ]
        )
    covariance: NDArray[np.float64] = (second - np.outer(first, first) / total) / max(total - 1, 1)
    return covariance
