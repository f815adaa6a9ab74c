"""Scores of all subjects as means: of every structure, every group of structures, and every group of subjects."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dicom_node.evaluate.cases import AGE_BANDS, Problem
from inference.evaluation.means import Mean, mean_of_means
from inference.statistics.bootstrap import REPLICATES, draws
from inference.structures import catalogue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dicom_node.evaluate.scoring import SubjectScores
    from inference.evaluation.scores import Convention, StructureScore

OTHER = "other"
"""The group of a structure that is not in the catalogue."""
ATTRIBUTES = ("split", "sex", "age", "contrast", "field of view")
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Row:
    """Means over the subjects and structures of one line of a table.

    Dice and surface Dice are over all counted pairs; distance and volume error over pairs in the truth that
    were found. ``missed``: in the truth and not found, which counts as 0. ``invented``: found and not in the truth.
    """

    name: str
    subjects: int
    structures: int
    dice: Mean
    surface_dice: Mean
    hd95_mm: Mean
    volume_error: Mean
    missed: int
    invented: int


@dataclass(frozen=True, slots=True)
class Summary:
    """``by_attribute``: for each attribute that subjects have, a row per value."""

    overall: Row
    groups: tuple[Row, ...]
    structures: tuple[Row, ...]
    by_attribute: dict[str, tuple[Row, ...]]


@dataclass(frozen=True, slots=True)
class Averaging:
    """How scores are averaged. ``structures``: only these, if any are given."""

    convention: Convention = "paper"
    structures: tuple[str, ...] = ()
    replicates: int = REPLICATES
    seed: int = 0


def comparable(
    subjects: Sequence[SubjectScores], averaging: Averaging, known: Sequence[str] | None = None
) -> tuple[tuple[str, ...], list[Problem]]:
    """The structures to evaluate, in the order of the truth, and those named only in truth or segmentations.

    ``known``: all structures of the model; without them, all names in the segmentations. A structure that no
    segmentation names is left out if they name all that was searched for; a SEG or RT Structure Set names only what
    was found, so there it counts as not found.
    """
    truth = dict.fromkeys(name for subject in subjects for name in subject.truth_names)
    found = dict.fromkeys(known or (name for subject in subjects for name in subject.found_names))
    wanted = averaging.structures or (*truth, *(name for name in found if name not in truth))
    says_all = known is not None or all(subject.found_names_are_all for subject in subjects)
    names, problems = [], []
    for name in wanted:
        if name in truth and (name in found or not says_all):
            names.append(name)
        if name in truth and name not in found:
            consequence = "not evaluated" if says_all else "counted as not found"
            problems.append(Problem(name, f"in the truth, but no segmentation names it: {consequence}"))
        elif name not in truth:
            where = "in the segmentations" if name in found else "asked for"
            problems.append(Problem(name, f"{where}, but the truth never names it: not evaluated"))
    return tuple(names), problems


def summarise(subjects: Sequence[SubjectScores], names: Sequence[str], averaging: Averaging) -> Summary:
    """The means of ``names`` over ``subjects``."""
    table = _Table.of(subjects, names, averaging)
    groups = list(map(group_of, names))
    by_attribute = {}
    for attribute in ATTRIBUTES:
        values = [subject.attributes.get(attribute, UNKNOWN) for subject in subjects]
        if set(values) != {UNKNOWN}:
            by_attribute[attribute] = tuple(
                table.row(value, rows=_places(values, value)) for value in sorted(set(values), key=_place_in_table)
            )
    return Summary(
        overall=table.row("all"),
        groups=tuple(table.row(group, columns=_places(groups, group)) for group in dict.fromkeys(groups)),
        structures=tuple(table.row(name, columns=[column]) for column, name in enumerate(names)),
        by_attribute=by_attribute,
    )


def _places(values: Sequence[str], value: str) -> list[int]:
    return [place for place, each in enumerate(values) if each == value]


def _place_in_table(value: str) -> tuple[bool, int, str]:
    """Ages ascend, other values are sorted by name, and what is unknown comes last."""
    bands = [band for _, band in AGE_BANDS]
    return value == UNKNOWN, bands.index(value) if value in bands else 0, value


def group_of(name: str) -> str:
    """``organ``, ``bone``, ``muscle``, ``vessel``, ``tissue``, or :data:`OTHER`."""
    known = catalogue().get(name)
    return known.group if known else OTHER


def is_counted(score: StructureScore, convention: Convention) -> bool:
    """Whether the score of this structure and subject counts."""
    return score.truth_ml > 0 or convention == "nnunet"


@dataclass(frozen=True, slots=True)
class _Table:
    """Each measure as [subject, structure], NaN where it does not count."""

    subjects: Sequence[SubjectScores]
    names: Sequence[str]
    measures: dict[str, NDArray[np.float64]]
    missed: NDArray[np.bool_]
    invented: NDArray[np.bool_]
    averaging: Averaging

    @classmethod
    def of(cls, subjects: Sequence[SubjectScores], names: Sequence[str], averaging: Averaging) -> _Table:
        column = {name: number for number, name in enumerate(names)}
        shape = len(subjects), len(names)
        measures = {key: np.full(shape, np.nan) for key in ("dice", "surface_dice", "hd95_mm", "volume_error")}
        missed, invented = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
        for row, subject in enumerate(subjects):
            for score in subject.structures:
                place = row, column.get(score.name, -1)
                if place[1] < 0:
                    continue
                missed[place], invented[place] = score.found_ml == 0, score.truth_ml == 0
                if is_counted(score, averaging.convention):
                    measures["dice"][place], measures["surface_dice"][place] = score.dice, score.surface_dice
                if math.isfinite(score.hd95_mm):
                    measures["hd95_mm"][place], measures["volume_error"][place] = score.hd95_mm, score.volume_error
        return cls(subjects, names, measures, missed, invented, averaging)

    def row(self, name: str, rows: Sequence[int] | None = None, columns: Sequence[int] | None = None) -> Row:
        """The means over these subjects and structures; None: over all."""
        rows = range(len(self.subjects)) if rows is None else rows
        part = np.ix_(rows, range(len(self.names)) if columns is None else columns)
        drawn = draws(len(rows), self.averaging.replicates, self.averaging.seed)
        means = {key: mean_of_means(values[part], drawn) for key, values in self.measures.items()}
        counted = np.isfinite(self.measures["dice"][part])
        return Row(
            name=name,
            subjects=int(counted.any(axis=1).sum()),
            structures=int(counted.any(axis=0).sum()),
            missed=int(self.missed[part].sum()),
            invented=int(self.invented[part].sum()),
            **means,
        )


def row_as_json(row: Row) -> dict[str, Any]:
    """Plain values; None for NaN."""
    content: dict[str, Any] = {"name": row.name, "subjects": row.subjects, "structures": row.structures}
    for key in ("dice", "surface_dice", "hd95_mm", "volume_error"):
        mean: Mean = getattr(row, key)
        for suffix, value in (("", mean.value), ("_low", mean.low), ("_high", mean.high)):
            content[key + suffix] = value if math.isfinite(value) else None
    return {**content, "missed": row.missed, "invented": row.invented}


def rows_by_attribute(summary: Summary) -> dict[str, list[dict[str, Any]]]:
    """The means over groups of subjects, by attribute, as plain values."""
    return {attribute: [row_as_json(row) for row in rows] for attribute, rows in summary.by_attribute.items()}
