"""Figures of a study, as in the paper: each structure over age with its trend, as a grid of small panels."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dicom_node.age_study.study import PAPER, QUANTITIES, members
from dicom_node.dataset.processes import in_processes
from dicom_node.evaluate.figures import COLOUR_BY_GROUP
from dicom_node.evaluate.summary import group_of
from dicom_node.pages.svg import as_svg
from inference.structures import catalogue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from dicom_node.age_study.selection import Population
    from dicom_node.age_study.study import Study

_TITLES = {"volume_ml": "Volume (ml)", "mean_hu": "Mean attenuation (HU)"}
_COLUMNS = 6
_LARGEST_POINT, _SMALLEST_POINT = 6.0, 2.5
"""In points: of a handful of patients, and of thousands."""
_PNG_DOTS_PER_INCH = 150
_PAPER = "paper"
_VALUES_WORTH_A_PROCESS = 50_000
"""Patients x structures: with fewer, a process takes longer to start than to draw."""
_LINES = {"all": ("#111111", "-"), "F": ("#c4532d", "--"), "M": ("#2d6ac4", "--")}
_CAPTION = "each point a patient; line: smoothed trend of all, dashed: women (red), men (blue)"


@dataclass(frozen=True, slots=True)
class Picture:
    """One figure in both forms."""

    name: str
    svg: str
    png: bytes


def grid(population: Population, study: Study, quantity: str, caption: str) -> Picture:
    """A panel for each structure, ordered and coloured by its group."""
    ordered = _ordered(population.structures)
    rows = -(-len(ordered) // _COLUMNS)
    figure = Figure(figsize=(2.0 * _COLUMNS, 1.55 * rows + 0.8))
    every = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes, structure in zip(every, ordered, strict=False):
        _panel(axes, population, study, structure, quantity, font_size=6)
    for axes in every[len(ordered) :]:
        axes.remove()
    for axes in every[: max(0, len(ordered) - _COLUMNS)]:
        axes.tick_params(labelbottom=False)
    height = float(figure.get_figheight())
    figure.subplots_adjust(0.03, 0.3 / height, 0.995, 1 - 0.95 / height, 0.25, 0.35)
    title = f"{_TITLES[quantity]} over age in years; {_CAPTION}\n{caption}"
    # matplotlib's 0.98 would be within the panels of a tall figure
    figure.suptitle(title, y=1 - 0.1 / height, fontsize=9, wrap=True)
    return _picture(f"{quantity}_over_age", figure)


def paper_figure(population: Population, study: Study, caption: str) -> Picture | None:
    """The correlations that the paper states, large; None if the table has none of these structures."""
    shown = [(structure, quantity) for structure, quantity in PAPER if structure in population.structures]
    if not shown:
        return None
    figure = Figure(figsize=(4.2 * len(shown), 3.9), layout="constrained")
    for axes, (structure, quantity) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        _panel(axes, population, study, structure, quantity, font_size=9)
        axes.set_xlabel("Age (years)", fontsize=9)
        axes.set_ylabel(_TITLES[quantity], fontsize=9)
    figure.suptitle(f"{_CAPTION}\n{caption}", fontsize=7, wrap=True)
    return _picture(_PAPER, figure)


def figures_of(population: Population, study: Study, caption: str) -> list[Picture]:
    """All figures of the study; large ones are drawn by several processes."""
    work = partial(_figure, population, study, caption)
    processes = 1 if population.volume_ml.size < _VALUES_WORTH_A_PROCESS else 0
    drawn = dict(in_processes(work, (_PAPER, *QUANTITIES), processes))
    return [picture for what in (_PAPER, *QUANTITIES) if (picture := drawn[what]) is not None]


def _figure(population: Population, study: Study, caption: str, what: str) -> Picture | None:
    if what == _PAPER:
        return paper_figure(population, study, caption)
    return grid(population, study, what, caption)


def _panel(axes: Axes, population: Population, study: Study, structure: str, quantity: str, font_size: float) -> None:
    values = getattr(population, quantity)[:, population.structures.index(structure)]
    colour = COLOUR_BY_GROUP[group_of(structure)]
    size = float(np.clip(60 / np.sqrt(len(population.patients)), _SMALLEST_POINT, _LARGEST_POINT))
    # as pixels, or thousands of patients would be as many elements of the SVG
    axes.plot(
        population.ages_years, values, ".", color=colour, alpha=0.4, markersize=size, markeredgewidth=0, rasterized=True
    )
    for group, (line, style) in _LINES.items():
        trend = study.trends.get((group, structure, quantity))
        if trend is not None and (group == "all" or members(population, group).any()):
            axes.plot(study.trend_ages_years, trend, style, color=line, linewidth=1.2 if group == "all" else 0.8)
    finding = study.of("all")[structure, quantity]
    found = "not tested" if finding.r_s is None else f"r\N{LATIN SUBSCRIPT SMALL LETTER S} = {finding.r_s:.2f}"
    paper = "" if finding.paper_r_s is None else f" (paper {finding.paper_r_s:.2f})"
    name = structure.replace("_", " ")
    axes.set_title(f"{name}\n{found}{paper}, n = {finding.patients}", fontsize=font_size, pad=2)
    axes.tick_params(labelsize=font_size - 1, length=2, pad=1)
    axes.locator_params(nbins=4)
    axes.set_xlim(population.ages_years.min() - 1, population.ages_years.max() + 1)
    if not np.isfinite(values).any():
        axes.set_yticks([])


def _picture(name: str, figure: Figure) -> Picture:
    content = io.BytesIO()
    figure.set_dpi(_PNG_DOTS_PER_INCH)
    FigureCanvasAgg(figure).print_png(content, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return Picture(name, as_svg(figure), content.getvalue())


def _ordered(structures: Sequence[str]) -> list[str]:
    """By group, in it as in the catalogue; others last."""
    groups, known = list(COLOUR_BY_GROUP), list(catalogue())
    place = {name: known.index(name) if name in known else len(known) for name in structures}
    return sorted(structures, key=lambda name: (groups.index(group_of(name)), place[name], name))
