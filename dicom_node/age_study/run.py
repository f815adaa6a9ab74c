"""``dicom-node cohort age``: read, select, correlate, write."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dicom_node import __version__
from dicom_node.age_study.figures import figures_of
from dicom_node.age_study.page import study_page
from dicom_node.age_study.selection import Population, Rules, select
from dicom_node.age_study.sources import read_source
from dicom_node.age_study.study import Study, correlate
from dicom_node.age_study.tables import (
    findings_table,
    left_out_table,
    trends_table,
    values_left_out_table,
    write_csv,
    write_parquet,
)
from dicom_node.dataset.files import replaced_file, write_json, write_text
from dicom_node.pages.html import STATEMENT
from inference.statistics.bootstrap import REPLICATES

if TYPE_CHECKING:
    from pathlib import Path

PAGE = "age-study.html"


@dataclass(frozen=True, slots=True)
class AgeStudy:
    """The result."""

    provenance: dict[str, str]
    population: Population
    study: Study

    def as_json(self) -> dict[str, Any]:
        """Plain values for programs; no patient by patient."""
        return {
            "statement": STATEMENT,
            "provenance": self.provenance,
            **self.population.counts(),
            "replicates": self.study.replicates,
            "findings": [asdict(each) | {"difference": each.difference} for each in self.study.findings],
        }


def run_age_study(source: Path, out: Path, rules: Rules, replicates: int = REPLICATES) -> AgeStudy:
    """Make the study of the table ``source`` and write it to ``out``.

    Raises:
        ConfigurationError: there is no table, nothing in it can be used, or ``out`` can't be written.
    """
    table = read_source(source)
    population = select(table, rules)
    study = correlate(population, replicates)
    provenance = {
        "source": table.description,
        "model": population.model.name or "unknown",
        "model_version": population.model.version or "unknown",
        "model_digest": population.model.digest or "unknown",
        "software": f"dicom-node {__version__}, research software",
        "selection": str(rules),
    }
    result = AgeStudy(provenance, population, study)
    _write(out, result)
    return result


def _write(out: Path, result: AgeStudy) -> None:
    population, study = result.population, result.study
    findings = findings_table(study, result.provenance)
    write_csv(out / "correlations.csv", findings)
    write_parquet(out / "correlations.parquet", findings)
    write_csv(out / "left_out.csv", left_out_table(population))
    write_parquet(out / "values_left_out.parquet", values_left_out_table(population))
    write_csv(out / "trends.csv", trends_table(study))
    write_json(out / "age-study.json", result.as_json())
    model = population.model
    caption = f"{model}; n = {len(population.patients)}; dicom-node {__version__}, research software"
    pictures = figures_of(population, study, caption)
    for each in pictures:
        write_text(out / "figures" / f"{each.name}.svg", each.svg)
        with replaced_file(out / "figures" / f"{each.name}.png") as part:
            part.write_bytes(each.png)
    write_text(out / PAGE, study_page(population, study, result.provenance, [each.svg for each in pictures]))
