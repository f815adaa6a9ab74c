"""Percentiles over age against statsmodels, patsy's spline, the condition of the optimum and known distributions."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patsy import dmatrix
from scipy.stats import norm
from statsmodels.regression.quantile_regression import QuantReg
from statsmodels.tools.sm_exceptions import IterationLimitWarning

from inference.statistics.quantiles import natural_basis, percentile_curves
from inference.types import InvalidValueError

PERCENTILES = (3, 10, 25, 50, 75, 90, 97)
KNOTS_AT = [0.05, 0.35, 0.65, 0.95]


def drawn(seed, patients, slope=1.0, spread=15.0):
    random = np.random.default_rng(seed)
    ages = random.integers(20, 90, patients).astype(float)
    return ages, 100 + slope * ages + spread * random.normal(size=patients)


def by_statsmodels(ages, values, knots, percentile):
    """Coefficients of the spline, at unit size because the tolerances are absolute; None where it doesn't end."""
    model = QuantReg(values / 20, natural_basis(ages, knots))
    with warnings.catch_warnings():
        warnings.simplefilter("error", IterationLimitWarning)
        try:
            return 20 * model.fit(q=percentile / 100).params
        except IterationLimitWarning:
            return None


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), slope=st.floats(-3, 3), spread=st.floats(1, 50))
def test_a_known_distribution_is_recovered_and_percentiles_ascend(seed, slope, spread):
    ages, values = drawn(seed, 1000, slope, spread)
    at = np.arange(25.0, 86.0)
    curves = percentile_curves(ages, values, PERCENTILES, at)
    assert (np.diff(curves, axis=0) >= 0).all()
    share = np.array(PERCENTILES)[:, None] / 100
    below = norm.cdf((curves - 100 - slope * at) / spread)
    # the standard error of a share in a quarter of the patients, as four knots leave for each coefficient
    error = np.sqrt(share * (1 - share) / 250)
    assert (np.abs(below - share).mean(axis=1) < 3 * error[:, 0]).all()


def test_curves_equal_quantile_regression_on_the_natural_spline_of_patsy():
    ages, values = drawn(3, 400)
    knots = np.quantile(ages, KNOTS_AT, method="inverted_cdf")
    spline = f"cr(x, knots={knots[1:-1].tolist()}, lower_bound={knots[0]}, upper_bound={knots[-1]}) - 1"
    at = np.arange(np.ceil(knots[0]), np.floor(knots[-1]) + 1)
    basis = np.asarray(dmatrix(spline, {"x": at}))
    np.testing.assert_allclose(natural_basis(at, knots), basis, atol=1e-9)
    curves = percentile_curves(ages, values, PERCENTILES, at)
    fits = [by_statsmodels(ages, values, knots, each) for each in PERCENTILES]
    ended = [number for number, fit in enumerate(fits) if fit is not None]
    assert len(ended) >= 5
    np.testing.assert_allclose(curves[ended], [basis @ fits[number] for number in ended], atol=0.01)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), patients=st.integers(120, 300), percentile=st.sampled_from(PERCENTILES))
def test_no_other_spline_has_a_smaller_check_loss(seed, patients, percentile):
    """By the directional derivative: no step along any spline lowers the loss (Koenker 2005, section 2.2.2)."""
    ages, values = drawn(seed, patients)
    curve = percentile_curves(ages, values, [percentile], ages)[0]
    q, design = percentile / 100, natural_basis(ages, np.quantile(ages, KNOTS_AT, method="inverted_cdf"))
    is_on = np.abs(values - curve) < 1e-6
    assert is_on.sum() >= 4
    steps = np.random.default_rng(seed).normal(size=(200, 4)) @ design.T
    slopes = np.where(values > curve, -q, 1 - q) * steps
    slopes[:, is_on] = np.maximum(-q * steps, (1 - q) * steps)[:, is_on]
    assert slopes.sum(axis=1).min() >= -1e-9


def test_a_sample_for_which_statsmodels_does_not_end_is_fitted():
    ages, values = drawn(0, 1000, slope=0.0, spread=1.0)
    design = natural_basis(ages, np.quantile(ages, KNOTS_AT, method="inverted_cdf"))
    with pytest.warns(IterationLimitWarning):
        near = design @ QuantReg(values, design).fit(q=0.9).params
    curve = percentile_curves(ages, values, [90], ages)[0]
    assert 0 < np.abs(curve - near).max() < 0.05
    residuals = np.array([values - curve, values - near])
    losses = np.maximum(0.9 * residuals, -0.1 * residuals).sum(axis=1)
    assert losses[0] <= losses[1] < losses[0] * 1.001


def test_a_spline_is_straight_beyond_its_knots():
    knots = np.array([30.0, 45.0, 60.0, 80.0])
    for outside in (np.array([10.0, 20.0, 30.0]), np.array([80.0, 85.0, 90.0])):
        np.testing.assert_allclose(np.diff(natural_basis(outside, knots), n=2, axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(natural_basis(knots, knots), np.eye(4), atol=1e-12)


def test_fits_that_cross_are_sorted():
    ages, values = drawn(7, 120)
    at = np.arange(ages.min(), ages.max() + 1)
    knots = np.quantile(ages, KNOTS_AT, method="inverted_cdf")
    fits = np.array([natural_basis(at, knots) @ by_statsmodels(ages, values, knots, each) for each in (3, 5, 7)])
    assert (np.diff(fits, axis=0) < -1e-3).any()
    curves = percentile_curves(ages, values, (3, 5, 7), at)
    assert (np.diff(curves, axis=0) >= 0).all()
    np.testing.assert_allclose(curves, np.sort(fits, axis=0), atol=0.01)


def test_many_equal_values_are_fitted():
    ages, _ = drawn(1, 150)
    values = np.r_[np.zeros(120), np.linspace(1, 30, 30)]
    curves = percentile_curves(ages, values, (25, 50, 97), np.array([40.0, 60.0]))
    assert curves[:2] == pytest.approx(0, abs=1e-4)
    assert (curves[2] > 5).all()


def test_what_has_no_curve_is_refused():
    ages, values = drawn(1, 150)
    with pytest.raises(InvalidValueError, match="for ages from 20 to 89 years only"):
        percentile_curves(ages, values, PERCENTILES, np.array([19.0]))
    with pytest.raises(InvalidValueError, match="nine of ten patients are 50 years old"):
        percentile_curves(np.r_[np.full(145, 50.0), ages[:5]], values, PERCENTILES, np.array([50.0]))
    with pytest.raises(InvalidValueError, match="all values are equal"):
        percentile_curves(ages, np.full(150, 7.0), PERCENTILES, np.array([50.0]))
