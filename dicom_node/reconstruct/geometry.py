"""From the stated planes to one regular grid, by Image Position and Image Orientation (Patient) alone.

Slice Location, Instance Number, Slice Thickness, Spacing Between Slices and Gantry/Detector Tilt are never looked at:
Slice Thickness is nominal and Slice Location relative to an unspecified reference (PS3.3 C.7.6.2), and the sign of the
tilt differs between manufacturers (https://github.com/rordenlab/dcm2niix/issues/253). The one rule of order: planes
ascend along the normal ``row direction x column direction`` (PS3.3 C.7.6.2.1.1), which makes every grid right-handed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dicom_node.errors import GeometryRefused
from inference.types import ORTHOGONALITY_TOLERANCE, Geometry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dicom_node.reconstruct.planes import Plane

SPACING_TOLERANCE = 0.01
"""Largest deviation of one gap from the spacing, as a fraction of the spacing."""
_PLACE_TOLERANCE = 0.1
"""Largest distance of a plane from its regular place, in spacings or pixels, so that small errors cannot add up."""
_UNIT_TOLERANCE = 1e-3
_ORIENTATION_TOLERANCE = 1e-4
"""0.05 mm at the far corner of a 512 mm image."""
_PIXEL_SPACING_TOLERANCE = 1e-4
_ROUNDING_MM = 1e-6
_SMALLEST_SPACING_MM, _LARGEST_SPACING_MM = 1e-3, 1e3
_LARGEST_TILT_DEGREES = 45.0
"""Gantries tilt up to some 30 degrees; beyond this the planes were never one acquisition."""


@dataclass(frozen=True, slots=True, eq=False)
class RegularGrid:
    """``order[k]`` is the index of the plane that lies ``k``-th along the normal; ``geometry`` is of those planes.

    ``shear_xy_pixels_per_plane`` is how far each plane is shifted against the one before it, within the plane, in
    columns and rows; (0, 0) for an orthogonal grid.
    """

    order: tuple[int, ...]
    geometry: Geometry
    shear_xy_pixels_per_plane: tuple[float, float]

    @property
    def tilt_degrees(self) -> float:
        """Angle between the way from plane to plane and the normal."""
        return _tilt_degrees(self.geometry.affine_lps)


def regular_grid(planes: tuple[Plane, ...]) -> RegularGrid:
    """Order at least two planes and fit the grid: the step between planes is (last - first) / (count - 1).

    Raises:
        GeometryRefused: several sizes, pixel spacings or orientations; orientation or spacing without sense; planes at
            one position; a missing plane or unequal spacing (beyond 1 %); planes shifted irregularly. With numbers.
    """
    _refuse_several_sizes(planes)
    row_direction, column_direction = _common_directions(planes)
    row_spacing, column_spacing = _common_pixel_spacing(planes)
    positions = np.array([plane.position_lps_mm for plane in planes], dtype=np.float64)
    normal = np.cross(row_direction, column_direction)
    along_normal = positions @ normal
    order = np.argsort(along_normal, kind="stable")
    positions, along_normal = positions[order], along_normal[order]
    _refuse_irregular_gaps(along_normal)

    step = (positions[-1] - positions[0]) / (len(planes) - 1)
    x_axis, y_axis = row_direction * column_spacing, column_direction * row_spacing
    _refuse_irregular_shift(positions, step, row_direction, column_direction, min(row_spacing, column_spacing))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2], affine[:3, 3] = x_axis, y_axis, step, positions[0]
    tilt = _tilt_degrees(affine)
    if tilt > _LARGEST_TILT_DEGREES:
        raise GeometryRefused(f"planes are sheared by {tilt:.1f} degrees, more than any gantry tilts")
    geometry = Geometry((len(planes), planes[0].rows, planes[0].columns), affine)
    shear = (0.0, 0.0)
    if not geometry.is_orthogonal:
        shear = (float(step @ row_direction) / column_spacing, float(step @ column_direction) / row_spacing)
    return RegularGrid(tuple(int(index) for index in order), geometry, shear)


def _refuse_several_sizes(planes: tuple[Plane, ...]) -> None:
    sizes = {(plane.columns, plane.rows) for plane in planes}
    if len(sizes) > 1:
        listed = ", ".join(f"{columns} x {rows}" for columns, rows in sorted(sizes))
        raise GeometryRefused(f"{len(sizes)} image sizes (columns x rows): {listed}")


def _common_directions(planes: tuple[Plane, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The unit vectors along rows (to the next column) and along columns (to the next row)."""
    stated = np.array([plane.orientation for plane in planes], dtype=np.float64)
    deviations = np.abs(stated - stated[0]).max(axis=1)
    if deviations.max() > _ORIENTATION_TOLERANCE:
        others = int((deviations > _ORIENTATION_TOLERANCE).sum())
        raise GeometryRefused(
            f"several orientations: {others} of {len(planes)} planes deviate from the first (cosines by up to "
            f"{deviations.max():.4f})"
        )
    row, column = stated[0, :3], stated[0, 3:]
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    if any(abs(length - 1) > _UNIT_TOLERANCE for length in lengths):
        raise GeometryRefused(
            f"Image Orientation (Patient) has vectors of length {lengths[0]:.4f} and {lengths[1]:.4f}"
        )
    row, column = row / lengths[0], column / lengths[1]
    if abs(float(row @ column)) > ORTHOGONALITY_TOLERANCE:
        raise GeometryRefused(f"rows and columns are not perpendicular (cosine {float(row @ column):.4f})")
    return row, column


def _common_pixel_spacing(planes: tuple[Plane, ...]) -> tuple[float, float]:
    """Spacing between rows and between columns, in mm."""
    spacings = np.array([(plane.row_spacing_mm, plane.column_spacing_mm) for plane in planes], dtype=np.float64)
    low, high = float(spacings.min()), float(spacings.max())
    if low < _SMALLEST_SPACING_MM or high > _LARGEST_SPACING_MM:
        raise GeometryRefused(f"Pixel Spacing of {low:g} to {high:g} mm is not that of a CT image")
    if (np.abs(spacings - spacings[0]) > _PIXEL_SPACING_TOLERANCE * spacings[0]).any():
        distinct = np.unique(spacings.round(6), axis=0)
        raise GeometryRefused(f"{len(distinct)} pixel spacings in one series, from {low:g} to {high:g} mm")
    return float(spacings[0, 0]), float(spacings[0, 1])


def _refuse_irregular_gaps(along_normal: NDArray[np.float64]) -> None:
    """``along_normal``: ascending places of the planes in mm."""
    gaps = np.diff(along_normal)
    usual = float(np.median(gaps))
    if usual > _LARGEST_SPACING_MM:
        raise GeometryRefused(f"planes are {usual:g} mm apart")
    same_place = int((gaps < max(_SMALLEST_SPACING_MM, SPACING_TOLERANCE * usual)).sum())
    if same_place:
        raise GeometryRefused(f"{same_place} of {len(along_normal)} planes lie at the position of another plane")
    # Against the mean, because positions rounded to 0.01 mm make two kinds of gap of which neither is the spacing.
    spacing = float(gaps.mean())
    if np.abs(gaps - spacing).max() > SPACING_TOLERANCE * spacing + _ROUNDING_MM:
        worst = int(np.abs(gaps - usual).argmax())
        uneven = int((np.abs(gaps - usual) > SPACING_TOLERANCE * usual).sum())
        raise GeometryRefused(
            f"gap of {gaps[worst]:.4g} mm after plane {worst + 1} of {len(along_normal)}, expected {usual:.4g} mm: "
            f"missing plane or unequal spacing ({uneven} of {len(gaps)} gaps differ by more than 1 %)"
        )
    regular = np.linspace(along_normal[0], along_normal[-1], len(along_normal))
    drift = float(np.abs(along_normal - regular).max())
    if drift > _PLACE_TOLERANCE * spacing + _ROUNDING_MM:
        raise GeometryRefused(f"spacing drifts: a plane lies {drift:.4g} mm from its regular place ({spacing:.4g} mm)")


def _refuse_irregular_shift(
    positions: NDArray[np.float64],
    step: NDArray[np.float64],
    row_direction: NDArray[np.float64],
    column_direction: NDArray[np.float64],
    pixel_mm: float,
) -> None:
    deviation = positions - (positions[0] + np.arange(len(positions))[:, np.newaxis] * step)
    shift = np.abs(deviation @ np.stack([row_direction, column_direction], axis=1)).max(axis=1)
    worst = int(shift.argmax())
    if shift[worst] > _PLACE_TOLERANCE * pixel_mm + _ROUNDING_MM:
        raise GeometryRefused(
            f"plane {worst + 1} of {len(positions)} is shifted by {shift[worst]:.4g} mm within its plane against a "
            f"regular grid (pixel {pixel_mm:.4g} mm)"
        )


def _tilt_degrees(affine_lps: NDArray[np.float64]) -> float:
    normal = np.cross(affine_lps[:3, 0], affine_lps[:3, 1])
    step = affine_lps[:3, 2]
    sine = float(np.linalg.norm(np.cross(normal, step)))
    return math.degrees(math.atan2(sine, float(normal @ step)))
