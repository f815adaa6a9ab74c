"""Percentiles over age: quantile regression (Koenker and Bassett, Econometrica 46, 1978) on a natural spline.

scipy solves the regression as a linear programme, by HiGHS, and has the spline. statsmodels' ``QuantReg`` reweights
least squares until the coefficients change little, which for some ordinary samples they never do; its curves equal
these within its tolerance (``tests/unit/statistics/test_quantiles.py``).

Each percentile is fitted by itself, so two of them may cross where there are few subjects. Sorting the fitted values at
each place removes that, and is never further from the true curves (Chernozhukov, Fernández-Val and Galichon,
Econometrica 78:1093, 2010).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.optimize import linprog

from inference.types import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_KNOTS_AT = (0.05, 0.35, 0.65, 0.95)
"""Quantiles of age: Harrell's choice for four knots (Regression Modeling Strategies, 2015, table 2.3)."""
_FEWEST_KNOTS = 2


def percentile_curves(
    ages_years: NDArray[np.float64],
    values: NDArray[np.float64],
    percentiles: Sequence[float],
    at_ages_years: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The ``percentiles``, ascending, of ``values`` [subject]: [percentile, age], at each age ascending.

    Raises:
        InvalidValueError: nearly all ages or all values are equal, a regression has no solution, or an age of
            ``at_ages_years`` is outside of ``ages_years``.
    """
    lowest, highest = ages_years.min(), ages_years.max()
    if at_ages_years.min() < lowest or at_ages_years.max() > highest:
        raise InvalidValueError(f"percentiles are for ages from {lowest:g} to {highest:g} years only")
    knots = np.unique(np.quantile(ages_years, _KNOTS_AT, method="inverted_cdf"))
    if len(knots) < _FEWEST_KNOTS:
        raise InvalidValueError(f"nine of ten patients are {knots[0]:g} years old")
    centre = float(np.median(values))
    scale = float(np.subtract(*np.quantile(values, [0.75, 0.25]))) or float(np.ptp(values))
    if scale == 0:
        raise InvalidValueError("all values are equal")
    # of about unit size, because the tolerances of HiGHS are absolute
    scaled, design = (values - centre) / scale, natural_basis(ages_years, knots)
    coefficients = np.stack([_fitted(scaled, design, percentile / 100) for percentile in percentiles])
    curves = centre + scale * (coefficients @ natural_basis(at_ages_years, knots).T)
    result: NDArray[np.float64] = np.sort(curves, axis=0)
    return result


def natural_basis(x: NDArray[np.float64], knots: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cubic splines, 1 at one of the ``knots`` and 0 at the others, straight beyond the outer ones: [x, knot]."""
    spline = CubicSpline(knots, np.eye(len(knots)), bc_type="natural")
    inside = np.clip(x, knots[0], knots[-1])
    result: NDArray[np.float64] = spline(inside) + spline(inside, 1) * (x - inside)[:, None]
    return result


def _fitted(values: NDArray[np.float64], design: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """The coefficients: the multipliers of the dual programme (Koenker, Quantile Regression, 2005, section 6.2)."""
    dual = linprog(-values, A_eq=design.T, b_eq=(1 - share) * design.sum(axis=0), bounds=(0, 1), method="highs")
    if dual.status != 0:
        raise InvalidValueError(f"the regression of percentile {100 * share:g} has no solution: {dual.message}")
    result: NDArray[np.float64] = -dual.eqlin.marginals
    return result
