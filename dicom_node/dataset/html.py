"""The validation report as one HTML page without anything from elsewhere."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_STYLE = (
    "body{font:15px/1.4 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:.5em 0 2em}th,td{text-align:left;padding:.2em .8em;"
    "border-bottom:1px solid #ddd;vertical-align:top}th{background:#f4f4f4}.fault{color:#a00000}"
)


def report_page(report: Mapping[str, Any]) -> str:
    """The page for the report of :func:`dicom_node.dataset.convert.convert`."""
    faults, remarks = (
        [
            (each["id"], each["text"], ", ".join(each["sets"]))
            for each in report["findings"]
            if each["fault"] is is_fault
        ]
        for is_fault in (True, False)
    )
    left_out = [(each["id"], each["reason"]) for each in report["left_out"]]
    resampling, counts = report["resampling"], ("folder", "structures", "spacing_mm", "train", "val", "test", "refused")
    sets = [tuple(each[column] for column in counts) for each in report["sets"]]
    summary = (
        f"Layout {report['layout']}; images resampled with order {resampling['image_order']}, labels to the nearest "
        f"voxel, axes {resampling['orientation']}; dicom-node {report['dicom_node']}."
    )
    parts = [
        f"<h1>Validation of {escape(report['source'])}</h1><p>{escape(summary)}</p>",
        _section("Data sets", counts, sets),
        _section("Refused subjects", ("subject", "reason", "sets"), faults, row_class="fault"),
        _section("Left out", ("in the folder", "reason"), left_out, row_class="fault"),
        _section("Remarks", ("subject", "remark", "sets"), remarks),
        *(
            _section(each["folder"], ("structure", "subjects that have it"), each["subjects_with_structure"].items())
            for each in report["sets"]
        ),
    ]
    head = f'<meta charset="utf-8"><title>Validation</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _section(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], row_class: str = "") -> str:
    lines = [
        f'<tr class="{row_class}">' + "".join(f"<td>{escape(str(value))}</td>" for value in row) + "</tr>"
        for row in rows
    ]
    if not lines:
        return f"<h2>{escape(title)}</h2><p>None.</p>"
    header = "".join(f"<th>{escape(column.replace('_', ' '))}</th>" for column in columns)
    return f"<h2>{escape(title)}</h2><table><tr>{header}</tr>{''.join(lines)}</table>"
