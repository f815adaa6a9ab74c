from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from io import BytesIO

import highdicom
import numpy as np
import pytest
from highdicom.color import CIELabColor
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom import Dataset, dcmwrite
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage

from dicom_node.encode.identity import RunIdentity, algorithm_device_uid
from dicom_node.encode.provenance import Provenance
from dicom_node.encode.reread import reread
from dicom_node.encode.run import encode
from dicom_node.encode.seg.binary import segmentation_file
from dicom_node.encode.segments import present_segments
from dicom_node.encode.source.series import prepare
from dicom_node.errors import EncodingError
from dicom_node.types import EarlierResult, EncodedResult, Reconstruction, ResultKind, ResultRequest
from inference.structures import STRUCTURES, paper_labels, structure
from inference.types import Geometry, ModelIdentity, Segmentation
from tests.support.analysis_results import (
    CONTEXT,
    GRIDS,
    MODEL,
    ORIENTATIONS,
    geometry,
    measured,
    reconstruction,
    segmentation,
    with_headers,
)

NAMES = {3: "kidney_left", 7: "kidney_right", 9: "kidney_cyst_left", 200: "body_fat", 201: "liver"}
PRESENT = {label: NAMES[label] for label in (3, 7, 9, 200)}


def encoded(source: Reconstruction, labels: Segmentation, context=CONTEXT) -> tuple[EncodedResult, ...]:
    return encode(source, labels, measured(source, labels), context)


def seg_of(source: Reconstruction, labels: Segmentation) -> Dataset:
    return next(r.dataset for r in encoded(source, labels) if r.kind is ResultKind.SEGMENTATION)


def labels_read_back(seg: Dataset, source: Reconstruction, labels: Segmentation) -> np.ndarray:
    """Read by highdicom through the references to source frames, as viewers do to overlay a SEG."""
    read = highdicom.seg.Segmentation.from_dataset(seg)
    uids = [frame.sop_instance_uid for frame in source.frames]
    numbers = [frame.frame_number for frame in source.frames]
    if numbers[0] is None:
        pixels = read.get_pixels_by_source_instance(
            uids, combine_segments=True, assert_missing_frames_are_empty=True, ignore_spatial_locations=True
        )
    else:
        pixels = read.get_pixels_by_source_frame(
            uids[0], numbers, combine_segments=True, assert_missing_frames_are_empty=True, ignore_spatial_locations=True
        )
    by_number = np.array([0, *(label for label in range(256) if (labels.labels_zyx == label).any() and label)])
    return by_number[pixels]


@pytest.mark.parametrize("name", GRIDS)
def test_every_voxel_is_read_back_on_its_source_frame(name: str) -> None:
    grid, multi_frame = GRIDS[name]
    source = reconstruction(grid, multi_frame=multi_frame)
    labels = segmentation(grid, NAMES, asymmetric(grid))
    seg = seg_of(source, labels)
    assert np.array_equal(labels_read_back(seg, source, labels), labels.labels_zyx)


@pytest.mark.parametrize("name", GRIDS)
def test_every_voxel_has_its_position_on_the_grid_of_the_labels(name: str) -> None:
    """From position, spacing and orientation of each frame alone, like a reader that ignores references."""
    grid, multi_frame = GRIDS[name]
    labels = segmentation(grid, NAMES, asymmetric(grid))
    seg = seg_of(reconstruction(grid, multi_frame=multi_frame), labels)
    shared = seg.SharedFunctionalGroupsSequence[0]
    row_spacing, column_spacing = (float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing)
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float)
    found = np.zeros(grid.shape_zyx, dtype=np.uint8)
    present = [label for label in PRESENT if (labels.labels_zyx == label).any()]
    for number, mask, position in frames(seg):
        rows, columns = np.nonzero(mask)
        places = (
            position[:, np.newaxis]
            + np.outer(cosines[:3], columns * column_spacing)
            + np.outer(cosines[3:], rows * row_spacing)
        )
        index = np.linalg.inv(grid.affine_lps) @ np.vstack([places, np.ones(len(rows))])
        x, y, z, _ = np.rint(index).astype(int)
        assert np.abs(index - np.rint(index)).max() < 0.01
        assert not found[z, y, x].any()
        found[z, y, x] = present[number - 1]
    assert np.array_equal(found, labels.labels_zyx)


def frames(seg: Dataset):
    """Segment number, mask and position of every frame, all unpacked at once, unlike in the code under test."""
    size = seg.Rows * seg.Columns
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")
    for i, group in enumerate(seg.PerFrameFunctionalGroupsSequence):
        holder = group if "SegmentIdentificationSequence" in group else seg.SharedFunctionalGroupsSequence[0]
        number = holder.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        yield number, bits[i * size : (i + 1) * size].reshape(seg.Rows, seg.Columns), position


def asymmetric(grid: Geometry) -> np.ndarray:
    generator = np.random.default_rng(3)
    labels = np.zeros(grid.shape_zyx, dtype=np.uint8)
    labels[generator.random(grid.shape_zyx) < 0.3] = 3
    labels[: max(1, grid.shape_zyx[0] // 2)][generator.random(labels[: max(1, grid.shape_zyx[0] // 2)].shape) < 0.2] = 9
    labels[-1, -1, -1] = 200
    labels[0, 0, 0] = 7
    return labels


@settings(max_examples=15, deadline=timedelta(seconds=10))
@given(st.data())
def test_any_label_map_of_any_size_is_restored(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(3, 9), st.integers(3, 9)))
    labels_zyx = data.draw(arrays(np.uint8, shape, elements=st.sampled_from([0, *NAMES])))
    grid = geometry(shape, data.draw(st.sampled_from(list(ORIENTATIONS.values()))))
    source = reconstruction(grid, multi_frame=data.draw(st.booleans()))
    labels = segmentation(grid, NAMES, labels_zyx)
    if labels_zyx.any():
        seg = seg_of(source, labels)
        assert np.array_equal(labels_read_back(seg, source, labels), labels_zyx)
        assert seg.NumberOfFrames == sum((labels_zyx[k] == label).any() for k in range(shape[0]) for label in NAMES)
    else:
        assert [result.kind for result in encoded(source, labels)] == [ResultKind.REPORT]


def test_frames_of_fewer_than_eight_pixels_are_packed_without_gaps() -> None:
    """highdicom 0.28.2 aligns these to bytes when writing, but reads them as in the standard."""
    grid = geometry((2, 1, 1))
    source = reconstruction(grid)
    labels = segmentation(grid, PRESENT, np.full(grid.shape_zyx, 3))
    seg = seg_of(source, labels)
    assert seg.PixelData == b"\x03\x00"
    assert np.array_equal(labels_read_back(seg, source, labels), labels.labels_zyx)


def test_padding_byte_is_zero() -> None:
    grid = geometry((1, 3, 3))
    seg = seg_of(reconstruction(grid), segmentation(grid, {1: "liver"}, np.ones((1, 3, 3))))
    assert seg.PixelData == b"\xff\x01"
    grid = geometry((1, 2, 2))
    seg = seg_of(reconstruction(grid), segmentation(grid, {1: "liver"}, np.ones((1, 2, 2))))
    assert seg.PixelData == b"\x0f\x00"


def test_too_many_pixels_for_pixel_data_are_refused_before_memory_is_allocated() -> None:
    grid = geometry((9, 2, 2))
    source = reconstruction(grid)
    labels = segmentation(grid, PRESENT, np.full(grid.shape_zyx, 3))
    measurements = measured(source, labels)
    prepared = replace(prepare(source), rows=65_535, columns=65_535)
    identity = RunIdentity.of(prepared.series_instance_uid, MODEL, CONTEXT)
    segments = present_segments(labels, measurements, identity)
    with pytest.raises(
        EncodingError, match=r"9 frames of 65535 x 65535 pixels need 4831690754 bytes.*request a label map"
    ):
        segmentation_file(labels.labels_zyx, segments, Provenance(identity, CONTEXT, prepared, ()))


def test_more_frames_than_16_bits_can_count_are_written() -> None:
    """Number of Frames and Dimension Index Values have more than 16 bits; encode reads every frame back."""
    names = {label: each.name for label, each in enumerate(STRUCTURES, start=1)}
    grid = geometry((453, 12, 13))
    plane = np.resize(np.array([0, *names], dtype=np.uint8), grid.shape_zyx[1:])
    source = reconstruction(grid)
    labels = segmentation(grid, names, np.broadcast_to(plane, grid.shape_zyx))
    request = {"pacs": ResultRequest(report=False)}
    (result,) = encode(source, labels, measured(source, labels), CONTEXT, request)
    assert reread(memoryview(result.content)).NumberOfFrames == 453 * len(STRUCTURES) > 2**16


def test_only_present_structures_become_segments_in_the_order_of_their_labels() -> None:
    source = reconstruction()
    seg = seg_of(source, segmentation(source.source.geometry, NAMES, asymmetric(source.source.geometry)))
    assert [(s.SegmentNumber, s.SegmentLabel) for s in seg.SegmentSequence] == list(
        enumerate(PRESENT.values(), start=1)
    )
    assert (seg.SOPClassUID, seg.file_meta.TransferSyntaxUID) == (SegmentationStorage, ExplicitVRLittleEndian)
    assert (seg.SegmentationType, seg.BitsAllocated, seg.SegmentsOverlap) == ("BINARY", 1, "NO")


def test_codes_laterality_region_and_colour_of_every_structure_of_the_paper() -> None:
    names = {**paper_labels(), 201: "kidney_cyst_left", 202: "kidney_cyst_right"}
    grid = geometry((2, 16, 16))
    labels = np.resize(np.array(list(names), dtype=np.uint8), grid.shape_zyx)
    seg = seg_of(reconstruction(grid), segmentation(grid, names, labels))
    assert len(seg.SegmentSequence) == 106
    for segment in seg.SegmentSequence:
        expected = structure(segment.SegmentLabel)
        (kind,) = segment.SegmentedPropertyTypeCodeSequence
        assert kind.CodeValue == expected.type.value
        assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == expected.category.value
        holders = [kind.get("SegmentedPropertyTypeModifierCodeSequence")]
        if expected.region is not None:
            (region,) = segment.AnatomicRegionSequence
            assert region.CodeValue == expected.region.value
            holders.append(region.get("AnatomicRegionModifierSequence"))
        sides = [item.CodeMeaning for holder in holders for item in holder or ()]
        side = {"left": "Left", "right": "Right"}.get(
            next((w for w in segment.SegmentLabel.split("_") if w in ("left", "right")), "")
        )
        coded_in_type = side is not None and side.lower() in kind.CodeMeaning.lower()
        assert sides == ([] if side is None or coded_in_type else [side]), segment.SegmentLabel
        colour = CIELabColor.from_dicom_value(list(segment.RecommendedDisplayCIELabValue)).to_rgb(clip=True)
        assert np.abs(np.array(colour) - expected.rgb).max() <= 1, segment.SegmentLabel
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (MODEL.name, MODEL.version)
        assert algorithm.AlgorithmFamilyCodeSequence[0].CodeMeaning == "Artificial Intelligence"
        assert MODEL.digest in algorithm.AlgorithmParameters


def test_origin_and_intended_use_are_stated() -> None:
    before = EarlierResult(ResultKind.SEGMENTATION, SegmentationStorage, "1.2.8", "1.2.9", "1.2.7", 1)
    context = replace(
        CONTEXT, revision=2, earlier={None: (before,)}, completion_reason="hard limit of 7200 s, 5 images"
    )
    source = reconstruction()
    labels = segmentation(source.source.geometry, PRESENT)
    seg = encoded(source, labels, context)[0].dataset
    assert seg.SeriesDescription == "phantom-demo segmentation rev 2 - Research use only"
    assert seg.ContentLabel == "RESEARCH USE"
    assert seg.ContentDescription == "Revision 2, supersedes earlier results, 5 images, hard limit of"
    for part in ("Research use only - not for clinical use", "series 1.2.9", "hard limit of 7200 s, 5 images"):
        assert part in seg.ImageComments
    assert (seg.SeriesNumber // 100_000, seg.SeriesNumber % 100) == (5, 1)
    assert (seg.Modality, seg.BodyPartExamined) == ("SEG", "CHEST")
    assert f"{CONTEXT.started_at.astimezone():%Y%m%d%H%M%S.%f}" == seg.ContentDate + seg.ContentTime
    scanner, node, algorithm = seg.ContributingEquipmentSequence
    assert [item.PurposeOfReferenceCodeSequence[0].CodeValue for item in (scanner, node, algorithm)] == [
        *("109101", "109102", "109102")
    ]
    assert scanner.Manufacturer == "Acme"
    assert (node.ManufacturerModelName, node.DeviceUID) == ("dicom-node", CONTEXT.device_uid)
    assert (algorithm.ManufacturerModelName, algorithm.SoftwareVersions) == (MODEL.name, MODEL.version)
    assert algorithm.DeviceUID == algorithm_device_uid(CONTEXT.device_uid, MODEL)


def test_source_series_and_all_its_instances_are_referenced() -> None:
    source = reconstruction()
    labels = segmentation(source.source.geometry, PRESENT, np.pad([[[3]]], ((2, 2), (5, 6), (8, 7))))
    seg = seg_of(source, labels)
    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.headers[0].SeriesInstanceUID
    assert {i.ReferencedSOPInstanceUID for i in series.ReferencedInstanceSequence} == {
        frame.sop_instance_uid for frame in source.frames
    }
    (group,) = seg.PerFrameFunctionalGroupsSequence
    (image,) = group.DerivationImageSequence[0].SourceImageSequence
    assert image.ReferencedSOPInstanceUID == source.frames[2].sop_instance_uid
    assert seg.StudyInstanceUID == source.headers[0].StudyInstanceUID
    assert seg.FrameOfReferenceUID == source.headers[0].FrameOfReferenceUID


def test_body_part_is_copied_and_laterality_stated_only_per_segment() -> None:
    def change(header: Dataset) -> None:
        header.BodyPartExamined = "KNEE"
        header.Laterality = "L"

    source = with_headers(reconstruction(), change)
    seg = seg_of(source, segmentation(source.source.geometry, PRESENT))
    assert seg.BodyPartExamined == "KNEE"
    assert "Laterality" not in seg


def test_same_run_gives_the_same_bytes_and_another_run_other_uids() -> None:
    source = reconstruction()
    labels = segmentation(source.source.geometry, PRESENT)
    first, second = (
        [as_bytes(r.dataset) for r in encoded(reconstruction(), segmentation(source.source.geometry, PRESENT))]
        for _ in range(2)
    )
    assert first == second
    other_model = Segmentation(
        labels.labels_zyx, labels.geometry, labels.names_by_label, ModelIdentity("other", "3", MODEL.digest, "nnU-Net")
    )
    runs = [
        encoded(source, labels),
        encoded(source, labels, replace(CONTEXT, revision=2)),
        encoded(source, labels, replace(CONTEXT, content_digest="ff")),
        encoded(source, other_model),
    ]
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert len({str(result.dataset[keyword].value) for run in runs for result in run}) == 2 * len(runs)
    tracking = [{s.TrackingUID for s in run[0].dataset.SegmentSequence} for run in runs]
    assert len(set.union(*tracking)) == len(PRESENT) * len(runs)


def as_bytes(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def test_labels_on_another_grid_are_refused() -> None:
    source = reconstruction()
    shifted = np.array(source.source.geometry.affine_lps)
    shifted[0, 3] += 1.0
    labels = segmentation(Geometry(source.source.geometry.shape_zyx, shifted), PRESENT)
    with pytest.raises(EncodingError, match="not on that of the source frames"):
        encode(source, labels, measured(source, segmentation(source.source.geometry, PRESENT)), CONTEXT)


def test_measurements_of_another_label_map_are_refused() -> None:
    source = reconstruction()
    grid = source.source.geometry
    labels = segmentation(grid, PRESENT)
    with pytest.raises(EncodingError, match=r"labels .* are in the label map"):
        encode(source, labels, measured(source, segmentation(grid, PRESENT, np.ones(grid.shape_zyx) * 3)), CONTEXT)
    larger = labels.labels_zyx.copy()
    larger[-1, -1, -3:] = 3
    with pytest.raises(EncodingError, match="voxels, but"):
        encode(source, labels, measured(source, segmentation(grid, PRESENT, larger)), CONTEXT)


def test_structure_without_codes_is_refused_by_name() -> None:
    source = reconstruction()
    labels = segmentation(source.source.geometry, {1: "third_kidney"})
    with pytest.raises(EncodingError, match="third_kidney"):
        encoded(source, labels)


def test_algorithm_family_without_code_is_refused() -> None:
    source = reconstruction()
    labels = segmentation(source.source.geometry, PRESENT, model=ModelIdentity("m", "1", "ab", "Magic"))
    with pytest.raises(EncodingError, match="'Magic' has no code"):
        encoded(source, labels)
