"""Which data sets a conversion makes: the labels of each, and the spacing to which its images are resampled."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dicom_node.errors import ConfigurationError
from inference.parts import LabelSet, parts, total

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference.parts import Classes

PART_SPACING_MM = 1.5
PARTS = ("organs", "vertebrae", "cardiac", "muscles", "ribs")
DEFAULT_SETS = (*PARTS, "total_3mm", "total_6mm")
CLASSES: tuple[Classes, ...] = ("v1", "v2")
_TOTAL = re.compile(r"total_([0-9]+(?:\.[0-9]+)?)mm")
_TOTAL_IDS: dict[Classes, dict[float, int]] = {"v1": {3.0: 256}, "v2": {3.0: 297, 6.0: 298}}
"""TotalSegmentator's numbers."""
_HIGHEST_LABEL = 255


@dataclass(frozen=True, slots=True)
class RawSet:
    """One data set in nnU-Net's raw format. ``folder`` is its name: ``Dataset`` and three digits, then a word."""

    name: str
    folder: str
    labels: LabelSet
    spacing_mm: float


@dataclass(frozen=True, slots=True)
class WantedSet:
    """A data set before it has a folder.

    ``word`` is the end of its folder's name; ``number`` is TotalSegmentator's, or None: any that is free.
    """

    name: str
    word: str
    labels: LabelSet
    spacing_mm: float
    number: int | None = None

    def numbered(self, number: int) -> RawSet:
        """The set with its folder."""
        return RawSet(self.name, f"Dataset{number:03}_{self.word}", self.labels, self.spacing_mm)


def chosen_sets(names: Sequence[str], classes: Classes | None, structures: Sequence[str] = ()) -> tuple[WantedSet, ...]:
    """The sets called ``names``: parts at 1.5 mm, and ``total_3mm`` or with any other spacing.

    With ``structures``, the classes are these, with labels from 1 in their order, and there are no parts.

    Raises:
        ConfigurationError: an unknown or repeated name, or structures that form no set.
    """
    if len(set(names)) < len(names):
        raise ConfigurationError(f"sets {', '.join(names)}, expected each once")
    if structures and (len(set(structures)) < len(structures) or len(structures) > _HIGHEST_LABEL):
        raise ConfigurationError(f"{len(structures)} structures, expected at most {_HIGHEST_LABEL}, each once")
    return tuple(_set(name, classes, structures) for name in names)


def _set(name: str, classes: Classes | None, structures: Sequence[str]) -> WantedSet:
    spacing = _TOTAL.fullmatch(name)
    if name in PARTS and classes is not None:
        part = parts(classes)[name]
        word = f"TotalSegmentator_part{PARTS.index(name) + 1}_{name}"
        return WantedSet(name, word, part, PART_SPACING_MM, part.dataset_id)
    if spacing is None or float(spacing[1]) <= 0:
        known = ", ".join(PARTS if classes is not None else ())
        raise ConfigurationError(f"unknown set {name!r}, expected {known or 'only'} total_3mm, total_6mm or total_Xmm")
    millimetres = float(spacing[1])
    if classes is None:
        labels = LabelSet("total", None, dict(enumerate(structures, start=1)))
        return WantedSet(name, f"structures_{spacing[1]}mm", labels, millimetres)
    number = _TOTAL_IDS[classes].get(millimetres)
    return WantedSet(name, f"TotalSegmentator_{name}", total(classes), millimetres, number)


def class_names(classes: Classes) -> tuple[str, ...]:
    """All structures of a version, in the order of their labels."""
    return tuple(total(classes).names_by_label.values())
