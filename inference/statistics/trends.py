"""Smoothed trends by locally weighted regression (Cleveland 1979), by statsmodels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from statsmodels.nonparametric.smoothers_lowess import lowess

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEWEST_SUBJECTS = 10
_SHARE = 0.5
"""Of the subjects, around each point."""
_STEP = 0.01
"""Of the range of x: between points this close, the line is straight."""


def trend(x: NDArray[np.float64], y: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """The smoothed ``y`` at the places ``at``; NaN outside of ``x``, and everywhere with fewer than ten subjects.

    Subjects without a finite ``x`` or ``y`` are left out.
    """
    known = np.isfinite(x) & np.isfinite(y)
    own = x[known]
    if len(own) < FEWEST_SUBJECTS or np.ptp(own) == 0:
        return np.full(len(at), np.nan)
    smoothed = lowess(y[known], own, frac=_SHARE, delta=_STEP * float(np.ptp(own)))
    places, first = np.unique(smoothed[:, 0], return_index=True)
    result: NDArray[np.float64] = np.interp(at, places, smoothed[first, 1], left=np.nan, right=np.nan)
    return result
