"""``dicom-node cohort percentiles``: read, select as the age study does, fit, write."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from dicom_node import __version__
from dicom_node.age_study.selection import select
from dicom_node.age_study.sources import read_source
from dicom_node.age_study.study import members
from dicom_node.dataset.files import write_json
from dicom_node.percentiles import (
    NEAR_YEARS,
    PERCENTILES,
    SCHEMA_NAME,
    SCHEMA_VERSION,
    STATEMENT,
    Curve,
    NoCurve,
    OfModel,
    References,
    Sample,
)
from inference.statistics.quantiles import percentile_curves
from inference.types import InvalidValueError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from dicom_node.age_study.selection import Population, Rules
    from dicom_node.percentiles import Quantity, Sex

FEWEST_PATIENTS = 120
"""Of a curve: CLSI EP28-A3c asks for as many for the percentiles 2.5 and 97.5."""
FEWEST_NEAR = 10
"""Within :data:`NEAR_YEARS` of an age; a curve has no value at other ages."""
_QUANTITIES: tuple[Quantity, ...] = ("volume_ml", "mean_hu")
_SEXES: tuple[Sex, ...] = ("all", "F", "M")
_DIGITS = 6
_METHOD = (
    "Each percentile by quantile regression (Koenker and Bassett 1978; scipy's HiGHS) on a natural cubic spline "
    "of age with knots at the 5th, 35th, 65th and 95th percentile of the ages, of the logarithm of a volume and of the "
    "mean attenuation itself. The fitted values are sorted at each age, so that percentiles don't cross (Chernozhukov, "
    f"Fernandez-Val and Galichon, Econometrica 78:1093, 2010). Ages with fewer than {FEWEST_NEAR} patients within "
    f"{NEAR_YEARS} years have no values."
)


def run_percentiles(source: Path, out: Path, rules: Rules, cohort: str) -> References:
    """Fit the percentiles of the table ``source`` and write them to the file ``out``.

    Results name the patients by ``cohort``, which has 1 to :data:`~dicom_node.percentiles.LONGEST_NAME` characters.

    Raises:
        ConfigurationError: there is no table, nothing in it can be used, or ``out`` can't be written.
    """
    table = read_source(source)
    population = select(table, rules)
    fitted = [
        _fitted(population, structure, quantity, sex)
        for structure in population.structures
        for quantity in _QUANTITIES
        for sex in _SEXES
    ]
    model = population.model
    references = References(
        schema_name=SCHEMA_NAME,
        schema_version=SCHEMA_VERSION,
        statement=STATEMENT,
        created_at=datetime.now(UTC).replace(microsecond=0),
        node_version=__version__,
        model=OfModel(name=model.name, version=model.version, digest=model.digest),
        method=_METHOD,
        sample=Sample(
            cohort=cohort,
            source=table.description,
            source_digest=table.digest(),
            selection=str(rules),
            women=int((population.sexes == "F").sum()),
            men=int((population.sexes == "M").sum()),
            values_left_out=dict(Counter(each.reason for each in population.values_left_out())),
            **population.counts(),
        ),
        percentiles=PERCENTILES,
        fewest_patients=FEWEST_PATIENTS,
        curves=tuple(each for each in fitted if isinstance(each, Curve)),
        left_out=tuple(each for each in fitted if isinstance(each, NoCurve)),
    )
    write_json(out, references.document())
    return references


def _fitted(population: Population, structure: str, quantity: Quantity, sex: Sex) -> Curve | NoCurve:
    values = getattr(population, quantity)[:, population.structures.index(structure)]
    own = members(population, sex) & np.isfinite(values)
    ages, patients = population.ages_years[own], int(own.sum())

    def without(reason: str) -> NoCurve:
        return NoCurve(structure=structure, quantity=quantity, sex=sex, patients=patients, reason=reason)

    if patients < FEWEST_PATIENTS:
        return without(f"{patients} patients have a value, expected at least {FEWEST_PATIENTS}")
    is_volume = quantity == "volume_ml"
    if is_volume and values[own].min() <= 0:
        return without("a volume is not positive")
    at, near = ages_with_patients(ages)
    if not len(at):
        return without(f"no whole year of age has {FEWEST_NEAR} patients within {NEAR_YEARS} years")
    try:
        fitted = percentile_curves(ages, np.log(values[own]) if is_volume else values[own], PERCENTILES, at)
    except InvalidValueError as error:
        return without(str(error))
    return Curve(
        structure=structure,
        quantity=quantity,
        sex=sex,
        patients=patients,
        ages_years=tuple(at.astype(int).tolist()),
        patients_near=tuple(near.tolist()),
        values=tuple(tuple(map(_rounded, row)) for row in (np.exp(fitted) if is_volume else fitted).tolist()),
    )


def ages_with_patients(ages_years: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The whole years within the range of ``ages_years`` with enough patients near, and how many these are."""
    at = np.arange(np.ceil(ages_years.min()), np.floor(ages_years.max()) + 1)
    near = (np.abs(ages_years[:, None] - at) <= NEAR_YEARS).sum(axis=0)
    has_enough = near >= FEWEST_NEAR
    return at[has_enough], near[has_enough]


def _rounded(value: float) -> float:
    """To six digits; keeps the order."""
    return float(f"{value:.{_DIGITS}g}")
