"""Which data sets a conversion makes: the labels of each, and the spacing to which its images are resampled."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dicom_node.errors import ConfigurationError
from inference.parts import LabelSet, parts, total

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from inference.parts import Classes

PART_SPACING_MM = 1.5
PARTS = ("organs", "vertebrae", "cardiac", "muscles", "ribs")
DEFAULT_SETS = (*PARTS, "total_3mm", "total_6mm")
CLASSES: tuple[Classes, ...] = ("v1", "v2")
_TOTAL = re.compile(r"total_([0-9]+(?:\.[0-9]+)?)mm")
_TOTAL_IDS: dict[Classes, dict[float, int]] = {"v1": {3.0: 256}, "v2": {3.0: 297, 6.0: 298}}
"""TotalSegmentator's numbers."""
_FIRST_OWN_ID = 301
"""The first number for sets that have none in TotalSegmentator."""
_HIGHEST_LABEL = 255


@dataclass(frozen=True, slots=True)
class RawSet:
    """One data set in nnU-Net's raw format. ``folder`` is its name: ``Dataset`` and three digits, then a word."""

    name: str
    folder: str
    labels: LabelSet
    spacing_mm: float


def chosen_sets(names: Sequence[str], classes: Classes | None, structures: Sequence[str] = ()) -> tuple[RawSet, ...]:
    """The sets called ``names``: parts at 1.5 mm, and ``total_3mm`` or with any other spacing.

    With ``structures``, the classes are these, with labels from 1 in their order, and there are no parts.

    Raises:
        ConfigurationError: an unknown or repeated name, or structures that form no set.
    """
    if len(set(names)) < len(names):
        raise ConfigurationError(f"sets {', '.join(names)}, expected each once")
    if structures and (len(set(structures)) < len(structures) or len(structures) > _HIGHEST_LABEL):
        raise ConfigurationError(f"{len(structures)} structures, expected at most {_HIGHEST_LABEL}, each once")
    own_ids = iter(range(_FIRST_OWN_ID, 1000))
    return tuple(_set(name, classes, structures, own_ids) for name in names)


def _set(name: str, classes: Classes | None, structures: Sequence[str], own_ids: Iterator[int]) -> RawSet:
    spacing = _TOTAL.fullmatch(name)
    if name in PARTS and classes is not None:
        part = parts(classes)[name]
        folder = f"Dataset{part.dataset_id}_TotalSegmentator_part{PARTS.index(name) + 1}_{name}"
        return RawSet(name, folder, part, PART_SPACING_MM)
    if spacing is None or float(spacing[1]) <= 0:
        known = ", ".join(PARTS if classes is not None else ())
        raise ConfigurationError(f"unknown set {name!r}, expected {known or 'only'} total_3mm, total_6mm or total_Xmm")
    millimetres = float(spacing[1])
    if classes is None:
        labels = LabelSet("total", None, dict(enumerate(structures, start=1)))
        return RawSet(name, f"Dataset{next(own_ids)}_structures_{spacing[1]}mm", labels, millimetres)
    number = _TOTAL_IDS[classes].get(millimetres) or next(own_ids)
    return RawSet(name, f"Dataset{number}_TotalSegmentator_{name}", total(classes), millimetres)


def class_names(classes: Classes) -> tuple[str, ...]:
    """All structures of a version, in the order of their labels."""
    return tuple(total(classes).names_by_label.values())
