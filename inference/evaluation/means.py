"""Means of scores over subjects and structures, with 95 % confidence intervals by bootstrap.

A mean over several structures is the mean of their means, so that each structure counts equally, however many
subjects have it. The bootstrap (Efron and Tibshirani, 1993) draws whole subjects with replacement, because the scores
of one subject are correlated; the draws and the percentiles are those of :mod:`inference.statistics.bootstrap`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from inference.statistics.bootstrap import FEWEST_SUBJECTS, percentile_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean with its interval; NaN if there is nothing to average. ``low`` and ``high`` are NaN for one subject."""

    value: float
    low: float
    high: float


def mean_of_means(scores: NDArray[np.float64], drawn: NDArray[np.int32]) -> Mean:
    """The mean of means of ``scores`` [subject, structure]; NaN marks a score that does not count."""
    value = _means(scores, np.ones((1, len(scores)), np.int32))[0]
    if np.isfinite(scores).any(axis=1).sum() < FEWEST_SUBJECTS:
        return Mean(float(value), float("nan"), float("nan"))
    low, high = percentile_interval(_means(scores, drawn)[:, None])
    return Mean(float(value), float(low[0]), float(high[0]))


def _means(scores: NDArray[np.float64], drawn: NDArray[np.int32]) -> NDArray[np.float64]:
    """The mean of the structures' means in each replicate; NaN in a replicate without any score."""
    counts = np.isfinite(scores)
    times = drawn @ counts.astype(np.float64)
    sums = drawn @ np.where(counts, scores, 0.0)
    of_structures = np.divide(sums, times, out=np.zeros_like(sums), where=times > 0)
    structures = (times > 0).sum(axis=1)
    total = of_structures.sum(axis=1)
    result: NDArray[np.float64] = np.divide(total, structures, out=np.full_like(total, np.nan), where=structures > 0)
    return result
