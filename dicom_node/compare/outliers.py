"""Where two systems agree much less than they usually do on the same structure.

The rule is robust against the outliers themselves: the modified z-score of Iglewicz and Hoaglin (1993), which is the
distance from the median in units of the median absolute deviation, scaled to the standard deviation of a normal
distribution. Only low agreement is one. Where nearly all subjects agree to the third digit, the deviation is close to 0
and any difference would be an outlier; therefore it also has to lie a minimum below the median.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dicom_node.compare.agreement import PairAgreement

FARTHEST_Z = 3.5
_NORMAL = 1.4826
"""Standard deviation of a normal distribution divided by its median absolute deviation."""
SMALLEST_DROP = 0.05
FEWEST_SUBJECTS = 5
RULE = (
    f"A Dice is an outlier if it lies more than {FARTHEST_Z} x {_NORMAL} median absolute deviations (modified z-score, "
    f"Iglewicz and Hoaglin 1993), and at least {SMALLEST_DROP}, below the median of the same structure and the same "
    f"two systems. Structures of fewer than {FEWEST_SUBJECTS} subjects are not judged."
)


@dataclass(frozen=True, slots=True)
class Outlier:
    """A structure of a subject on which two systems agree much less than usual. ``limit``: Dice below it is one."""

    first: str
    second: str
    subject: str
    structure: str
    dice: float
    median: float
    limit: float


def outliers(pairs: Sequence[PairAgreement]) -> tuple[list[Outlier], list[tuple[str, str]]]:
    """The outliers, farthest below the median first; and pair and structure where too few subjects have it."""
    found: list[Outlier] = []
    not_judged: list[tuple[str, str]] = []
    for pair in pairs:
        for name in pair.names:
            dice = {
                subject.id: score.dice
                for subject in pair.subjects
                for score in subject.structures
                if score.name == name
            }
            if len(dice) < FEWEST_SUBJECTS:
                not_judged.append((pair.name, name))
                continue
            values = np.array(list(dice.values()))
            median = float(np.median(values))
            deviation = _NORMAL * float(np.median(np.abs(values - median)))
            limit = median - max(FARTHEST_Z * deviation, SMALLEST_DROP)
            found += [
                Outlier(pair.first, pair.second, subject, name, value, median, limit)
                for subject, value in dice.items()
                if value < limit
            ]
    found.sort(key=lambda each: (each.dice - each.median, each.subject, each.structure))
    return found, not_judged
