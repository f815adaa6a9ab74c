"""Spearman's rank correlation of one quantity with many, with p and intervals; missing values are left out per column.

Coefficient and p are those of ``scipy.stats.spearmanr``. Of the two intervals, Bonett and Wright's (Psychometrika 65,
2000) is computed from coefficient and number alone; the bootstrap draws subjects, and makes no assumptions about the
distribution. scipy has neither; one replicate at a time, its ``spearmanr`` takes hours for a table.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtri, stdtr
from scipy.stats import rankdata

from inference.statistics.bootstrap import LEVEL, percentile_interval
from inference.statistics.ranks import Ties, doubled_ranks
from inference.types import InvalidValueError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inference.statistics.ranks import Whole

FEWEST_PAIRS = 4
"""With fewer there is no interval."""
_FEWEST_FOR_COEFFICIENT = 3
_REPLICATES_PER_BLOCK = 64
"""Keeps the data of a block in the cache of a core."""
_MOST_FOR_32_BITS = 32_000
"""Subjects; the sum of their doubled ranks, at most twice the square of their number, is below 2^31."""


@dataclass(frozen=True, slots=True)
class Correlations:
    """Per column; NaN where there are fewer than three pairs, or one variable is constant.

    ``low`` and ``high`` are percentiles of the bootstrap, ``formula_low`` and ``formula_high`` Bonett and Wright's.
    """

    counts: NDArray[np.int64]
    coefficients: NDArray[np.float64]
    p_values: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    formula_low: NDArray[np.float64]
    formula_high: NDArray[np.float64]


def spearman(
    x: NDArray[np.float64],
    columns: NDArray[np.float64],
    drawn: NDArray[np.int32],
    *,
    level: float = LEVEL,
    threads: int | None = None,
) -> Correlations:
    """Correlate ``x`` [subject] with each of ``columns`` [subject, column]; NaN marks a missing value in either.

    ``drawn`` [replicate, subject] is from :func:`~inference.statistics.bootstrap.draws`; without replicates there is
    no bootstrap interval. ``threads``: one per core unless given.

    Raises:
        InvalidValueError: the numbers of subjects differ.
    """
    if not len(x) == len(columns) == drawn.shape[1]:
        raise InvalidValueError(f"{len(x)}, {len(columns)} and {drawn.shape[1]} subjects, expected one number")
    size = columns.shape[1]
    coefficients, counts = np.full(size, np.nan), np.zeros(size, np.int64)
    replicated = np.full((len(drawn), size), np.nan)
    counts_of_subject: Whole = np.ascontiguousarray(drawn.T)
    if len(x) > _MOST_FOR_32_BITS:
        counts_of_subject = counts_of_subject.astype(np.int64)

    def correlate(column: int) -> None:
        pairs = np.flatnonzero(np.isfinite(x) & np.isfinite(columns[:, column]))
        counts[column] = len(pairs)
        coefficients[column] = _coefficient(x[pairs], columns[pairs, column])
        if np.isfinite(coefficients[column]) and len(pairs) >= FEWEST_PAIRS:
            replicated[:, column] = _in_replicates(x, columns[:, column], pairs, counts_of_subject)

    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        list(pool.map(correlate, range(size)))
    formula_low, formula_high = bonett_wright_interval(coefficients, counts, level)
    low, high = percentile_interval(replicated, level)
    return Correlations(counts, coefficients, p_values(coefficients, counts), low, high, formula_low, formula_high)


def p_values(coefficients: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Two-sided p of no correlation, by Student's t with n - 2 degrees of freedom for n pairs."""
    enough = counts >= _FEWEST_FOR_COEFFICIENT
    degrees = np.where(enough, counts - 2.0, np.nan)
    with np.errstate(divide="ignore"):
        t = coefficients * np.sqrt(degrees / ((1 + coefficients) * (1 - coefficients)))
    result: NDArray[np.float64] = 2 * stdtr(degrees, -np.abs(t))
    return result


def bonett_wright_interval(
    coefficients: NDArray[np.float64], counts: NDArray[np.int64], level: float = LEVEL
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fisher's z with the variance (1 + r²/2) / (n - 3) of Spearman's coefficient; NaN below four pairs."""
    enough = counts >= FEWEST_PAIRS
    variance = (1 + coefficients**2 / 2) / np.where(enough, counts - 3.0, np.nan)
    half = ndtri((1 + level) / 2) * np.sqrt(variance)
    with np.errstate(divide="ignore"):
        z = np.arctanh(coefficients)
    return np.tanh(z - half), np.tanh(z + half)


def _coefficient(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    if len(x) < _FEWEST_FOR_COEFFICIENT or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def _in_replicates(
    x: NDArray[np.float64], y: NDArray[np.float64], pairs: NDArray[np.intp], counts_of_subject: Whole
) -> NDArray[np.float64]:
    """The coefficient over ``pairs`` in each replicate, NaN in one in which either is constant."""
    ascending = pairs[np.argsort(y[pairs], kind="stable")]
    by_x, by_y = (Ties.of(values[ascending], counts_of_subject.dtype) for values in (x, y))
    result = np.full(counts_of_subject.shape[1], np.nan)
    for first in range(0, len(result), _REPLICATES_PER_BLOCK):
        block = slice(first, first + _REPLICATES_PER_BLOCK)
        counts = counts_of_subject[ascending, block]
        of_x, of_y = by_x.per_value(counts), by_y.per_value(counts) if by_y.exist else counts
        number = counts.sum(axis=0, dtype=counts.dtype)
        x_ranks, y_ranks = _centred_ranks(of_x, number), _centred_ranks(of_y, number)
        weighted = (by_y.spread(y_ranks) if by_y.exist else y_ranks) * counts
        # subjects with equal x have equal ranks: sum over them first
        covariance = (by_x.per_value(weighted).astype(np.int64) * x_ranks).sum(axis=0)
        scale = np.sqrt(_squares(of_x, number)) * np.sqrt(_squares(of_y, number))
        np.divide(covariance, scale, out=result[block], where=scale > 0)
    return result


def _centred_ranks(counts: Whole, number: Whole) -> Whole:
    ranks = doubled_ranks(counts)
    ranks -= number + 1
    return ranks


def _squares(counts: Whole, number: Whole) -> NDArray[np.float64]:
    """The sum of the squares of the doubled centred ranks: (N³ - sum of t³) / 3 over ties of t (Kendall 1945)."""
    cubes = np.einsum("vr,vr,vr->r", counts, counts, counts, dtype=np.float64)
    result: NDArray[np.float64] = (number.astype(np.float64) ** 3 - cubes) / 3
    return result
