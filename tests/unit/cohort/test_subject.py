"""What the table records of a series: ages in every form, and never an identity."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path

import pytest
from pydicom import Dataset

from dicom_node.cohort.pseudonym import Pseudonyms
from dicom_node.cohort.subject import DAYS_PER_YEAR, Dates, age_years, facts_of_image

PSEUDONYMS = Pseudonyms.of_key(bytes(range(32)))
BIRTH, STUDY = date(1960, 2, 29), date(2020, 3, 1)


@pytest.mark.parametrize(
    ("patient_age", "birth", "years"),
    [
        ("034Y", BIRTH, 34.0),
        ("034y", None, 34.0),
        ("006M", None, 0.5),
        ("013W", None, 13 * 7 / DAYS_PER_YEAR),
        ("010D", None, 10 / DAYS_PER_YEAR),
        ("000D", None, 0.0),  # a newborn
        ("000Y", None, None),
        ("000Y", BIRTH, 60.0),
        ("", BIRTH, 60.0),
        ("", None, None),
        ("34Y", BIRTH, 60.0),
        ("0x4Y", None, None),
        ("٠٣٤Y", None, None),  # noqa: RUF001 - digits, but not of DICOM's default repertoire
        ("034", None, None),
        ("150Y", None, None),
        ("", date(1850, 1, 1), None),
        ("", date(2021, 1, 1), None),
    ],
)
def test_age_in_years(patient_age, birth, years):
    age = age_years(patient_age, birth, STUDY)
    assert age == (None if years is None else pytest.approx(years, abs=0.01))


def test_missing_age_of_an_infant_is_computed_from_the_dates():
    assert age_years("", STUDY - timedelta(days=30), STUDY) == pytest.approx(30 / DAYS_PER_YEAR)
    assert age_years("", BIRTH, None) is None


def header(**changes) -> Dataset:
    dataset = Dataset()
    attributes = {
        "PatientName": "Meier^Eva",
        "PatientID": "4711",
        "IssuerOfPatientID": "CLINIC",
        "PatientBirthDate": "19600229",
        "PatientSex": "F",
        "PatientAge": "060Y",
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
        "StudyDate": "20200301",
        "AccessionNumber": "A1",
        "InstitutionName": "St. Elsewhere",
        "Manufacturer": "SIEMENS",
        "ManufacturerModelName": "Force",
        "ConvolutionKernel": ["Br40d", "3"],
        "ContrastBolusAgent": "Iomeprol",
        "SliceThickness": "1.5",
        "KVP": "100",
    }
    for keyword, value in (attributes | changes).items():
        if value is not None:
            setattr(dataset, keyword, value)
    return dataset


def facts(dates=Dates.SHIFTED, **changes):
    return facts_of_image(header(**changes), Path("one.dcm"), PSEUDONYMS, dates)


def test_facts_contain_scanner_and_scan_but_no_identity():
    found = facts()
    assert found.scanner_model == "Force"
    assert (found.kernel, found.contrast, found.slice_thickness_mm, found.kvp) == ("Br40d\\3", True, 1.5, 100.0)
    assert (found.sex, found.age_years) == ("F", 60.0)
    told = repr(asdict(found))
    for identity in ("Meier", "4711", "CLINIC", "1960", "1.2.3", "2020, 3, 1)", "Elsewhere", "A1"):
        assert identity not in told


def test_dates_of_all_studies_of_a_patient_are_shifted_equally():
    first, second = facts(), facts(StudyDate="20210301", StudyInstanceUID="9.9")
    assert second.study_date - first.study_date == date(2021, 3, 1) - STUDY
    assert date(2019, 3, 1) <= first.study_date < STUDY
    assert facts(PatientID="4712").study_date != first.study_date or facts(PatientID="4713").study_date != (
        first.study_date
    )
    assert facts(Dates.EXACT).study_date == STUDY
    assert facts(Dates.NONE).study_date is None


def test_missing_or_invalid_values_are_none():
    lacks = facts(
        PatientAge=None,
        PatientBirthDate="",
        PatientSex="W",
        ConvolutionKernel=None,
        SliceThickness="",
        KVP=None,
        Manufacturer="",
        StudyDate="",
    )
    assert (lacks.age_years, lacks.sex, lacks.kernel, lacks.slice_thickness_mm) == (None, None, None, None)
    assert (lacks.kvp, lacks.manufacturer, lacks.study_date) == (None, None, None)


@pytest.mark.parametrize(("agent", "contrast"), [("", False), (None, False), ("None", False), ("APPLIED", True)])
def test_contrast_is_the_agent_named_in_the_header(agent, contrast):
    assert facts(ContrastBolusAgent=agent).contrast is contrast


def test_kernel_of_a_multi_frame_object_is_read_from_its_functional_groups():
    macro, group = Dataset(), Dataset()
    macro.ConvolutionKernel = "B30f"
    group.CTReconstructionSequence = [macro]
    found = facts(ConvolutionKernel=None, SharedFunctionalGroupsSequence=[group])
    assert found.kernel == "B30f"
