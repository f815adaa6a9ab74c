"""An evaluation as one self-contained HTML page, which can be printed and needs no script."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dicom_node.pages.html import facts, figure, numbers, page, paragraph, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dicom_node.evaluate.cases import Problem
    from dicom_node.evaluate.provenance import Provenance
    from dicom_node.evaluate.summary import Averaging, Row, Summary
    from inference.evaluation.means import Mean

_CONVENTIONS = {
    "paper": (
        "A structure that is in the truth and was not found counts as 0; one that is not in the truth does not count, "
        "even if it was found (arXiv 2208.05868)."
    ),
    "nnunet": (
        "A structure that is in the truth and was not found counts as 0, and so does one that was found and is not in "
        "the truth; one that is in neither does not count (nnU-Net's compute_metrics)."
    ),
}
_MEANS = (
    "A mean over several structures is the mean of their means over the subjects. Intervals are the 2.5th to 97.5th "
    "percentile of {replicates} bootstrap draws of whole subjects. HD95 and volume error are means over the structures "
    "that are in the truth and were found."
)
_COLUMNS = ("subjects", "structures", "Dice", "surface Dice", "HD95 (mm)", "volume error", "missed", "invented")


def evaluation_page(
    title: str,
    provenance: Provenance,
    averaging: Averaging,
    summary: Summary,
    figures: Sequence[str],
    problems: Sequence[Problem],
    notes: Sequence[Problem],
) -> str:
    """The whole page; ``figures`` are SVG documents, ``notes`` are remarks about single subjects."""
    return page(
        title,
        (
            facts(provenance.by_title().items()),
            paragraph(_CONVENTIONS[averaging.convention], _MEANS.format(replicates=averaging.replicates)),
            _means("Groups of structures", (*summary.groups, summary.overall)),
            *map(figure, figures),
            *(_means(f"By {attribute}", rows) for attribute, rows in summary.by_attribute.items()),
            _means("Structures", summary.structures),
            words("Not evaluated", (), ((each.id, each.reason) for each in problems), are_faults=True),
            words("Remarks", (), ((each.id, each.reason) for each in notes)),
        ),
    )


def with_interval(mean: Mean, form: str = ".3f") -> str:
    """Text such as ``0.943 (0.938 to 0.947)``; a dash if there is nothing to average."""
    if math.isnan(mean.value):
        return "-"
    if math.isnan(mean.low):
        return format(mean.value, form)
    return f"{mean.value:{form}} ({mean.low:{form}} to {mean.high:{form}})"


def cells_of_means(row: Row) -> tuple[str, ...]:
    """The line of a row of means in a table: what of, how many, the means, and what only one of both sides has."""
    return (
        row.name.replace("_", " "),
        str(row.subjects),
        str(row.structures),
        with_interval(row.dice),
        with_interval(row.surface_dice),
        with_interval(row.hd95_mm, ".1f"),
        with_interval(row.volume_error, "+.1%"),
        str(row.missed),
        str(row.invented),
    )


def _means(title: str, rows: Sequence[Row]) -> str:
    return numbers(title, ("", *_COLUMNS), map(cells_of_means, rows))
