"""Two measurements of the same subjects: Wilcoxon's signed-rank test with an effect size, column by column.

The test is scipy's. The effect size is the matched-pairs rank-biserial correlation (Kerby 2014): the share of the rank
sum that favours the first measurement minus the share that favours the second; 1 if the first is larger in every
subject, 0 if neither prevails. Pairs without a difference are left out of test and effect size (Wilcoxon 1945).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import wilcoxon

from inference.statistics.bootstrap import LEVEL, Means, means, percentile_interval
from inference.statistics.ranks import Ties, doubled_ranks

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Per column; NaN where there is no pair. ``differences``: first minus second, mean with its interval (BCa)."""

    differences: Means
    medians: NDArray[np.float64]
    statistics: NDArray[np.float64]
    p_values: NDArray[np.float64]
    effects: NDArray[np.float64]
    effects_low: NDArray[np.float64]
    effects_high: NDArray[np.float64]


def compare(
    first: NDArray[np.float64], second: NDArray[np.float64], drawn: NDArray[np.int32], *, level: float = LEVEL
) -> Comparisons:
    """Compare each column of ``first`` with that of ``second``, both [subject, column]; NaN in either: no pair.

    Where no pair differs, p is 1 and the effect 0. ``drawn``: from :func:`~inference.statistics.bootstrap.draws`.
    """
    differences = first - second
    size = differences.shape[1]
    statistics, p, medians, effects = np.full((4, size), np.nan)
    replicated = np.full((len(drawn), size), np.nan)
    for column in range(size):
        pairs = np.flatnonzero(np.isfinite(differences[:, column]))
        own = differences[pairs, column]
        if not len(own):
            continue
        medians[column] = np.median(own)
        is_different = own != 0
        if not is_different.any():
            statistics[column], p[column], effects[column] = 0.0, 1.0, 0.0
            replicated[:, column] = 0.0
            continue
        test = wilcoxon(own[is_different])
        statistics[column], p[column] = float(test.statistic), float(test.pvalue)
        replicated[:, column] = _effects(own[is_different], drawn[:, pairs[is_different]])
        effects[column] = _effects(own[is_different], np.ones((1, int(is_different.sum())), np.int32))[0]
    low, high = percentile_interval(replicated, level)
    return Comparisons(means(differences, drawn, level=level), medians, statistics, p, effects, low, high)


def _effects(differences: NDArray[np.float64], drawn: NDArray[np.int32]) -> NDArray[np.float64]:
    """The effect size in each replicate; 0 in a replicate without differences."""
    counts = drawn.T.astype(np.int64)
    ties = Ties.of(np.abs(differences), counts.dtype)
    ranks = ties.spread(doubled_ranks(ties.per_value(counts))) * counts
    total = ranks.sum(axis=0)
    favouring = (ranks * np.sign(differences)[:, None]).sum(axis=0)
    result: NDArray[np.float64] = np.divide(favouring, total, out=np.zeros(len(drawn)), where=total > 0)
    return result
