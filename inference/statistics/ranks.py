"""Mid-ranks in bootstrap replicates, by counting.

A replicate is given by how often it contains each subject. Over the values in ascending order, the cumulative sum of
these counts gives the rank of every value, so nothing is sorted per replicate. Subjects drawn several times are tied
with themselves, and equal values with each other: each tie has the mean of its ranks (like ``rankdata``'s ``average``).
Ranks are doubled, which makes them integers and their sums exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Whole = NDArray[np.int32] | NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Ties:
    """Which subjects have the same value: the place of each one's value among the distinct values, ascending."""

    places: NDArray[np.intp]
    members: csr_array
    """1 where a subject (column) has a value (row)."""

    @classmethod
    def of(cls, values: NDArray[np.float64], dtype: np.dtype[np.int32 | np.int64]) -> Ties:
        """The ties of ``values``, which are finite; sums are of ``dtype``."""
        distinct, places = np.unique(values, return_inverse=True)
        ones = np.ones(len(values), dtype)
        members = csr_array((ones, (places, np.arange(len(values)))), shape=(len(distinct), len(values)))
        return cls(places, members)

    @property
    def exist(self) -> bool:
        """Whether two subjects have the same value."""
        return bool(self.places.max() + 1 < len(self.places))

    def per_value(self, of_subjects: Whole) -> Whole:
        """Sums of numbers [subject, replicate] over the subjects of each value, [value, replicate]."""
        sums: Whole = self.members @ of_subjects
        return sums

    def spread(self, of_values: Whole) -> Whole:
        """What belongs to each value, [value, replicate], at each of its subjects."""
        return of_values[self.places]


def doubled_ranks(counts: Whole) -> Whole:
    """Twice the mid-rank of each value, from how often it is drawn, [value, replicate]; the values ascend."""
    ranks: NDArray[Any] = np.cumsum(counts, axis=0, dtype=counts.dtype)
    ranks *= 2
    ranks -= counts
    ranks += 1
    return ranks
