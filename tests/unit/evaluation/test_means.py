"""Means of means and their intervals, against loops, and the coverage of the intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from inference.evaluation.means import mean_of_means
from inference.statistics.bootstrap import draws


def by_loop(scores):
    """The mean of means over rows of scores; None marks a score that does not count."""
    means = []
    for column in zip(*scores, strict=True):
        counted = [each for each in column if not math.isnan(each)]
        if counted:
            means.append(sum(counted) / len(counted))
    return sum(means) / len(means) if means else math.nan


scores = arrays(
    np.float64, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=st.sampled_from([0, 0.5, 0.9, np.nan])
)


@settings(max_examples=60, deadline=None)
@given(scores, st.integers(0, 5))
def test_mean_and_interval_equal_loops_over_drawn_subjects(table, seed):
    drawn = draws(len(table), 100, seed)
    mean = mean_of_means(table, drawn)
    assert mean.value == pytest.approx(by_loop(table), nan_ok=True)
    if np.isfinite(table).any(axis=1).sum() < 2:
        assert math.isnan(mean.low)
        assert math.isnan(mean.high)
        return
    resampled = [by_loop([row for row, times in zip(table, each, strict=True) for _ in range(times)]) for each in drawn]
    assert (mean.low, mean.high) == pytest.approx(np.nanpercentile(resampled, (2.5, 97.5)))


def test_each_draw_has_the_number_of_subjects_and_is_repeatable_by_seed():
    drawn = draws(7, 50, 3)
    assert drawn.shape == (50, 7)
    assert (drawn.sum(axis=1) == 7).all()
    assert (drawn == draws(7, 50, 3)).all()
    assert (drawn != draws(7, 50, 4)).any()


def test_intervals_have_about_their_nominal_coverage():
    """300 studies of 40 subjects with correlated scores within a subject: 95 % of the intervals, +- 4 %."""
    random = np.random.default_rng(1)
    held = 0
    for study in range(300):
        of_subject = random.normal(0.8, 0.05, (40, 1))
        mean = mean_of_means(of_subject + random.normal(0, 0.02, (40, 6)), draws(40, 300, study))
        held += mean.low <= 0.8 <= mean.high
    assert 0.90 <= held / 300 <= 0.98
