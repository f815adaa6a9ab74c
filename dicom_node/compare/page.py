"""A comparison as one HTML page."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dicom_node.compare.differences import SIGNIFICANT, smallest_p
from dicom_node.compare.outliers import RULE
from dicom_node.evaluate.page import cells_of_means, with_interval
from dicom_node.pages.html import facts, figure, heading, numbers, page, paragraph, picture, words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dicom_node.compare.agreement import AgainstOthers, PairAgreement
    from dicom_node.compare.differences import Difference, Measure
    from dicom_node.compare.outliers import Outlier
    from dicom_node.evaluate.cases import Problem
    from dicom_node.evaluate.provenance import Provenance
    from dicom_node.evaluate.summary import Row

TITLES: dict[Measure, str] = {
    "dice": "Dice",
    "surface_dice": "surface Dice",
    "hd95_mm": "HD95 (mm)",
    "volume_error": "absolute volume error",
}
_FORMS: dict[Measure, str] = {"dice": ".3f", "surface_dice": ".3f", "hd95_mm": ".2f", "volume_error": ".1%"}
_SMALLEST_P = 0.0001
HOW_TESTED = (
    "Differences are first less second, subject by subject: mean with its 95 % bootstrap interval (BCa, {replicates} "
    "draws of whole subjects). p: Wilcoxon's signed-rank test, two-sided. Holm and FDR (Benjamini and Hochberg): "
    "corrected over all lines of the same measure and kind (structure, group, all) and over all pairs of systems. "
    "Effect: matched-pairs rank-biserial correlation; 1: the first is larger in every subject. Structures of one "
    "subject are not independent, so a group, and all, is tested on one value per subject: its mean over the "
    f"structures. Better: Holm's p < {SIGNIFICANT}. HD95 and volume error are compared where both systems found the "
    "structure."
)
_MISSED = "Read them together with the number of structures that each one missed."
_KINDS = {"all": "All structures together", "group": "Groups of structures", "structure": "Single structures"}
_HOW_AGREED = (
    "Agreement does not say which of the two is right. A structure that only one of the two found counts as Dice 0; "
    "one that neither found does not count; the last columns count those that only the first, and only the second, "
    "has found. The volume difference is second less first, as a share of the first. Means over "
    "several structures are means of their means over the subjects, with 95 % bootstrap intervals ({replicates} draws "
    "of whole subjects)."
)
_COLUMNS = ("subjects", "first", "second", "difference (95 % CI)", "median", "p", "Holm", "FDR", "effect (95 % CI)")
_AGREEMENT = (
    *("", "subjects", "structures", "Dice", "surface Dice", "HD95 (mm)", "volume difference"),
    *("only first", "only second"),
)


def comparison_page(
    title: str,
    provenance: Provenance,
    replicates: int,
    rows: Sequence[Difference],
    figures: Sequence[str],
    problems: Sequence[Problem],
) -> str:
    """Of systems with a truth."""
    parts = [facts(provenance.by_title().items()), paragraph(HOW_TESTED.format(replicates=replicates), _MISSED)]
    parts += _warnings_of_few(rows)
    parts.append(_overview("Over all structures", rows))
    parts += map(figure, figures)
    parts += _differences(rows)
    parts.append(words("Not compared", (), ((each.id, each.reason) for each in problems), are_faults=True))
    return page(title, parts)


def agreement_page(
    title: str,
    provenance: Provenance,
    replicates: int,
    pairs: Sequence[PairAgreement],
    others: Sequence[AgainstOthers],
    rows: Sequence[Difference],
    found: Sequence[Outlier],
    pictures: Sequence[tuple[Outlier, bytes]],
    figures: Sequence[str],
    problems: Sequence[Problem],
    notes: Sequence[Problem],
) -> str:
    """Of systems without a truth; ``rows`` compare the agreement of one pair with that of another."""
    parts = [facts(provenance.by_title().items()), paragraph(_HOW_AGREED.format(replicates=replicates))]
    overall = [(pair, (pair.summary.overall, *pair.summary.groups)) for pair in pairs]
    parts += [_agreement(pair, means, "groups of structures") for pair, means in overall]
    if others:
        lines = (
            (each.name, str(each.subjects), with_interval(each.dice), with_interval(each.surface_dice))
            for each in others
        )
        parts.append(numbers("Each against the others", ("", "subjects", "Dice", "surface Dice"), lines))
    parts += map(figure, figures)
    over_all = [row for row in rows if row.of == "all"]
    if over_all:
        parts += [heading("Do two agree better than two others?"), paragraph(HOW_TESTED.format(replicates=replicates))]
        parts += [*_warnings_of_few(over_all), _overview("Pairs against pairs, over all structures", over_all)]
    parts += [
        words(
            "Outliers",
            ("subject", "structure", "systems", "Dice", "median of the structure", "limit"),
            (
                (
                    each.subject,
                    each.structure.replace("_", " "),
                    f"{each.first} and {each.second}",
                    *(f"{value:.3f}" for value in (each.dice, each.median, each.limit)),
                )
                for each in found
            ),
        ),
        paragraph(RULE),
        *(picture(png, caption_of(outlier)) for outlier, png in pictures),
        *(
            _agreement(pair, means, f"by {attribute}")
            for pair in pairs
            for attribute, means in pair.summary.by_attribute.items()
        ),
        *(_agreement(pair, pair.summary.structures, "structures") for pair in pairs),
        words("Not compared", (), ((each.id, each.reason) for each in problems), are_faults=True),
        words("Remarks", (), ((each.id, each.reason) for each in notes)),
    ]
    return page(title, parts)


def caption_of(outlier: Outlier) -> str:
    """Of its picture."""
    return (
        f"{outlier.subject}, {outlier.structure.replace('_', ' ')}: Dice {outlier.dice:.3f} between {outlier.first} "
        f"and {outlier.second}, median {outlier.median:.3f}"
    )


def p_value(p: float) -> str:
    """For people."""
    if math.isnan(p):
        return "-"
    return f"{p:.4f}" if p >= _SMALLEST_P else f"< {_SMALLEST_P:.4f}"


def _pairs(rows: Iterable[Difference]) -> dict[tuple[str, str], None]:
    return dict.fromkeys((row.first, row.second) for row in rows)


def _overview(title: str, rows: Sequence[Difference]) -> str:
    columns = ("first against second", "measure", *_COLUMNS, "better")
    lines = (
        (f"{row.first} against {row.second}", TITLES[row.measure], *_cells(row), row.better or "-")
        for row in rows
        if row.of == "all"
    )
    return numbers(title, columns, lines)


def _differences(rows: Sequence[Difference]) -> list[str]:
    parts = []
    for first, second in _pairs(rows):
        for measure, title in TITLES.items():
            shown = [row for row in rows if (row.first, row.second, row.measure) == (first, second, measure)]
            lines = (
                (
                    row.name.replace("_", " "),
                    *_cells(row),
                    f"{row.missed_first}, {row.missed_second}",
                    row.better or "-",
                )
                for row in shown
            )
            columns = ("", *_COLUMNS, "missed (1st, 2nd)", "better")
            parts.append(numbers(f"{first} against {second}: {title}", columns, lines))
    return parts


def _cells(row: Difference) -> tuple[str, ...]:
    form = _FORMS[row.measure]
    means = ("-" if math.isnan(value) else format(value, form) for value in (row.first_mean, row.second_mean))
    median = "-" if math.isnan(row.median) else format(row.median, f"+{form}")
    return (
        str(row.subjects),
        *means,
        with_interval(row.difference, f"+{form}"),
        median,
        *map(p_value, (row.p, row.p_holm, row.p_fdr)),
        with_interval(row.effect, "+.2f"),
    )


def _warnings_of_few(rows: Sequence[Difference]) -> list[str]:
    """Where no difference can be called one, however large it is: too few subjects for so many lines."""
    parts = []
    for kind, title in _KINDS.items():
        tested = [row.subjects for row in rows if row.of == kind and row.measure == "dice" and row.subjects]
        smallest = smallest_p(max(tested, default=0))
        if tested and len(tested) * smallest >= SIGNIFICANT:
            parts.append(
                f"{title}: with {max(tested)} subjects, the exact signed-rank test gives no p below "
                f"{smallest:.2g}, and Holm's over {len(tested)} lines none below {min(1, len(tested) * smallest):.2g}: "
                "no difference can be called one here, however large it is."
            )
    return [paragraph(part) for part in parts]


def _agreement(pair: PairAgreement, means: Sequence[Row], what: str) -> str:
    return numbers(f"{pair.name}: {what}", _AGREEMENT, map(cells_of_means, means))
