"""Figures of an evaluation, as in the paper: scores of every structure by group, and scores of groups of subjects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from dicom_node.evaluate.summary import UNKNOWN, group_of, is_counted
from dicom_node.pages.svg import as_svg

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from dicom_node.evaluate.scoring import SubjectScores
    from dicom_node.evaluate.summary import Averaging, Summary

COLOUR_BY_GROUP = {
    "organ": "#1b6ca8",
    "vessel": "#b5382f",
    "bone": "#8a7a4f",
    "muscle": "#7a3e8e",
    "tissue": "#3f7f5f",
    "other": "#555555",
}
"""Dark enough for white paper, and distinguishable in the common forms of colour blindness."""
_INCHES_PER_STRUCTURE = 0.14


def structures_figure(
    subjects: Sequence[SubjectScores], names: Sequence[str], averaging: Averaging, caption: str
) -> str:
    """Dice and surface Dice of every structure: a box per structure over the subjects, coloured by group; SVG."""
    figure = Figure(figsize=(max(6.0, 1.5 + _INCHES_PER_STRUCTURE * len(names)), 7.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    ordered = sorted(names, key=lambda name: (list(COLOUR_BY_GROUP).index(group_of(name)), names.index(name)))
    for axes, key, title in ((upper, "dice", "Dice"), (lower, "surface_dice", "Surface Dice")):
        values = [
            [
                getattr(score, key)
                for subject in subjects
                for score in subject.structures
                if score.name == name and is_counted(score, averaging.convention)
            ]
            for name in ordered
        ]
        _boxes(axes, values, [COLOUR_BY_GROUP[group_of(name)] for name in ordered])
        axes.set_ylabel(title)
        axes.set_ylim(-0.02, 1.02)
        axes.grid(axis="y", color="#dddddd", linewidth=0.5)
        axes.margins(x=0.01)
    lower.set_xticks(range(len(ordered)), [name.replace("_", " ") for name in ordered], rotation=90, fontsize=6)
    shown = dict.fromkeys(group_of(name) for name in ordered)
    handles = [upper.plot([], [], "s", color=COLOUR_BY_GROUP[group], label=group)[0] for group in shown]
    upper.legend(handles=handles, loc="lower right", ncols=len(handles), fontsize=7)
    title = f"Dice and surface Dice of each structure; n = {len(subjects)} subjects"
    figure.suptitle(f"{title}\n{caption}", fontsize=7, wrap=True)
    return as_svg(figure)


def attributes_figure(summary: Summary, caption: str) -> str | None:
    """Mean Dice with its interval for each value of each attribute; SVG, or None if subjects have no attributes."""
    shown = {
        attribute: [row for row in rows if row.name != UNKNOWN and np.isfinite(row.dice.value)]
        for attribute, rows in summary.by_attribute.items()
    }
    shown = {attribute: rows for attribute, rows in shown.items() if rows}
    if not shown:
        return None
    figure = Figure(figsize=(7.5, 0.8 + 0.25 * sum(len(rows) + 1 for rows in shown.values())), layout="constrained")
    axes = figure.subplots()
    labels, height = [], 0
    for attribute, rows in shown.items():
        for row in rows:
            mean = row.dice
            low, high = (mean.value if np.isnan(bound) else bound for bound in (mean.low, mean.high))
            spread = [[max(0.0, mean.value - low)], [max(0.0, high - mean.value)]]
            axes.errorbar([mean.value], [height], xerr=spread, fmt="o", color="#1b6ca8", capsize=3, markersize=4)
            labels.append((height, f"{attribute}: {row.name} (n = {row.subjects})"))
            height += 1
        height += 1
    axes.axvline(summary.overall.dice.value, color="#888888", linewidth=0.8, linestyle="--")
    axes.set_yticks([at for at, _ in labels], [label for _, label in labels], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("mean Dice over structures, 95 % CI; dashed: all subjects", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    figure.suptitle(f"Mean Dice by group of subjects\n{caption}", fontsize=7, wrap=True)
    return as_svg(figure)


def _boxes(axes: Axes, values: Sequence[Sequence[float]], colours: Sequence[str]) -> None:
    present = [(at, one) for at, one in enumerate(values) if one]
    if not present:
        return
    drawn = axes.boxplot(
        [list(one) for _, one in present],
        positions=[at for at, _ in present],
        widths=0.6,
        patch_artist=True,
        flierprops={"marker": ".", "markersize": 2},
        medianprops={"color": "white", "linewidth": 0.8},
        whiskerprops={"linewidth": 0.6},
        capprops={"linewidth": 0.6},
        manage_ticks=False,
    )
    for (at, _), box in zip(present, drawn["boxes"], strict=True):
        box.set(facecolor=colours[at], edgecolor=colours[at], linewidth=0.5)
