"""Rows from an archive's reports: those of other systems (made with highdicom) and those that were superseded."""

from __future__ import annotations

import pytest
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    Measurement,
    MeasurementReport,
    ObservationContext,
    ObserverContext,
    ReferencedSegment,
    SourceSeriesForSegmentation,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, SegmentationStorage, generate_uid

from dicom_node.cohort.pseudonym import Pseudonyms
from dicom_node.cohort.reports import ReportIntake
from dicom_node.cohort.subject import Dates
from dicom_node.cohort.table import CohortTable, read_rows, read_without_rows
from dicom_node.network.dimse import store_request

PSEUDONYMS = Pseudonyms.of_key(bytes(range(32)))
CT_SERIES = "1.2.3.4"


def ibsi(value, meaning):
    return CodedConcept(value, "IBSI", meaning)


def group(number, code, meaning, side=None, finding=None):
    """A group as in IDC: a free-text tracking identifier, codes for the structure, IBSI codes for the values."""
    concept = CodedConcept(code, "SCT", meaning)
    hu, mm3 = CodedConcept("[hnsf'U]", "UCUM", "Hounsfield unit"), CodedConcept("mm3", "UCUM", "cubic millimeter")
    values = [("YEKZ", 1000.0 * number, mm3), ("Q4LE", 40.0 + number, hu), ("Y12H", 41.0, hu), ("1GSF", -5.0, hu)]
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=generate_uid(), identifier=f"Measurements group {number}"),
        referenced_segment=ReferencedSegment(
            SegmentationStorage, "1.2.9", number, source_series=SourceSeriesForSegmentation(CT_SERIES)
        ),
        finding_type=CodedConcept(finding[0], "SCT", finding[1]) if finding else concept,
        finding_sites=[FindingSite(anatomic_location=concept, laterality=side)],
        measurements=[Measurement(ibsi(name, name), value, unit) for name, value, unit in values],
        algorithm_id=AlgorithmIdentification(name="TotalSegmentator", version="1.5.6"),
    )


def report(folder, groups, name="report.dcm", previous=None):
    image = Dataset()
    for keyword, value in {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": "1.2.3.4.5",
        "SeriesInstanceUID": CT_SERIES,
        "StudyInstanceUID": "1.2.3",
        "PatientID": "4711",
        "PatientName": "Meier^Eva",
        "PatientSex": "F",
        "PatientBirthDate": "19600101",
        "StudyDate": "20200101",
        "StudyTime": "",
        "AccessionNumber": "",
        "StudyID": "",
        "ReferringPhysicianName": "",
    }.items():
        setattr(image, keyword, value)
    segmentation = Dataset()
    segmentation.update(image)
    segmentation.SOPClassUID, segmentation.SOPInstanceUID = SegmentationStorage, "1.2.9"
    segmentation.SeriesInstanceUID = "1.2.3.9"
    observer = ObserverContext(
        observer_type=codes.DCM.Device, observer_identifying_attributes=DeviceObserverIdentifyingAttributes(uid="1.2.7")
    )
    made = Comprehensive3DSR(
        evidence=[image, segmentation],
        content=MeasurementReport(
            observation_context=ObservationContext(observer_device_context=observer),
            procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
            imaging_measurements=groups,
        )[0],
        series_instance_uid=generate_uid(),
        series_number=1,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Other",
        previous_versions=previous,
    )
    made.PatientAge = "060Y"
    made.save_as(folder / name)
    return folder / name


@pytest.fixture
def table(tmp_path):
    made = CohortTable(tmp_path / "out")
    made.open_for(PSEUDONYMS, Dates.NONE)
    return made


def taken(table, *paths):
    with ReportIntake(table, PSEUDONYMS, Dates.NONE) as intake:
        return [intake.take_file(path) for path in paths]


def test_idc_codes_are_translated_to_our_names_and_units(tmp_path, table):
    groups = [
        group(1, "10200004", "Liver"),
        group(2, "64033007", "Kidney", codes.SCT.Left),
        group(3, "12345", "Left, of no catalogue"),
    ]
    assert taken(table, report(tmp_path, groups)) == [True]
    rows = read_rows(table.folder).to_pylist()
    assert [row["structure"] for row in rows] == ["liver", "kidney_left", "left_of_no_catalogue"]
    (first, *_) = rows
    assert (first["volume_ml"], first["mean_hu"], first["median_hu"], first["minimum_hu"]) == (1.0, 41.0, 41.0, -5.0)
    assert (first["sd_hu"], first["maximum_hu"], first["truncated"]) == (None, None, None)
    assert (first["model"], first["model_version"], first["model_digest"]) == ("TotalSegmentator", "1.5.6", None)
    assert (first["series"], first["age_years"], first["sex"]) == (PSEUDONYMS.uid(CT_SERIES), 60.0, "F")
    assert (first["origin"], first["kernel"], first["study_date"]) == ("stored report", None, None)
    assert "Meier" not in str(rows)


@pytest.mark.parametrize(
    ("finding", "site", "side", "structure"),
    [
        (("86049000", "Neoplasm, Primary"), ("10200004", "Liver"), None, "neoplasm_primary_liver"),
        (("3138006", "Bone"), ("64234005", "Patella"), None, "bone_patella"),
        (("367643001", "Cyst"), ("64033007", "Kidney"), codes.SCT.Left, "kidney_cyst_left"),
        (("91772007", "Organ"), ("64033007", "Kidney"), codes.SCT.Right, "kidney_right"),
    ],
)
def test_something_in_a_structure_is_not_the_structure(tmp_path, table, finding, site, side, structure):
    taken(table, report(tmp_path, [group(1, *site, side, finding)]))
    assert read_rows(table.folder)["structure"].to_pylist() == [structure]


@pytest.mark.parametrize("unit", ["ml", "cm3", "mm3"])
def test_volumes_are_read_in_every_unit_of_volume(tmp_path, table, unit):
    stated = group(1, "10200004", "Liver")
    (volume, *_) = (item for item in stated[0].ContentSequence if item.ValueType == "NUM")
    (measured,) = volume.MeasuredValueSequence
    measured.MeasurementUnitsCodeSequence[0].CodeValue = unit
    taken(table, report(tmp_path, [stated]))
    assert read_rows(table.folder)["volume_ml"].to_pylist() == [1.0 if unit == "mm3" else 1000.0]


def test_what_is_larger_than_any_report_is_refused_without_being_kept(tmp_path, table):
    with ReportIntake(table, PSEUDONYMS, Dates.NONE) as intake:
        intake.begin(
            store_request("1.2.840.10008.5.1.4.1.1.88.33", "1.2.3").command(1), CTImageStorage, "1.2.840.10008.1.2"
        )
        for _ in range(100):
            intake.write(memoryview(bytes(1 << 20)))
        assert len(intake._content) < 70 << 20
        assert intake.conclude().status != 0
    assert "larger than any" in intake.remarks[0]


@pytest.mark.parametrize("newer_first", [True, False])
def test_superseded_report_has_no_rows(tmp_path, table, newer_first):
    old = report(tmp_path, [group(1, "10200004", "Liver")], "old.dcm")
    new = report(tmp_path, [group(2, "10200004", "Liver")], "new.dcm", previous=[dcmread(old)])
    taken(table, *((new, old) if newer_first else (old, new)))
    assert read_rows(table.folder)["volume_ml"].to_pylist() == [2.0]
    assert read_without_rows(table.folder)["outcome"].to_pylist() == ["superseded"]
    taken(table, old)
    assert read_rows(table.folder).num_rows == 1


def test_report_without_groups_is_listed_and_non_reports_are_skipped(tmp_path, table):
    whole = dcmread(report(tmp_path, [group(1, "10200004", "Liver")]))
    whole.ContentSequence = whole.ContentSequence[:1]
    whole.save_as(tmp_path / "empty.dcm")
    (tmp_path / "text.dcm").write_text("no DICOM")
    assert taken(table, tmp_path / "empty.dcm", tmp_path / "text.dcm") == [True, False]
    assert read_rows(table.folder).num_rows == 0
    assert read_without_rows(table.folder)["reason"].to_pylist() == ["the report has no measurement group"]
