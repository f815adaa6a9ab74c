"""Paired comparison of scores: every structure, every group of structures, and over all, for each two systems.

Scores of structures of one subject are not independent: a scan with much noise or metal is hard in all of its
structures. Therefore groups and "all" are compared on one value per subject, the mean over the structures that both
systems have a score of, and the number of a test is that of subjects.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dicom_node.evaluate.cases import Problem
from inference.evaluation.means import Mean
from inference.statistics.bootstrap import REPLICATES, draws
from inference.statistics.multiple import benjamini_hochberg, holm
from inference.statistics.paired import compare

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from dicom_node.compare.scores import Scored
    from inference.statistics.paired import Comparisons

Kind = Literal["all", "group", "structure"]
Measure = Literal["dice", "surface_dice", "hd95_mm", "volume_error"]
IS_LARGER_BETTER: dict[Measure, bool] = {
    "dice": True,
    "surface_dice": True,
    "hd95_mm": False,
    "volume_error": False,
}
ALL = "all"
SIGNIFICANT = 0.05
"""Limit of Holm's p-value under which one of two is called better."""


def smallest_p(subjects: int) -> float:
    """The smallest p-value that the exact signed-rank test can give: all differences have one sign (0.0625 for 5)."""
    return min(1.0, 2.0 ** (1 - subjects))


@dataclass(frozen=True, slots=True)
class Difference:
    """One measure of two systems on one line of a table; NaN where there are no pairs.

    ``difference``: first less second, the mean over the subjects with its interval (BCa). ``effect``: matched-pairs
    rank-biserial correlation, 1 where the first is larger in every subject. ``p_holm`` and ``p_fdr`` are corrected over
    all lines of this measure and kind, and over all pairs of systems. ``missed_first``: pairs in which the first system
    did not find a structure of the truth; they have neither HD95 nor volume error.
    """

    first: str
    second: str
    measure: Measure
    of: Kind
    name: str
    subjects: int
    first_mean: float
    second_mean: float
    difference: Mean
    median: float
    statistic: float
    p: float
    p_holm: float
    p_fdr: float
    effect: Mean
    missed_first: int
    missed_second: int

    @property
    def better(self) -> str | None:
        """The system that Holm's p-value and the effect speak for; None if it is neither."""
        if not self.p_holm < SIGNIFICANT or not self.effect.value:
            return None
        return self.first if (self.effect.value > 0) == IS_LARGER_BETTER[self.measure] else self.second

    def as_row(self) -> dict[str, Any]:
        """Plain values; None for NaN."""
        content = asdict(self)
        for key in ("difference", "effect"):
            mean: Mean = getattr(self, key)
            content |= {key: mean.value, f"{key}_low": mean.low, f"{key}_high": mean.high}
        content["better"] = self.better
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in content.items()
        }


@dataclass(frozen=True, slots=True)
class _Scores:
    """The measures of one system as [subject, structure], NaN where there is none."""

    name: str
    measures: dict[Measure, NDArray[np.float64]]
    missed: NDArray[np.bool_]

    @classmethod
    def of(cls, system: Scored, subjects: Sequence[str], structures: Sequence[str]) -> _Scores:
        row = {name: number for number, name in enumerate(subjects)}
        column = {name: number for number, name in enumerate(structures)}
        shape = len(subjects), len(structures)
        measures: dict[Measure, NDArray[np.float64]] = {key: np.full(shape, np.nan) for key in IS_LARGER_BETTER}
        missed = np.zeros(shape, np.bool_)
        for score in system.scores:
            place = row[score.subject], column[score.structure]
            missed[place] = score.is_missed
            for key, values in measures.items():
                value = getattr(score, key)
                values[place] = np.nan if value is None else value
        return cls(system.name, measures, missed)


def differences(
    systems: Sequence[Scored], *, replicates: int = REPLICATES, seed: int = 0
) -> tuple[tuple[Difference, ...], list[Problem]]:
    """Each two of ``systems`` compared in every measure, and the scores that have no pair."""
    subjects = sorted({subject for each in systems for subject in each.subjects})
    group_by_structure = {score.structure: score.group for each in systems for score in each.scores}
    structures = tuple(group_by_structure)
    tables = [_Scores.of(each, subjects, structures) for each in systems]
    drawn = draws(len(subjects), replicates, seed)
    found: list[Difference] = []
    for measure in IS_LARGER_BETTER:
        rows: list[Difference] = []
        for first, second in combinations(tables, 2):
            rows += _compared(first, second, measure, group_by_structure, drawn)
        found += _corrected(rows)
    return tuple(found), [
        problem for pair in combinations(tables, 2) for problem in _without_pair(*pair, subjects, structures)
    ]


def _compared(
    first: _Scores,
    second: _Scores,
    measure: Measure,
    group_by_structure: dict[str, str],
    drawn: NDArray[np.int32],
) -> Iterator[Difference]:
    one, other = first.measures[measure], second.measures[measure]
    is_pair = np.isfinite(one) & np.isfinite(other)
    one, other = np.where(is_pair, one, np.nan), np.where(is_pair, other, np.nan)
    both_scored = np.isfinite(first.measures["dice"]) & np.isfinite(second.measures["dice"])
    groups = np.array(list(group_by_structure.values()))
    lines: list[tuple[Kind, str, NDArray[np.intp]]] = [("all", ALL, np.arange(len(groups)))]
    lines += [("group", group, np.flatnonzero(groups == group)) for group in dict.fromkeys(groups.tolist())]
    lines += [("structure", name, np.array([column])) for column, name in enumerate(group_by_structure)]
    columns = [np.stack([_mean(values[:, of]) for _, _, of in lines], axis=1) for values in (one, other)]
    result = compare(columns[0], columns[1], drawn)
    means = [_mean(each.T) for each in columns]
    for number, (kind, name, of) in enumerate(lines):
        yield Difference(
            first=first.name,
            second=second.name,
            measure=measure,
            of=kind,
            name=name,
            subjects=int(result.differences.counts[number]),
            first_mean=float(means[0][number]),
            second_mean=float(means[1][number]),
            **_tested(result, number),
            p_holm=float("nan"),
            p_fdr=float("nan"),
            missed_first=int((first.missed & both_scored)[:, of].sum()),
            missed_second=int((second.missed & both_scored)[:, of].sum()),
        )


def _tested(result: Comparisons, at: int) -> dict[str, Any]:
    mean = result.differences
    return {
        "difference": Mean(float(mean.values[at]), float(mean.low[at]), float(mean.high[at])),
        "median": float(result.medians[at]),
        "statistic": float(result.statistics[at]),
        "p": float(result.p_values[at]),
        "effect": Mean(float(result.effects[at]), float(result.effects_low[at]), float(result.effects_high[at])),
    }


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each row, over what is not NaN."""
    present = np.isfinite(values)
    counts = present.sum(axis=1)
    sums = np.where(present, values, 0.0).sum(axis=1)
    result: NDArray[np.float64] = np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)
    return result


def _corrected(rows: Sequence[Difference]) -> list[Difference]:
    """With the p-values corrected over all rows of the same kind."""
    result = list(rows)
    for kind in ("all", "group", "structure"):
        places = [place for place, row in enumerate(rows) if row.of == kind]
        p = np.array([rows[place].p for place in places])
        for place, by_holm, by_fdr in zip(places, holm(p), benjamini_hochberg(p), strict=True):
            result[place] = replace(rows[place], p_holm=float(by_holm), p_fdr=float(by_fdr))
    return result


def _without_pair(
    first: _Scores, second: _Scores, subjects: Sequence[str], structures: Sequence[str]
) -> Iterator[Problem]:
    """Subjects, structures and single scores that only one of two systems has."""
    for own, other in ((first, second), (second, first)):
        mine, theirs = np.isfinite(own.measures["dice"]), np.isfinite(other.measures["dice"])
        words = f"scored for {own.name} only, so not compared with {other.name}"
        rows, columns = np.asarray(theirs.any(axis=1)), np.asarray(theirs.any(axis=0))
        for row in np.flatnonzero(mine.any(axis=1) & ~rows).tolist():
            yield Problem(subjects[row], words)
        for column in np.flatnonzero(mine.any(axis=0) & ~columns).tolist():
            yield Problem(structures[column], words)
        for row, column in np.argwhere(mine & ~theirs & np.outer(rows, columns)).tolist():
            yield Problem(subjects[row], f"{structures[column]}: {words}")
