"""Mid-ranks in bootstrap replicates, by counting.

A replicate is given by how often it contains each subject. In ascending order of the values, the cumulative sum of
these counts gives the rank of every subject, so nothing is sorted per replicate. Subjects drawn several times are tied
with themselves, and equal values with each other: each tie has the mean of its ranks (like ``rankdata``'s ``average``).
Ranks are doubled, which makes them integers and their sums exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Order:
    """The subjects in ascending order of a value; ``starts`` are the positions at which a new value begins."""

    places: NDArray[np.intp]
    starts: NDArray[np.intp]

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Order:
        """The order of ``values``, which are finite."""
        places = np.argsort(values, kind="stable")
        ordered = values[places]
        return cls(places, np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]))

    @property
    def has_ties(self) -> bool:
        """Whether two subjects have the same value."""
        return len(self.starts) < len(self.places)

    def per_value(self, of_places: NDArray[np.int32] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Sums of numbers [replicate, position] over the subjects of each value, [replicate, value]."""
        sums: NDArray[np.int64] = np.add.reduceat(of_places, self.starts, axis=1, dtype=np.int64)
        return sums

    def spread(self, of_values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Repeat what belongs to each value, [replicate, value], at each of its positions."""
        return np.repeat(of_values, np.diff(np.r_[self.starts, len(self.places)]), axis=1)


def doubled_ranks(counts: NDArray[np.int32] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Twice the mid-rank of each value, [replicate, value], from how often it is drawn; values ascend."""
    ranks = np.cumsum(counts, axis=1, dtype=np.int64)
    ranks *= 2
    ranks -= counts
    ranks += 1
    return ranks
