"""Paired comparison against scipy; the effect size against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from inference.statistics.bootstrap import draws
from inference.statistics.paired import compare


def pairs(subjects=40, seed=0):
    random = np.random.default_rng(seed)
    first = random.normal(size=(subjects, 3))
    second = first + random.normal([0.3, 0, -0.5], 1, size=(subjects, 3))
    first[:6, 1] = np.nan
    second[4:9, 1] = np.nan
    return first, second


def effect_of(differences):
    """Over all Walsh averages: the share above 0 minus the share below (Tukey)."""
    i, j = np.triu_indices(len(differences))
    return np.sign(differences[i] + differences[j]).mean()


def test_p_values_equal_scipys():
    first, second = pairs()
    found = compare(first, second, draws(40, 50))
    for column in range(3):
        both = np.isfinite(first[:, column]) & np.isfinite(second[:, column])
        expected = stats.wilcoxon(first[both, column], second[both, column])
        assert found.differences.counts[column] == both.sum()
        assert found.statistics[column] == pytest.approx(expected.statistic, abs=1e-12)
        assert found.p_values[column] == pytest.approx(expected.pvalue, abs=1e-12)
        assert found.medians[column] == pytest.approx(np.median(first[both, column] - second[both, column]))


def test_effect_size_is_the_balance_of_walsh_averages():
    first, second = pairs(seed=1)
    found = compare(first, second, draws(40, 50))
    differences = (first - second)[:, 0]
    assert found.effects[0] == pytest.approx(effect_of(differences), abs=1e-12)


def test_interval_of_the_effect_size_is_over_replicates_of_subjects():
    first, second = pairs(seed=2)
    drawn = draws(40, 80, seed=3)
    found = compare(first, second, drawn, level=0.8)
    differences = (first - second)[:, 2]
    expected = []
    for times in drawn:
        own = np.repeat(differences, times)
        ranks = stats.rankdata(np.abs(own)) * np.sign(own)
        expected.append(ranks.sum() / np.abs(ranks).sum())
    bounds = found.effects_low[2], found.effects_high[2]
    assert bounds == pytest.approx(tuple(np.quantile(expected, [0.1, 0.9])), abs=1e-12)


def test_pairs_without_a_difference_count_for_neither_sign():
    first = np.array([[1.0], [2], [3], [4], [5], [6], [7], [8]])
    second = first - np.array([[0.0], [0], [0.1], [0.2], [0.3], [0.4], [0.5], [0.6]])
    found = compare(first, second, draws(8, 50))
    assert found.effects[0] == 1
    assert found.p_values[0] == pytest.approx(stats.wilcoxon([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]).pvalue)


def test_equal_measurements_and_no_measurement():
    first = np.array([[1.0, np.nan], [2, 1], [3, np.nan]])
    second = np.array([[1.0, 2], [2, np.nan], [3, np.nan]])
    found = compare(first, second, draws(3, 20))
    np.testing.assert_array_equal(found.p_values, [1, np.nan])
    np.testing.assert_array_equal(found.effects, [0, np.nan])
    np.testing.assert_array_equal(found.effects_low, [0, np.nan])
    np.testing.assert_array_equal(found.differences.counts, [3, 0])
