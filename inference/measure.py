"""Volume and attenuation of every structure, on the grid of the label map.

Whole-number HU are counted once into a label x HU histogram, from which every statistic follows exactly, the median
included; fractional HU are grouped by label and measured voxel by voxel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from inference.shape import measure_shape
from inference.types import InvalidValueError, Measurements, StructureMeasurement

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from inference.types import Segmentation, Volume

_VOXELS_PER_SLAB = 4_000_000
_LOWEST_SCANNER_HU = -1024
"""Below the 12-bit scale of CT; a constant below it in the corners of a slice is padding outside the scanned circle."""


class _Statistics(NamedTuple):
    voxel_count: int
    mean_hu: float
    sd_hu: float
    min_hu: float
    max_hu: float
    median_hu: float


def measure(volume: Volume, segmentation: Segmentation, *, with_shape: bool = False) -> Measurements:
    """Measure every structure of ``segmentation`` in ``volume``, and optionally its shape; both must be on one grid.

    The standard deviation is that of the structure's voxels (divisor N). A structure is ``truncated`` when it touches
    the first or last plane, the edge of the slices, or the padding around a circular field of view.

    Raises:
        InvalidValueError: the grids differ, a label has no name, or HU are not finite where a structure lies.
    """
    if not volume.geometry.same_grid(segmentation.geometry):
        raise InvalidValueError(
            f"label map {segmentation.geometry.shape_zyx} does not lie on the grid of the volume "
            f"{volume.geometry.shape_zyx}, or is displaced"
        )
    whole = volume.voxels_zyx.dtype == np.int16
    statistics = (_statistics_of_whole_hu if whole else _statistics_of_fractional_hu)(
        volume.voxels_zyx, segmentation.labels_zyx
    )
    for label, found in statistics.items():
        if label not in segmentation.names_by_label:
            raise InvalidValueError(f"label {label} ({found.voxel_count} voxels) has no name")
    at_border = _labels_at_border(volume.voxels_zyx, segmentation.labels_zyx)
    shapes = measure_shape(segmentation) if with_shape else {}
    structures = tuple(
        StructureMeasurement(
            name=name,
            label=label,
            volume_ml=statistics[label].voxel_count * volume.geometry.voxel_volume_ml,
            truncated=label in at_border,
            shape=shapes.get(label),
            **statistics[label]._asdict(),
        )
        for label, name in segmentation.names_by_label.items()
        if label in statistics
    )
    absent = tuple(name for label, name in segmentation.names_by_label.items() if label not in statistics)
    return Measurements(structures, absent)


def _slabs(shape_zyx: tuple[int, ...]) -> Iterator[slice]:
    planes = max(1, _VOXELS_PER_SLAB // (shape_zyx[1] * shape_zyx[2]))
    for first in range(0, shape_zyx[0], planes):
        yield slice(first, first + planes)


def _statistics_of_whole_hu(voxels_zyx: NDArray[Any], labels_zyx: NDArray[np.uint8]) -> dict[int, _Statistics]:
    lowest, highest = int(voxels_zyx.min()), int(voxels_zyx.max())
    bins = highest - lowest + 1
    rows = int(labels_zyx.max()) + 1
    histogram = np.zeros(rows * bins, dtype=np.int64)
    for slab in _slabs(voxels_zyx.shape):
        labels = labels_zyx[slab].ravel()
        foreground = np.flatnonzero(labels)
        if foreground.size:
            cell = labels[foreground].astype(np.int64)
            cell *= bins
            cell += voxels_zyx[slab].ravel()[foreground]
            cell -= lowest
            histogram += np.bincount(cell, minlength=histogram.size)
    hu = np.arange(lowest, highest + 1, dtype=np.float64)
    by_label = histogram.reshape(rows, bins)
    return {int(label): _from_histogram(by_label[label], hu) for label in np.flatnonzero(by_label.any(axis=1)) if label}


def _from_histogram(counts: NDArray[np.int64], hu: NDArray[np.float64]) -> _Statistics:
    filled = np.flatnonzero(counts)
    counts, hu = counts[filled], hu[filled]
    total = int(counts.sum())
    mean = float((counts * hu).sum() / total)
    sd = float(np.sqrt((counts * (hu - mean) ** 2).sum() / total))
    # if n is odd, the voxels of rank (n - 1) // 2 and n // 2 are the same
    middle = np.searchsorted(np.cumsum(counts), [(total - 1) // 2, total // 2], side="right")
    return _Statistics(total, mean, sd, float(hu[0]), float(hu[-1]), float(hu[middle].mean()))


def _statistics_of_fractional_hu(voxels_zyx: NDArray[Any], labels_zyx: NDArray[np.uint8]) -> dict[int, _Statistics]:
    labels = labels_zyx.ravel()
    foreground = np.flatnonzero(labels)
    by_label = foreground[np.argsort(labels[foreground], kind="stable")]
    values = voxels_zyx.ravel()[by_label].astype(np.float64)
    if not np.isfinite(values).all():
        raise InvalidValueError("HU are not finite inside a structure")
    present, counts = np.unique(labels[foreground], return_counts=True)
    ends = np.cumsum(counts)
    return {
        int(label): _from_values(values[end - count : end])
        for label, count, end in zip(present, counts, ends, strict=True)
    }


def _from_values(hu: NDArray[np.float64]) -> _Statistics:
    return _Statistics(
        hu.size, float(hu.mean()), float(hu.std()), float(hu.min()), float(hu.max()), float(np.median(hu))
    )


def _labels_at_border(
    voxels_zyx: NDArray[np.int16] | NDArray[np.float32], labels_zyx: NDArray[np.uint8]
) -> frozenset[int]:
    seen = np.zeros(256, dtype=bool)
    for axis in range(3):
        seen[np.take(labels_zyx, [0, -1], axis=axis)] = True
    padding = _padding_value(voxels_zyx)
    if padding is not None:
        for slab in _slabs(voxels_zyx.shape):
            seen[labels_zyx[slab][_beside_in_plane(voxels_zyx[slab] == padding)]] = True
    return frozenset(int(label) for label in np.flatnonzero(seen) if label)


def _padding_value(voxels_zyx: NDArray[np.int16] | NDArray[np.float32]) -> float | None:
    """The HU outside the scanned circle, where the volume shows one: a constant in all corners, lower than any CT."""
    corners = voxels_zyx[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    lowest = float(corners.min())
    return lowest if lowest < _LOWEST_SCANNER_HU and bool((corners == lowest).all()) else None


def _beside_in_plane(unseen_zyx: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels that share an in-plane edge with a voxel that was not scanned."""
    beside = np.zeros_like(unseen_zyx)
    beside[:, 1:] |= unseen_zyx[:, :-1]
    beside[:, :-1] |= unseen_zyx[:, 1:]
    beside[:, :, 1:] |= unseen_zyx[:, :, :-1]
    beside[:, :, :-1] |= unseen_zyx[:, :, 1:]
    return beside
