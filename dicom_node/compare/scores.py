"""The scores of a system as rows, from the files of its evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dicom_node.dataset.files import read_json
from dicom_node.errors import ConfigurationError
from dicom_node.evaluate.cases import Problem
from dicom_node.evaluate.provenance import Provenance
from dicom_node.evaluate.tables import SCORES_PARQUET, SUMMARY_JSON

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SAME_TRUTH = 1e-6
"""By which share the volumes of one structure in two truths may differ: less than a voxel."""
_NEEDED = ("subject", "structure", "group", "counted", "dice", "surface_dice", "hd95_mm", "truth_ml", "found_ml")


@dataclass(frozen=True, slots=True)
class Score:
    """One structure of one subject. ``volume_error`` is the absolute one, as a share of the true volume.

    ``hd95_mm`` and ``volume_error`` are None where the structure is in only one of truth and segmentation.
    """

    subject: str
    structure: str
    group: str
    dice: float
    surface_dice: float
    hd95_mm: float | None
    volume_error: float | None
    truth_ml: float
    is_missed: bool


@dataclass(frozen=True, slots=True)
class Scored:
    """A system with the scores that count. ``rows`` are those of the table of its evaluation, ``problems`` what was not
    evaluated.
    """

    name: str
    provenance: Provenance
    scores: tuple[Score, ...]
    rows: tuple[dict[str, Any], ...]
    problems: tuple[Problem, ...]

    @property
    def subjects(self) -> tuple[str, ...]:
        """Those with a score, sorted."""
        return tuple(sorted({score.subject for score in self.scores}))


def read_scored(name: str, folder: Path) -> Scored:
    """The scores in ``folder``, the results of an evaluation.

    Raises:
        ConfigurationError: they can't be read, or are not those of an evaluation.
    """
    summary = read_json(folder / SUMMARY_JSON)
    try:
        if summary is None:
            raise ConfigurationError(f"{folder / SUMMARY_JSON} can't be read")
        provenance = Provenance(**summary["provenance"])
        problems = tuple(Problem(each["id"], f"{name}: {each['reason']}") for each in summary["not_evaluated"])
    except (KeyError, TypeError) as error:
        raise ConfigurationError(f"{folder / SUMMARY_JSON} is not the summary of an evaluation") from error
    rows = _read_rows(folder / SCORES_PARQUET)
    return Scored(name, provenance, counted_scores(rows), tuple(rows), problems)


def counted_scores(rows: Sequence[Mapping[str, Any]]) -> tuple[Score, ...]:
    """Those of the rows that count in a mean."""
    return tuple(
        Score(
            subject=row["subject"],
            structure=row["structure"],
            group=row["group"],
            dice=row["dice"],
            surface_dice=row["surface_dice"],
            hd95_mm=row["hd95_mm"],
            volume_error=abs(row["found_ml"] / row["truth_ml"] - 1) if row["truth_ml"] and row["found_ml"] else None,
            truth_ml=row["truth_ml"],
            is_missed=not row["found_ml"],
        )
        for row in rows
        if row["counted"]
    )


def refuse_other_measures(systems: Sequence[Scored]) -> None:
    """Whether all were scored on the same data by the same tool.

    Raises:
        ConfigurationError: they were not; their scores can't be compared.
    """
    first = systems[0]
    for other in systems[1:]:
        for what in ("data_set", "data_set_version", "tool"):
            seen, expected = getattr(other.provenance, what), getattr(first.provenance, what)
            if seen != expected:
                raise ConfigurationError(
                    f"{other.name} was evaluated with {what.replace('_', ' ')} {seen!r}, {first.name} with "
                    f"{expected!r}: evaluate both in the same way"
                )


def without_other_truths(systems: Sequence[Scored]) -> tuple[list[Scored], list[Problem]]:
    """Without the subjects for which two systems were scored against different truths."""
    truth_ml: dict[tuple[str, str], float] = {}
    faults: dict[str, Problem] = {}
    for system in systems:
        for score in system.scores:
            expected = truth_ml.setdefault((score.subject, score.structure), score.truth_ml)
            if not math.isclose(score.truth_ml, expected, rel_tol=SAME_TRUTH, abs_tol=SAME_TRUTH):
                faults.setdefault(
                    score.subject,
                    Problem(
                        score.subject,
                        f"not compared: evaluated against different truths, {score.structure} has "
                        f"{expected:.4g} ml in one and {score.truth_ml:.4g} ml in that of {system.name}",
                    ),
                )
    left = [
        Scored(
            each.name,
            each.provenance,
            tuple(score for score in each.scores if score.subject not in faults),
            each.rows,
            each.problems,
        )
        for each in systems
    ]
    return left, list(faults.values())


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet as pq  # noqa: PLC0415 - an optional library, and slow to import
    except ModuleNotFoundError as error:
        raise ConfigurationError("Parquet requires pyarrow: pip install 'dicom-node[research]'") from error
    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} can't be read: {type(error).__name__}") from error
    missing = [column for column in _NEEDED if rows and column not in rows[0]]
    if missing:
        raise ConfigurationError(f"{path} has no column {', '.join(missing)}: not the scores of an evaluation")
    return rows
