"""The columns of the table other than measurements, read from one header of a series, without its identity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from dicom_node.route.values import attribute_values
from dicom_node.standard.age import age_of, date_of
from dicom_node.standard.attributes import items, text
from dicom_node.types import Series, SourceInstance

if TYPE_CHECKING:
    from pathlib import Path

    from pydicom import Dataset

    from dicom_node.cohort.pseudonym import Pseudonyms

_SEXES = frozenset({"F", "M", "O"})
_NO_CONTRAST = frozenset({"NO", "NONE", "NATIVE", "WITHOUT", "W/O", "WO", "NO CONTRAST", "WITHOUT CONTRAST"})
"""Values of Contrast/Bolus Agent that mean none, as written by scanners and operators."""


class Dates(StrEnum):
    """What the table contains as the date of a study."""

    SHIFTED = "shifted"
    """All dates of a patient are shifted by the same number of days, which is derived from the key."""
    EXACT = "exact"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class SeriesFacts:
    """One series in the table; None where the header has no value. Identifiers are pseudonyms.

    ``contrast``: the header names a contrast agent; also False if the operator did not fill it in.
    """

    pseudonym: str
    study: str
    series: str
    age_years: float | None
    sex: str | None
    manufacturer: str | None
    scanner_model: str | None
    kernel: str | None
    contrast: bool | None
    slice_thickness_mm: float | None
    kvp: float | None
    study_date: date | None


def facts_of_image(header: Dataset, path: Path, pseudonyms: Pseudonyms, dates: Dates) -> SeriesFacts:
    """The facts of a CT series from the ``header`` of its first instance, which was read from ``path``."""
    images = Series("", "", (SourceInstance(path, header),))
    return _facts(
        header,
        text(header, "SeriesInstanceUID"),
        pseudonyms,
        dates,
        manufacturer=_first(images, "Manufacturer"),
        scanner_model=_first(images, "ManufacturerModelName"),
        kernel=_joined(images, "ConvolutionKernel"),
        contrast=_contrast(header),
        slice_thickness_mm=_number(_first(images, "SliceThickness")),
        kvp=_number(_first(images, "KVP")),
    )


def facts_of_report(header: Dataset, series_uid: str, pseudonyms: Pseudonyms, dates: Dates) -> SeriesFacts:
    """The facts of the series that a report measured; a report's header does not contain the scan parameters."""
    return _facts(header, series_uid, pseudonyms, dates)


def _facts(
    header: Dataset,
    series_uid: str,
    pseudonyms: Pseudonyms,
    dates: Dates,
    manufacturer: str | None = None,
    scanner_model: str | None = None,
    kernel: str | None = None,
    contrast: bool | None = None,
    slice_thickness_mm: float | None = None,
    kvp: float | None = None,
) -> SeriesFacts:
    study_uid, study_date = text(header, "StudyInstanceUID"), date_of(text(header, "StudyDate"))
    patient = pseudonyms.patient(text(header, "PatientID"), text(header, "IssuerOfPatientID"), study_uid)
    sex = text(header, "PatientSex").upper()
    age = age_of(header)
    if age is not None and dates is Dates.EXACT:
        age = round(age, 1)  # to the day, it would tell the date of birth
    return SeriesFacts(
        pseudonym=patient,
        study=pseudonyms.uid(study_uid),
        series=pseudonyms.uid(series_uid),
        age_years=age,
        sex=sex if sex in _SEXES else None,
        manufacturer=manufacturer,
        scanner_model=scanner_model,
        kernel=kernel,
        contrast=contrast,
        slice_thickness_mm=slice_thickness_mm,
        kvp=kvp,
        study_date=_stated(study_date, dates, pseudonyms.shift_days(patient)),
    )


def _stated(study_date: date | None, dates: Dates, shift_days: int) -> date | None:
    if study_date is None or dates is Dates.NONE:
        return None
    return study_date if dates is Dates.EXACT else study_date - timedelta(days=shift_days)


def _contrast(header: Dataset) -> bool:
    agent = text(header, "ContrastBolusAgent").upper()
    return bool(items(header, "ContrastBolusAgentSequence")) or (bool(agent) and agent not in _NO_CONTRAST)


def _first(images: Series, keyword: str) -> str | None:
    """The first value, also from the functional groups of a multi-frame object."""
    values = attribute_values(images, keyword)
    return str(values[0][0]) or None if values and values[0] else None


def _joined(images: Series, keyword: str) -> str | None:
    values = attribute_values(images, keyword)
    return "\\".join(map(str, values[0])) or None if values and values[0] else None


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
