"""IHE AI Results (AIR), line by line, for everything a run adds to a study; docs/users/results.md lists the lines."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pydicom.uid import (
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from dicom_node.encode.run import encode, encode_notice
from dicom_node.types import (
    LABEL_MAP_SEGMENTATION_STORAGE,
    EarlierResult,
    EncodedResult,
    ResultKind,
    ResultRequest,
    SegmentationForm,
)
from inference.measure import measure
from inference.structures import structure
from tests.support.analysis_results import CONTEXT, MODEL, geometry, reconstruction, segmentation

if TYPE_CHECKING:
    from pydicom import Dataset

NAMES = {3: "kidney_left", 7: "kidney_right", 9: "aorta", 40: "vertebrae_L1", 201: "liver"}
GRID = geometry((6, 24, 32))
EVERYTHING = ResultRequest(SegmentationForm.BOTH, contours=("organ",), capture=True, document=True, shape=True)
SEGMENTATIONS = (SegmentationStorage, LABEL_MAP_SEGMENTATION_STORAGE)
CLASSES = {
    ResultKind.SEGMENTATION: SegmentationStorage,
    ResultKind.LABELMAP: LABEL_MAP_SEGMENTATION_STORAGE,
    ResultKind.REPORT: Comprehensive3DSRStorage,
    ResultKind.CONTOURS: RTStructureSetStorage,
    ResultKind.CAPTURE: SecondaryCaptureImageStorage,
    ResultKind.DOCUMENT: EncapsulatedPDFStorage,
    ResultKind.NOTICE: Comprehensive3DSRStorage,
}
EARLIER = EarlierResult(ResultKind.REPORT, Comprehensive3DSRStorage, "2.25.3", "2.25.4", "2.25.5", 1)


def source():
    made = reconstruction(GRID)
    for header in made.headers:
        header.TimezoneOffsetFromUTC = "+0100"
    return made


def labels(*, empty: bool = False) -> np.ndarray:
    """The model looks for the liver, which is not present."""
    found = np.zeros(GRID.shape_zyx, dtype=np.uint8)
    if not empty:
        for index, label in enumerate((3, 7, 9, 40)):
            found[1 + index : 3 + index, 3 + index : 9, 3 + 6 * index : 8 + 6 * index] = label
    return found


def results(requests=None, model=MODEL, context=CONTEXT, *, empty: bool = False) -> tuple[EncodedResult, ...]:
    made, labelled = source(), segmentation(GRID, NAMES, labels(empty=empty), model)
    return encode(made, labelled, measure(made.source, labelled, with_shape=True), context, requests)


@pytest.fixture(scope="module")
def objects() -> dict[ResultKind, list[Dataset]]:
    """Everything that a destination can receive from one run, and the notice of another."""
    found: dict[ResultKind, list[Dataset]] = {}
    notice = encode_notice(source().headers, MODEL.name, "gap of 2.5 mm", CONTEXT, ("pacs",))
    for result in (*results({"pacs": EVERYTHING}), *notice):
        found.setdefault(result.kind, []).append(result.dataset)
    assert set(found) == set(ResultKind)
    return found


def each(objects, *but: ResultKind) -> list[tuple[ResultKind, Dataset]]:
    return [(kind, dataset) for kind, datasets in objects.items() if kind not in but for dataset in datasets]


def children(item: Dataset, meaning: str) -> list[Dataset]:
    found = item.get("ContentSequence") or []
    return [child for child in found if child.ConceptNameCodeSequence[0].CodeMeaning == meaning]


def groups(sr: Dataset) -> list[Dataset]:
    return [group for part in children(sr, "Imaging Measurements") for group in part.ContentSequence]


def text(item: Dataset, meaning: str) -> str:
    (child,) = children(item, meaning)
    return str(child.TextValue if "TextValue" in child else child.UID)


# ---- results in the study that they belong to


def test_results_are_in_the_study_of_their_source_in_separate_series(objects) -> None:
    header = source().headers[0]
    for _, dataset in each(objects):
        for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber", "StudyDate", "StudyID"):
            assert dataset[keyword].value == header[keyword].value
        assert dataset.SeriesInstanceUID != header.SeriesInstanceUID
    series = {kind: {dataset.SeriesInstanceUID for dataset in datasets} for kind, datasets in objects.items()}
    assert len(set().union(*series.values())) == sum(map(len, series.values()))


# ---- Comprehensive 3D SR (TID 1500 family) and SEG


def test_sop_classes_are_those_named_by_the_profile(objects) -> None:
    for kind, dataset in each(objects):
        assert dataset.SOPClassUID == CLASSES[kind]
    for sr in (*objects[ResultKind.REPORT], *objects[ResultKind.NOTICE]):
        (template,) = sr.ContentTemplateSequence
        assert (template.MappingResource, template.TemplateIdentifier) == ("DCMR", "1500")


# ---- each algorithm in Contributing Equipment Sequence


def equipment(dataset: Dataset, purpose: str) -> list[Dataset]:
    return [
        item
        for item in dataset.ContributingEquipmentSequence
        if item.PurposeOfReferenceCodeSequence[0].CodeValue == purpose
    ]


def test_scanner_node_and_algorithm_are_contributing_equipment(objects) -> None:
    for kind, dataset in each(objects):
        (scanner,) = equipment(dataset, "109101")
        assert (scanner.Manufacturer, scanner.ManufacturerModelName) == ("Acme", "Röhre 3000")
        node, *algorithms = equipment(dataset, "109102")
        assert node.DeviceUID == CONTEXT.device_uid
        assert len(algorithms) == (0 if kind is ResultKind.NOTICE else 1)
        for algorithm in algorithms:
            stated = (algorithm.ManufacturerModelName, algorithm.SoftwareVersions)
            assert stated == (MODEL.name, MODEL.version)
            assert algorithm.Manufacturer
            assert MODEL.digest in algorithm.ContributionDescription
            assert algorithm.DeviceUID not in (CONTEXT.device_uid, "")


@pytest.mark.parametrize(
    "change", [{"name": "other"}, {"version": "4"}, {"digest": "cd" * 32}], ids=lambda change: next(iter(change))
)
def test_device_uid_depends_on_the_model_and_not_on_the_run(change) -> None:
    def device(model, context) -> str:
        seg, _ = results(model=model, context=context)
        return str(equipment(seg.dataset, "109102")[1].DeviceUID)

    later = replace(CONTEXT, started_at=CONTEXT.started_at + timedelta(days=1), content_digest="1e" * 32)
    assert device(MODEL, CONTEXT) == device(MODEL, later) != device(replace(MODEL, **change), CONTEXT)


# ---- Content Date and Time: the start of the analysis


def test_content_time_is_the_start_of_the_analysis_in_the_time_zone_of_the_study(objects) -> None:
    for kind, dataset in each(objects, ResultKind.CONTOURS):
        assert stated_time(dataset.ContentDate, dataset.ContentTime) == CONTEXT.started_at, kind
    for structure_set in objects[ResultKind.CONTOURS]:
        stated = stated_time(structure_set.StructureSetDate, structure_set.StructureSetTime)
        assert stated == CONTEXT.started_at


def stated_time(date: str, time: str) -> datetime:
    return datetime.strptime(f"{date}{time}+0100", "%Y%m%d%H%M%S.%f%z").astimezone(UTC)


# ---- TID 4019


def test_every_group_and_the_evaluations_identify_the_algorithm(objects) -> None:
    (sr,) = objects[ResultKind.REPORT]
    assert groups(sr)
    for item in (*groups(sr), *children(sr, "Qualitative Evaluations")):
        assert_names_the_algorithm(item)


def assert_names_the_algorithm(item: Dataset) -> None:
    assert text(item, "Algorithm Name") == MODEL.name
    assert text(item, "Algorithm Version") == MODEL.version
    assert MODEL.digest in text(item, "Algorithm Parameters")
    (family,) = children(item, "Algorithm Family")
    assert family.ConceptCodeSequence[0].CodeMeaning == "Artificial Intelligence"


def test_segments_and_regions_identify_it_as_well(objects) -> None:
    identified = [
        item.SegmentationAlgorithmIdentificationSequence[0]
        for kind in (ResultKind.SEGMENTATION, ResultKind.LABELMAP)
        for item in objects[kind][0].SegmentSequence
        if item.SegmentNumber
    ]
    regions = objects[ResultKind.CONTOURS][0].StructureSetROISequence
    identified += [roi.ROIDerivationAlgorithmIdentificationSequence[0] for roi in regions]
    assert len(identified) == 4 + 4 + 2
    for item in identified:
        assert (item.AlgorithmName, item.AlgorithmVersion) == (MODEL.name, MODEL.version)
        assert MODEL.digest in item.AlgorithmParameters


# ---- the same tracking UIDs in SEG and SR


FORMS = {
    "binary": ResultRequest(),
    "labelmap": ResultRequest(SegmentationForm.LABELMAP),
    "auto, accepted": ResultRequest(SegmentationForm.AUTO).answered(accepts_labelmap=True),
    "auto, refused": ResultRequest(SegmentationForm.AUTO).answered(accepts_labelmap=False),
    "both": ResultRequest(SegmentationForm.BOTH),
    "split": ResultRequest(split_by_group=True),
    "split label maps": ResultRequest(SegmentationForm.LABELMAP, split_by_group=True),
    "filter": ResultRequest(structures=("kidney_right", "bone")),
    "filter and split": ResultRequest(SegmentationForm.BOTH, split_by_group=True, structures=("organ", "aorta")),
    "without background": ResultRequest(SegmentationForm.LABELMAP, background=False),
}


def test_each_report_refers_by_tracking_uid_to_the_segments_its_reader_received() -> None:
    found = results(FORMS)
    for name, request in FORMS.items():
        got = [result.dataset for result in found if name in result.destinations]
        segments = {
            (seg.SOPClassUID, seg.SOPInstanceUID, segment.SegmentNumber): (segment.TrackingID, segment.TrackingUID)
            for seg in got
            if seg.SOPClassUID in SEGMENTATIONS
            for segment in seg.SegmentSequence
            if segment.SegmentNumber
        }
        (sr,) = (dataset for dataset in got if dataset.SOPClassUID == Comprehensive3DSRStorage)
        referred = {}
        for group in groups(sr):
            (sop,) = children(group, "Referenced Segment")[0].ReferencedSOPSequence
            place = (sop.ReferencedSOPClassUID, sop.ReferencedSOPInstanceUID, sop.ReferencedSegmentNumber)
            referred[place] = (text(group, "Tracking Identifier"), text(group, "Tracking Unique Identifier"))
        assert referred.items() <= segments.items(), name
        assert set(referred.values()) == set(segments.values()), name
        assert len(referred) == len(groups(sr)), name
        if request.segmentation is SegmentationForm.LABELMAP:
            assert {sop_class for sop_class, _, _ in referred} == {LABEL_MAP_SEGMENTATION_STORAGE}, name


# ---- analysed and nothing found; not suitable, and why


def test_empty_result_is_stated_with_the_algorithm_that_found_nothing() -> None:
    (sr,) = (result.dataset for result in results({"pacs": EVERYTHING}, empty=True) if result.kind is ResultKind.REPORT)
    (evaluations,) = children(sr, "Qualitative Evaluations")
    assert summary(evaluations) == "All algorithms succeeded; without findings"
    assert_names_the_algorithm(evaluations)
    said = " ".join(child.TextValue for child in children(evaluations, "Comment"))
    assert "none of the target structures was found" in said
    assert all(name in said for name in NAMES.values())


def test_structures_not_found_are_stated_next_to_findings(objects) -> None:
    (evaluations,) = children(objects[ResultKind.REPORT][0], "Qualitative Evaluations")
    assert summary(evaluations) == "All algorithms succeeded; with findings"
    assert "Searched for but not found: liver." in [child.TextValue for child in children(evaluations, "Comment")]


def test_unsuitable_series_is_answered_with_the_reason(objects) -> None:
    (notice,) = objects[ResultKind.NOTICE]
    (evaluations,) = children(notice, "Qualitative Evaluations")
    assert summary(evaluations) == "No algorithms succeeded; without findings"
    assert children(evaluations, "Comment")[0].TextValue == "Not processed: gap of 2.5 mm."
    assert "gap of 2.5 mm" in notice.SeriesDescription


def summary(evaluations: Dataset) -> str:
    (found,) = children(evaluations, "CAD Processing and Findings Summary")
    return str(found.ConceptCodeSequence[0].CodeMeaning)


# ---- who made the content


def test_content_creator_is_the_model_on_this_device(objects) -> None:
    for kind in (ResultKind.SEGMENTATION, ResultKind.LABELMAP):
        assert str(objects[kind][0].ContentCreatorName).rstrip("^") == MODEL.name
    (sr,), (notice,) = objects[ResultKind.REPORT], objects[ResultKind.NOTICE]
    algorithm = equipment(sr, "109102")[1]
    for report, name, uid in (
        (sr, MODEL.name, algorithm.DeviceUID),
        (notice, "dicom-node", CONTEXT.device_uid),
    ):
        (author,) = report.AuthorObserverSequence
        assert (author.ObserverType, author.ManufacturerModelName, author.DeviceUID) == ("DEV", name, uid)
        assert text(report, "Device Observer UID") == CONTEXT.device_uid
        assert text(report, "Device Observer Name") == CONTEXT.station_name


# ---- what users see


def test_series_sort_by_source_model_and_kind_and_are_distinguishable(objects) -> None:
    listed = {}
    for kind, dataset in each(objects):
        listed[dataset.SeriesInstanceUID] = (dataset.SeriesNumber, dataset.Modality, dataset.SeriesDescription, kind)
    numbers = [number for number, *_ in listed.values()]
    assert len(set(numbers)) == len(numbers)
    assert {number // 100_000 for number in numbers} == {source().headers[0].SeriesNumber}
    in_order = [kind for *_, kind in sorted(listed.values())]
    assert list(dict.fromkeys(in_order)) == list(ResultKind)
    seen = [(modality, description) for _, modality, description, _ in listed.values()]
    assert len(set(seen)) == len(seen)
    assert all(MODEL.name in description for _, description in seen)


def test_documentation_lists_the_series_of_a_run_correctly() -> None:
    page = (Path(__file__).parents[3] / "docs" / "users" / "results.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| 5")]
    listed = {int(number): (modality, description) for number, modality, description, *_ in rows}
    total = replace(MODEL, name="total")
    notice = encode_notice(source().headers, "total", "gap of 2.5 mm", CONTEXT, ("pacs",))
    made = [result.dataset for result in (*results({"pacs": EVERYTHING}, model=total), *notice)]
    assert listed == {each.SeriesNumber: (each.Modality, each.SeriesDescription) for each in made}


def test_left_and_right_differ_in_code_name_and_colour(objects) -> None:
    sides = {"kidney_left": "Left", "kidney_right": "Right", "aorta": None, "vertebrae_L1": None}
    for group in groups(objects[ResultKind.REPORT][0]):
        (site,) = children(group, "Finding Site")
        stated = [child.ConceptCodeSequence[0].CodeMeaning for child in children(site, "Laterality")]
        assert stated == [side for side in (sides[text(group, "Tracking Identifier")],) if side]
    for kind in (ResultKind.SEGMENTATION, ResultKind.LABELMAP):
        segments = [item for item in objects[kind][0].SegmentSequence if item.SegmentNumber]
        for item in segments:
            modifiers = item.SegmentedPropertyTypeCodeSequence[0].get("SegmentedPropertyTypeModifierCodeSequence") or ()
            side = sides[item.SegmentLabel]
            assert [modifier.CodeMeaning for modifier in modifiers] == [each for each in (side,) if each]
        assert len({tuple(item.RecommendedDisplayCIELabValue) for item in segments}) == len(segments)
    regions = objects[ResultKind.CONTOURS][0].StructureSetROISequence
    assert [roi.ROIName for roi in regions] == ["kidney_left", "kidney_right"]
    assert structure("kidney_left").rgb != structure("kidney_right").rgb


def test_body_part_is_copied_where_the_iod_allows_it(objects) -> None:
    for kind in (ResultKind.SEGMENTATION, ResultKind.LABELMAP, ResultKind.CAPTURE):
        assert {dataset.BodyPartExamined for dataset in objects[kind]} == {"CHEST"}
        assert not any("Laterality" in dataset for dataset in objects[kind])


# ---- an older revision


@pytest.mark.parametrize("kind", [ResultKind.REPORT, ResultKind.NOTICE])
def test_dciodvfy_and_dcmtk_read_the_predecessor_named_by_a_report(kind, tmp_path) -> None:
    context = replace(CONTEXT, revision=2, earlier={"pacs": (EARLIER,)})
    notice = encode_notice(source().headers, MODEL.name, "gap of 2.5 mm", context, ("pacs",))
    (sr,) = (r for r in (*results({"pacs": EVERYTHING}, context=context), *notice) if r.kind is kind)
    (study,) = sr.dataset.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (sop,) = series.ReferencedSOPSequence
    stated = (
        sop.ReferencedSOPClassUID,
        sop.ReferencedSOPInstanceUID,
        series.SeriesInstanceUID,
        study.StudyInstanceUID,
    )
    assert stated == (
        EARLIER.sop_class_uid,
        EARLIER.sop_instance_uid,
        EARLIER.series_instance_uid,
        EARLIER.study_instance_uid,
    )
    path = tmp_path / "sr.dcm"
    path.write_bytes(sr.content)
    assert "Error" not in output("dciodvfy", path)
    assert "Predecessor Docs    : 1" in output("dsrdump", path)


def output(command: str, path) -> str:
    program = shutil.which(command)
    assert program, f"{command} is not installed"
    done = subprocess.run([program, path], capture_output=True, text=True, errors="replace", check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
