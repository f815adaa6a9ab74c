"""Rank correlations of age with the volume and the mean attenuation of every structure, for all patients and by sex."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dicom_node.age_study.selection import ABSENT, TRUNCATED, TRUNCATION_UNKNOWN
from inference.statistics.bootstrap import REPLICATES, draws
from inference.statistics.correlation import spearman
from inference.statistics.multiple import benjamini_hochberg, holm
from inference.statistics.trends import trend

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dicom_node.age_study.selection import Population

QUANTITIES = ("volume_ml", "mean_hu")
GROUPS = {"all": "all patients", "F": "women", "M": "men"}
FEWEST_PATIENTS = 10
"""With a value; fewer are not tested."""
PAPER: Mapping[tuple[str, str], float] = {
    ("aorta", "volume_ml"): 0.64,
    ("autochthon_left", "mean_hu"): -0.74,
    ("autochthon_right", "mean_hu"): -0.74,
}
"""Spearman's coefficients of arXiv 2208.05868, over 4004 whole-body CTs. It has one for the autochthonous back muscle;
we have one for each side.
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One rank correlation. None where fewer than ten patients have a value, or all values are equal.

    ``patients`` is the number with a value. The interval is of the bootstrap, ``formula_*`` that of Bonett and Wright.
    ``p_holm`` and ``p_fdr`` are corrected for all tests of the same group of patients.
    """

    group: str
    structure: str
    quantity: str
    patients: int
    absent: int
    truncated: int
    truncation_unknown: int
    no_value: int
    r_s: float | None
    ci_low: float | None
    ci_high: float | None
    formula_low: float | None
    formula_high: float | None
    p: float | None
    p_holm: float | None
    p_fdr: float | None
    paper_r_s: float | None

    @property
    def difference(self) -> float | None:
        """Ours less the paper's."""
        return None if self.r_s is None or self.paper_r_s is None else self.r_s - self.paper_r_s


@dataclass(frozen=True, slots=True)
class Study:
    """``trends``: for (group, structure, quantity) the smoothed values at ``trend_ages_years``."""

    findings: tuple[Finding, ...]
    replicates: int
    trend_ages_years: NDArray[np.float64]
    trends: Mapping[tuple[str, str, str], NDArray[np.float64]]

    def of(self, group: str) -> dict[tuple[str, str], Finding]:
        """The findings of one group of patients by structure and quantity."""
        return {(each.structure, each.quantity): each for each in self.findings if each.group == group}


def members(population: Population, group: str) -> NDArray[np.bool_]:
    """Which patients are in the group ``all``, ``F`` or ``M``."""
    is_member: NDArray[np.bool_] = (population.sexes == group) | (group == "all")
    return is_member


def correlate(population: Population, replicates: int = REPLICATES, seed: int = 0) -> Study:
    """The study of ``population``, with ``replicates`` of the bootstrap."""
    ages = population.ages_years
    at = np.arange(np.ceil(ages.min()), np.floor(ages.max()) + 1)
    findings: list[Finding] = []
    trends = {}
    for group in GROUPS:
        own = members(population, group)
        if not own.any():
            continue
        findings += _findings(population, group, own, replicates, seed)
        for quantity in QUANTITIES:
            values = getattr(population, quantity)[own]
            for column, structure in enumerate(population.structures):
                trends[group, structure, quantity] = trend(ages[own], values[:, column], at)
    return Study(tuple(findings), replicates, at, trends)


def _findings(population: Population, group: str, own: NDArray[np.bool_], replicates: int, seed: int) -> list[Finding]:
    columns = np.concatenate([getattr(population, quantity)[own] for quantity in QUANTITIES], axis=1)
    counts = np.isfinite(columns).sum(axis=0)
    columns[:, counts < FEWEST_PATIENTS] = np.nan
    found = spearman(population.ages_years[own], columns, draws(int(own.sum()), replicates, seed))
    numbers: dict[str, NDArray[np.float64]] = {
        "r_s": found.coefficients,
        "ci_low": found.low,
        "ci_high": found.high,
        "formula_low": found.formula_low,
        "formula_high": found.formula_high,
        "p": found.p_values,
        "p_holm": holm(found.p_values),
        "p_fdr": benjamini_hochberg(found.p_values),
    }
    size = len(population.structures)
    left_out: dict[str, Any] = {
        title: (population.reasons[own] == reason).sum(axis=0).tolist()
        for title, reason in (
            ("absent", ABSENT),
            ("truncated", TRUNCATED),
            ("truncation_unknown", TRUNCATION_UNKNOWN),
        )
    }
    result = []
    for column in range(len(QUANTITIES) * size):
        quantity, place = QUANTITIES[column // size], column % size
        structure = population.structures[place]
        why = {title: counted[place] for title, counted in left_out.items()}
        tested: dict[str, Any] = {title: _number(values[column]) for title, values in numbers.items()}
        result.append(
            Finding(
                group=group,
                structure=structure,
                quantity=quantity,
                patients=int(counts[column]),
                **why,
                no_value=int(own.sum() - counts[column] - sum(why.values())),
                **tested,
                paper_r_s=PAPER.get((structure, quantity)) if group == "all" else None,
            )
        )
    return result


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
