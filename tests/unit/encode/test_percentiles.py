"""A patient's percentiles in report and page: who gets them, what they say, and why there are none."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING, Any

import highdicom
import numpy as np
import pytest
from pypdf import PdfReader

from dicom_node.encode.identity import RunIdentity
from dicom_node.encode.percentiles import Placing
from dicom_node.encode.run import encode
from dicom_node.encode.segments import Finding, present_segments
from dicom_node.encode.source.series import prepare
from dicom_node.encode.sr.check import refuse_other_measurements
from dicom_node.errors import ConfigurationError, EncodingError
from dicom_node.percentiles import OfModel, References
from dicom_node.results import StoredStructure, read_report
from dicom_node.types import EncodedResult, ResultKind, ResultRequest, SegmentationForm
from tests.support.analysis_results import CONTEXT, MODEL, geometry, measured, reconstruction, segmentation
from tests.support.reference_percentiles import curve, references

if TYPE_CHECKING:
    from pathlib import Path

    from pydicom import Dataset

NAMES = {3: "kidney_left", 7: "kidney_right", 9: "aorta", 201: "liver"}
GRID = geometry((6, 12, 16))
FILE = "percentiles.json"
ASKED = ResultRequest(SegmentationForm.NONE, percentiles=FILE)
WITH_PAGE = replace(ASKED, document=True)


def labels_zyx() -> np.ndarray:
    """The right kidney touches the border; the others do not."""
    labels = np.zeros(GRID.shape_zyx, dtype=np.uint8)
    labels[2:4, 3:6, 3:7] = 3
    labels[2, 8:10, 3:7] = 9
    labels[3, 8:10, 3:7] = 201
    labels[4:, 3:5, 9:12] = 7
    return labels


SOURCE = reconstruction(GRID)
LABELS = segmentation(GRID, NAMES, labels_zyx())
MEASURED = {each.name: each for each in measured(SOURCE, LABELS).structures}


def around(structure: str, quantity: str, sex: str = "F", offset: float = 0.0, **changes: Any):
    """A curve in the middle of which the value is that the patient has, plus ``offset``."""
    value = getattr(MEASURED[structure], quantity) + offset
    return curve(structure, quantity, sex, value - 3, value + 3, **changes)


def sample(**changes: Any) -> References:
    """In the middle, in between, below, above; another sex, and a structure that is truncated."""
    curves = (
        around("kidney_left", "volume_ml", patients=212),
        around("kidney_left", "volume_ml", "M", offset=-100),
        around("kidney_left", "mean_hu", offset=-1.5),
        around("aorta", "volume_ml", offset=100),
        around("aorta", "mean_hu", offset=-100),
        around("kidney_right", "volume_ml"),
        around("liver", "volume_ml", "M"),
    )
    return references(**{"curves": curves, **changes})


def made(
    document: References | None = None, request: ResultRequest = ASKED, **header: str
) -> dict[ResultKind, EncodedResult]:
    source = reconstruction(GRID)
    for each in source.headers:
        for keyword, value in header.items():
            setattr(each, keyword, value)
    files = {FILE: document or sample()}
    results = encode(source, LABELS, measured(source, LABELS), CONTEXT, {"pacs": request}, files)
    return {result.kind: result for result in results}


def stored(result: EncodedResult, folder: Path) -> dict[str, StoredStructure]:
    (folder / "report.dcm").write_bytes(result.content)
    return {each.name: each for each in read_report(folder / "report.dcm")}


def text_of(document: EncodedResult) -> str:
    pages = PdfReader(BytesIO(document.dataset.EncapsulatedDocument)).pages
    return " ".join(word for page in pages for word in page.extract_text().split())


def comments(sr: Dataset) -> list[str]:
    return [item.TextValue for item in sr.ContentSequence[-1].ContentSequence if "TextValue" in item]


def concepts(content: Dataset) -> list[str]:
    found = [content.ConceptNameCodeSequence[0].CodeValue] if "ConceptNameCodeSequence" in content else []
    return found + [code for child in content.get("ContentSequence", ()) for code in concepts(child)]


def test_report_places_volume_and_mean_of_whole_structures(tmp_path):
    found = stored(made()[ResultKind.REPORT], tmp_path)
    kidney = {value.derivation_meaning or value.meaning: value for value in found["kidney_left"].values}
    assert kidney["Volume"].percentile == 50
    assert kidney["Mean"].percentile == 82.5  # half way from 75 to 90
    assert kidney["Volume"].population == (
        "Research, not a norm. Cohort sample: 212 women have a value, 36 of them aged 71 to 81 years."
    )
    aorta = {value.derivation_meaning or value.meaning: value for value in found["aorta"].values}
    assert aorta["Volume"].percentile is aorta["Mean"].percentile is None
    assert aorta["Volume"].population.startswith("Below the 3rd percentile. Research, not a norm.")
    assert aorta["Mean"].population.startswith("Above the 97th percentile. Research, not a norm.")
    ranked = {name: [bool(value.population) for value in each.values].count(True) for name, each in found.items()}
    assert ranked == {"kidney_left": 2, "aorta": 2, "kidney_right": 0, "liver": 0}
    assert found["kidney_right"].truncated


def test_highdicom_reads_the_percentile_as_a_property_of_its_measurement():
    sr = made()[ResultKind.REPORT].dataset
    content = highdicom.sr.Comprehensive3DSR.from_dataset(sr).content
    group = content.get_image_measurement_groups(tracking_uid=None)[0]
    assert group.tracking_identifier == "kidney_left"
    volume = group.get_measurements()[0]
    rank, population, authority = volume[0].ContentSequence
    assert (rank.name.value, rank.name.scheme_designator, rank.name.meaning) == (
        "121415",
        "DCM",
        "Percentile Ranking of measurement",
    )
    assert (rank.value, rank.unit.value, rank.unit.scheme_designator) == (50, "%", "UCUM")
    assert {each.relationship_type.value for each in (rank, population, authority)} == {"HAS PROPERTIES"}
    assert (population.name.value, authority.name.value) == ("121405", "121406")
    assert sample().digest() in authority.value
    assert "research software" in authority.value
    assert f"measured by {MODEL.name} {MODEL.version}" in authority.value


def test_report_and_page_say_that_this_is_research_in_which_cohort():
    results, digest = made(request=WITH_PAGE), sample().digest()
    (said,) = (each for each in comments(results[ResultKind.REPORT].dataset) if "ercentile" in each)
    page = text_of(results[ResultKind.DOCUMENT])
    assert said in page
    assert page.count(digest) == 1
    for words in (
        *("research", "among the women of the cohort sample", "71 to 81 years", "120 women and 120 men", "240 without"),
        *("not a norm", "not cleared or approved for clinical use", digest, "version 1"),
    ):
        assert words in said, words
    assert "RESEARCH PERCENTILES" in page
    assert "Kidney left 50 212 82 200" in page
    assert "Aorta <3 200 >97 200" in page


OTHER = OfModel(name="total", version="1", digest="ef" * 32)
NONE = {
    "other model": (sample(model=OTHER), {}, "it was measured by another model, whose values can't be compared"),
    "unknown model": (sample(model=OfModel(name="", version="", digest="")), {}, "another model"),
    "phantom": (None, {"QualityControlImage": "YES"}, "are marked as those of a phantom"),
    "phantom as a subject": (None, {"QualityControlSubject": "YES"}, "are marked as those of a phantom"),
    "other sex": (None, {"PatientSex": "O"}, "the sex of the patient is not stated as F or M"),
    "no sex": (None, {"PatientSex": ""}, "the sex of the patient is not stated as F or M"),
    "no age": (None, {"PatientAge": "000Y", "PatientBirthDate": ""}, "the age of the patient is not known"),
    "too young": (None, {"PatientAge": "059Y"}, "it has none at the age of the patient, but at 60 to 90 years"),
    "too old": (None, {"PatientAge": "091Y"}, "it has none at the age of the patient, but at 60 to 90 years"),
    "in a gap": (
        sample(curves=(around("kidney_left", "mean_hu", ages_years=(20, 21, *range(80, 109))),)),
        {},
        "it has none at the age of the patient, but at 20 to 21, 80 to 108 years",
    ),
    "nothing whole": (
        sample(curves=(around("kidney_right", "volume_ml"), around("liver", "volume_ml", "M"))),
        {},
        "no percentiles of any structure that was found and is not truncated",
    ),
}


@pytest.mark.parametrize("name", NONE)
def test_without_percentiles_the_report_says_why_once(name):
    document, header, reason = NONE[name]
    sr = made(document, **header)[ResultKind.REPORT].dataset
    (said,) = (each for each in comments(sr) if "ercentile" in each)
    assert said.startswith("No percentile in the cohort sample (research) is stated: ")
    assert reason in said
    assert {"121415", "121405", "121406"}.isdisjoint(concepts(sr))


def test_without_percentiles_the_page_says_why_once():
    page = text_of(made(request=WITH_PAGE, PatientSex="O")[ResultKind.DOCUMENT])
    assert page.count("No percentile in the cohort sample (research) is stated: the sex of the patient") == 1
    assert "RESEARCH PERCENTILES" not in page


def test_age_is_that_of_the_birth_date_where_none_is_stated(tmp_path):
    falling = tuple((float(v) - np.arange(31.0)).tolist() for v in range(7))
    value = MEASURED["kidney_left"].volume_ml
    values = tuple(tuple(value + each for each in row) for row in falling)
    document = sample(curves=(curve("kidney_left", "volume_ml", "F", 0, 1, values=values),))
    born = {"PatientAge": "", "PatientBirthDate": "19660304", "StudyDate": "20260304"}
    (volume, *_) = stored(made(document, **born)[ResultKind.REPORT], tmp_path)["kidney_left"].values
    assert volume.percentile == pytest.approx(3, abs=0.1)
    assert "aged 55 to 65 years" in volume.population


def test_without_the_option_nothing_is_said():
    request = replace(WITH_PAGE, percentiles="")
    results = made(request=request)
    assert "ercentile" not in text_of(results[ResultKind.DOCUMENT])
    sr = results[ResultKind.REPORT].dataset
    assert {"121415", "121405", "121406"}.isdisjoint(concepts(sr))
    assert not any("ercentile" in each for each in comments(sr))


def test_only_the_requested_structures_are_placed(tmp_path):
    sr = made(request=replace(ASKED, structures=("liver",)))[ResultKind.REPORT]
    assert set(stored(sr, tmp_path)) == {"liver"}
    assert any("no percentiles of any structure that was found" in each for each in comments(sr.dataset))


# ---- what makes another object


def uids(*documents: References, request: ResultRequest = ASKED) -> list[str]:
    return [each.sop_instance_uid for document in documents for each in made(document, request).values()]


def test_uids_follow_from_option_and_content_of_the_file():
    pages = replace(WITH_PAGE, capture=True)
    plain = set(uids(sample(), request=replace(pages, percentiles="")))
    with_sample, with_other = set(uids(sample(), request=pages)), set(uids(sample(node_version="9"), request=pages))
    assert len(plain) == len(with_sample) == len(with_other)
    assert not plain & with_sample
    assert not with_sample & with_other


def test_one_file_under_two_names_gives_one_object_and_two_files_two():
    source = reconstruction(GRID)
    requests = {name: replace(ASKED, percentiles=name) for name in ("a", "copy of a", "b")}
    files = {"a": sample(), "copy of a": sample(), "b": sample(node_version="9")}
    found = encode(source, LABELS, measured(source, LABELS), CONTEXT, requests, files)
    assert [each.destinations for each in found] == [("a", "copy of a"), ("b",)]
    assert len({each.sop_instance_uid for each in found}) == 2


def test_a_file_that_was_not_read_is_an_error():
    with pytest.raises(EncodingError, match="the percentiles that pacs gets have not been read"):
        encode(SOURCE, LABELS, measured(SOURCE, LABELS), CONTEXT, {"pacs": ASKED})


def test_percentiles_need_an_object_that_can_state_them():
    with pytest.raises(ConfigurationError, match="percentiles requires a report, a capture or a document"):
        ResultRequest(report=False, percentiles=FILE)


@pytest.mark.parametrize("which", ["volume_rank", "mean_hu_rank"])
@pytest.mark.parametrize("percentile", [None, 3.0, ">97"])
def test_a_report_with_another_percentile_is_refused(which, percentile):
    identity = RunIdentity.of(prepare(SOURCE).series_instance_uid, MODEL, CONTEXT)
    segments = present_segments(LABELS, measured(SOURCE, LABELS), identity)
    ranked = Placing.of(sample(), SOURCE.headers[0], MODEL).ranked(segments)
    first, *others = (Finding(segment, None) for segment in ranked)
    content = made()[ResultKind.REPORT].content
    refuse_other_measurements(content, (first, *others))
    rank = getattr(first.segment, which)
    other = None if percentile is None else replace(rank, percentile=percentile)
    changed = Finding(replace(first.segment, **{which: other}), None)
    with pytest.raises(EncodingError, match="measurement groups of the SR differ"):
        refuse_other_measurements(content, (changed, *others))
