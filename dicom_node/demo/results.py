"""What came back from the PACS, read from the received files alone: the label map out of SEG, the values out of SR.

Read with pydicom and numpy, not with the code that wrote the objects: the demonstration proves the loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from highdicom.color import CIELabColor
from pydicom import Dataset, dcmread

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from inference.types import Geometry

_LARGEST_OFFSET_PIXELS = 0.05
_MEASUREMENT_GROUP = "125007"
_TRACKING_UID = "112040"
_DERIVATION = "121401"
_VOLUME = "118565006"
_ATTENUATION = "112031"
_MEAN = "373098007"


class UnexpectedResult(Exception):
    """An object from the PACS is not what the node says it sends."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of the received SEG.

    ``label`` is its Segment Number, ``name`` its Segment Label (the catalogue's name), ``rgb`` its colour (0..1 each).
    """

    label: int
    name: str
    tracking_uid: str
    rgb: tuple[float, float, float]


@dataclass(frozen=True, slots=True, eq=False)
class ReceivedSegmentation:
    """The label map of a SEG, laid on the grid of its CT."""

    labels_zyx: NDArray[np.uint8]
    segments: tuple[Segment, ...]
    algorithm: str


@dataclass(frozen=True, slots=True)
class ReceivedValues:
    """What the report says about one structure."""

    volume_ml: float
    mean_hu: float | None


def read_segmentation(path: Path, geometry: Geometry) -> ReceivedSegmentation:
    """Unpack a binary SEG; each frame goes to the plane of ``geometry`` (the CT's source frames) where it says it lies.

    Raises:
        UnexpectedResult: a frame lies on no plane of the CT, or the object is no binary SEG of the CT's size.
    """
    dataset = dcmread(path)
    planes, rows, columns = geometry.shape_zyx
    if dataset.get("SegmentationType") != "BINARY" or (dataset.Rows, dataset.Columns) != (rows, columns):
        raise UnexpectedResult(f"expected a binary SEG of {rows} x {columns}, got {dataset.get('SegmentationType')}")
    labels = np.zeros(geometry.shape_zyx, dtype=np.uint8)
    index_from_lps = np.linalg.inv(geometry.affine_lps)
    packed = np.frombuffer(dataset.PixelData, dtype=np.uint8)
    for frame, item in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        position = [float(v) for v in item.PlanePositionSequence[0].ImagePositionPatient]
        x, y, z = (index_from_lps @ np.array([*position, 1.0]))[:3]
        plane = round(float(z))
        if max(abs(x), abs(y), abs(z - plane)) > _LARGEST_OFFSET_PIXELS or not 0 <= plane < planes:
            raise UnexpectedResult(f"frame {frame + 1} lies at {position}, which is no plane of the CT")
        number = item.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        labels[plane][_frame_bits(packed, frame, rows, columns)] = number
    segments = tuple(_segment(item) for item in dataset.SegmentSequence)
    first = dataset.SegmentSequence[0] if segments else Dataset()
    return ReceivedSegmentation(labels, segments, str(first.get("SegmentAlgorithmName", "")))


def read_report(path: Path) -> Mapping[str, ReceivedValues]:
    """Volume (ml) and mean attenuation (HU) of each Measurement Group of a TID 1500 report, by Tracking UID."""
    values = {}
    for group in _containers(dcmread(path), _MEASUREMENT_GROUP):
        tracking_uid, volume_ml, mean_hu = "", None, None
        for item in group.ContentSequence:
            concept = item.ConceptNameCodeSequence[0].CodeValue if "ConceptNameCodeSequence" in item else ""
            if concept == _TRACKING_UID:
                tracking_uid = str(item.UID)
            elif concept == _VOLUME:
                volume_ml = float(item.MeasuredValueSequence[0].NumericValue)
            elif concept == _ATTENUATION and _derivation(item) == _MEAN:
                mean_hu = float(item.MeasuredValueSequence[0].NumericValue)
        if volume_ml is not None:
            values[tracking_uid] = ReceivedValues(volume_ml, mean_hu)
    return values


def dice_by_name(
    received: ReceivedSegmentation, truth_zyx: NDArray[np.uint8], truth_names: Mapping[int, str]
) -> dict[str, float]:
    """Dice of every structure that truth or result contain, by the truth's name; from one joint histogram."""
    joint = np.bincount(
        truth_zyx.ravel().astype(np.int32) * 256 + received.labels_zyx.ravel(), minlength=1 << 16
    ).reshape(256, 256)
    label_of = {segment.name: segment.label for segment in received.segments}
    dice = {}
    for truth_label, name in truth_names.items():
        label = label_of.get(name)
        in_truth = int(joint[truth_label].sum())
        in_result = int(joint[:, label].sum()) if label is not None else 0
        common = int(joint[truth_label, label]) if label is not None else 0
        if in_truth + in_result:
            dice[name] = 2 * common / (in_truth + in_result)
    return dice


def _frame_bits(packed: NDArray[np.uint8], frame: int, rows: int, columns: int) -> NDArray[np.bool_]:
    """Frames follow each other bit by bit, without padding, least significant bit first (PS3.5 8.1.1, 8.2)."""
    first = frame * rows * columns
    octets = packed[first // 8 : -(-(first + rows * columns) // 8)]
    bits = np.unpackbits(octets, bitorder="little")[first % 8 :][: rows * columns]
    return bits.reshape(rows, columns).astype(bool)


def _segment(item: Dataset) -> Segment:
    red, green, blue = CIELabColor.from_dicom_value(list(item.RecommendedDisplayCIELabValue)).to_rgb()
    return Segment(
        label=int(item.SegmentNumber),
        name=str(item.SegmentLabel),
        tracking_uid=str(item.get("TrackingUID", "")),
        rgb=(red / 255, green / 255, blue / 255),
    )


def _containers(content: Dataset, concept: str) -> Iterator[Dataset]:
    for item in content.get("ContentSequence", ()):
        if item.ValueType == "CONTAINER" and item.ConceptNameCodeSequence[0].CodeValue == concept:
            yield item
        else:
            yield from _containers(item, concept)


def _derivation(item: Dataset) -> str:
    for modifier in item.get("ContentSequence", ()):
        if modifier.ConceptNameCodeSequence[0].CodeValue == _DERIVATION:
            return str(modifier.ConceptCodeSequence[0].CodeValue)
    return ""
