"""Correction of p-values for the number of tests, by statsmodels; NaN means not tested and is not counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from statsmodels.stats.multitest import multipletests

if TYPE_CHECKING:
    from numpy.typing import NDArray


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Holm's p-values (1979), which bound the probability of any false rejection."""
    return _adjusted(p_values, "holm")


def benjamini_hochberg(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Benjamini and Hochberg's p-values (1995), which bound the expected share of false discoveries (FDR)."""
    return _adjusted(p_values, "fdr_bh")


def _adjusted(p_values: NDArray[np.float64], method: Literal["holm", "fdr_bh"]) -> NDArray[np.float64]:
    adjusted = np.full(p_values.shape, np.nan)
    tested = np.isfinite(p_values)
    if tested.any():
        adjusted[tested] = multipletests(p_values[tested], method=method)[1]
    return adjusted
