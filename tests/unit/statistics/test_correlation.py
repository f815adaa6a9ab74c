"""Rank correlations against scipy, for the table and for every replicate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from inference.statistics.bootstrap import draws
from inference.statistics.correlation import bonett_wright_interval, spearman
from inference.types import InvalidValueError

NO_DRAWS = 0


def table(subjects=60, columns=5, seed=0):
    random = np.random.default_rng(seed)
    age = random.integers(20, 90, subjects).astype(float)
    values = random.normal(size=(subjects, columns)) + 0.03 * age[:, None]
    values[:, 1] = np.round(values[:, 1])  # ties
    values[random.random(values.shape) < 0.2] = np.nan
    return age, values


def test_coefficient_and_p_equal_scipys():
    age, values = table()
    age[3] = np.nan
    found = spearman(age, values, draws(60, NO_DRAWS))
    for column in range(5):
        pairs = np.isfinite(age) & np.isfinite(values[:, column])
        expected = stats.spearmanr(age[pairs], values[pairs, column])
        assert found.counts[column] == pairs.sum()
        assert found.coefficients[column] == pytest.approx(expected.statistic, abs=1e-12)
        assert found.p_values[column] == pytest.approx(expected.pvalue, rel=1e-9, abs=1e-12)
    assert np.isnan(found.low).all()


def test_bootstrap_equals_scipys_replicate_by_replicate():
    age, values = table()
    drawn = draws(60, 130, seed=8)  # more than one block
    found = spearman(age, values, drawn, level=0.9, threads=2)
    for column in range(5):
        pairs = np.isfinite(values[:, column])
        replicated = [
            stats.spearmanr(
                np.repeat(age[pairs], times[pairs]), np.repeat(values[pairs, column], times[pairs])
            ).statistic
            for times in drawn
        ]
        expected = np.quantile(replicated, [0.05, 0.95])
        assert (found.low[column], found.high[column]) == pytest.approx(tuple(expected), abs=1e-12)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=4, max_size=12),
    st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_ties_are_ranked_like_in_scipy(pairs, seed):
    x, y = np.array(pairs, float).T
    drawn = draws(len(x), 1, seed)
    repeated = np.repeat(x, drawn[0]), np.repeat(y, drawn[0])
    found = spearman(x, y[:, None], drawn)
    if np.ptp(x) and np.ptp(y) and np.ptp(repeated[0]) and np.ptp(repeated[1]):
        assert found.low[0] == pytest.approx(stats.spearmanr(*repeated).statistic, abs=1e-12)
    else:
        assert np.isnan(found.low[0])


def test_undefined_correlations():
    age = np.array([20.0, 30, 40, 50, 60])
    values = np.array([[1.0, 1, np.nan], [1, np.nan, np.nan], [1, np.nan, np.nan], [1, 3, 5], [1, 2, 4]])
    found = spearman(age, values, draws(5, 10))
    assert found.counts.tolist() == [5, 3, 2]
    assert np.isnan(found.coefficients).tolist() == [True, False, True]
    assert np.isnan(found.p_values).tolist() == [True, False, True]
    assert np.isnan(found.low).all()
    assert np.isnan(found.formula_low).all()


def test_perfect_correlation():
    found = spearman(np.arange(9.0), np.arange(9.0)[:, None] ** 3, draws(9, 50))
    assert (found.coefficients[0], found.p_values[0]) == (1, 0)
    assert (found.low[0], found.high[0]) == pytest.approx((1, 1), abs=1e-12)
    assert (found.formula_low[0], found.formula_high[0]) == (1, 1)


def test_bonett_and_wrights_interval():
    # r = 0.5 of 28 pairs: z = 0.5493, variance (1 + 0.125) / 25 = 0.045, half width 1.95996 x 0.21213 = 0.41577
    low, high = bonett_wright_interval(np.array([0.5]), np.array([28]))
    assert (low[0], high[0]) == pytest.approx((np.tanh(0.549306 - 0.415771), np.tanh(0.549306 + 0.415771)), abs=1e-5)


def test_different_numbers_of_subjects_are_refused():
    with pytest.raises(InvalidValueError, match="5, 4 and 5 subjects"):
        spearman(np.zeros(5), np.zeros((4, 1)), draws(5, 1))
