"""Distances between two surfaces, and the scores computed from them: surface Dice and the 95th percentile.

Most surface elements of a usable segmentation are within a few voxels of the truth. Their distance is found by checking
the nearest positions first, for all elements at once; only the others are searched in a k-d tree. Both give the exact
distance, in time proportional to the size of the surface. A distance transform, as in ``surface-distance`` 0.1, takes
time for the whole box of the structure.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inference.evaluation.surface import Surface

_PLACES_TO_LOOK_AT = 500
"""The number of steps that costs about as much as a search in the tree."""


@dataclass(frozen=True, slots=True, eq=False)
class SurfaceDistances:
    """For each element of both surfaces, the distance to the nearest element of the other one, and its own area."""

    truth_to_found_mm: NDArray[np.float64]
    found_to_truth_mm: NDArray[np.float64]
    truth_areas_mm2: NDArray[np.float64]
    found_areas_mm2: NDArray[np.float64]

    def surface_dice(self, tolerance_mm: float) -> float:
        """Share of both surfaces within ``tolerance_mm`` of the other; 0 if one is empty, NaN if both are."""
        total = self.truth_areas_mm2.sum() + self.found_areas_mm2.sum()
        if total == 0:
            return float("nan")
        near = self.truth_areas_mm2[self.truth_to_found_mm <= tolerance_mm].sum()
        near += self.found_areas_mm2[self.found_to_truth_mm <= tolerance_mm].sum()
        return float(near / total)

    def robust_hausdorff_mm(self, percent: float) -> float:
        """The larger of the two distances that cover ``percent`` of a surface's area; infinite if one is empty."""
        return max(
            _percentile(self.truth_to_found_mm, self.truth_areas_mm2, percent),
            _percentile(self.found_to_truth_mm, self.found_areas_mm2, percent),
        )


def surface_distances(
    truth: Surface | None,
    found: Surface | None,
    spacing_zyx_mm: tuple[float, float, float],
    areas_by_code: NDArray[np.float64],
) -> SurfaceDistances:
    """Distances between two surfaces on one grid; None is an empty surface, at infinite distance from everything."""
    nothing: NDArray[np.float64] = np.zeros(0)
    truth_areas = nothing if truth is None else areas_by_code[truth.codes]
    found_areas = nothing if found is None else areas_by_code[found.codes]
    if truth is None or found is None:
        return SurfaceDistances(
            np.full(len(truth_areas), np.inf), np.full(len(found_areas), np.inf), truth_areas, found_areas
        )
    corners = truth.corners_zyx, found.corners_zyx
    reach = _reach(spacing_zyx_mm)
    low = np.minimum(corners[0].min(axis=1), corners[1].min(axis=1)) - reach
    shape = np.maximum(corners[0].max(axis=1), corners[1].max(axis=1)) + reach - low + 1
    first, second = (np.ravel_multi_index(tuple(each - low[:, None]), tuple(shape)) for each in corners)
    return SurfaceDistances(
        _nearest_mm(first, second, tuple(shape), spacing_zyx_mm),
        _nearest_mm(second, first, tuple(shape), spacing_zyx_mm),
        truth_areas,
        found_areas,
    )


def _nearest_mm(
    own: NDArray[np.int64], other: NDArray[np.int64], shape_zyx: tuple[int, ...], spacing_zyx_mm: tuple[float, ...]
) -> NDArray[np.float64]:
    """Distance from each of ``own`` to the nearest of ``other``: flat indices into a box with a margin."""
    is_other = np.zeros(int(np.prod(shape_zyx)), dtype=np.bool_)
    is_other[other] = True
    strides = np.array([shape_zyx[1] * shape_zyx[2], shape_zyx[2], 1])
    distances: NDArray[np.float64] = np.zeros(len(own))
    open_ = np.flatnonzero(~is_other[own])
    for distance, places_zyx in _places(spacing_zyx_mm):
        if not open_.size:
            return distances
        near = np.zeros(len(open_), np.bool_)
        here = own[open_]
        for step in places_zyx @ strides:
            near |= is_other[here + step]
        distances[open_[near]] = distance
        open_ = open_[~near]
    if open_.size:
        distances[open_] = _searched_mm(own[open_], other, shape_zyx, spacing_zyx_mm)
    return distances


def _searched_mm(
    own: NDArray[np.int64], other: NDArray[np.int64], shape_zyx: tuple[int, ...], spacing_zyx_mm: tuple[float, ...]
) -> NDArray[np.float64]:
    spacing = np.array(spacing_zyx_mm)
    own_zyx, other_zyx = (np.stack(np.unravel_index(each, shape_zyx), axis=1) for each in (own, other))
    tree = cKDTree(other_zyx * spacing, balanced_tree=False, compact_nodes=False)
    nearest = tree.query(own_zyx * spacing)[1]
    return _lengths_mm(other_zyx[nearest] - own_zyx, spacing_zyx_mm)


@lru_cache(maxsize=8)
def _places(spacing_zyx_mm: tuple[float, float, float]) -> tuple[tuple[float, NDArray[np.int64]], ...]:
    """Steps on the grid by their length in mm, ascending, complete up to the last length, without the zero step."""
    reach = _reach(spacing_zyx_mm)
    steps = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), axis=-1).reshape(-1, 3)
    lengths = _lengths_mm(steps, spacing_zyx_mm)
    by_length: dict[float, Any] = {}
    for length in np.unique(lengths[(lengths > 0) & (lengths <= _reach_mm(spacing_zyx_mm))]):
        by_length[float(length)] = steps[lengths == length]
    return tuple(by_length.items())


def _lengths_mm(steps_zyx: NDArray[np.int64], spacing_zyx_mm: tuple[float, ...]) -> NDArray[np.float64]:
    """Rounded like :func:`scipy.ndimage.distance_transform_edt`: a tolerance may equal the length of a step."""
    z, y, x = (steps_zyx[:, axis] * spacing_zyx_mm[axis] for axis in range(3))
    lengths: NDArray[np.float64] = np.sqrt(z * z + y * y + x * x)
    return lengths


def _reach_mm(spacing_zyx_mm: tuple[float, float, float]) -> float:
    return float(np.cbrt(3 / (4 * np.pi) * _PLACES_TO_LOOK_AT * np.prod(spacing_zyx_mm)))


def _reach(spacing_zyx_mm: tuple[float, float, float]) -> NDArray[np.int64]:
    """Voxels along each axis."""
    reach: NDArray[np.int64] = np.floor(_reach_mm(spacing_zyx_mm) / np.array(spacing_zyx_mm)).astype(np.int64)
    return reach


def _percentile(distances_mm: NDArray[np.float64], areas_mm2: NDArray[np.float64], percent: float) -> float:
    if not len(distances_mm):
        return float("inf")
    order = np.argsort(distances_mm)
    ordered = areas_mm2[order]
    at = int(np.searchsorted(np.cumsum(ordered) / ordered.sum(), percent / 100.0))
    return float(distances_mm[order[min(at, len(order) - 1)]])
