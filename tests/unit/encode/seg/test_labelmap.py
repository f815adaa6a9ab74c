"""Label maps: what the standard requires, equality with highdicom's output, and every voxel read back."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import highdicom
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom.uid import RLELossless

from dicom_node.encode.identity import RunIdentity
from dicom_node.encode.provenance import Provenance, statements
from dicom_node.encode.run import encode
from dicom_node.encode.seg.attributes import highdicom_segmentation
from dicom_node.encode.seg.check import refuse_other_labelmap
from dicom_node.encode.seg.descriptions import segment_description
from dicom_node.encode.segments import Segment, present_segments
from dicom_node.encode.source.series import PreparedSource, prepare
from dicom_node.errors import EncodingError
from dicom_node.standard.part10 import PREAMBLE_LENGTH, encoded_elements, file_of
from dicom_node.types import (
    LABEL_MAP_SEGMENTATION_STORAGE,
    EncodedResult,
    Reconstruction,
    ResultKind,
    ResultRequest,
    SegmentationForm,
)
from inference.structures import paper_labels
from tests.support.analysis_results import (
    CONTEXT,
    GRIDS,
    MODEL,
    ORIENTATIONS,
    geometry,
    measured,
    reconstruction,
    segmentation,
)

if TYPE_CHECKING:
    from pydicom import Dataset

    from inference.types import Segmentation

NAMES = {3: "kidney_left", 7: "kidney_right", 9: "kidney_cyst_left", 200: "body_fat", 201: "liver"}
TRANSFER_SYNTAX, PIXEL_DATA = 0x00020010, 0x7FE00010
REFERENCED_SERIES, SOURCE_IMAGES = 0x00081115, 0x00082112
PRESENT, ABSENT = object(), object()

# PS3.3 table A.51-1 (LABELMAP): types 1, and 1C if the condition holds; a given value is the only one allowed here
REQUIRED = {
    "SOPClassUID": LABEL_MAP_SEGMENTATION_STORAGE,
    "SOPInstanceUID": PRESENT,
    "StudyInstanceUID": PRESENT,
    # C.8.20.1 Segmentation Series, C.7.4.1, C.7.5.1, C.7.5.2
    "Modality": "SEG",
    "SeriesInstanceUID": PRESENT,
    "SeriesNumber": PRESENT,
    "ReferencedSeriesSequence": PRESENT,
    "FrameOfReferenceUID": PRESENT,
    "Manufacturer": PRESENT,
    "ManufacturerModelName": PRESENT,
    "DeviceSerialNumber": PRESENT,
    "SoftwareVersions": PRESENT,
    # C.7.6.3, C.7.6.16, C.7.6.17
    "Rows": PRESENT,
    "Columns": PRESENT,
    "NumberOfFrames": PRESENT,
    "InstanceNumber": PRESENT,
    "ContentDate": PRESENT,
    "ContentTime": PRESENT,
    "SharedFunctionalGroupsSequence": PRESENT,
    "PerFrameFunctionalGroupsSequence": PRESENT,
    "DimensionOrganizationSequence": PRESENT,
    "DimensionIndexSequence": PRESENT,
    # C.8.20.2 Segmentation Image
    "ImageType": ["DERIVED", "PRIMARY"],
    "ContentLabel": PRESENT,
    "ContentDescription": PRESENT,
    "ContentCreatorName": PRESENT,
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "PixelRepresentation": 0,
    "BitsAllocated": 8,
    "BitsStored": 8,
    "HighBit": 7,
    "LossyImageCompression": "00",
    "SegmentationType": "LABELMAP",
    "SegmentsOverlap": "NO",
    "SegmentSequence": PRESENT,
    # A.51.4: the background value
    "PixelPaddingValue": 0,
    "SegmentationFractionalType": ABSENT,
    "MaximumFractionalValue": ABSENT,
    "ICCProfile": ABSENT,
}
REQUIRED_OF_A_SEGMENT = (
    "SegmentNumber",
    "SegmentLabel",
    "SegmentedPropertyCategoryCodeSequence",
    "SegmentedPropertyTypeCodeSequence",
    "SegmentAlgorithmType",
    "SegmentAlgorithmName",
)
SHARED_GROUPS = {"PixelMeasuresSequence", "PlaneOrientationSequence"}
GROUPS_OF_A_FRAME = {"DerivationImageSequence", "FrameContentSequence", "PlanePositionSequence"}
"""PS3.3 table A.51-2: the Segmentation Functional Group belongs to the other types only."""


def labelmap(source: Reconstruction, labels: Segmentation, **options) -> EncodedResult:
    request = ResultRequest(SegmentationForm.LABELMAP, report=False, **options)
    (result,) = encode(source, labels, measured(source, labels), CONTEXT, {"pacs": request})
    return result


class Run:
    def __init__(self, source: Reconstruction, labels: Segmentation) -> None:
        self.result = labelmap(source, labels)
        self.labels_zyx = labels.labels_zyx
        self.source: PreparedSource = prepare(source)
        identity = RunIdentity.of(self.source.series_instance_uid, MODEL, CONTEXT)
        said = statements(CONTEXT, MODEL, len(self.source.planes), source.notes)
        self.provenance = Provenance(identity, CONTEXT, self.source, said)
        self.segments: tuple[Segment, ...] = present_segments(labels, measured(source, labels), identity)

    def numbers(self) -> np.ndarray:
        """Segment number by label."""
        numbers = np.zeros(256, dtype=np.uint8)
        numbers[[s.label for s in self.segments]] = [s.number for s in self.segments]
        return numbers

    def highdicom(self) -> Dataset:
        held = sorted(frozenset[int]().union(*(s.planes for s in self.segments)))
        planes = slice(held[0], held[-1] + 1)
        return highdicom_segmentation(
            ResultKind.LABELMAP,
            self.numbers()[self.labels_zyx[planes]],
            [segment_description(segment, MODEL) for segment in self.segments],
            self.provenance,
            self.source.planes[planes],
        )

    def binary_elements(self) -> dict[int, bytes]:
        """The elements of highdicom's BINARY SEG for the whole series."""
        whole = highdicom_segmentation(
            ResultKind.SEGMENTATION,
            self.numbers()[self.labels_zyx],
            [segment_description(segment, MODEL) for segment in self.segments],
            self.provenance,
            self.source.planes,
        )
        whole["PixelData"].VR = "OB"  # pydicom leaves it open
        return encoded_elements(memoryview(file_of(whole))[PREAMBLE_LENGTH:])


def assert_equal_to_highdicom(run: Run) -> None:
    expected = run.highdicom()
    # we describe the background last, so that viewers that colour by position (OHIF 3.13) do not shift colours
    expected.SegmentSequence.append(expected.SegmentSequence.pop(0))
    expected["PixelData"].VR = "OB"  # pydicom leaves it open
    ours, theirs = (
        encoded_elements(memoryview(file)[PREAMBLE_LENGTH:]) for file in (run.result.content, file_of(expected))
    )
    for tag in (TRANSFER_SYNTAX, PIXEL_DATA):
        del ours[tag], theirs[tag]
    # highdicom got only the planes that have a frame; the run used all, and states so like the BINARY SEG
    all_images = run.binary_elements()
    for tag in (REFERENCED_SERIES, SOURCE_IMAGES):
        del theirs[tag]
        assert ours.pop(tag) == all_images[tag]
    assert ours == theirs
    found = run.result.dataset
    assert found.file_meta.TransferSyntaxUID == RLELossless
    assert np.array_equal(found.pixel_array, expected.pixel_array)


@pytest.mark.parametrize("name", GRIDS)
def test_label_map_equals_highdicoms_on_every_grid(name: str) -> None:
    grid, multi_frame = GRIDS[name]
    assert_equal_to_highdicom(Run(reconstruction(grid, multi_frame=multi_frame), segmentation(grid, NAMES)))


@settings(max_examples=12, deadline=timedelta(seconds=10))
@given(st.data())
def test_any_label_map_equals_highdicoms(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)))
    labels_zyx = data.draw(arrays(np.uint8, shape, elements=st.sampled_from([0, *NAMES])))
    assume(labels_zyx.any())
    shear = data.draw(st.sampled_from([(0.0, 0.0), (0.0, 0.9), (0.3, -0.9)]))
    grid = geometry(shape, data.draw(st.sampled_from(list(ORIENTATIONS.values()))), shear)
    run = Run(reconstruction(grid, multi_frame=data.draw(st.booleans())), segmentation(grid, NAMES, labels_zyx))
    assert_equal_to_highdicom(run)


def test_label_map_has_what_the_standard_requires() -> None:
    grid = geometry((6, 13, 11))
    names = {**paper_labels(), 201: "kidney_cyst_left"}
    labels_zyx = np.resize(np.array([0, *names], dtype=np.uint8), grid.shape_zyx)
    labels_zyx[0] = labels_zyx[3] = labels_zyx[5] = 0
    dataset = labelmap(reconstruction(grid), segmentation(grid, names, labels_zyx)).dataset
    for keyword, expected in REQUIRED.items():
        found = dataset.get(keyword)
        if expected is ABSENT:
            assert keyword not in dataset, keyword
        elif expected is PRESENT:
            assert found not in (None, "", []), keyword
        else:
            assert found == expected, keyword
    assert dataset.NumberOfFrames == 4
    pixels = dataset.pixel_array
    numbers = [segment.SegmentNumber for segment in dataset.SegmentSequence]
    assert numbers == [*range(1, len(numbers)), 0]
    # C.8.20.2.3.3: every encoded value is described
    assert set(np.unique(pixels).tolist()) == set(numbers)
    for segment in dataset.SegmentSequence:
        assert all(segment.get(keyword) not in (None, "", []) for keyword in REQUIRED_OF_A_SEGMENT)
        assert ("TrackingID" in segment) == ("TrackingUID" in segment) == (segment.SegmentNumber > 0)
    *_, background = dataset.SegmentSequence
    assert background.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Background"
    (shared,) = dataset.SharedFunctionalGroupsSequence
    assert {element.keyword for element in shared} == SHARED_GROUPS
    pointers = [item.DimensionIndexPointer for item in dataset.DimensionIndexSequence]
    assert pointers == [0x00200032]
    for index, group in enumerate(dataset.PerFrameFunctionalGroupsSequence, start=1):
        assert {element.keyword for element in group} == GROUPS_OF_A_FRAME
        assert group.FrameContentSequence[0].DimensionIndexValues == index
        (image,) = group.DerivationImageSequence[0].SourceImageSequence
        assert image.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    assert dataset.DimensionOrganizationType == "3D"


def test_highdicom_restores_every_voxel_of_encoded_and_omitted_planes() -> None:
    grid = geometry((6, 13, 11))
    labels_zyx = np.zeros(grid.shape_zyx, dtype=np.uint8)
    labels_zyx[1, 2:5, 3:9], labels_zyx[4, 2:5, 3:9] = 201, 7
    source = reconstruction(grid)
    read = highdicom.seg.Segmentation.from_dataset(labelmap(source, segmentation(grid, NAMES, labels_zyx)).dataset)
    assert read.number_of_frames == 4
    numbers = read.get_pixels_by_source_instance(
        [frame.sop_instance_uid for frame in source.frames],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
        ignore_spatial_locations=True,
    )
    assert np.array_equal(np.array([0, 7, 201])[numbers], labels_zyx)


def test_without_a_background_segment_value_0_is_stated_only_as_pixel_padding() -> None:
    grid = geometry()
    result = labelmap(reconstruction(grid), segmentation(grid, NAMES), background=False)
    assert [segment.SegmentNumber for segment in result.dataset.SegmentSequence] == [1, 2, 3, 4, 5]
    assert result.dataset.PixelPaddingValue == 0
    with_background = labelmap(reconstruction(grid), segmentation(grid, NAMES))
    assert result.sop_instance_uid != with_background.sop_instance_uid
    assert result.series_instance_uid != with_background.series_instance_uid


@pytest.fixture(scope="module")
def run() -> Run:
    grid = geometry((5, 13, 40))
    return Run(reconstruction(grid), segmentation(grid, NAMES))


def refuse(run: Run, content: bytes, segments: tuple[Segment, ...] | None = None) -> None:
    refuse_other_labelmap(memoryview(content), run.labels_zyx, segments or run.segments, run.source)


def test_final_check_accepts_what_was_written(run: Run) -> None:
    refuse(run, bytes(run.result.content))


def test_changed_pixel_is_detected(run: Run) -> None:
    content = bytearray(run.result.content)
    frame = content.rindex(bytes([1, 0, 0, 0, 64, 0, 0, 0])) + 64
    content[frame + 1] ^= 1  # value of the first RLE run
    with pytest.raises(EncodingError, match="of 2600 voxels of the SEG differ"):
        refuse(run, bytes(content))


def test_pixel_without_a_segment_is_detected(run: Run) -> None:
    content = bytearray(run.result.content)
    frame = content.rindex(bytes([1, 0, 0, 0, 64, 0, 0, 0])) + 64
    content[frame + 1] = 6
    with pytest.raises(EncodingError, match="a frame of 520 pixels up to 6, expected 520 up to 5"):
        refuse(run, bytes(content))


def test_swapped_frames_swapped_labels_and_a_missing_segment_are_detected(run: Run) -> None:
    dataset = run.result.dataset
    groups = dataset.PerFrameFunctionalGroupsSequence
    for group, other in ((groups[0], groups[1]), (groups[1], groups[0])):
        assert (
            group.PlanePositionSequence[0].ImagePositionPatient != other.PlanePositionSequence[0].ImagePositionPatient
        )
    groups[0], groups[1] = groups[1], groups[0]
    with pytest.raises(EncodingError, match="voxels of the SEG differ"):
        refuse(run, file_of(dataset))
    groups[0] = groups[1]
    with pytest.raises(EncodingError, match="functional groups on"):
        refuse(run, file_of(dataset))
    with pytest.raises(EncodingError, match="the 5 segments that the SEG describes differ from the 4 encoded"):
        refuse(run, bytes(run.result.content), run.segments[:-1])


def test_truncated_file_and_wrong_offset_table_are_detected(run: Run) -> None:
    content = bytes(run.result.content)
    with pytest.raises(EncodingError, match="have no end"):
        refuse(run, content[:-8])
    table = content.index(b"\xe0\x7f\x10\x00OB\x00\x00") + 12
    changed = bytearray(content)
    changed[table + 8 + 4] ^= 2
    with pytest.raises(EncodingError, match="Basic Offset Table"):
        refuse(run, bytes(changed))
