"""The uncertainty of the volumes as tables for programs and as a page."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from dicom_node.constancy.conditions import conditions_of
from dicom_node.dataset.files import write_json, write_text
from dicom_node.evaluate.tables import write_csv
from dicom_node.pages.html import facts as table_of_facts
from dicom_node.pages.html import numbers, page, paragraph, words

if TYPE_CHECKING:
    from pathlib import Path

    from dicom_node.constancy.conditions import Conditions
    from dicom_node.constancy.variation import Uncertainty, Variation
    from inference.types import ModelIdentity

PAGE, TABLE_CSV, SCANS_CSV, SUMMARY_JSON = "uncertainty.html", "uncertainty.csv", "scans.csv", "uncertainty.json"
_EXPLANATION = (
    "Each synthetic phantom is scanned with every slice thickness and kernel, and each scan segmented. The mean is "
    "over all scans. SD and CV (SD as a share of the mean) are those within a phantom, as root mean squares over the "
    "phantoms; the range is of all scans, as a share of the phantom's mean volume. Missed: scans in which the "
    "structure was not found, which count as 0 ml. Structures that the border of a scan cuts off are left out. Real "
    "patients and scanners differ in more than this."
)
_COLUMNS = ("", "phantoms", "mean (ml)", "SD (ml)", "CV", "range of scans", "CV by thickness", "CV by kernel", "missed")


def write_variation(out: Path, model: ModelIdentity, variation: Variation) -> None:
    """Write the table of structures and that of all scans (CSV), everything as JSON, and the page.

    Raises:
        ConfigurationError: a file can't be written.
    """
    made_by = {"model": model.name, "version": model.version, "digest": model.digest}
    conditions = conditions_of(variation.run)
    write_csv(out / TABLE_CSV, [{**asdict(each), **made_by} for each in variation.structures])
    write_csv(out / SCANS_CSV, [{**asdict(each), **made_by} for each in variation.scans])
    summary = {"model": asdict(model), "conditions": asdict(conditions), **variation.as_json()}
    write_json(out / SUMMARY_JSON, summary)
    write_text(out / PAGE, _page(model, conditions, variation))


def _page(model: ModelIdentity, conditions: Conditions, variation: Variation) -> str:
    ways = variation.ways
    facts = {
        "model": f"{model.name} {model.version} (sha256 {model.digest})",
        "intended use": model.intended_use,
        "phantoms": f"{ways.phantoms}, field of view {ways.field_of_view}",
        "slice thickness": ", ".join(f"{each:g} mm" for each in ways.thicknesses_mm),
        "kernel": ", ".join(ways.kernels),
        "scans": str(ways.phantoms * len(ways.thicknesses_mm) * len(ways.kernels)),
        **{name.replace("_", " "): value for name, value in asdict(conditions).items()},
    }
    return page(
        "Uncertainty of volumes over slice thickness and kernel",
        (
            table_of_facts(facts.items()),
            paragraph(_EXPLANATION),
            numbers("Structures", _COLUMNS, map(_cells, variation.structures)),
            words("Left out", (), variation.left_out.items(), are_faults=True),
        ),
    )


def _cells(each: Uncertainty) -> tuple[str, ...]:
    return (
        each.structure.replace("_", " "),
        str(each.phantoms),
        f"{each.mean_ml:.2f}",
        f"{each.sd_ml:.2f}",
        f"{each.cv_percent:.1f} %",
        f"{each.lowest_percent:.0f} to {each.highest_percent:.0f} %",
        *("-" if cv is None else f"{cv:.1f} %" for cv in (each.thickness_cv_percent, each.kernel_cv_percent)),
        str(each.missed),
    )
