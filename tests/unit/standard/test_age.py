"""One rule for the age of a patient, in headers and in tables."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from dicom_node.labelmaps.subjects import Subject
from dicom_node.standard.age import DAYS_PER_YEAR, age_years

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


@pytest.mark.parametrize(
    ("stated", "years"),
    [
        *(("61", 61), ("61.0", 61), (" 061Y ", 61), ("7", 7), ("0.5", 0.5)),
        *(("006M", 0.5), ("013W", 13 * 7 / DAYS_PER_YEAR), ("000D", 0)),
        *(("0", None), ("0.0", None), ("000Y", None), ("", None), ("n/a", None), ("-3", None), ("999", None)),
    ],
)
def test_a_data_set_has_the_same_rule(stated, years):
    age = Subject("s1", None, None, attributes={"age": stated}).age_years
    assert age == (None if years is None else pytest.approx(years))
