"""Correction for multiple tests: against the definitions, and with missing tests."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from inference.statistics.multiple import benjamini_hochberg, holm

P = np.array([0.01, 0.04, np.nan, 0.03, 0.005, 0.9])


def test_holm_multiplies_by_the_number_of_remaining_tests():
    # ascending: 0.005 x 5, 0.01 x 4, 0.03 x 3, 0.04 x 2 (raised to the previous value), 0.9
    assert holm(P) == pytest.approx([0.04, 0.09, np.nan, 0.09, 0.025, 0.9], abs=1e-12, nan_ok=True)


def test_false_discovery_rate_equals_scipys():
    tested = np.isfinite(P)
    found = benjamini_hochberg(P)
    assert np.isnan(found[~tested]).all()
    assert found[tested] == pytest.approx(stats.false_discovery_control(P[tested]), abs=1e-12)


def test_no_test_at_all():
    assert np.isnan(holm(np.array([np.nan]))).all()
    assert benjamini_hochberg(np.array([])).size == 0
