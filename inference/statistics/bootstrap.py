"""Bootstrap over subjects (Efron and Tibshirani, 1993), for many columns with missing values at once.

This is our own code because ``scipy.stats.bootstrap`` has no missing values and computes one statistic per call.
For a column without missing values and with the same draws, the intervals equal scipy's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.special import ndtr, ndtri

from inference.types import InvalidValueError

if TYPE_CHECKING:
    from numpy.typing import NDArray

REPLICATES = 1000
LEVEL = 0.95
"""Confidence level of an interval."""
FEWEST_SUBJECTS = 2
"""With fewer values there is no interval."""

Method = Literal["percentile", "bca"]
"""``bca``: bias-corrected and accelerated; better than the percentiles for skewed values and few subjects."""


@dataclass(frozen=True, slots=True)
class Means:
    """Mean of each column with its interval; NaN if there is nothing to average, or an interval has one subject."""

    counts: NDArray[np.int64]
    values: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def draws(subjects: int, replicates: int = REPLICATES, seed: int = 0) -> NDArray[np.int32]:
    """How often each subject is drawn in each replicate, [replicate, subject]; equal arguments give equal draws."""
    random = np.random.default_rng(seed)
    return random.multinomial(subjects, np.full(subjects, 1 / subjects), size=replicates).astype(np.int32)


def means(
    values: NDArray[np.float64], drawn: NDArray[np.int32], *, method: Method = "bca", level: float = LEVEL
) -> Means:
    """The means of ``values`` [subject, column] over the subjects that have a value; NaN marks missing values.

    Raises:
        InvalidValueError: ``drawn`` is for another number of subjects.
    """
    if drawn.shape[1] != len(values):
        raise InvalidValueError(f"draws are of {drawn.shape[1]} subjects, the values of {len(values)}")
    present = np.isfinite(values)
    counts = present.sum(axis=0)
    filled = np.where(present, values, 0.0)
    observed = _ratio(filled.sum(axis=0), counts.astype(np.float64))
    weights = drawn.astype(np.float64)
    replicated = _ratio(weights @ filled, weights @ present.astype(np.float64))
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    bounds = np.full((2, values.shape[1]), np.nan)
    for column in np.flatnonzero(counts >= FEWEST_SUBJECTS):
        estimates = replicated[:, column]
        estimates = estimates[np.isfinite(estimates)]
        own = values[present[:, column], column]
        if np.ptp(own) == 0:
            bounds[:, column] = own[0]
            continue
        at = _accelerated(tails, estimates, observed[column], own) if method == "bca" else tails
        bounds[:, column] = np.quantile(estimates, at)
    return Means(counts, observed, bounds[0], bounds[1])


def percentile_interval(
    replicated: NDArray[np.float64], level: float = LEVEL
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentile bounds of ``replicated`` [replicate, column]; NaN for a column in which every replicate is NaN."""
    low, high = np.full((2, replicated.shape[1]), np.nan)
    known = np.isfinite(replicated).any(axis=0)
    if known.any():
        low[known], high[known] = np.nanquantile(replicated[:, known], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def _ratio(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=counts > 0)
    return result


def _accelerated(
    tails: NDArray[np.float64], estimates: NDArray[np.float64], observed: float, own: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The quantiles of the replicates used as bounds (Efron 1987); the jackknife of a mean has a closed form."""
    below = ((estimates < observed).mean() + (estimates <= observed).mean()) / 2
    bias = ndtri(below)
    if not np.isfinite(bias):  # every replicate is on one side of the mean
        return tails
    deviations = own - own.mean()
    acceleration = (deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5)
    shifted = bias + ndtri(tails)
    result: NDArray[np.float64] = ndtr(bias + shifted / (1 - acceleration * shifted))
    return result
