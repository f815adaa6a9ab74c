"""Reference percentiles as a file: one JSON document with its own name, version and digest.

:func:`read_percentiles` refuses a document that differs in anything from :meth:`References.document`, because a wrong
curve can't be told from a right one by looking at a result.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_left, bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    ValidationError,
    model_validator,
)

from dicom_node.errors import ConfigurationError
from inference.types import InvalidValueError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

PERCENTILES = (3, 10, 25, 50, 75, 90, 97)
STATEMENT = (
    "Made by research software. It is not a medical device and not cleared or approved for clinical use. The "
    "percentiles describe the sample of patients stated here; they are not a norm and not the range of healthy people."
)
SCHEMA_NAME: Literal["dicom-node reference percentiles"] = "dicom-node reference percentiles"
SCHEMA_VERSION: Literal[1] = 1
NEAR_YEARS = 5
"""``patients_near`` counts the patients whose age differs by no more."""
LONGEST_NAME = 64
"""Of a cohort, in characters."""
_FAULTS = 3
"""That are shown."""

Quantity = Literal["volume_ml", "mean_hu"]
Sex = Literal["all", "F", "M"]
Percentile = float | Literal["<3", ">97"]
"""From 3 to 97, or that the value is beyond the outer curves."""
_Word = Annotated[str, Field(min_length=1)]
_Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Counts = dict[str, NonNegativeInt]


class _Closed(BaseModel):
    """A frozen part of the document; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class OfModel(_Closed):
    """What drew the structures; empty where the rows don't say."""

    name: str
    version: str
    digest: str


class Sample(_Closed):
    """The patients, and how many series, rows and values were left out, by reason.

    ``cohort`` names them in results. ``source_digest``: SHA-256 over those of the files that were read.
    """

    cohort: _Name
    source: _Word
    source_digest: _Digest
    selection: _Word
    patients: NonNegativeInt
    women: NonNegativeInt
    men: NonNegativeInt
    contrast: _Counts
    series_in_table: NonNegativeInt
    series_left_out: _Counts
    series_or_reports_without_rows: NonNegativeInt
    rows_left_out: NonNegativeInt
    rows_of_other_models: _Counts
    values_left_out: _Counts


class _OfQuantity(_Closed):
    """One quantity of one structure in one sex; ``patients`` have a value."""

    structure: _Word
    quantity: Quantity
    sex: Sex
    patients: NonNegativeInt


class Curve(_OfQuantity):
    """The percentiles of one quantity of one structure.

    ``ages_years`` ascend; at each, ``values`` [percentile, age] has a value for each of :data:`PERCENTILES` (ml or HU),
    and ``patients_near`` patients are within :data:`NEAR_YEARS`.
    """

    ages_years: tuple[NonNegativeInt, ...]
    patients_near: tuple[NonNegativeInt, ...]
    values: tuple[tuple[FiniteFloat, ...], ...]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        ages = self.ages_years
        if not ages or any(later <= earlier for earlier, later in pairwise(ages)):
            raise ValueError("ages_years must have at least one age, and ascend")
        if len(self.values) != len(PERCENTILES):
            raise ValueError(f"{len(self.values)} rows of values, expected {len(PERCENTILES)}: one for each percentile")
        if {len(ages)} != {len(self.patients_near), *map(len, self.values)}:
            raise ValueError(f"patients_near and every row of values must have {len(ages)} entries, one for each age")
        if any(list(at_age) != sorted(at_age) for at_age in zip(*self.values, strict=True)):
            raise ValueError("values must not fall from one percentile to the next at the same age")
        return self

    def percentile_of(self, value: float, age_years: float) -> Percentile | None:
        """The percentile of ``value`` (ml or HU), linear between the curves and between whole years of age.

        A value that several curves share at this age has the middle of the lowest and highest of their percentiles.
        None if the whole years before and after ``age_years`` are not both in the curve.

        Raises:
            InvalidValueError: the value is not finite.
        """
        if not math.isfinite(value):
            raise InvalidValueError(f"the value must be finite, not {value}")
        values = self.at(age_years)
        if values is None:
            return None
        if value < values[0]:
            return "<3"
        if value > values[-1]:
            return ">97"
        low, high = bisect_left(values, value), bisect_right(values, value)
        if high > low:
            return (PERCENTILES[low] + PERCENTILES[high - 1]) / 2
        share = (value - values[low - 1]) / (values[low] - values[low - 1])
        return PERCENTILES[low - 1] + share * (PERCENTILES[low] - PERCENTILES[low - 1])

    def near(self, age_years: float) -> int | None:
        """How many patients are near the whole year that is nearest to an age; None as for :meth:`at`."""
        if self.at(age_years) is None:
            return None
        return self.patients_near[self.ages_years.index(round(age_years))]

    def at(self, age_years: float) -> tuple[float, ...] | None:
        """The value of each of :data:`PERCENTILES` at an age; None where the curve has none."""
        if not math.isfinite(age_years):
            return None
        before, after = math.floor(age_years), math.ceil(age_years)
        if before not in self.ages_years or after not in self.ages_years:
            return None
        first, second, share = self.ages_years.index(before), self.ages_years.index(after), age_years - before
        # in this form equal values stay equal, and ascending ones ascend
        return tuple((1 - share) * row[first] + share * row[second] for row in self.values)


class NoCurve(_OfQuantity):
    """A structure and quantity without percentiles, and why."""

    reason: _Word


class References(_Closed):
    """The whole document. ``created_at`` is UTC; a curve has at least ``fewest_patients`` patients."""

    schema_name: Literal["dicom-node reference percentiles"]
    schema_version: Literal[1]
    statement: _Word
    created_at: AwareDatetime
    node_version: _Word
    model: OfModel
    method: _Word
    sample: Sample
    percentiles: tuple[int, ...]
    fewest_patients: NonNegativeInt
    curves: tuple[Curve, ...]
    left_out: tuple[NoCurve, ...]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.percentiles != PERCENTILES:
            raise ValueError(f"the percentiles are {self.percentiles}, expected {PERCENTILES}")
        every: tuple[_OfQuantity, ...] = (*self.curves, *self.left_out)
        of = [(each.structure, each.quantity, each.sex) for each in every]
        if len(of) != len(set(of)):
            raise ValueError("a structure, quantity and sex must be there once only")
        for each in self.curves:
            if not self.fewest_patients <= each.patients <= self.sample.patients:
                raise ValueError(
                    f"the curve of {each.structure}, {each.quantity}, {each.sex} has {each.patients} patients, "
                    f"expected {self.fewest_patients} to {self.sample.patients}"
                )
        return self

    def document(self) -> dict[str, Any]:
        """The content of the file."""
        content = self.model_dump(mode="json")
        return {**content, "sha256": _digest_of(content)}

    def digest(self) -> str:
        """The SHA-256 of the document without itself, as the file states it."""
        return _digest_of(self.model_dump(mode="json"))

    def curve(self, structure: str, quantity: Quantity, sex: Sex) -> Curve | None:
        """The curve of one quantity of one structure; None if there is none.

        Raises:
            InvalidValueError: the quantity or the sex is not one of those that a document can have.
        """
        if quantity not in get_args(Quantity) or sex not in get_args(Sex):
            raise InvalidValueError(
                f"{quantity!r} and {sex!r}: expected one of {get_args(Quantity)} and one of {get_args(Sex)}"
            )
        asked = structure, quantity, sex
        return next((each for each in self.curves if (each.structure, each.quantity, each.sex) == asked), None)

    def percentile_of(
        self, structure: str, quantity: Quantity, value: float, age_years: float, sex: Sex
    ) -> Percentile | None:
        """The percentile of ``value`` (ml or HU); None if there is no curve, or none at this age.

        Raises:
            InvalidValueError: see :meth:`curve`, or the value is not finite.
        """
        curve = self.curve(structure, quantity, sex)
        return None if curve is None else curve.percentile_of(value, age_years)


def read_percentiles(path: Path, model_digest: str | None = None) -> References:
    """The document at ``path``. ``model_digest``: that of the model whose values are to be placed in it.

    Raises:
        ConfigurationError: it can't be read, is another document or version, was changed, has other content than
            expected, or is of a model with another digest.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        seen, version, digest = document["schema_name"], document["schema_version"], document.pop("sha256")
    except OSError as error:
        raise ConfigurationError(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{path} is no file of reference percentiles of dicom-node") from error
    if seen != SCHEMA_NAME:
        raise ConfigurationError(f"{path} has the schema {seen!r}, expected {SCHEMA_NAME!r}")
    if version != SCHEMA_VERSION:
        raise ConfigurationError(f"{path} has version {version!r} of the schema, expected {SCHEMA_VERSION}")
    if digest != _digest_of(document):
        raise ConfigurationError(f"{path} was changed after it was written: its SHA-256 is not the stated one")
    try:
        references = References.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise ConfigurationError(f"{path} has other content than expected: {_faults(error)}") from error
    if references.digest() != digest:
        raise ConfigurationError(f"{path} has other content than expected: its values are not written as by dicom-node")
    if model_digest is not None and (references.model.digest != model_digest or not model_digest):
        raise ConfigurationError(
            f"{path} is of a model with the digest {references.model.digest or 'unknown'}, expected "
            f"{model_digest or 'a known one'}: values of different models can't be compared"
        )
    return references


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _faults(error: ValidationError) -> str:
    faults = error.errors(include_url=False)
    first = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'document'}: {each['msg']}" for each in faults[:_FAULTS])
    return first if len(faults) <= _FAULTS else f"{first}; and {len(faults) - _FAULTS} more"
