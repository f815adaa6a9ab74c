"""Whether the values of a volume can be Hounsfield units at all: air is near -1000 HU around every patient.

A rescale that was lost or applied twice, and signed values under an unsigned header, leave a volume that looks right in
a viewer, whose window a reader turns until it does. A segmentation and its figures would be wrong without a word.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from inference.padding import HIGHEST_CT_HU
from inference.types import Padding, Volume

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_LOWEST_CT_HU = -32_768
_AIR_HU = (-1300.0, -700.0)
"""Of air, with its noise and artefacts, and of lung that reaches the edge of a small field of view."""
_LEAST_SHARE_OF_AIR = 0.01
_LEAST_SURROUNDINGS = 500
"""Voxels at the edge of the images, without padding. Of fewer nothing can be said."""
_TISSUE_HU = (-300.0, 300.0)
"""What lies at the edge where the field of view is smaller than the patient."""
_WITHIN_BONE_HU, _WITHIN_BONE_MM = 2000.0, 50.0
"""A field of view smaller than this may lie within one bone, as one of the inner ear does."""
_BONE_HU = (300.0, 700.0)
_SHIFTED_TISSUE_HU = (700.0, 1400.0)
"""Where fat and soft tissue lie on a scale that begins at 0 instead of -1024. Dense bone has these values too, but then
there is more of the bone between it and tissue, or air cells within, as in the petrous bone."""
_DARKER_THAN_FAT_HU = (-1300.0, -300.0)
"""No such values are on a scale that begins at 0, but for the noise of air."""
_LEAST_SHARE_OF_SHIFTED_TISSUE = 0.02
_LEAST_RANGE_HU = 10.0
"""From the lowest to the highest value. The noise of a CT alone takes more."""
_GREY_LEVELS = (0.0, 255.0)
_ROUNDING = 1e-3
_STANDARDISED = 0.02
"""How near mean and standard deviation are to 0 and 1 after standardisation, in float32 or rounded in a file."""
_LEAST_SHARE_OF_CLIPPED = 0.1
_LEAST_TISSUE, _MOST_SAMPLES = 300, 2**14
"""Pixels of two neighbouring planes that are compared; the values of fewer differ by chance."""
_TIMES_FARTHER, _LEAST_FARTHER_HU = 3.0, 25.0
"""How much farther apart two planes are by their own pairs than by one pair, if one of them is wrong."""
_MOST_APART_HU = 80.0
"""Between the tissue of neighbouring planes that show the same."""


def implausible_scale(volume: Volume, *, needs_air: bool = False) -> str | None:
    """Why the values can't be Hounsfield units, with the figures; None where they can.

    ``needs_air``: a field of view inside the patient, which can't show what air is, does not pass either.
    """
    return _beyond_every_scale(volume) or _not_surrounded_by_air(volume, needs_air=needs_air)


def implausible_rescale(
    volume: Volume, rescales: Sequence[tuple[float, float]], *, needs_air: bool = False
) -> str | None:
    """As :func:`implausible_scale`; where planes differ in slope and intercept, the planes of each pair by themselves.

    ``rescales``: of each plane. A wrong pair in a few planes does not show in the figures of the whole volume. Where
    the patient is surrounded by air in the planes of one pair, that is so in those of the others. Tissue of a plane
    that is as its neighbour by the pair of that neighbour, and not by its own, was not stored for its own.

    Not found is a wrong pair that moves tissue by less than 25 HU, or by less than three times what sets the planes
    apart anyway; nor that of a plane whose tissue differs from that of both neighbours by more than 80 HU on average,
    which happens where slices are thick, the field of view is a few centimetres wide, or a head or limb ends; nor a
    wrong slope about the mean of tissue where neither air nor lung is in the images, which looks as noise does.
    """
    pairs = sorted(set(rescales))
    whole = implausible_scale(volume, needs_air=needs_air)
    if whole is not None or len(pairs) == 1:
        return whole
    of_pairs = {pair: _planes_of(volume, [k for k, each in enumerate(rescales) if each == pair]) for pair in pairs}
    surroundings = {pair: _surroundings(planes) for pair, planes in of_pairs.items()}
    needs_air = any(_share(hu, _AIR_HU) >= _LEAST_SHARE_OF_AIR for hu in surroundings.values() if hu.size)
    for (slope, intercept), planes in of_pairs.items():
        if surroundings[slope, intercept].size < _LEAST_SURROUNDINGS:
            continue
        implausible = _not_surrounded_by_air(planes, needs_air=needs_air)
        if implausible is not None:
            return (
                f"in {len(planes.voxels_zyx)} of {len(rescales)} planes, with Rescale Slope {slope:g} and Intercept "
                f"{intercept:g} unlike the others, {implausible}"
            )
    return _unlike_neighbour(volume, rescales)


def normalised_scale(volume: Volume) -> str | None:
    """Why the values are those of an image that was normalised, as for training or for display; None where not.

    For volumes that do not come from DICOM, whose programs often keep such values. A volume of one value passes.
    """
    lowest, highest = _range(volume)
    if lowest == highest or not np.isfinite([lowest, highest]).all():
        return None
    seen = f"all values lie from {lowest:.6g} to {highest:.6g}"
    if highest - lowest < _LEAST_RANGE_HU and (lowest == 0 or not _is_whole(volume)):
        return f"{seen}, as in a mask or an image that was normalised"
    if np.abs(np.subtract((lowest, highest), _GREY_LEVELS)).max() < _ROUNDING:
        return f"{seen}, the grey levels of a picture"
    if not _is_whole(volume):
        mean, deviation = (
            float(volume.voxels_zyx.mean(dtype=np.float64)),
            float(volume.voxels_zyx.std(dtype=np.float64)),
        )
        if abs(mean) < _STANDARDISED and abs(deviation - 1) < _STANDARDISED:
            return f"{seen}, their mean is 0 and their standard deviation 1: standardised"
    return None


def note_on_missing_hu(volume: Volume) -> str | None:
    """What a reader should know of values that may be Hounsfield units, and may as well have been changed."""
    lowest, _ = _range(volume)
    if lowest <= _AIR_HU[1] or not np.isfinite(lowest):
        return None
    if lowest >= 0:
        return "no voxel is below 0 HU: no air, lung or fat is in the volume, or the values are not Hounsfield units"
    share = _share(volume.voxels_zyx, (lowest, lowest))
    if share < _LEAST_SHARE_OF_CLIPPED:
        return None
    return f"{share:.0%} of the voxels have the lowest value, {lowest:.0f} HU: the values may have been clipped there"


def _range(volume: Volume) -> tuple[float, float]:
    return float(volume.voxels_zyx.min()), float(volume.voxels_zyx.max())


def _is_whole(volume: Volume) -> bool:
    voxels = volume.voxels_zyx
    return voxels.dtype == np.int16 or all(np.array_equal(plane, np.rint(plane)) for plane in voxels)


def _unlike_neighbour(volume: Volume, rescales: Sequence[tuple[float, float]]) -> str | None:
    """Neighbouring planes whose tissue is alike by one pair of slope and intercept, and far apart by the pair of each.

    Compared are the values that tissue has in both planes, wherever it lies: between thick slices, and in noise, no
    pixel is as its neighbour. Where both pairs are right, tissue is nearest by its own pair, whatever the pairs are; so
    a series is not refused for using several. Where a structure ends between two planes, one pair for both may bring
    their tissue nearer, but not to the same values.
    """
    for k, (before, after) in enumerate(pairwise(rescales), start=1):
        if before == after:
            continue
        lower, upper = _sampled(volume, k)
        by_one_pair = (lower, _by_pair(upper, after, before)), (_by_pair(lower, before, after), upper)
        for first, second in by_one_pair:
            is_tissue = np.maximum(first, second) >= _TISSUE_HU[0]
            if np.count_nonzero(is_tissue) < _LEAST_TISSUE:
                continue
            alike = _apart(first[is_tissue], second[is_tissue])
            apart = _apart(lower[is_tissue], upper[is_tissue])
            if alike > _MOST_APART_HU or apart <= max(_TIMES_FARTHER * alike, alike + _LEAST_FARTHER_HU):
                continue
            if max(_shift(lower, upper, is_tissue), _shift(lower, upper, ~is_tissue)) < apart / 2:
                continue  # noise or streaks in one of them: no shift to either side, of tissue or of what is darker
            return (
                f"tissue in planes {k} and {k + 1} of {len(rescales)} differs by {apart:.0f} HU with Rescale Slope and "
                f"Intercept {before[0]:g} and {before[1]:g} in one, {after[0]:g} and {after[1]:g} in the other; with "
                f"one of the two pairs in both, it differs by {alike:.0f} HU"
            )
    return None


def _sampled(volume: Volume, k: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """HU of planes ``k - 1`` and ``k`` where both are imaged, sampled in large planes."""
    step = max(1, math.isqrt(volume.voxels_zyx[k].size // _MOST_SAMPLES))
    lower, upper = (volume.voxels_zyx[each, ::step, ::step].astype(np.float64) for each in (k - 1, k))
    imaged = np.ones(lower.shape, dtype=bool)
    if volume.padding is not None:
        for each in (k - 1, k):
            imaged &= ~volume.padding.found_in(volume.voxels_zyx[each : each + 1], each)[0][::step, ::step]
    return lower[imaged], upper[imaged]


def _by_pair(hu: NDArray[np.float64], own: tuple[float, float], other: tuple[float, float]) -> NDArray[np.float64]:
    """What ``hu`` would be if its stored values were rescaled by the ``other`` slope and intercept."""
    rescaled: NDArray[np.float64] = (hu - own[1]) / own[0] * other[0] + other[1]
    return rescaled


def _apart(lower: NDArray[np.float64], upper: NDArray[np.float64]) -> float:
    """How far the values of one must be moved on average to be those of the other, in any place."""
    return float(np.abs(np.sort(upper) - np.sort(lower)).mean())


def _shift(lower: NDArray[np.float64], upper: NDArray[np.float64], among: NDArray[np.bool_]) -> float:
    """Of the mean, to either side. A wrong slope about 0 HU moves fat and muscle apart, and air to one side."""
    return abs(float((upper - lower)[among].mean())) if np.count_nonzero(among) >= _LEAST_TISSUE else 0.0


def _planes_of(volume: Volume, planes: Sequence[int]) -> Volume:
    geometry = replace(volume.geometry, shape_zyx=(len(planes), *volume.geometry.shape_zyx[1:]))
    padding = volume.padding
    if padding is not None:
        region = padding.region_zyx
        if region is not None and len(region) > 1:
            region = region[planes]
        padding = Padding(padding.lowest_hu[planes], padding.highest_hu[planes], region)
    return Volume(volume.voxels_zyx[planes], geometry, padding)


def _not_surrounded_by_air(volume: Volume, *, needs_air: bool) -> str | None:
    surroundings = _surroundings(volume)
    if surroundings.size < _LEAST_SURROUNDINGS:
        return f"{surroundings.size} voxels at the edge of the images are too few to tell" if needs_air else None
    share_of_air = _share(surroundings, _AIR_HU)
    if share_of_air >= _LEAST_SHARE_OF_AIR:
        return None
    median = float(np.median(surroundings))
    if not np.isfinite(median):
        return None  # the engine refuses HU that are not finite, and says that they are not
    seen = (
        f"{share_of_air:.1%} of the voxels at the edge of the images lie from {_AIR_HU[0]:.0f} to {_AIR_HU[1]:.0f} HU, "
        f"where air is; their median is {median:.0f} HU"
    )
    if needs_air or not _TISSUE_HU[0] <= median <= (_WITHIN_BONE_HU if _is_small(volume) else _TISSUE_HU[1]):
        return seen
    shifted = _share(volume.voxels_zyx, _SHIFTED_TISSUE_HU)
    if median <= _TISSUE_HU[1] and _is_intercept_lost(volume, shifted):
        return f"{seen}, and {shifted:.1%} of all voxels lie near 1,000 HU, where tissue is when the intercept is lost"
    return None


def _is_intercept_lost(volume: Volume, share_of_shifted_tissue: float) -> bool:
    return (
        share_of_shifted_tissue > max(2 * _share(volume.voxels_zyx, _BONE_HU), _LEAST_SHARE_OF_SHIFTED_TISSUE)
        and _share(volume.voxels_zyx, _DARKER_THAN_FAT_HU) < _LEAST_SHARE_OF_AIR
    )


def _is_small(volume: Volume) -> bool:
    _, rows, columns = volume.geometry.shape_zyx
    column_mm, row_mm, _ = volume.geometry.spacing_xyz_mm
    return max(columns * column_mm, rows * row_mm) < _WITHIN_BONE_MM


def _beyond_every_scale(volume: Volume) -> str | None:
    voxels = volume.voxels_zyx
    if voxels.dtype == np.int16:
        return None
    lowest, highest = np.inf, -np.inf
    for k in range(len(voxels)):
        plane = voxels[k]
        if volume.padding is not None:
            plane = plane[~volume.padding.found_in(voxels[k : k + 1], k)[0]]
        if plane.size:
            lowest, highest = min(lowest, float(plane.min())), max(highest, float(plane.max()))
    if lowest < _LOWEST_CT_HU or highest > HIGHEST_CT_HU:
        return f"values from {lowest:.0f} to {highest:.0f} HU, no CT goes beyond {_LOWEST_CT_HU:,} to {HIGHEST_CT_HU:,}"
    return None


def _surroundings(volume: Volume) -> NDArray[np.float64]:
    """The outermost voxels of each plane: at the edges of the image, or beside padding."""
    voxels = volume.voxels_zyx
    outermost = np.zeros(voxels.shape[1:], dtype=bool)
    outermost[[0, -1]] = outermost[:, [0, -1]] = True
    if volume.padding is None:
        return voxels[:, outermost].astype(np.float64).ravel()
    edges = []
    for k in range(len(voxels)):
        padding = volume.padding.found_in(voxels[k : k + 1], k)[0]
        edges.append(voxels[k][(outermost | ndimage.binary_dilation(padding)) & ~padding])
    return np.concatenate(edges).astype(np.float64)


def _share(hu: NDArray[Any], bounds: tuple[float, float]) -> float:
    return float(np.count_nonzero((hu >= bounds[0]) & (hu <= bounds[1]))) / hu.size
