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

_SAME_PLACE = 0.01
"""Planes that are closer than this, as a fraction of the usual gap, lie at one position."""
_SHIFT_TOLERANCE = 0.1
"""Largest shift of a plane within itself, in pixels, where that is more than the tolerance in mm."""
_UNIT_TOLERANCE = 1e-3
_SAME_ORIENTATION = 1e-4
"""Cosines as exact as decimal strings hold them: the first stands for all."""
_ORIENTATION_TOLERANCE = 1e-3
"""0.06 degrees: planes further apart were never one stack, however small they are."""
_PIXEL_SPACING_TOLERANCE = 1e-4
_ROUNDED_TO_MM = 0.1
"""The coarsest rounding of positions that is accepted."""
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
    """Order at least two planes and fit the grid: the line on which their positions lie, and one orientation for all.

    Exporters round positions to 0.1 mm and cosines to three or four decimals. The grid goes through the middle of what
    is stated, and a plane may be off by what such rounding explains (see :func:`tolerance_mm`). A single plane that was
    moved draws the grid half of its way; it shows against its neighbours.

    Raises:
        GeometryRefused: several sizes, pixel spacings or orientations; orientation or spacing without sense; planes at
            one position; a missing plane or unequal spacing; planes shifted irregularly. With numbers.
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

    start, step = _line_through(positions)
    x_axis, y_axis = row_direction * column_spacing, column_direction * row_spacing
    off_line = positions - (start + np.arange(len(planes))[:, np.newaxis] * step)
    allowed_mm = max(_SHIFT_TOLERANCE * min(row_spacing, column_spacing), tolerance_mm(float(step @ normal)))
    _refuse_irregular_shift(off_line, row_direction, column_direction, allowed_mm)
    _refuse_moved_plane(positions, max(allowed_mm, _ROUNDED_TO_MM))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2], affine[:3, 3] = x_axis, y_axis, step, start
    tilt = _tilt_degrees(affine)
    if tilt > _LARGEST_TILT_DEGREES:
        raise GeometryRefused(f"planes are sheared by {tilt:.1f} degrees, more than any gantry tilts")
    geometry = Geometry((len(planes), planes[0].rows, planes[0].columns), affine)
    shear = (0.0, 0.0)
    if not geometry.is_orthogonal:
        shear = (float(step @ row_direction) / column_spacing, float(step @ column_direction) / row_spacing)
    return RegularGrid(tuple(int(index) for index in order), geometry, shear)


def tolerance_mm(spacing_mm: float) -> float:
    """How far a plane may be from its regular place: 0.1 mm or 1 % of the spacing, but at most 15 % of it."""
    return min(max(_ROUNDED_TO_MM, 0.01 * spacing_mm), 0.15 * spacing_mm)


def _line_through(positions: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First position and step of the line through ordered ``positions``.

    It goes from the first to the last where all lie on it. Else the ends are rounded, too: it has the slope of least
    squares and lies in the middle between the positions that are farthest off.
    """
    steps = np.arange(len(positions))
    start, step = positions[0], (positions[-1] - positions[0]) / (len(positions) - 1)
    if np.abs(positions - (start + steps[:, np.newaxis] * step)).max() <= _ROUNDING_MM:
        return start, step
    centred = steps - steps.mean()
    step = centred @ positions / (centred @ centred)
    starts = positions - steps[:, np.newaxis] * step
    return (starts.max(axis=0) + starts.min(axis=0)) / 2, step


def _refuse_several_sizes(planes: tuple[Plane, ...]) -> None:
    sizes = {(plane.columns, plane.rows) for plane in planes}
    if len(sizes) > 1:
        listed = ", ".join(f"{columns} x {rows}" for columns, rows in sorted(sizes))
        raise GeometryRefused(f"{len(sizes)} image sizes (columns x rows): {listed}")


def _common_directions(planes: tuple[Plane, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The unit vectors along rows (to the next column) and along columns (to the next row)."""
    stated = np.array([plane.orientation for plane in planes], dtype=np.float64)
    common = stated[0]
    if np.abs(stated - common).max() > _SAME_ORIENTATION:
        common = stated.mean(axis=0)
        _refuse_several_orientations(planes, stated, common)
    row, column = common[:3], common[3:]
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    if any(abs(length - 1) > _UNIT_TOLERANCE for length in lengths):
        raise GeometryRefused(
            f"Image Orientation (Patient) has vectors of length {lengths[0]:.4f} and {lengths[1]:.4f}"
        )
    row, column = row / lengths[0], column / lengths[1]
    if abs(float(row @ column)) > ORTHOGONALITY_TOLERANCE:
        raise GeometryRefused(f"rows and columns are not perpendicular (cosine {float(row @ column):.4f})")
    return row, column


def _refuse_several_orientations(
    planes: tuple[Plane, ...], stated: NDArray[np.float64], common: NDArray[np.float64]
) -> None:
    """Every plane must lie as ``common`` says, to within the tolerance at its farthest corner."""
    deviation = stated - common
    first = planes[0]
    width_mm, height_mm = first.columns * first.column_spacing_mm, first.rows * first.row_spacing_mm
    moved_mm = np.linalg.norm(deviation[:, :3] * width_mm + deviation[:, 3:] * height_mm, axis=1)
    allowed_mm = tolerance_mm(_usual_gap(planes, common))
    refused = (moved_mm > allowed_mm) | (np.abs(deviation).max(axis=1) > _ORIENTATION_TOLERANCE)
    if refused.any():
        others = int((np.abs(stated - stated[0]).max(axis=1) > _SAME_ORIENTATION).sum())
        raise GeometryRefused(
            f"several orientations: {others} of {len(planes)} planes deviate from the first (cosines by up to "
            f"{np.abs(stated - stated[0]).max():.4f}), a corner by up to {moved_mm.max():.3g} mm from their mean"
        )


def _usual_gap(planes: tuple[Plane, ...], orientation: NDArray[np.float64]) -> float:
    positions = np.array([plane.position_lps_mm for plane in planes], dtype=np.float64)
    along_normal = positions @ np.cross(orientation[:3], orientation[3:])
    return float(np.median(np.diff(np.sort(along_normal))))


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
    same_place = int((gaps < max(_SMALLEST_SPACING_MM, _SAME_PLACE * usual)).sum())
    if same_place:
        raise GeometryRefused(f"{same_place} of {len(along_normal)} planes lie at the position of another plane")
    start, spacing = (float(value[0]) for value in _line_through(along_normal[:, np.newaxis]))
    off_place = np.abs(along_normal - (start + spacing * np.arange(len(along_normal))))
    allowed_mm = tolerance_mm(spacing)
    if off_place.max() <= allowed_mm + _ROUNDING_MM:
        return
    uneven = int((np.abs(gaps - usual) > allowed_mm).sum())
    if uneven:
        worst = int(np.abs(gaps - usual).argmax())
        raise GeometryRefused(
            f"gap of {gaps[worst]:.4g} mm after plane {worst + 1} of {len(along_normal)}, expected {usual:.4g} mm: "
            f"missing plane or unequal spacing ({uneven} of {len(gaps)} gaps differ by more than {allowed_mm:.3g} mm)"
        )
    raise GeometryRefused(
        f"spacing drifts: a plane lies {off_place.max():.4g} mm from its regular place ({spacing:.4g} mm)"
    )


def _refuse_irregular_shift(
    off_line: NDArray[np.float64],
    row_direction: NDArray[np.float64],
    column_direction: NDArray[np.float64],
    allowed_mm: float,
) -> None:
    """``off_line``: of each plane, the way from its place on the line to its position."""
    shift = np.abs(off_line @ np.stack([row_direction, column_direction], axis=1)).max(axis=1)
    worst = int(shift.argmax())
    if shift[worst] > allowed_mm + _ROUNDING_MM:
        raise GeometryRefused(
            f"plane {worst + 1} of {len(off_line)} is shifted by {shift[worst]:.4g} mm within its plane against a "
            f"regular grid, expected at most {allowed_mm:.3g} mm"
        )


def _refuse_moved_plane(positions: NDArray[np.float64], allowed_mm: float) -> None:
    """``positions``: ordered. Rounding changes no coordinate of a step by more than it rounds to."""
    steps = np.diff(positions, axis=0)
    off_mm = np.abs(steps - np.median(steps, axis=0)).max(axis=1)
    worst = int(off_mm.argmax())
    if off_mm[worst] > allowed_mm + _ROUNDING_MM:
        raise GeometryRefused(
            f"the step from plane {worst + 1} to plane {worst + 2} of {len(positions)} differs by {off_mm[worst]:.4g} "
            f"mm from the usual one, expected at most {allowed_mm:.3g} mm: one of them was moved"
        )


def _tilt_degrees(affine_lps: NDArray[np.float64]) -> float:
    normal = np.cross(affine_lps[:3, 0], affine_lps[:3, 1])
    step = affine_lps[:3, 2]
    sine = float(np.linalg.norm(np.cross(normal, step)))
    return math.degrees(math.atan2(sine, float(normal @ step)))
