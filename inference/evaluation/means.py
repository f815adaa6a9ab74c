"""Means of scores over subjects and structures, with 95 % confidence intervals by bootstrap.

A mean over several structures is the mean of their means, so that each structure counts the same, however many
subjects have it. The bootstrap (Efron and Tibshirani, 1993) draws whole subjects with replacement, because the scores
of one subject belong together; an interval is that of the 2.5th and 97.5th percentile of the means of the draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

REPLICATES = 1000
_BOUNDS = (2.5, 97.5)
_FEWEST_SUBJECTS = 2


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean with its interval; NaN where there is nothing to average. ``low`` and ``high`` are NaN for one subject."""

    value: float
    low: float
    high: float


def draws(subjects: int, replicates: int = REPLICATES, seed: int = 0) -> NDArray[np.int64]:
    """How often each subject is drawn in each replicate, [replicate, subject]; the same arguments, the same draws."""
    random = np.random.default_rng(seed)
    return random.multinomial(subjects, np.full(subjects, 1 / subjects), size=replicates)


def mean_of_means(scores: NDArray[np.float64], drawn: NDArray[np.int64]) -> Mean:
    """Of ``scores`` [subject, structure], NaN where a score does not count."""
    value = _means(scores, np.ones((1, len(scores)), np.int64))[0]
    if np.isfinite(scores).any(axis=1).sum() < _FEWEST_SUBJECTS:
        return Mean(float(value), float("nan"), float("nan"))
    low, high = np.nanpercentile(_means(scores, drawn), _BOUNDS)
    return Mean(float(value), float(low), float(high))


def _means(scores: NDArray[np.float64], drawn: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean of the structures' means in each replicate; NaN in one that has drawn no score."""
    counts = np.isfinite(scores)
    times = drawn @ counts.astype(np.float64)
    sums = drawn @ np.where(counts, scores, 0.0)
    of_structures = np.divide(sums, times, out=np.zeros_like(sums), where=times > 0)
    structures = (times > 0).sum(axis=1)
    total = of_structures.sum(axis=1)
    result: NDArray[np.float64] = np.divide(total, structures, out=np.full_like(total, np.nan), where=structures > 0)
    return result
