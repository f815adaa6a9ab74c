"""The final check of a result must detect the faults it is made for: each test damages one thing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dicom_node.encode.identity import RunIdentity
from dicom_node.encode.reread import refuse_other_identity
from dicom_node.encode.run import encode
from dicom_node.encode.seg.check import refuse_other_labels
from dicom_node.encode.segments import Segment, present_segments
from dicom_node.encode.source.series import PreparedSource, prepare
from dicom_node.encode.sr.check import refuse_other_measurements
from dicom_node.errors import EncodingError
from dicom_node.standard.part10 import file_of
from tests.support.analysis_results import CONTEXT, MODEL, findings, geometry, measured, reconstruction, segmentation

if TYPE_CHECKING:
    from pydicom import Dataset

    from inference.types import Segmentation

NAMES = {1: "kidney_left", 2: "kidney_right"}


@pytest.fixture
def run() -> tuple[Dataset, Dataset, Segmentation, tuple[Segment, ...], PreparedSource]:
    reconstructed = reconstruction()
    labels = segmentation(reconstructed.source.geometry, NAMES)
    measurements = measured(reconstructed, labels)
    seg, sr = (result.dataset for result in encode(reconstructed, labels, measurements, CONTEXT))
    source = prepare(reconstructed)
    segments = present_segments(labels, measurements, RunIdentity.of(source.series_instance_uid, MODEL, CONTEXT))
    return seg, sr, labels, segments, source


def content(dataset: Dataset) -> memoryview:
    return memoryview(file_of(dataset))


def test_undamaged_result_is_accepted(run) -> None:
    seg, sr, labels, segments, source = run
    refuse_other_labels(content(seg), labels.labels_zyx, segments, source)
    refuse_other_measurements(content(sr), findings(segments, seg))
    for dataset in (seg, sr):
        refuse_other_identity(dataset, source)


def test_single_flipped_bit_is_detected(run) -> None:
    seg, _, labels, segments, source = run
    pixels = bytearray(seg.PixelData)
    pixels[3] ^= 0x10
    seg.PixelData = bytes(pixels)
    with pytest.raises(EncodingError, match="1 of 960 voxels"):
        refuse_other_labels(content(seg), labels.labels_zyx, segments, source)


def test_reordered_frames_are_detected(run) -> None:
    seg, _, labels, segments, source = run
    groups = seg.PerFrameFunctionalGroupsSequence
    groups[0].DerivationImageSequence, groups[1].DerivationImageSequence = (
        groups[1].DerivationImageSequence,
        groups[0].DerivationImageSequence,
    )
    with pytest.raises(EncodingError, match="from its source frame"):
        refuse_other_labels(content(seg), labels.labels_zyx, segments, source)


def test_swapped_left_and_right_are_detected(run) -> None:
    seg, _, labels, segments, source = run
    left, right = segments
    exchanged = (replace(left, label=right.label), replace(right, label=left.label))
    with pytest.raises(EncodingError, match="voxels of the SEG differ"):
        refuse_other_labels(content(seg), labels.labels_zyx, exchanged, source)
    assert np.any(labels.labels_zyx)


def test_duplicate_frame_is_detected(run) -> None:
    seg, _, labels, segments, source = run
    groups = seg.PerFrameFunctionalGroupsSequence
    groups[1] = groups[0]
    with pytest.raises(EncodingError, match="two frames of segment 1 on plane"):
        refuse_other_labels(content(seg), labels.labels_zyx, segments, source)


def test_truncated_file_is_detected(run) -> None:
    seg, _, labels, segments, source = run
    with pytest.raises(EncodingError, match=r"element \(7FE0,0010\) of 96 bytes extends beyond the end"):
        refuse_other_labels(content(seg)[:-1], labels.labels_zyx, segments, source)


def test_pixel_after_the_last_frame_is_detected() -> None:
    grid = geometry((1, 3, 3))
    labels = segmentation(grid, NAMES, np.ones(grid.shape_zyx))
    reconstructed = reconstruction(grid)
    measurements = measured(reconstructed, labels)
    seg = encode(reconstructed, labels, measurements, CONTEXT)[0].dataset
    source = prepare(reconstructed)
    segments = present_segments(labels, measurements, RunIdentity.of(source.series_instance_uid, MODEL, CONTEXT))
    assert seg.PixelData == b"\xff\x01"
    seg.PixelData = b"\xff\x03"
    with pytest.raises(EncodingError, match="after the last frame"):
        refuse_other_labels(content(seg), labels.labels_zyx, segments, source)
    seg.PixelData = b"\xff\x01\x00\x00"
    with pytest.raises(EncodingError, match="4 bytes of pixel data, expected 2"):
        refuse_other_labels(content(seg), labels.labels_zyx, segments, source)


@pytest.mark.parametrize("keyword", ["SegmentNumber", "SegmentLabel", "TrackingUID"])
def test_swapped_segment_names_are_detected(run, keyword: str) -> None:
    seg, _, labels, segments, source = run
    left, right = seg.SegmentSequence
    own = left[keyword].value
    left[keyword].value = right[keyword].value
    right[keyword].value = own
    with pytest.raises(EncodingError, match="the 2 segments that the SEG describes differ from the 2 encoded"):
        refuse_other_labels(content(seg), labels.labels_zyx, segments, source)


@pytest.mark.parametrize(("keyword", "value"), [("NumberOfFrames", 7), ("Rows", 16), ("Columns", 12)])
def test_changed_size_is_detected(run, keyword: str, value: int) -> None:
    seg, _, labels, segments, source = run
    assert seg[keyword].value != value
    seg[keyword].value = value
    with pytest.raises(EncodingError, match="frames, rows, columns"):
        refuse_other_labels(content(seg), labels.labels_zyx, segments, source)


def test_changed_spacing_or_orientation_is_detected(run) -> None:
    seg, _, labels, segments, source = run
    (shared,) = seg.SharedFunctionalGroupsSequence
    measures, orientation = shared.PixelMeasuresSequence[0], shared.PlaneOrientationSequence[0]
    rows, columns = measures.PixelSpacing
    assert rows != columns
    measures.PixelSpacing = [columns, rows]
    with pytest.raises(EncodingError, match="pixel spacing"):
        refuse_other_labels(content(seg), labels.labels_zyx, segments, source)
    measures.PixelSpacing = [rows, columns]
    orientation.ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]
    with pytest.raises(EncodingError, match="orientation"):
        refuse_other_labels(content(seg), labels.labels_zyx, segments, source)


def test_missing_frame_is_detected(run) -> None:
    seg, _, labels, segments, source = run
    del seg.PerFrameFunctionalGroupsSequence[-1]
    with pytest.raises(EncodingError, match=r"states \(4, 12, 16\) frames, rows, columns, expected \(3, 12, 16\)"):
        refuse_other_labels(content(seg), labels.labels_zyx, segments, source)


def test_changed_patient_is_detected_and_not_named(run) -> None:
    seg, _, _, _, source = run
    seg.PatientID = "P-4712"
    with pytest.raises(EncodingError, match="Patient ID was not written as it was received") as refused:
        refuse_other_identity(seg, source)
    assert "471" not in str(refused.value)


def test_changed_frame_of_reference_is_detected(run) -> None:
    seg, _, _, _, source = run
    seg.FrameOfReferenceUID = "1.2.3"
    with pytest.raises(EncodingError, match="Frame of Reference UID"):
        refuse_other_identity(seg, source)


def test_report_on_another_segmentation_is_detected(run) -> None:
    seg, sr, _, segments, _ = run
    seg.SOPInstanceUID = "1.2.3"
    with pytest.raises(EncodingError, match="measurement groups"):
        refuse_other_measurements(content(sr), findings(segments, seg))
