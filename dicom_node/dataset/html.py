"""The validation report as one self-contained HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dicom_node.pages.html import page, paragraph, words

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


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
    return page(
        f"Validation of {report['source']}",
        (
            paragraph(summary),
            _section("Data sets", counts, sets),
            _section("Refused subjects", ("subject", "reason", "sets"), faults, are_faults=True),
            _section("Left out", ("in the folder", "reason"), left_out, are_faults=True),
            _section("Remarks", ("subject", "remark", "sets"), remarks),
            *(
                _section(
                    each["folder"], ("structure", "subjects that have it"), each["subjects_with_structure"].items()
                )
                for each in report["sets"]
            ),
        ),
    )


def _section(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, are_faults: bool = False) -> str:
    titles = [column.replace("_", " ") for column in columns]
    return words(title, titles, ([str(value) for value in row] for row in rows), are_faults=are_faults)
