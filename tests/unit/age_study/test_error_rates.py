"""Error rates over simulated tables whose population correlations are known by a formula.

``benchmarks/age.py`` has the same over 1,000 tables.
"""

from __future__ import annotations

import numpy as np
import pytest

from inference.statistics.bootstrap import draws
from inference.statistics.correlation import spearman
from inference.statistics.multiple import benjamini_hochberg, holm

TABLES, SUBJECTS, LIMIT = 150, 80, 0.05
TRUTH = np.array([0.0] * 8 + [0.64, -0.74, 0.4, -0.4])


def tables():
    """Gaussian copulas: r_s = 6 / pi asin(rho / 2); neither age nor values are normal."""
    random = np.random.default_rng(11)
    rho = 2 * np.sin(np.pi * TRUTH / 6)
    for _ in range(TABLES):
        hidden = random.normal(size=SUBJECTS)
        noise = random.normal(size=(SUBJECTS, len(TRUTH)))
        yield 90 / (1 + np.exp(-hidden)), np.exp(rho * hidden[:, None] + np.sqrt(1 - rho**2) * noise)


@pytest.fixture(scope="module")
def found():
    drawn = draws(SUBJECTS, 300)
    return [spearman(age, values, drawn, threads=1) for age, values in tables()]


def spread(share, number):
    """Four standard errors of a share of ``number`` independent cases."""
    return 4 * np.sqrt(share * (1 - share) / number)


def test_the_false_discovery_rate_is_nominal(found):
    is_null = TRUTH == 0
    shares = []
    for each in found:
        is_found = benjamini_hochberg(each.p_values) <= LIMIT
        shares.append(is_found[is_null].sum() / max(1, is_found.sum()))
    nominal = LIMIT * is_null.mean()
    assert np.mean(shares) == pytest.approx(nominal, abs=4 * np.std(shares) / np.sqrt(TABLES))
    assert np.mean(shares) <= LIMIT


def test_holm_bounds_the_chance_of_any_false_finding(found):
    is_null = TRUTH == 0
    wrong = np.mean([(holm(each.p_values)[is_null] <= LIMIT).any() for each in found])
    assert wrong <= LIMIT + spread(LIMIT, TABLES)


@pytest.mark.parametrize(("low", "high"), [("low", "high"), ("formula_low", "formula_high")])
def test_intervals_hold_the_truth_as_often_as_they_say(found, low, high):
    held = np.mean([(getattr(each, low) <= TRUTH) & (getattr(each, high) >= TRUTH) for each in found], axis=0)
    # columns of a table share the ages, so the whole is no more certain than its tables
    assert held.mean() == pytest.approx(0.95, abs=spread(0.95, TABLES * 3))
    assert held.min() >= 0.95 - spread(0.95, TABLES)


def test_strong_effects_are_found(found):
    assert np.mean([benjamini_hochberg(each.p_values)[8:10] <= LIMIT for each in found]) > 0.99
