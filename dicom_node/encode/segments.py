"""The labels that become segments: those with voxels, numbered from 1 in ascending order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dicom_node.errors import EncodingError
from inference.errors import UnknownStructureError
from inference.structures import Structure, structure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dicom_node.encode.identity import RunIdentity
    from dicom_node.percentiles import Percentile
    from inference.types import Measurements, Segmentation, StructureMeasurement

_LABELS = 256
TRUNCATED = "Truncated by the field of view: the volume is a lower bound."
NOTHING_FOUND = "Analysis complete; none of the target structures was found."


@dataclass(frozen=True, slots=True)
class Rank:
    """Where one measurement stands among ``patients`` of a reference sample.

    ``population`` says for human readers who they are, ``authority`` from which file the percentile is. Both say that
    this is research.
    """

    percentile: Percentile
    patients: int
    population: str
    authority: str

    @property
    def number(self) -> float | None:
        """The percentile; None beyond the outer ones, which ``population`` says in words."""
        return None if isinstance(self.percentile, str) else self.percentile


@dataclass(frozen=True, slots=True)
class Segment:
    """One structure that was found.

    ``number`` is its Segment Number, from 1; ``label`` its value in the label map; ``planes`` those that contain it.
    The ranks are None where no percentile is asked for, or can be stated.
    """

    number: int
    label: int
    planes: frozenset[int]
    structure: Structure
    tracking_uid: str
    measurement: StructureMeasurement
    volume_rank: Rank | None = None
    mean_hu_rank: Rank | None = None


@dataclass(frozen=True, slots=True)
class SegmentationReference:
    """The SEG that a Segment Number refers to."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A segment as a report states it; ``reference`` is None if the destination gets no SEG."""

    segment: Segment
    reference: SegmentationReference | None


def present_segments(
    segmentation: Segmentation, measurements: Measurements, identity: RunIdentity
) -> tuple[Segment, ...]:
    """Every label that has voxels, with its measurement.

    Raises:
        EncodingError: a label has no name, a name has no codes, or the measurements belong to another label map.
    """
    structures = {name: _structure(name) for name in segmentation.names_by_label.values()}
    counts_by_plane = voxel_counts(segmentation.labels_zyx)
    counts = counts_by_plane.sum(axis=0)
    measured = {measurement.label: measurement for measurement in measurements.structures}
    present = [label for label in range(1, _LABELS) if counts[label]]
    if sorted(measured) != present:
        raise EncodingError(f"labels {present} are in the label map, but {sorted(measured)} were measured")
    segments = []
    for number, label in enumerate(present, start=1):
        name, measurement = segmentation.names_by_label.get(label), measured[label]
        if name is None or name != measurement.name:
            raise EncodingError(f"label {label} is named {name!r} by the model and {measurement.name!r} as measured")
        if measurement.voxel_count != counts[label]:
            raise EncodingError(f"{name} has {counts[label]} voxels, but {measurement.voxel_count} were measured")
        planes = frozenset(np.flatnonzero(counts_by_plane[:, label]).tolist())
        segments.append(Segment(number, label, planes, structures[name], identity.tracking_uid(name), measurement))
    return tuple(segments)


def without_shape(segment: Segment) -> Segment:
    """``segment`` for a destination that did not ask for shape."""
    return replace(segment, measurement=replace(segment.measurement, shape=None))


def voxel_counts(labels_zyx: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Voxels of each label 0..255 in each plane, ``(planes, 256)``."""
    counts = np.empty((len(labels_zyx), _LABELS), dtype=np.int64)
    for k, plane in enumerate(labels_zyx):
        # runs of equal labels are few: four times faster than counting voxels
        labels = plane.reshape(-1)
        starts = np.concatenate(([0], np.flatnonzero(labels[1:] != labels[:-1]) + 1))
        counts[k] = np.bincount(labels[starts], np.diff(starts, append=labels.size), _LABELS)
    return counts


def _structure(name: str) -> Structure:
    try:
        return structure(name)
    except UnknownStructureError as error:
        raise EncodingError(str(error)) from error
