"""An evaluation as one HTML page without anything from elsewhere; it prints, and needs no script."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dicom_node.evaluate.cases import Problem
    from dicom_node.evaluate.provenance import Provenance
    from dicom_node.evaluate.summary import Averaging, Row, Summary
    from inference.evaluation.means import Mean

_STYLE = (
    "body{font:15px/1.4 system-ui,sans-serif;margin:2em auto;max-width:75em;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:.5em 0 2em;font-size:13px}th,td{text-align:right;padding:.2em .7em;"
    "border-bottom:1px solid #ddd;vertical-align:top}th:first-child,td:first-child{text-align:left}"
    "th{background:#f4f4f4}.facts td{text-align:left}.fault td{color:#a00000;text-align:left}"
    "figure{margin:1em 0;overflow-x:auto}figure svg{max-width:100%;height:auto}"
    "@media print{body{max-width:none;margin:0;font-size:10pt}table{font-size:8pt}tr,figure{break-inside:avoid}"
    "thead{display:table-header-group}@page{size:A4 landscape;margin:12mm}}"
)
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
    """The whole page; ``figures`` are SVG documents, ``notes`` what a reader should know about single subjects."""
    parts = [
        f"<h1>{escape(title)}</h1>",
        _facts(provenance.by_title().items()),
        f"<p>{escape(_CONVENTIONS[averaging.convention])} {escape(_MEANS.format(replicates=averaging.replicates))}</p>",
        _means("Groups of structures", (*summary.groups, summary.overall)),
        *(f"<figure>{_inline(figure)}</figure>" for figure in figures),
        *(_means(f"By {attribute}", rows) for attribute, rows in summary.by_attribute.items()),
        _means("Structures", summary.structures),
        _list("Not evaluated", problems, row_class="fault"),
        _list("Remarks", notes),
        "<p>Research software, not a medical device.</p>",
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def with_interval(mean: Mean, form: str = ".3f") -> str:
    """For people: ``0.943 (0.938 to 0.947)``; a dash where there is nothing to average."""
    if math.isnan(mean.value):
        return "-"
    if math.isnan(mean.low):
        return format(mean.value, form)
    return f"{mean.value:{form}} ({mean.low:{form}} to {mean.high:{form}})"


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<tr><th>{escape(title)}</th><td>{escape(value)}</td></tr>" for title, value in facts)
    return f'<table class="facts">{rows}</table>'


def _means(title: str, rows: Sequence[Row]) -> str:
    header = "".join(f"<th>{escape(column)}</th>" for column in ("", *_COLUMNS))
    lines = []
    for row in rows:
        cells = (
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
        lines.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    body = "".join(lines)
    return f"<h2>{escape(title)}</h2><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"


def _list(title: str, entries: Sequence[Problem], row_class: str = "") -> str:
    if not entries:
        return f"<h2>{escape(title)}</h2><p>None.</p>"
    rows = "".join(
        f'<tr class="{row_class}"><td>{escape(each.id)}</td><td style="text-align:left">{escape(each.reason)}</td></tr>'
        for each in entries
    )
    return f"<h2>{escape(title)}</h2><table>{rows}</table>"


def _inline(svg: str) -> str:
    """Without the XML declaration and document type, which don't belong into HTML."""
    return svg[svg.index("<svg") :]
