"""What the table records of a series: ages in every form, and never an identity."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date
from pathlib import Path

import pytest
from pydicom import Dataset

from dicom_node.cohort.pseudonym import Pseudonyms
from dicom_node.cohort.subject import Dates, facts_of_image

PSEUDONYMS = Pseudonyms.of_key(bytes(range(32)))
STUDY = date(2020, 3, 1)


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


def test_exact_date_and_age_do_not_give_the_date_of_birth():
    born = "19600712"
    exact, shifted = (facts(dates, PatientAge=None, PatientBirthDate=born) for dates in (Dates.EXACT, Dates.SHIFTED))
    assert exact.age_years == 59.6
    assert shifted.age_years == pytest.approx(59.637, abs=1e-3)


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
