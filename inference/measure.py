"""Volume and attenuation of every structure, on the grid of the label map.

Whole-number HU are counted once into a label x HU histogram, from which every statistic follows exactly, the median
included; fractional HU are grouped by label and measured voxel by voxel.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from inference.shape import measure_shape
from inference.types import InvalidValueError, Measurements, StructureMeasurement

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from inference.types import Segmentation, Volume

_VOXELS_PER_SLAB = 4_000_000


class _Statistics(NamedTuple):
    voxel_count: int
    mean_hu: float
    sd_hu: float
    min_hu: float
    max_hu: float
    median_hu: float


def measure(volume: Volume, segmentation: Segmentation, *, with_shape: bool = False) -> Measurements:
    """Measure every structure of ``segmentation`` in ``volume``, and optionally its shape; both must be on one grid.

    Voxels of ``volume.padding`` belong to no structure. The standard deviation is that of the structure's voxels
    (divisor N). A structure is ``truncated`` when it touches the first or last plane, the edge of the slices, or
    padding.

    Raises:
        InvalidValueError: the grids differ, a label has no name, or HU are not finite where a structure lies.
    """
    if not volume.geometry.same_grid(segmentation.geometry):
        raise InvalidValueError(
            f"label map {segmentation.geometry.shape_zyx} does not lie on the grid of the volume "
            f"{volume.geometry.shape_zyx}, or is displaced"
        )
    labels_zyx = without_padding(volume, segmentation.labels_zyx)
    whole = volume.voxels_zyx.dtype == np.int16
    statistics = (_statistics_of_whole_hu if whole else _statistics_of_fractional_hu)(volume.voxels_zyx, labels_zyx)
    for label, found in statistics.items():
        if label not in segmentation.names_by_label:
            raise InvalidValueError(f"label {label} ({found.voxel_count} voxels) has no name")
    at_border = _labels_at_border(volume, labels_zyx)
    shapes = measure_shape(replace(segmentation, labels_zyx=labels_zyx)) if with_shape else {}
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


def without_padding(volume: Volume, labels_zyx: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``labels_zyx`` with background on the padding of ``volume``; the same array where no label lies there."""
    cleared: NDArray[np.uint8] | None = None
    if volume.padding is None:
        return labels_zyx
    for k in range(len(labels_zyx)):
        labelled = volume.padding.found_in(volume.voxels_zyx[k : k + 1], k)[0] & (labels_zyx[k] != 0)
        if labelled.any():
            cleared = labels_zyx.copy() if cleared is None else cleared
            cleared[k][labelled] = 0
    return labels_zyx if cleared is None else cleared


def _labels_at_border(volume: Volume, labels_zyx: NDArray[np.uint8]) -> frozenset[int]:
    voxels_zyx = volume.voxels_zyx
    seen = np.zeros(256, dtype=bool)
    for axis in range(3):
        seen[np.take(labels_zyx, [0, -1], axis=axis)] = True
    if (padding := volume.padding) is not None:
        for k in range(len(labels_zyx)):
            first, last = max(0, k - 1), min(len(labels_zyx), k + 2)
            beside = _beside(padding.found_in(voxels_zyx[first:last], first))[k - first]
            seen[labels_zyx[k][beside]] = True
    return frozenset(int(label) for label in np.flatnonzero(seen) if label)


def _beside(unseen_zyx: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels that share a face with one that was not imaged."""
    beside = np.zeros_like(unseen_zyx)
    for axis in range(3):
        here, there = np.moveaxis(beside, axis, 0), np.moveaxis(unseen_zyx, axis, 0)
        here[1:] |= there[:-1]
        here[:-1] |= there[1:]
    return beside
