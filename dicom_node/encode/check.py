"""Read results back from their bytes before they count: what was encoded must be what is in the file."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.datadict import dictionary_description

from dicom_node.encode.source import PreparedSource, raw_element
from dicom_node.errors import EncodingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from dicom_node.encode.segments import Segment

_IDENTITY = ("SpecificCharacterSet", "PatientName", "PatientID", "AccessionNumber", "ReferringPhysicianName")
_POSITION_TOLERANCE_MM = 1e-3


def reread(dataset: Dataset) -> Dataset:
    """``dataset`` written as a DICOM Part 10 file and read again: what the spool and every receiver will see.

    Raises:
        EncodingError: it cannot be written.
    """
    buffer = BytesIO()
    try:
        dcmwrite(buffer, dataset, enforce_file_format=True)
    except Exception as error:
        raise EncodingError(f"{dataset.get('Modality')} object cannot be written: {type(error).__name__}") from error
    buffer.seek(0)
    return dcmread(buffer)


def refuse_other_identity(dataset: Dataset, source: PreparedSource) -> None:
    """Names and IDs must be, byte by byte, those of the source.

    Raises:
        EncodingError: one is not; it is named, not shown.
    """
    for keyword in _IDENTITY:
        written, came = raw_element(dataset, keyword), raw_element(source.identity, keyword)
        if (written.value if written else None) != (came.value if came else None):
            raise EncodingError(f"{dictionary_description(keyword)} was not written as it came")
    for keyword, expected in (
        ("StudyInstanceUID", source.study_instance_uid),
        ("FrameOfReferenceUID", source.frame_of_reference_uid),
    ):
        if keyword in dataset and str(dataset[keyword].value) != expected:
            raise EncodingError(f"{dictionary_description(keyword)} is not that of the source series")


def refuse_other_labels(
    dataset: Dataset, labels_zyx: NDArray[np.uint8], segments: tuple[Segment, ...], source: PreparedSource
) -> None:
    """The SEG must hold ``labels_zyx``, voxel for voxel, each frame at the place of the source frame it refers to.

    Raises:
        EncodingError: it does not; the message counts the voxels that differ.
    """
    label_of = {segment.number: segment.label for segment in segments}
    plane_of = {(plane.sop_instance_uid, plane.frame_number): k for k, plane in enumerate(source.planes)}
    found = np.zeros_like(labels_zyx)
    voxels = 0
    for group, mask in _frames(dataset):
        reference = group.DerivationImageSequence[0].SourceImageSequence[0]
        frame_number = reference.get("ReferencedFrameNumber")
        key = (str(reference.ReferencedSOPInstanceUID), None if frame_number is None else int(frame_number))
        k = plane_of.get(key)
        if k is None:
            raise EncodingError(f"a frame refers to instance {key[0]} frame {key[1]}, not of the source series")
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=np.float64)
        distance = float(np.abs(position - source.planes[k].position_lps_mm).max())
        if distance > _POSITION_TOLERANCE_MM:
            raise EncodingError(f"a frame of plane {k} lies {distance:.4f} mm from its source frame")
        found[k][mask] = label_of[_segment_number(group, dataset)]
        voxels += int(np.count_nonzero(mask))
    different = int(np.count_nonzero(found != labels_zyx))
    if different or voxels != int(np.count_nonzero(labels_zyx)):
        raise EncodingError(f"{different} of {labels_zyx.size} voxels of the SEG differ from the label map")


def _segment_number(group: Dataset, dataset: Dataset) -> int:
    """Per frame, or shared where the object has a single segment."""
    item = group.get("SegmentIdentificationSequence") or dataset.SharedFunctionalGroupsSequence[0].get(
        "SegmentIdentificationSequence"
    )
    return int(item[0].ReferencedSegmentNumber)


def _frames(dataset: Dataset) -> Iterator[tuple[Dataset, NDArray[np.bool_]]]:
    """Each per-frame group with its pixels; frames follow each other bit by bit, lowest bit first (PS3.5 8.1.1)."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    size = rows * columns
    packed = np.frombuffer(dataset.PixelData, dtype=np.uint8)
    for index, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        start = index * size
        first_byte, offset = divmod(start, 8)
        bits = np.unpackbits(packed[first_byte : (start + size + 7) // 8], bitorder="little")
        yield group, bits[offset : offset + size].reshape(rows, columns).view(np.bool_)


def refuse_other_measurements(dataset: Dataset, segments: tuple[Segment, ...], segmentation_uid: str | None) -> None:
    """The SR must have one Measurement Group per segment, with its tracking UID, its SEG and its volume.

    Raises:
        EncodingError: it does not.
    """
    found = []
    for container in _children(dataset, "126010"):
        for group in _children(container, "125007"):
            (tracking,) = _children(group, "112040")
            (reference,) = _children(group, "121191")
            (volume,) = _children(group, "118565006")
            sop = reference.ReferencedSOPSequence[0]
            found.append(
                (
                    str(tracking.UID),
                    str(sop.ReferencedSOPInstanceUID),
                    int(sop.ReferencedSegmentNumber),
                    float(volume.MeasuredValueSequence[0].FloatingPointValue),
                )
            )
    expected = [
        (segment.tracking_uid, segmentation_uid, segment.number, segment.measurement.volume_ml) for segment in segments
    ]
    if found != expected:
        raise EncodingError(f"the SR holds {len(found)} measurement groups that are not the {len(expected)} put in")


def _children(item: Dataset, code_value: str) -> list[Dataset]:
    return [
        child
        for child in item.get("ContentSequence") or ()
        if child.get("ConceptNameCodeSequence") and child.ConceptNameCodeSequence[0].get("CodeValue") == code_value
    ]
