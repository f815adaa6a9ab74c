"""Where the structures of a patient stand among the patients of a reference sample, and why nowhere, if so.

This is research. The texts say so, and call the sample by its name: it is not a norm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dicom_node.encode.provenance import plain
from dicom_node.encode.segments import Rank
from dicom_node.percentiles import NEAR_YEARS, STATEMENT
from dicom_node.standard.age import age_of
from dicom_node.standard.attributes import text

if TYPE_CHECKING:
    from typing import Self

    from pydicom import Dataset

    from dicom_node.encode.segments import Segment
    from dicom_node.percentiles import Percentile, Quantity, References, Sex
    from inference.types import ModelIdentity

_SEXES: dict[str, tuple[Sex, str]] = {"F": ("F", "women"), "M": ("M", "men")}
_BEYOND = {"<3": "Below the 3rd percentile. ", ">97": "Above the 97th percentile. "}
_DIGITS = 1
_LONGEST = 1024
_NOT_A_PATIENT = ("QualityControlImage", "QualityControlSubject")
"""PS3.3 C.7.6.1 and C.7.1.1: YES for images of a phantom."""


@dataclass(frozen=True, slots=True, eq=False)
class Placing:
    """One patient and a reference sample: the curves of the same ``sex`` at ``age_years``.

    ``why_not``: why no structure of the patient has a percentile; empty where one may have, and only then are age and
    sex sure to be known. ``digest``: of the file.
    """

    references: References
    digest: str
    age_years: float
    sex: Sex
    why_not: str

    @classmethod
    def of(cls, references: References, header: Dataset, model: ModelIdentity) -> Self:
        """For the patient of ``header``, whose structures ``model`` found; age and sex as in the tables of cohorts."""
        age_years, sex = age_of(header), text(header, "PatientSex").upper()
        why_not = ""
        if any(text(header, keyword) == "YES" for keyword in _NOT_A_PATIENT):
            why_not = "the images are marked as those of a phantom (Quality Control Image or Subject)"
        elif model.digest != references.model.digest:
            why_not = "it was measured by another model, whose values can't be compared"
        elif sex not in _SEXES:
            why_not = "the sex of the patient is not stated as F or M"
        elif age_years is None:
            why_not = "the age of the patient is not known"
        return cls(references, references.digest(), age_years or 0.0, _SEXES.get(sex, ("all", ""))[0], why_not)

    def ranked(self, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
        """``segments``, each with its ranks. Truncated structures have none: they are not in the sample either."""
        if self.why_not:
            return segments
        return tuple(
            segment
            if segment.measurement.truncated
            else replace(
                segment,
                volume_rank=self._rank(segment, "volume_ml", segment.measurement.volume_ml),
                mean_hu_rank=self._rank(segment, "mean_hu", segment.measurement.mean_hu),
            )
            for segment in segments
        )

    def statement(self, ranked: tuple[Segment, ...]) -> str:
        """What a reader must know of the percentiles of these segments, or why there are none."""
        if not any(segment.volume_rank or segment.mean_hu_rank for segment in ranked):
            why_not = self.why_not or self._why_none(ranked)
            said = f"No percentile in the cohort {self._name} (research) is stated: {why_not}. {self._file}."
            return plain(said, _LONGEST)
        sample, (who, youngest, oldest) = self.references.sample, self._band
        contrast = ", ".join(f"{count} {word}" for word, count in sorted(sample.contrast.items()))
        said = (
            f"Percentiles are research: they place volume and mean attenuation among the {who} of the cohort "
            f"{self._name} at about the age of the patient ({youngest} to {oldest} years), as measured by the same "
            f"model; n is the number of {who} of any age with a value. The cohort has {sample.women} women and "
            f"{sample.men} men (contrast agent: {contrast or 'unknown'}). Truncated structures have no percentile. "
            f"{STATEMENT} {self._file}."
        )
        return plain(said, _LONGEST)

    def _rank(self, segment: Segment, quantity: Quantity, value: float) -> Rank | None:
        curve = self.references.curve(segment.structure.name, quantity, self.sex)
        percentile = None if curve is None else curve.percentile_of(value, self.age_years)
        if curve is None or percentile is None:
            return None
        who, youngest, oldest = self._band
        population = (
            f"{_BEYOND.get(str(percentile), '')}Research, not a norm. Cohort {self._name}: {curve.patients} {who} have "
            f"a value, {curve.near(self.age_years)} of them aged {youngest} to {oldest} years."
        )
        return Rank(_rounded(percentile), curve.patients, plain(population, _LONGEST), plain(self._authority, _LONGEST))

    def _why_none(self, segments: tuple[Segment, ...]) -> str:
        whole = {segment.structure.name for segment in segments if not segment.measurement.truncated}
        ages = {
            age
            for curve in self.references.curves
            if curve.sex == self.sex and curve.structure in whole
            for age in curve.ages_years
        }
        if ages:
            return f"it has none at the age of the patient, but at {_spans(ages)} years"
        return "it has no percentiles of any structure that was found and is not truncated"

    @property
    def _band(self) -> tuple[str, int, int]:
        """Who is of the sex and about the age of the patient: the word, and the ages in years."""
        year = round(self.age_years)
        return _SEXES[self.sex][1], max(0, year - NEAR_YEARS), year + NEAR_YEARS

    @property
    def _name(self) -> str:
        return plain(self.references.sample.cohort, _LONGEST) or "unnamed"

    @property
    def _file(self) -> str:
        return f"File of percentiles: version {self.references.schema_version}, SHA-256 {self.digest}"

    @property
    def _authority(self) -> str:
        model = self.references.model
        return (
            f"Cohort {self._name}, measured by {model.name} {model.version}. {self._file}, made by dicom-node "
            f"{self.references.node_version}, research software."
        )


def _spans(ages: set[int]) -> str:
    """``30 to 39, 70 to 79``."""
    first, last = (sorted(age for age in ages if age + step not in ages) for step in (-1, 1))
    return ", ".join(f"{low} to {high}" for low, high in zip(first, last, strict=True))


def _rounded(percentile: Percentile) -> Percentile:
    return percentile if isinstance(percentile, str) else round(percentile, _DIGITS)
