"""What each destination gets: every object once, and each report refers to the segmentations of its own readers."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import highdicom
import numpy as np
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dicom_node.encode.run import encode
from dicom_node.errors import ConfigurationError, EncodingError
from dicom_node.types import EarlierResult, EncodedResult, ResultKind, ResultRequest, SegmentationForm
from inference.structures import structure
from tests.support.analysis_results import CONTEXT, geometry, measured, reconstruction, segmentation

if TYPE_CHECKING:
    from pydicom import Dataset

NAMES = {3: "kidney_left", 7: "kidney_right", 9: "aorta", 40: "vertebrae_L1", 200: "body_fat", 201: "liver"}
GROUPS = {"kidney_left": "organ", "aorta": "vessel", "vertebrae_L1": "bone", "body_fat": "tissue"}
GRID = geometry((5, 12, 16))
SOURCE = reconstruction(GRID)
LABELS = segmentation(GRID, NAMES)
SEGMENTATIONS = (ResultKind.SEGMENTATION, ResultKind.LABELMAP)


def results(requests=None, labels=LABELS) -> tuple[EncodedResult, ...]:
    return encode(SOURCE, labels, measured(SOURCE, labels), CONTEXT, requests)


def of(found: tuple[EncodedResult, ...], destination: str, *kinds: ResultKind) -> list[EncodedResult]:
    return [result for result in found if destination in result.destinations and (not kinds or result.kind in kinds)]


def one(request: ResultRequest, *kinds: ResultKind, labels=LABELS) -> list[EncodedResult]:
    return of(results({"pacs": request}, labels), "pacs", *kinds)


def names_of(seg: EncodedResult) -> list[str]:
    return [segment.SegmentLabel for segment in seg.dataset.SegmentSequence if segment.SegmentNumber]


def groups_of(sr: EncodedResult):
    content = highdicom.sr.Comprehensive3DSR.from_dataset(sr.dataset).content
    return content.get_volumetric_roi_measurement_groups()


def referenced_segment(group) -> Dataset:
    return next(item for item in group[0].ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "121191")


def voxels_of(seg: EncodedResult) -> dict[str, np.ndarray]:
    """The voxels of each structure, read by highdicom."""
    read = highdicom.seg.Segmentation.from_dataset(seg.dataset)
    numbers = read.get_pixels_by_source_instance(
        [frame.sop_instance_uid for frame in SOURCE.frames],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
        ignore_spatial_locations=True,
    )
    return {name: numbers == number for number, name in enumerate(names_of(seg), start=1)}


def test_without_destinations_the_default_results_are_made() -> None:
    found = results()
    assert [(result.kind, result.destinations) for result in found] == [
        (ResultKind.SEGMENTATION, ()),
        (ResultKind.REPORT, ()),
    ]
    named = results({"pacs": ResultRequest()})
    assert [result.sop_instance_uid for result in named] == [result.sop_instance_uid for result in found]


def test_results_requested_by_several_destinations_are_made_once() -> None:
    found = results(
        {
            "pacs": ResultRequest(),
            "archive": ResultRequest(SegmentationForm.BOTH),
            "research": ResultRequest(report=False),
            "viewer": ResultRequest(structures=("liver", "kidney_left")),
            "other viewer": ResultRequest(structures=("kidney_left", "liver", "liver")),
        }
    )
    assert [(result.kind, result.destinations) for result in found] == [
        (ResultKind.SEGMENTATION, ("pacs", "archive", "research")),
        (ResultKind.REPORT, ("pacs", "archive")),
        (ResultKind.LABELMAP, ("archive",)),
        (ResultKind.SEGMENTATION, ("viewer", "other viewer")),
        (ResultKind.REPORT, ("viewer", "other viewer")),
    ]


requests = st.builds(
    ResultRequest,
    segmentation=st.sampled_from([SegmentationForm.BINARY, SegmentationForm.LABELMAP, SegmentationForm.BOTH]),
    split_by_group=st.booleans(),
    structures=st.none() | st.lists(st.sampled_from([*NAMES.values(), "organ", "bone"]), min_size=1).map(tuple),
    report=st.booleans(),
)


# not shrunk, which would take minutes
@settings(max_examples=15, deadline=timedelta(seconds=20), phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), requests, min_size=1), st.data())
def test_for_any_request_each_destination_gets_a_consistent_set(
    asked: dict[str, ResultRequest], data: st.DataObject
) -> None:
    labels_zyx = data.draw(arrays(np.uint8, GRID.shape_zyx, elements=st.sampled_from([0, *NAMES]), fill=st.just(0)))
    assume(labels_zyx.any())
    labels = segmentation(GRID, NAMES, labels_zyx)
    found = results(asked, labels)
    assert len({result.sop_instance_uid for result in found}) == len(found)
    assert len({result.series_instance_uid for result in found}) == len(found)
    present = {name for label, name in NAMES.items() if (labels_zyx == label).any()}
    for destination, request in asked.items():
        chosen = {
            name
            for name in present
            if request.structures is None or {name, structure(name).group} & set(request.structures)
        }
        numbers = [result.dataset.SeriesNumber for result in of(found, destination)]
        assert len(set(numbers)) == len(numbers)
        forms = {ResultKind.SEGMENTATION, ResultKind.LABELMAP}
        if request.segmentation is not SegmentationForm.BOTH:
            forms = {{"binary": ResultKind.SEGMENTATION, "labelmap": ResultKind.LABELMAP}[request.segmentation]}
        for kind in forms:
            segs = of(found, destination, kind)
            voxels = {name: mask for seg in segs for name, mask in voxels_of(seg).items()}
            assert set(voxels) == chosen
            assert sum(len(names_of(seg)) for seg in segs) == len(chosen)
            for label, name in NAMES.items():
                if name in chosen:
                    assert np.array_equal(voxels[name], labels_zyx == label)
            if request.split_by_group:
                assert all(len({structure(name).group for name in names_of(seg)}) == 1 for seg in segs)
            else:
                assert len(segs) == bool(chosen)
        assert len(of(found, destination, ResultKind.REPORT)) == request.report
        for sr in of(found, destination, ResultKind.REPORT):
            own = {seg.sop_instance_uid: seg for seg in of(found, destination, min(forms, key=SEGMENTATIONS.index))}
            referred = []
            for group in groups_of(sr):
                (sop,) = referenced_segment(group).ReferencedSOPSequence
                seg = own[sop.ReferencedSOPInstanceUID]
                assert sop.ReferencedSOPClassUID == seg.sop_class_uid
                segment = next(
                    each for each in seg.dataset.SegmentSequence if each.SegmentNumber == sop.ReferencedSegmentNumber
                )
                assert (group.tracking_uid, group.tracking_identifier) == (segment.TrackingUID, segment.SegmentLabel)
                referred.append(segment.SegmentLabel)
            assert sorted(referred) == sorted(chosen)
            evidence = highdicom.sr.Comprehensive3DSR.from_dataset(sr.dataset).get_evidence_series()
            assert {series for _, series in evidence} == {
                SOURCE.headers[0].SeriesInstanceUID,
                *(seg.series_instance_uid for seg in own.values()),
            }


def revised(first: dict[str, ResultRequest], then: dict[str, ResultRequest]) -> tuple[EncodedResult, ...]:
    """The results of the second revision, sent to each destination after those of the first."""
    measurements = measured(SOURCE, LABELS)
    before = encode(SOURCE, LABELS, measurements, CONTEXT, first)
    earlier = {
        name: tuple(
            EarlierResult(each.kind, each.sop_class_uid, each.sop_instance_uid, each.series_instance_uid, "2.25.9", 1)
            for each in of(before, name)
        )
        for name in first
    }
    context = replace(CONTEXT, revision=2, content_digest="ff" * 32, earlier=earlier)
    return encode(SOURCE, LABELS, measurements, context, then)


def test_reports_of_a_new_revision_refer_to_its_segmentations() -> None:
    requests = {"a": ResultRequest(SegmentationForm.BOTH), "b": ResultRequest()}
    found = revised(requests, requests)
    for name in requests:
        (sr,) = of(found, name, ResultKind.REPORT)
        seg, *_ = of(found, name, ResultKind.SEGMENTATION)
        for group in groups_of(sr):
            assert referenced_segment(group).ReferencedSOPSequence[0].ReferencedSOPInstanceUID == seg.sop_instance_uid
    assert_no_two_share_a_uid(found)


@settings(max_examples=8, deadline=timedelta(seconds=30), phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.data())
def test_no_two_results_share_a_uid_whatever_destinations_had_before(data: st.DataObject) -> None:
    several = st.dictionaries(st.sampled_from(["a", "b", "c"]), requests, min_size=2)
    assert_no_two_share_a_uid(revised(data.draw(several), data.draw(several)))


def assert_no_two_share_a_uid(found: tuple[EncodedResult, ...]) -> None:
    assert len({result.sop_instance_uid for result in found}) == len(found)
    assert len({result.series_instance_uid for result in found}) == len(found)


def test_split_segmentation_has_a_series_for_each_group_found() -> None:
    segs = one(ResultRequest(split_by_group=True), ResultKind.SEGMENTATION)
    assert [names_of(seg) for seg in segs] == [
        ["kidney_left", "kidney_right", "liver"],
        ["aorta"],
        ["vertebrae_L1"],
        ["body_fat"],
    ]
    numbers = [seg.dataset.SeriesNumber % 100 for seg in segs]
    assert numbers == sorted(set(numbers))
    descriptions = [seg.dataset.SeriesDescription for seg in segs]
    assert descriptions == [
        f"phantom-demo segmentation ({group}) - Research use only" for group in ("organ", "vessel", "bone", "tissue")
    ]


def test_filter_is_stated_and_limits_the_structures_listed_as_not_found() -> None:
    labels_zyx = LABELS.labels_zyx.copy()
    labels_zyx[np.isin(labels_zyx, [9, 201])] = 0
    seg, sr = one(ResultRequest(structures=("organ",)), labels=segmentation(GRID, NAMES, labels_zyx))
    assert names_of(seg) == ["kidney_left", "kidney_right"]
    assert "Contains only the requested structures: organ." in seg.dataset.ImageComments
    assert seg.dataset.SeriesDescription == "phantom-demo segmentation (organ) - Research use only"
    said = [item.TextValue for item in sr.dataset.ContentSequence[-1].ContentSequence if "TextValue" in item]
    assert "Searched for but not found: liver." in said


def test_filter_without_a_match_gives_only_a_report_that_says_so() -> None:
    (sr,) = one(ResultRequest(structures=("spleen",)))
    assert sr.kind is ResultKind.REPORT
    said = [item.TextValue for item in sr.dataset.ContentSequence[-1].ContentSequence if "TextValue" in item]
    assert "Analysis complete; none of the target structures was found." in said


def test_report_for_a_destination_without_segmentation_refers_to_none() -> None:
    (sr,) = one(ResultRequest(SegmentationForm.NONE))
    report = highdicom.sr.Comprehensive3DSR.from_dataset(sr.dataset)
    groups = report.content.get_image_measurement_groups()
    assert [group.tracking_identifier for group in groups] == [NAMES[label] for label in sorted(NAMES)]
    assert all(len(group.get_measurements()) == 6 for group in groups)
    assert [series for _, series in report.get_evidence_series()] == [SOURCE.headers[0].SeriesInstanceUID]


def test_structure_has_the_same_tracking_uid_in_all_results_of_a_run() -> None:
    found = results({"a": ResultRequest(SegmentationForm.BOTH, split_by_group=True), "b": ResultRequest()})
    uids: dict[str, set[str]] = {}
    for seg in found:
        if seg.kind in SEGMENTATIONS:
            for segment in seg.dataset.SegmentSequence:
                if segment.SegmentNumber:
                    uids.setdefault(segment.SegmentLabel, set()).add(segment.TrackingUID)
    assert set(uids) == set(NAMES.values())
    assert all(len(found) == 1 for found in uids.values())


def test_destination_of_unknown_ability_is_refused_by_name() -> None:
    with pytest.raises(EncodingError, match="pacs has not been asked yet what it accepts"):
        results({"pacs": ResultRequest(SegmentationForm.AUTO)})


def test_ability_of_a_destination_decides_only_its_automatic_form() -> None:
    asked = ResultRequest(SegmentationForm.AUTO, split_by_group=True)
    assert asked.answered(accepts_labelmap=True) == replace(asked, segmentation=SegmentationForm.LABELMAP)
    assert asked.answered(accepts_labelmap=False) == replace(asked, segmentation=SegmentationForm.BINARY)
    assert ResultRequest().answered(accepts_labelmap=True) == ResultRequest()


@pytest.mark.parametrize(
    "options",
    [
        {"segmentation": SegmentationForm.NONE, "split_by_group": True},
        {"background": False},
        {"report": False, "ibsi_codes": True},
        {"report": False, "shape": True},
        {"structures": ()},
        {"segmentation": SegmentationForm.NONE, "report": False},
    ],
)
def test_contradictory_request_cannot_be_created(options) -> None:
    with pytest.raises(ConfigurationError):
        ResultRequest(**options)


def test_drawing_libraries_are_loaded_only_for_drawn_results():
    """Starting and encoding the default results must not load libraries that take longer than the encoding."""
    program = (
        "import sys; import dicom_node.app.working; from dicom_node.types import ResultRequest\n"
        "from tests.unit.encode.test_variants import NAMES, results\n"
        "loaded = lambda: sorted({'matplotlib', 'contourpy'} & set(sys.modules))\n"
        "results(); print(loaded())\n"
        "results({'pacs': ResultRequest(contours=(*NAMES.values(),), document=True)}); print(loaded())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['contourpy', 'matplotlib']"]
