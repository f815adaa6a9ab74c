from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import highdicom
import numpy as np
import pytest
from pydicom.uid import Comprehensive3DSRStorage

from dicom_node.encode.run import encode
from dicom_node.encode.segments import TRUNCATED
from dicom_node.errors import EncodingError
from dicom_node.types import ResultKind, ResultRequest
from inference.measure import measure
from tests.support.analysis_results import (
    CONTEXT,
    MODEL,
    geometry,
    measured,
    reconstruction,
    segmentation,
    without_mean,
)

if TYPE_CHECKING:
    from pydicom import Dataset

    from dicom_node.types import ResultContext
    from inference.types import Measurements

NAMES = {3: "kidney_left", 7: "kidney_right", 9: "kidney_cyst_left", 201: "liver"}
GRID = geometry((6, 12, 16))


def run(labels_zyx: np.ndarray, context: ResultContext = CONTEXT) -> tuple[dict[ResultKind, Dataset], Measurements]:
    source = reconstruction(GRID)
    labels = segmentation(GRID, NAMES, labels_zyx)
    measurements = measured(source, labels)
    encoded = encode(source, labels, measurements, context)
    return {result.kind: result.dataset for result in encoded}, measurements


def inner_and_truncated() -> np.ndarray:
    labels = np.zeros(GRID.shape_zyx, dtype=np.uint8)
    labels[2:4, 3:6, 3:7] = 3
    labels[2, 8:10, 3:7] = 9
    labels[4:, 3:5, 9:12] = 7
    return labels


def groups(sr: Dataset):
    return highdicom.sr.Comprehensive3DSR.from_dataset(sr).content.get_volumetric_roi_measurement_groups()


def children(item: Dataset, meaning: str) -> list[Dataset]:
    found = item.get("ContentSequence") or []
    return [child for child in found if child.ConceptNameCodeSequence[0].CodeMeaning == meaning]


def comments(item: Dataset) -> list[str]:
    return [child.TextValue for child in children(item, "Comment")]


def test_one_group_per_structure_with_a_reference_to_its_segment() -> None:
    results, _ = run(inner_and_truncated())
    seg, sr = results[ResultKind.SEGMENTATION], results[ResultKind.REPORT]
    assert sr.SOPClassUID == Comprehensive3DSRStorage
    found = groups(sr)
    assert [group.tracking_identifier for group in found] == ["kidney_left", "kidney_right", "kidney_cyst_left"]
    for group, segment in zip(found, seg.SegmentSequence, strict=True):
        assert group.tracking_uid == segment.TrackingUID
        reference = group.referenced_segment
        assert reference.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert children(group[0], "Referenced Segment")[0].ReferencedSOPSequence[0].ReferencedSegmentNumber == (
            segment.SegmentNumber
        )
        assert group.finding_type.value == segment.SegmentedPropertyTypeCodeSequence[0].CodeValue
        assert group.finding_category.value == segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue
    sites = [(g.finding_sites[0].value.meaning, g.finding_sites[0].laterality.meaning) for g in found]
    assert sites == [("Kidney", "Left"), ("Kidney", "Right"), ("Kidney", "Left")]


def test_every_statistic_is_stated_with_its_unit() -> None:
    results, measurements = run(inner_and_truncated())
    for group, expected in zip(groups(results[ResultKind.REPORT]), measurements.structures, strict=True):
        stated = {
            (m.name.meaning, m.derivation.meaning if m.derivation else None): (m.value, m.unit.value)
            for m in group.get_measurements()
        }
        assert stated == {
            ("Volume", None): (expected.volume_ml, "ml"),
            ("Attenuation Coefficient", "Mean"): (expected.mean_hu, "[hnsf'U]"),
            ("Attenuation Coefficient", "Standard Deviation"): (expected.sd_hu, "[hnsf'U]"),
            ("Attenuation Coefficient", "Minimum"): (expected.min_hu, "[hnsf'U]"),
            ("Attenuation Coefficient", "Maximum"): (expected.max_hu, "[hnsf'U]"),
            ("Attenuation Coefficient", "Median"): (expected.median_hu, "[hnsf'U]"),
        }


def test_values_with_an_ibsi_code_are_repeated_with_it_on_request() -> None:
    source = reconstruction(GRID)
    labels = segmentation(GRID, NAMES, inner_and_truncated())
    measurements = measured(source, labels)
    _, sr = encode(source, labels, measurements, CONTEXT, {"pacs": ResultRequest(ibsi_codes=True)})
    for group, expected in zip(groups(sr.dataset), measurements.structures, strict=True):
        stated = [(m.name.value, m.name.scheme_designator, m.value, m.unit.value) for m in group.get_measurements()]
        assert len(stated) == 11
        assert stated[6:] == [
            ("YEKZ", "IBSI", 1000 * expected.volume_ml, "mm3"),
            ("Q4LE", "IBSI", expected.mean_hu, "[hnsf'U]"),
            ("1GSF", "IBSI", expected.min_hu, "[hnsf'U]"),
            ("84IY", "IBSI", expected.max_hu, "[hnsf'U]"),
            ("Y12H", "IBSI", expected.median_hu, "[hnsf'U]"),
        ]
    (_, plain) = encode(source, labels, measurements, CONTEXT)
    assert plain.sop_instance_uid != sr.sop_instance_uid


SHAPE_CODES = ["RNU0", "C0JK", "QCFX", "L0JK", "TDIC", "P9VJ", "7J51", "Q3CK", "N17B"]


def test_shape_is_stated_only_on_request() -> None:
    source = reconstruction(GRID)
    labels = inner_and_truncated()
    labels[5, 11, 15] = 201  # a single voxel: without axes there is no elongation
    labelled = segmentation(GRID, NAMES, labels)
    measurements = measure(source.source, labelled, with_shape=True)
    requests = {"plain": ResultRequest(), "shaped": ResultRequest(shape=True)}
    found = encode(source, labelled, measurements, CONTEXT, requests)
    seg, plain, shaped = (result for result in found if result.kind in (ResultKind.SEGMENTATION, ResultKind.REPORT))
    assert (seg.destinations, plain.destinations, shaped.destinations) == (
        ("plain", "shaped"),
        ("plain",),
        ("shaped",),
    )
    assert all(len(group.get_measurements()) == 6 for group in groups(plain.dataset))
    for group, expected in zip(groups(shaped.dataset), measurements.structures, strict=True):
        stated = {m.name.value: (m.value, m.unit.value) for m in group.get_measurements()[6:]}
        shape = expected.shape
        assert shape is not None
        values = dict(zip(SHAPE_CODES, zip(asdict(shape).values(), UNITS_OF_SHAPE, strict=True), strict=True))
        assert stated == {code: value for code, value in values.items() if value[0] is not None}
        assert len(stated) == (9 if expected.voxel_count > 1 else 7)
    (definition,) = (
        text
        for text in comments(children(shaped.dataset, "Qualitative Evaluations")[0])
        if text.startswith("The mesh is computed by marching cubes")
    )
    assert definition.endswith("The shape of a truncated structure is that of its visible part.")


UNITS_OF_SHAPE = ["mm3", "mm2", "1", "mm", "mm", "mm", "mm", "1", "1"]


def test_truncation_is_stated_only_for_the_truncated_structure() -> None:
    results, measurements = run(inner_and_truncated())
    assert [m.truncated for m in measurements.structures] == [False, True, False]
    for group, expected in zip(groups(results[ResultKind.REPORT]), measurements.structures, strict=True):
        said = [item.ConceptCodeSequence[0].CodeMeaning for item in children(group[0], "Anatomy coverage incomplete")]
        assert said == (["Yes"] if expected.truncated else [])
        assert comments(group[0]) == ([TRUNCATED] if expected.truncated else [])
    (evaluations,) = children(results[ResultKind.REPORT], "Qualitative Evaluations")
    assert "Truncated by the field of view (volumes are lower bounds): kidney_right." in comments(evaluations)


def test_intended_use_provenance_and_structures_not_found_are_stated() -> None:
    results, _ = run(inner_and_truncated())
    sr = results[ResultKind.REPORT]
    (evaluations,) = children(sr, "Qualitative Evaluations")
    said = comments(evaluations)
    assert said[0] == "Research use only - not for clinical use."
    assert "Searched for but not found: liver." in said
    assert any(CONTEXT.completion_reason in sentence for sentence in said)
    (summary,) = children(evaluations, "CAD Processing and Findings Summary")
    assert summary.ConceptCodeSequence[0].CodeValue == "111242"
    assert (sr.VerificationFlag, sr.PreliminaryFlag, sr.CompletionFlag) == ("UNVERIFIED", "PRELIMINARY", "COMPLETE")
    assert "Research use only" in sr.SeriesDescription
    assert (sr.SeriesNumber // 100_000, sr.SeriesNumber % 100) == (5, 21)


@pytest.mark.parametrize(
    ("known", "says"),
    [
        ({"missing_instances": 4}, "Missing instances according to the sender: 4"),
        ({"refused_instances": 2}, "Instances that were sent and refused: 2"),
        ({"is_cut_short": True}, "The time limit was reached while images were still expected"),
    ],
)
def test_result_of_an_incomplete_series_says_so_in_visible_texts(known, says) -> None:
    results, _ = run(inner_and_truncated(), replace(CONTEXT, **known))
    seg, sr = results[ResultKind.SEGMENTATION], results[ResultKind.REPORT]
    assert seg.SeriesDescription == "phantom-demo INCOMPLETE segmentation - Research use only"
    assert sr.SeriesDescription == "phantom-demo INCOMPLETE measurements - Research use only"
    assert "INCOMPLETE" in seg.ContentDescription
    assert sr.CompletionFlag == "PARTIAL"
    (evaluations,) = children(sr, "Qualitative Evaluations")
    assert any(says in sentence for sentence in comments(evaluations))
    assert says in seg.ImageComments


def test_device_and_algorithm_are_stated() -> None:
    results, _ = run(inner_and_truncated())
    report = highdicom.sr.Comprehensive3DSR.from_dataset(results[ResultKind.REPORT]).content
    (device,) = report.get_observer_contexts()
    assert device.observer_identifying_attributes.uid == CONTEXT.device_uid
    for group in groups(results[ResultKind.REPORT]):
        (name,), (version,) = children(group[0], "Algorithm Name"), children(group[0], "Algorithm Version")
        assert (name.TextValue, version.TextValue) == (MODEL.name, MODEL.version)
        (parameters,) = children(group[0], "Algorithm Parameters")
        assert MODEL.digest in parameters.TextValue


def test_evidence_lists_the_segmentation_and_every_source_image() -> None:
    results, _ = run(inner_and_truncated())
    sr, seg = results[ResultKind.REPORT], results[ResultKind.SEGMENTATION]
    evidence = highdicom.sr.Comprehensive3DSR.from_dataset(sr).get_evidence()
    assert {uid for _, _, uid, _ in evidence} == {
        seg.SOPInstanceUID,
        *(frame.sop_instance_uid for frame in reconstruction(GRID).frames),
    }
    assert {study for study, *_ in evidence} == {seg.StudyInstanceUID}


def test_empty_result_gives_a_report_that_says_so_and_no_segmentation() -> None:
    results, _ = run(np.zeros(GRID.shape_zyx, dtype=np.uint8))
    assert list(results) == [ResultKind.REPORT]
    sr = results[ResultKind.REPORT]
    assert not children(sr, "Imaging Measurements")
    (evaluations,) = children(sr, "Qualitative Evaluations")
    (summary,) = children(evaluations, "CAD Processing and Findings Summary")
    assert summary.ConceptCodeSequence[0].CodeValue == "111241"
    said = comments(evaluations)
    assert "Analysis complete; none of the target structures was found." in said
    assert any(all(name in sentence for name in NAMES.values()) for sentence in said)


def test_measurement_that_is_not_finite_is_refused_by_name() -> None:
    source = reconstruction(GRID)
    labels = segmentation(GRID, NAMES, inner_and_truncated())
    with pytest.raises(EncodingError, match="Mean of Attenuation Coefficient of kidney_left is nan"):
        encode(source, labels, without_mean(measured(source, labels)), CONTEXT)
