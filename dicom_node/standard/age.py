"""The age of a patient, from headers and from tables of data sets: one rule for both."""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import TYPE_CHECKING

from dicom_node.standard.attributes import text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydicom import Dataset

DAYS_PER_YEAR = 365.2425
_UNITS_PER_YEAR: Mapping[str, float] = {"Y": 1.0, "M": 12.0, "W": DAYS_PER_YEAR / 7, "D": DAYS_PER_YEAR}
_AGE_STRING = re.compile(r"([0-9]{3})([DWMYdwmy])")
_NUMBER = re.compile(r"[0-9]{1,3}(\.[0-9]+)?")
_OLDEST_YEARS = 130.0
"""No patient is older; anonymised headers have birth dates such as 19000101."""


def age_of(header: Dataset) -> float | None:
    """The patient's age in years at the time of the study; see :func:`age_years`."""
    birth_date, study_date = (date_of(text(header, keyword)) for keyword in ("PatientBirthDate", "StudyDate"))
    return age_years(text(header, "PatientAge"), birth_date, study_date)


def date_of(value: str) -> date | None:
    """A DA value; also in ACR-NEMA's form with dots (PS3.5 6.2, note 1)."""
    try:
        return datetime.strptime(value.replace(".", ""), "%Y%m%d").date()  # noqa: DTZ007 - a date has no time zone
    except ValueError:
        return None


def age_years(patient_age: str, birth_date: date | None, study_date: date | None) -> float | None:
    """Patient's Age (VR AS: ``034Y``, ``007M``, ``011W``, ``003D``) in years, or else the age on the date of the study.

    ``000Y`` counts as absent: the age of an infant is given in months, weeks or days, and de-identified headers have
    ``000Y`` in place of an age. Also None for an age above 130 years or below 0.
    """
    years = _stated_years(patient_age)
    if years is None and birth_date is not None and study_date is not None:
        years = (study_date - birth_date).days / DAYS_PER_YEAR
    return _plausible(years)


def age_years_of_table(value: str) -> float | None:
    """The age that a table such as ``meta.csv`` states: ``61``, ``61.0``, or as in a header; ``0`` is as ``000Y``."""
    value = value.strip()
    return _plausible(float(value) or None) if _NUMBER.fullmatch(value) else age_years(value, None, None)


def _stated_years(patient_age: str) -> float | None:
    match = _AGE_STRING.fullmatch(patient_age)
    if match is None:
        return None
    number, unit = int(match[1]), match[2].upper()
    return None if number == 0 and unit == "Y" else number / _UNITS_PER_YEAR[unit]


def _plausible(years: float | None) -> float | None:
    return years if years is not None and 0 <= years <= _OLDEST_YEARS else None
