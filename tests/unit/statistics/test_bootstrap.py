"""Means and their bootstrap intervals, against scipy, and the coverage of the intervals."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from inference.statistics.bootstrap import draws, means, percentile_interval
from inference.types import InvalidValueError


def test_draws_have_the_number_of_subjects_and_are_repeatable():
    drawn = draws(30, 200, seed=4)
    assert drawn.shape == (200, 30)
    assert (drawn.sum(axis=1) == 30).all()
    assert (drawn == draws(30, 200, seed=4)).all()
    assert (drawn != draws(30, 200, seed=5)).any()


@pytest.mark.parametrize(("method", "scipys"), [("percentile", "percentile"), ("bca", "BCa")])
def test_intervals_equal_scipys_for_the_same_draws(method, scipys):
    values = np.random.default_rng(1).gamma(1.5, size=(41, 3))
    drawn = draws(41, 999, seed=2)
    found = means(values, drawn, method=method, level=0.9)
    for column in range(3):
        same = SimpleNamespace(bootstrap_distribution=drawn @ values[:, column] / 41)
        expected = stats.bootstrap(
            (values[:, column],), np.mean, n_resamples=0, bootstrap_result=same, method=scipys, confidence_level=0.9
        ).confidence_interval
        assert found.values[column] == pytest.approx(values[:, column].mean(), abs=1e-12)
        assert (found.low[column], found.high[column]) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_missing_values_are_ignored():
    values = np.random.default_rng(3).normal(size=(30, 2))
    values[5:12, 0] = np.nan
    drawn = draws(30, 500)
    found = means(values, drawn)
    kept = np.r_[0:5, 12:30]
    alone = means(values[kept, :1], drawn[:, kept])
    assert found.counts.tolist() == [23, 30]
    assert found.values[0] == pytest.approx(values[kept, 0].mean(), abs=1e-12)
    assert (found.low[0], found.high[0]) == pytest.approx((alone.low[0], alone.high[0]), abs=1e-12)


def test_no_value_one_value_and_equal_values():
    values = np.array([[np.nan, 2.0, 7.0], [np.nan, np.nan, 7.0], [np.nan, np.nan, 7.0]])
    found = means(values, draws(3, 100))
    np.testing.assert_array_equal(found.values, [np.nan, 2.0, 7.0])
    np.testing.assert_array_equal(found.low, [np.nan, np.nan, 7.0])
    np.testing.assert_array_equal(found.high, [np.nan, np.nan, 7.0])


def test_draws_for_another_number_of_subjects_are_refused():
    with pytest.raises(InvalidValueError, match="draws are of 4 subjects, the values of 3"):
        means(np.zeros((3, 1)), draws(4, 10))


def test_column_without_replicates_has_no_interval():
    replicated = np.array([[np.nan, 1.0], [np.nan, 3.0]])
    low, high = percentile_interval(replicated, 0.5)
    np.testing.assert_array_equal(low, [np.nan, 1.5])
    np.testing.assert_array_equal(high, [np.nan, 2.5])


def test_intervals_of_a_skewed_quantity_have_nearly_their_nominal_coverage():
    # 400 samples of 80 as columns; 95 % of 400 is 380, its standard deviation 4.4
    values = np.random.default_rng(6).exponential(size=(80, 400))
    found = means(values, draws(80, 1000, seed=7))
    covered = ((found.low <= 1) & (found.high >= 1)).sum()
    assert 362 <= covered <= 394
