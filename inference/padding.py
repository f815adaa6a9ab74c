"""Where the padding of a CT lies: by the values that its images state, or by a constant outside the imaged circle.

A value alone tells where no scanner measures it: -3024 HU is padding wherever it stands. The commonest paddings are
real HU, however: -1024 HU is what clipped air has too, and some systems pad with 0 HU. Such a value is padding only
outside the reconstruction circle, or, stated, where it reaches in from a corner of the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from inference.types import AIR_HU, Padding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

HIGHEST_CT_HU = 32_767
"""No scale of CT goes beyond: the extended ones end at 30,710 (12 bits, slope 10) or 31,743 HU (16 bits, signed)."""
_AIR_BELOW_HU = -900
_BODY_ABOVE_HU = -500
_LEAST_ARC_PIXELS = 8
"""Through fewer an ellipse can always be drawn."""
_ARC_TOLERANCE_PIXELS = 1.5
_LEAST_RADIUS, _LEAST_RADIUS_PIXELS = 0.25, 10
"""In parts of the image's shorter side; any small blob is round to within the tolerance."""
_LEAST_AIR_AT_RIM = 0.05
_STRAY_SHARE = 0.005
"""Of the circle's pixels may have the value of the padding by chance: air that was clipped in every plane."""


def find_padding(
    voxels_zyx: NDArray[Any],
    lowest_hu: NDArray[np.float64] | None = None,
    highest_hu: NDArray[np.float64] | None = None,
) -> Padding | None:
    """The padding of a volume; None where there is none, or where it cannot be told from air.

    ``lowest_hu`` and ``highest_hu`` are what the images of each plane state ([planes], NaN where one states nothing).
    An ordinary volume costs a look at its corners.
    """
    if lowest_hu is not None and highest_hu is not None and np.isfinite(lowest_hu).any():
        stated = _located(voxels_zyx, Padding(lowest_hu, highest_hu))
        if stated is not None:
            return stated
    return _unstated(voxels_zyx)


def _located(voxels_zyx: NDArray[Any], stated: Padding) -> Padding | None:
    lowest, highest = np.nanmin(stated.lowest_hu), np.nanmax(stated.highest_hu)
    if highest < AIR_HU or lowest > HIGHEST_CT_HU:
        return stated if any(stated.found_in(plane, k).any() for k, plane in _planes(voxels_zyx)) else None
    if highest <= _AIR_BELOW_HU:
        circle = _outside_circle(voxels_zyx, stated)
        if circle is not None:
            return Padding(stated.lowest_hu, stated.highest_hu, circle[None])
        if lowest >= AIR_HU:
            return None  # air to everyone
        below_air = Padding(stated.lowest_hu, np.minimum(stated.highest_hu, np.nextafter(AIR_HU, -np.inf)))
        return _located(voxels_zyx, below_air)
    region = np.stack([_from_the_corners(stated.found_in(plane, k)[0]) for k, plane in _planes(voxels_zyx)])
    if region.all():  # a range that leaves nothing of the image says nothing
        return None
    return Padding(stated.lowest_hu, stated.highest_hu, region) if region.any() else None


def _unstated(voxels_zyx: NDArray[Any]) -> Padding | None:
    corners = voxels_zyx[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    constant = corners[0, (corners == corners[0]).all(axis=0)]
    if not constant.size or (constant != constant[0]).any():
        return None
    value = np.full(len(voxels_zyx), float(constant[0]))
    padding = Padding(value, value)
    if constant.size == corners.shape[1] and (constant[0] < AIR_HU or constant[0] > HIGHEST_CT_HU):
        return padding
    circle = _outside_circle(voxels_zyx, padding)
    return None if circle is None else Padding(value, value, circle[None])


def _planes(voxels_zyx: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    return ((k, voxels_zyx[k : k + 1]) for k in range(len(voxels_zyx)))


def _in_every_plane(voxels_zyx: NDArray[Any], padding: Padding) -> NDArray[np.bool_]:
    """The pixels, [row, column], that have a value of the padding in all planes."""
    everywhere = np.ones(voxels_zyx.shape[1:], dtype=bool)
    for k, plane in _planes(voxels_zyx):
        everywhere &= padding.found_in(plane, k)[0]
        if not everywhere.any():
            break
    return everywhere


def _outside_circle(voxels_zyx: NDArray[Any], padding: Padding) -> NDArray[np.bool_] | None:
    """The pixels, [row, column], outside the reconstruction circle, if ``padding`` in all planes has that shape."""
    outside = _from_the_corners(_in_every_plane(voxels_zyx, padding))
    circle = _outside_ellipse(voxels_zyx, padding, outside)
    return _outside_inscribed(voxels_zyx, padding, outside) if circle is None else circle


def _outside_ellipse(
    voxels_zyx: NDArray[Any], padding: Padding, outside: NDArray[np.bool_]
) -> NDArray[np.bool_] | None:
    """``outside``, if it ends along an ellipse.

    A body in air that was clipped, or has no noise, can be as round. It ends within the image, however, is seldom a
    circle about its middle, and has no air at its rim but what has the value of the padding itself.
    """
    ellipse = _Ellipse.around(outside)
    if ellipse is None:
        return None
    beyond = ellipse.pixels_beyond()
    within = beyond < -_ARC_TOLERANCE_PIXELS
    strays = np.count_nonzero(outside & within)
    if not outside[beyond > _ARC_TOLERANCE_PIXELS].all() or strays > _STRAY_SHARE * np.count_nonzero(within):
        return None
    if _reaches_every_edge(~outside):
        return outside
    rim = voxels_zyx[:, np.newaxis, within & (beyond >= -2 * _ARC_TOLERANCE_PIXELS - 1)]
    air = (rim <= _AIR_BELOW_HU) & ~padding.found_in(rim)
    has_air_within = np.count_nonzero(air) > _LEAST_AIR_AT_RIM * rim.size
    return outside if has_air_within or (ellipse.is_circle_in_the_middle and not _is_clean_air(padding)) else None


def _outside_inscribed(
    voxels_zyx: NDArray[Any], padding: Padding, outside: NDArray[np.bool_]
) -> NDArray[np.bool_] | None:
    """The part of ``outside`` beyond the circle that is drawn into the image, if that circle cuts a body.

    Where air has the value of the padding throughout, as after denoising, the circle shows by nothing else. Where it
    cuts nothing, it makes no difference.
    """
    beyond = _Ellipse(outside.shape, 1.0, 1.0, 0.0, 0.0).pixels_beyond()
    if _is_clean_air(padding) or not outside[beyond > _ARC_TOLERANCE_PIXELS].all():
        return None
    at_rim = (np.abs(beyond) <= _ARC_TOLERANCE_PIXELS) & ~outside
    cut = np.count_nonzero((voxels_zyx[:, at_rim] > _BODY_ABOVE_HU).any(axis=0))
    return outside & (beyond >= -_ARC_TOLERANCE_PIXELS) if cut >= _LEAST_ARC_PIXELS else None


def _is_clean_air(padding: Padding) -> bool:
    """Whether the value is that of air without noise, which no scanner pads with."""
    lowest = float(np.nanmin(padding.lowest_hu))
    return AIR_HU < lowest <= _AIR_BELOW_HU


@dataclass(frozen=True, slots=True)
class _Ellipse:
    """``a u^2 + b v^2 + c u + d v = 1``; u along columns and v along rows, from -1 to 1 across the image."""

    shape_yx: tuple[int, int]
    a: float
    b: float
    c: float
    d: float

    @classmethod
    def around(cls, outside: NDArray[np.bool_]) -> _Ellipse | None:
        """Through the outermost pixels that are not ``outside``: a circle, where pixels are squares."""
        y, x = np.nonzero(~outside & ndimage.binary_dilation(outside))
        if y.size < _LEAST_ARC_PIXELS:
            return None
        rows, columns = outside.shape
        u, v = 2 * (x + 0.5) / columns - 1, 2 * (y + 0.5) / rows - 1
        (a, b, c, d), *_ = np.linalg.lstsq(np.stack([u**2, v**2, u, v], axis=1), np.ones(u.size), rcond=None)
        if a <= 0 or b <= 0:
            return None
        ellipse = cls((rows, columns), a, b, c, d)
        _, radii = ellipse._centre_and_radii_yx
        return ellipse if min(radii) >= max(_LEAST_RADIUS_PIXELS, _LEAST_RADIUS * min(rows, columns)) else None

    @property
    def _centre_and_radii_yx(self) -> tuple[tuple[float, float], tuple[float, float]]:
        rows, columns = self.shape_yx
        size = 1 + self.c**2 / (4 * self.a) + self.d**2 / (4 * self.b)
        radii = float(np.sqrt(size / self.b)) * rows / 2, float(np.sqrt(size / self.a)) * columns / 2
        return (-self.d / (2 * self.b) * rows / 2, -self.c / (2 * self.a) * columns / 2), radii

    def pixels_beyond(self) -> NDArray[np.float64]:
        """How far each pixel, [row, column], lies outside of it; negative within."""
        rows, columns = self.shape_yx
        (centre_y, centre_x), (radius_y, radius_x) = self._centre_and_radii_yx
        y = (np.arange(rows) + 0.5 - rows / 2 - centre_y)[:, None] / radius_y
        x = (np.arange(columns) + 0.5 - columns / 2 - centre_x) / radius_x
        beyond: NDArray[np.float64] = (np.hypot(x, y) - 1) * min(radius_y, radius_x)
        return beyond

    @property
    def is_circle_in_the_middle(self) -> bool:
        """To within the tolerance of its pixels."""
        (centre_y, centre_x), (radius_y, radius_x) = self._centre_and_radii_yx
        return max(abs(centre_y), abs(centre_x), abs(radius_y - radius_x)) <= _ARC_TOLERANCE_PIXELS


def _from_the_corners(found_yx: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The part of ``found_yx`` that hangs together with a corner of the image, as all that a circle leaves out does."""
    regions = np.asarray(ndimage.label(found_yx)[0])
    corners = regions[[0, 0, -1, -1], [0, -1, 0, -1]]
    found: NDArray[np.bool_] = np.isin(regions, corners[corners > 0])
    return found


def _reaches_every_edge(found_yx: NDArray[np.bool_]) -> bool:
    """Whether it comes as near to each edge of the image as a circle that is drawn into it."""
    return all(bool(edge.any()) for edge in (found_yx[:2], found_yx[-2:], found_yx[:, :2], found_yx[:, -2:]))
