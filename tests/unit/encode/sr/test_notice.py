"""What an archive is told about a series that was not processed."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage

from dicom_node.encode.sr.notice import notice_file
from dicom_node.errors import EncodingError, IdentityConflict
from dicom_node.types import EarlierResult, ResultKind
from tests.support.analysis_results import CONTEXT, reconstruction

REASON = "2 slices are missing between z = 12.0 and 18.0 mm"


def headers() -> list[Dataset]:
    return list(reconstruction().headers)


def notice(source: list[Dataset], reason: str = REASON, **context) -> Dataset:
    return dcmread(BytesIO(notice_file(source, "phantom-demo", reason, replace(CONTEXT, **context))))


def texts(item: Dataset) -> list[str]:
    found = [item.TextValue] if "TextValue" in item else []
    return found + [text for child in item.get("ContentSequence") or () for text in texts(child)]


def test_reason_is_in_the_report_and_in_the_series_description() -> None:
    sr = notice(headers())
    assert sr.SOPClassUID == Comprehensive3DSRStorage
    assert texts(sr.ContentSequence[-1])[0] == f"Not processed: {REASON}."
    assert sr.SeriesDescription == f"Not processed by phantom-demo: {REASON}"[:64].strip()
    evaluations = sr.ContentSequence[-1].ContentSequence
    assert evaluations[0].ConceptCodeSequence[0].CodeValue == "111245"
    (study,) = sr.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    assert {item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence} == {
        header.SOPInstanceUID for header in headers()
    }


def test_notice_names_every_result_it_replaces_with_its_revision() -> None:
    earlier = (
        EarlierResult(ResultKind.SEGMENTATION, SegmentationStorage, "2.25.1", "2.25.11", "2.25.10", 1),
        EarlierResult(ResultKind.REPORT, Comprehensive3DSRStorage, "2.25.2", "2.25.12", "2.25.10", 1),
        EarlierResult(ResultKind.NOTICE, Comprehensive3DSRStorage, "2.25.3", "2.25.13", "2.25.10", 2),
    )
    context = replace(CONTEXT, revision=3)
    sr = dcmread(BytesIO(notice_file(headers(), "phantom-demo", REASON, context, earlier)))
    said = "Supersedes the results of revision 1 (series 2.25.11, 2.25.12) and revision 2 (series 2.25.13)."
    assert texts(sr.ContentSequence[-1])[-1] == said
    (study,) = sr.PredecessorDocumentsSequence
    assert study.StudyInstanceUID == "2.25.10"
    assert {series.SeriesInstanceUID for series in study.ReferencedSeriesSequence} == {"2.25.12", "2.25.13"}
    assert sr.SeriesDescription.startswith("Not processed by phantom-demo rev 3: ")
    assert sr.SOPInstanceUID != notice(headers(), revision=3).SOPInstanceUID


def test_notice_names_no_model_if_none_was_to_run() -> None:
    sr = dcmread(BytesIO(notice_file(headers(), None, "no HU", CONTEXT)))
    assert sr.SeriesDescription == "Not processed: no HU"
    assert texts(sr.ContentSequence[-1])[1].startswith("No measurements were made; ")


def test_notice_has_the_patient_and_study_of_the_source() -> None:
    source = headers()
    sr = notice(source)
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "AccessionNumber", "StudyDate", "PatientSex"):
        assert sr[keyword].value == source[0][keyword].value
    assert sr.SeriesInstanceUID != source[0].SeriesInstanceUID


def test_instance_uid_depends_on_the_reason() -> None:
    one, same, other = notice(headers()), notice(headers()), notice(headers(), "the model was lost")
    assert one.SOPInstanceUID == same.SOPInstanceUID != other.SOPInstanceUID
    assert one.SeriesInstanceUID == other.SeriesInstanceUID != notice(headers(), revision=2).SeriesInstanceUID


def test_headers_that_form_no_volume_are_enough() -> None:
    source = headers()
    kept = {"StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID"}
    for header in source:
        for element in list(header):
            if element.keyword not in kept:
                del header[element.tag]
    source[1].SOPInstanceUID = "1.2.x"
    source[2].FrameOfReferenceUID = "1.2.3"
    sr = notice(source)
    assert (sr.PatientName, sr.PatientID, sr.StudyDate) == ("", "", "")
    series = sr.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert len(series.ReferencedSOPSequence) == len(source) - 1


def test_series_of_a_private_sop_class_gets_a_notice_too() -> None:
    source = headers()
    for header in source:
        header.SOPClassUID = "1.2.840.999.1"
    (study,) = notice(source).CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    assert {item.ReferencedSOPClassUID for item in series.ReferencedSOPSequence} == {"1.2.840.999.1"}


@pytest.mark.parametrize("keyword", ["PatientID", "PatientName", "StudyInstanceUID"])
def test_series_with_two_patients_gets_no_notice(keyword: str) -> None:
    source = headers()
    setattr(source[1], keyword, "1.2.9")
    with pytest.raises(IdentityConflict, match="2 values"):
        notice(source)


def test_series_without_a_study_gets_no_notice() -> None:
    source = headers()
    for header in source:
        del header.StudyInstanceUID
    with pytest.raises(EncodingError, match="Study Instance UID"):
        notice(source)


def test_reason_of_any_length_and_alphabet_is_encoded() -> None:
    sr = notice(headers(), "größer\\als " + 3000 * "x")
    assert texts(sr.ContentSequence[-1])[0].startswith("Not processed: gro")
    assert len(sr.SeriesDescription) <= 64
