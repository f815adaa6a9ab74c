"""Agreement between segmentations of the same CTs without a truth: each two systems are scored against each other.

Which of two is right, agreement can't say. The scores are those of an evaluation in which the first of two stands for
the truth: Dice, surface Dice and HD95 don't depend on the order, the volume difference is a share of the first volume.
A structure that only one of both found counts as Dice 0, because the two disagree; one that neither found doesn't
count.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from dicom_node.dataset.processes import in_processes
from dicom_node.errors import ResultUnreadable
from dicom_node.evaluate.cases import Problem, Truth, attributes_of
from dicom_node.evaluate.scoring import SubjectScores, score_subject
from dicom_node.evaluate.summary import Averaging, Summary, group_of, summarise
from dicom_node.evaluate.tables import attribute_columns, provenance_columns
from dicom_node.labelmaps import LabelFile, SegmentationObject, StructureFiles
from inference.evaluation.means import Mean, mean_of_means
from inference.statistics.bootstrap import draws
from inference.types import Geometry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from dicom_node.evaluate.provenance import Provenance
    from dicom_node.labelmaps import LabelMap, LabelSource, Scan

_ON_ONE_GRID = 1e-3
"""In voxels: how far two grids may be from whole planes apart."""


@dataclass(frozen=True, slots=True)
class Segmented:
    """The segmentations of a system by subject. ``known``: all structures of a model; empty where nobody says."""

    name: str
    sources: Mapping[str, LabelSource]
    known: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PairAgreement:
    """Two systems: the scores of each subject, the structures that both name, and the means."""

    first: str
    second: str
    subjects: tuple[SubjectScores, ...]
    names: tuple[str, ...]
    summary: Summary

    @property
    def name(self) -> str:
        """For people, files and tables."""
        return f"{self.first} and {self.second}"


@dataclass(frozen=True, slots=True)
class AgainstOthers:
    """The mean agreement of one system with each of the others."""

    name: str
    subjects: int
    dice: Mean
    surface_dice: Mean

    def as_row(self) -> dict[str, Any]:
        """Plain values; None for NaN."""
        content: dict[str, Any] = {"name": self.name, "subjects": self.subjects}
        for key, mean in (("dice", self.dice), ("surface_dice", self.surface_dice)):
            for suffix, value in (("", mean.value), ("_low", mean.low), ("_high", mean.high)):
                content[key + suffix] = value if np.isfinite(value) else None
        return content


@dataclass(frozen=True, slots=True)
class OnSharedGrid:
    """The first of two segmentations that are read without their CT, on a grid that holds both.

    A SEG says where its frames are, but not how far its CT goes: without the CT, the grid of the other segmentation is
    taken, or the smallest that holds the frames of both.
    """

    source: LabelSource
    other: LabelSource

    @property
    def paths(self) -> tuple[Path, ...]:
        """Its files."""
        return self.source.paths

    def read(self, geometry: Geometry | None = None) -> LabelMap:
        """See :class:`~dicom_node.labelmaps.LabelSource`."""
        if geometry is not None:
            return self.source.read(geometry)
        if isinstance(self.other, LabelFile | StructureFiles):
            return self.source.read(self.other.read().geometry)
        own = self.source.read()
        if not isinstance(self.other, SegmentationObject):
            return own
        shared = union_of_planes(own.geometry, self.other.read().geometry)
        return own if shared is own.geometry else self.source.read(shared)


def union_of_planes(first: Geometry, second: Geometry) -> Geometry:
    """The smallest grid that holds the planes of both.

    Raises:
        ResultUnreadable: they are not planes of one CT.
    """
    first_from_second = np.linalg.inv(first.affine_lps) @ second.affine_lps
    step = first_from_second[:3, 3]
    start = round(float(step[2]))
    is_shifted = np.abs(first_from_second[:3, :3] - np.eye(3)).max() <= _ON_ONE_GRID and (
        np.abs(step - (0, 0, start)).max() <= _ON_ONE_GRID
    )
    if not is_shifted or first.shape_zyx[1:] != second.shape_zyx[1:]:
        raise ResultUnreadable("the two segmentations have different grids: they are not of the same images")
    low, high = min(0, start), max(first.shape_zyx[0], start + second.shape_zyx[0])
    if (low, high) == (0, first.shape_zyx[0]):
        return first
    affine = first.affine_lps.copy()
    affine[:3, 3] += low * affine[:3, 2]
    return Geometry((high - low, *first.shape_zyx[1:]), affine)


def agreement(
    systems: Sequence[Segmented],
    scans: Mapping[str, Scan],
    folder: Path,
    averaging: Averaging,
    tolerance_mm: float,
    processes: int,
    report: Callable[[str, int, int], None],
) -> tuple[list[PairAgreement], list[Problem]]:
    """Each two of ``systems`` on the subjects that both have. Scores that were made before are taken from ``folder``.

    ``scans``: the CTs by subject, as far as they are there. ``averaging``: what is averaged; its convention is taken as
    that for which a structure found by one counts as 0.

    Raises:
        ConfigurationError: ``folder`` can't be written.
        WorkerLost: a process was ended from outside.
    """
    pairs: list[PairAgreement] = []
    problems: list[Problem] = []
    for first, second in combinations(systems, 2):
        work = partial(score_subject, folder=folder / f"{first.name}+{second.name}", tolerance_mm=tolerance_mm)
        items = paired_sources(first, second, scans)
        stage = f"{first.name} and {second.name}"
        report(stage, 0, len(items))
        scored: list[SubjectScores] = []
        for done, ((subject, _), scores) in enumerate(in_processes(work, items, processes), start=1):
            report(stage, done, len(items))
            if isinstance(scores, str):
                problems.append(Problem(subject.id, f"{stage}: {scores}"))
            else:
                scored.append(scores)
        scored.sort(key=lambda each: each.id)
        names, unnamed = _names_of_both(first, second, scored, averaging.structures)
        problems += [*_only_one_has(first, second), *unnamed]
        pairs.append(PairAgreement(first.name, second.name, tuple(scored), names, summarise(scored, names, averaging)))
    return pairs, problems


def paired_sources(first: Segmented, second: Segmented, scans: Mapping[str, Scan]) -> list[tuple[Truth, LabelSource]]:
    """The segmentations of both of every subject that both have; the first as the one that is scored against."""
    pairs: list[tuple[Truth, LabelSource]] = []
    for name in sorted(first.sources.keys() & second.sources.keys()):
        own, other = first.sources[name], second.sources[name]
        if not isinstance(own, LabelFile | StructureFiles):
            own = OnSharedGrid(own, other)
        scan = scans.get(name)
        truth = Truth(name, own) if scan is None else Truth(name, own, scan.image, attributes_of(scan))
        pairs.append((truth, other))
    return pairs


def _only_one_has(first: Segmented, second: Segmented) -> list[Problem]:
    return [
        Problem(name, f"no segmentation by {other.name}, so not compared with {own.name}")
        for own, other in ((first, second), (second, first))
        for name in own.sources
        if name not in other.sources
    ]


def _names_of_both(
    first: Segmented, second: Segmented, scored: Sequence[SubjectScores], wanted: Sequence[str]
) -> tuple[tuple[str, ...], list[Problem]]:
    """The structures that both systems name somewhere, and those that only one does."""
    of_first = dict.fromkeys([*first.known, *(name for each in scored for name in each.truth_names)])
    of_second = dict.fromkeys([*second.known, *(name for each in scored for name in each.found_names)])
    problems = []
    for name in wanted or (*of_first, *(name for name in of_second if name not in of_first)):
        if name not in of_first or name not in of_second:
            without = [each for each, own in ((first.name, of_first), (second.name, of_second)) if name not in own]
            stage = f"{first.name} and {second.name}"
            problems.append(Problem(name, f"{stage}: not compared, never named by {' and '.join(without)}"))
    names = tuple(name for name in of_first if name in of_second and (not wanted or name in wanted))
    return names, problems


def against_others(pairs: Sequence[PairAgreement], averaging: Averaging) -> list[AgainstOthers]:
    """For each system, the mean over the pairs that it is one of, of each structure of each subject."""
    subjects = sorted({each.id for pair in pairs for each in pair.subjects})
    names = list(dict.fromkeys(name for pair in pairs for name in pair.names))
    drawn = draws(len(subjects), averaging.replicates, averaging.seed)
    result = []
    for system in dict.fromkeys(name for pair in pairs for name in (pair.first, pair.second)):
        own = [pair for pair in pairs if system in (pair.first, pair.second)]
        dice, surface_dice = (_mean_of_pairs(own, subjects, names, key) for key in ("dice", "surface_dice"))
        count = int(np.isfinite(dice).any(axis=1).sum())
        result.append(AgainstOthers(system, count, mean_of_means(dice, drawn), mean_of_means(surface_dice, drawn)))
    return result


def _mean_of_pairs(pairs: Sequence[PairAgreement], subjects: Sequence[str], names: Sequence[str], key: str) -> Any:
    """[subject, structure]; NaN where no pair has the structure."""
    row = {name: number for number, name in enumerate(subjects)}
    column = {name: number for number, name in enumerate(names)}
    sums, counts = np.zeros((2, len(subjects), len(names)))
    for pair in pairs:
        shown = set(pair.names)
        for subject in pair.subjects:
            for score in subject.structures:
                if score.name in shown:
                    place = row[subject.id], column[score.name]
                    sums[place] += getattr(score, key)
                    counts[place] += 1
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def agreement_rows(pair: PairAgreement, provenance: Provenance) -> list[dict[str, Any]]:
    """A row per subject and structure that one of both found; None for an infinite distance."""
    shown = set(pair.names)
    return [
        {
            "first": pair.first,
            "second": pair.second,
            "subject": subject.id,
            **attribute_columns(subject),
            "structure": score.name,
            "group": group_of(score.name),
            "dice": score.dice,
            "surface_dice": score.surface_dice,
            "hd95_mm": score.hd95_mm if np.isfinite(score.hd95_mm) else None,
            "first_ml": score.truth_ml,
            "second_ml": score.found_ml,
            "volume_difference": score.volume_error if score.truth_ml and score.found_ml else None,
            **provenance_columns(provenance),
        }
        for subject in pair.subjects
        for score in subject.structures
        if score.name in shown
    ]
