"""Figures of a comparison: differences of structures with intervals, subjects as lines, who agrees with whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from dicom_node.compare.differences import SIGNIFICANT
from dicom_node.evaluate.figures import COLOUR_BY_GROUP
from dicom_node.evaluate.summary import group_of
from dicom_node.pages.svg import as_svg

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dicom_node.compare.agreement import PairAgreement
    from dicom_node.compare.differences import Difference
    from dicom_node.compare.scores import Scored

_INCHES_PER_LINE = 0.16
_ALL_COLOUR = "#222222"


def differences_figure(rows: Sequence[Difference], caption: str) -> str:
    """The mean difference in Dice of two systems with its interval: over all, by group and by structure; SVG.

    Filled where Holm's p-value is below the limit.
    """
    groups = list(COLOUR_BY_GROUP)
    shown = [row for row in rows if row.subjects and row.of != "structure"]
    shown += sorted(
        (row for row in rows if row.subjects and row.of == "structure"),
        key=lambda row: groups.index(group_of(row.name)),
    )
    figure = Figure(figsize=(7.5, 1.5 + _INCHES_PER_LINE * len(shown)), layout="constrained")
    axes = figure.subplots()
    for at, row in enumerate(shown):
        group = row.name if row.of == "group" else group_of(row.name)
        colour = _ALL_COLOUR if row.of == "all" else COLOUR_BY_GROUP[group]
        value = row.difference.value
        low, high = (value if np.isnan(bound) else bound for bound in (row.difference.low, row.difference.high))
        axes.errorbar(
            [value],
            [at],
            xerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
            fmt="s" if row.of != "structure" else "o",
            color=colour,
            markerfacecolor=colour if row.p_holm < SIGNIFICANT else "white",
            markersize=4,
            elinewidth=0.8,
        )
    axes.axvline(0, color="#888888", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [f"{row.name.replace('_', ' ')} ({row.subjects})" for row in shown], fontsize=6)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(axis="x", color="#dddddd", linewidth=0.5)
    first, second = shown[0].first, shown[0].second
    axes.set_xlabel(
        f"Dice of {first} less Dice of {second}\n"
        f"mean over (n) subjects with 95 % CI; right of 0, {first} is better;\n"
        f"filled: Holm's p < {SIGNIFICANT}; squares: one value per subject, its mean over structures",
        fontsize=7,
    )
    axes.tick_params(axis="x", labelsize=8)
    figure.suptitle(f"Difference in Dice of {first} and {second}\n{caption}", fontsize=7, wrap=True)
    return as_svg(figure)


def subjects_figure(systems: Sequence[Scored], caption: str) -> str:
    """The mean Dice of each subject in every system, a line per subject that all have; SVG."""
    means = [_mean_dice(system) for system in systems]
    of_all = sorted(set.intersection(*(set(each) for each in means)))
    figure = Figure(figsize=(max(6.5, 2.0 + 1.6 * len(systems)), 4.8), layout="constrained")
    axes = figure.subplots()
    for subject in of_all:
        axes.plot(range(len(means)), [each[subject] for each in means], "o-", color="#1b6ca8", alpha=0.45, markersize=3)
    if of_all:
        overall = [float(np.mean([each[subject] for subject in of_all])) for each in means]
        axes.plot(range(len(means)), overall, "s-", color=_ALL_COLOUR, markersize=6, label="mean")
        axes.legend(fontsize=7)
    axes.set_xticks(range(len(systems)), [system.name for system in systems], fontsize=8)
    axes.set_xlim(-0.4, len(systems) - 0.6)
    axes.set_ylabel("mean Dice over the structures of a subject", fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(axis="y", color="#dddddd", linewidth=0.5)
    title = f"Mean Dice of each subject, a line each; n = {len(of_all)} subjects"
    figure.suptitle(f"{title}\n{caption}", fontsize=7, wrap=True)
    return as_svg(figure)


def _mean_dice(system: Scored) -> dict[str, float]:
    by_subject: dict[str, list[float]] = {}
    for score in system.scores:
        by_subject.setdefault(score.subject, []).append(score.dice)
    return {subject: float(np.mean(values)) for subject, values in by_subject.items()}


def matrix_figure(names: Sequence[str], pairs: Sequence[PairAgreement], caption: str) -> str:
    """The mean Dice between each two systems as a matrix; SVG."""
    values = np.full((len(names), len(names)), np.nan)
    counts = np.zeros(values.shape, np.int64)
    for pair in pairs:
        one, other = names.index(pair.first), names.index(pair.second)
        values[one, other] = values[other, one] = pair.summary.overall.dice.value
        counts[one, other] = counts[other, one] = pair.summary.overall.subjects
    figure = Figure(figsize=(max(6.5, 2.5 + 0.9 * len(names)), 2.5 + 0.8 * len(names)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, vmin=0, vmax=1, cmap="Blues")
    middle = 0.5
    for row, column in np.argwhere(np.isfinite(values)).tolist():
        colour = "white" if values[row, column] > middle else "black"
        text = f"{values[row, column]:.3f}\nn = {counts[row, column]}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(names)), names, fontsize=8, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("mean Dice over structures", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(f"Agreement of each pair; n subjects\n{caption}", fontsize=7, wrap=True)
    return as_svg(figure)
