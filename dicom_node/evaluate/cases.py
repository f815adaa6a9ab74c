"""Which segmentation belongs to which truth."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dicom_node.errors import ConfigurationError, ResultUnreadable
from dicom_node.labelmaps import LabelFile, StructureFiles, find_segmentations, find_subjects

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dicom_node.labelmaps import Image, LabelMap, LabelSource, Scan

AGE_BANDS = ((40, "under 40"), (60, "40 to 59"), (80, "60 to 79"), (1000, "80 and over"))
"""In years: below which limit, and the name."""
_STATED_ATTRIBUTES = {"contrast": "contrast", "study_type": "field of view"}
"""Columns of ``meta.csv``, and their names in the tables."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that was not evaluated, or not completely, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Truth:
    """The truth for one subject. ``image`` is None if there are only labels.

    Scores are grouped by ``attributes``: sex, age, contrast, field of view, split.
    """

    id: str
    labels: LabelSource
    image: Image | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)

    def read(self) -> LabelMap:
        """The label map on its own grid, or on the CT's if its format does not store a complete grid.

        Raises:
            ResultUnreadable: it can't be read, or needs a missing CT.
            SeriesRejected: the CT can't be read.
        """
        if isinstance(self.labels, LabelFile | StructureFiles) or self.image is None:
            return self.labels.read(None)
        return self.labels.read(self.image.read().geometry)


def find_truth(folder: Path) -> tuple[tuple[Truth, ...], tuple[Problem, ...]]:
    """The subjects of the data set in ``folder``, or its segmentations if it has no CTs, and the problems.

    Raises:
        ConfigurationError: the folder contains neither.
    """
    try:
        found = find_subjects(folder)
    except ConfigurationError as without_images:
        try:
            sources = find_segmentations(folder)
        except (ConfigurationError, ResultUnreadable):
            raise without_images from None
        return tuple(Truth(name, source) for name, source in sources.items()), ()
    truths = tuple(
        Truth(subject.id, subject.segmentation, subject.image, attributes_of(subject)) for subject in found.subjects
    )
    return truths, tuple(Problem(each.id, f"left out of the truth: {each.reason}") for each in found.left_out)


def attributes_of(subject: Scan) -> dict[str, str]:
    """The known attributes of ``subject``, by which scores are grouped."""
    attributes = {}
    if subject.sex is not None:
        attributes["sex"] = subject.sex
    age = subject.age_years
    if age is not None:
        attributes["age"] = next(band for limit, band in AGE_BANDS if age < limit)
    for column, name in _STATED_ATTRIBUTES.items():
        if subject.attributes.get(column):
            attributes[name] = subject.attributes[column].replace("_", " ")
    if subject.split is not None:
        attributes["split"] = subject.split
    return attributes


def paired(
    truths: Sequence[Truth], sources: Mapping[str, LabelSource]
) -> tuple[list[tuple[Truth, LabelSource]], list[Problem]]:
    """Each truth with the segmentation of the same id, and the ids without a counterpart."""
    pairs = [(truth, sources[truth.id]) for truth in truths if truth.id in sources]
    known = {truth.id for truth in truths}
    problems = [Problem(truth.id, "no segmentation of this subject") for truth in truths if truth.id not in sources]
    problems += [Problem(name, "no truth for this segmentation") for name in sources if name not in known]
    return pairs, problems
