"""A study as one HTML page without anything from elsewhere."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from dicom_node.age_study.study import FEWEST_PATIENTS, GROUPS, QUANTITIES
from dicom_node.pages.html import facts, figure, numbers, page, paragraph, words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dicom_node.age_study.selection import Population
    from dicom_node.age_study.study import Finding, Study

_TITLES = {"volume_ml": "volume", "mean_hu": "mean attenuation"}
_NOTHING = "-"
_SMALLEST_P = 0.001


def study_page(population: Population, study: Study, provenance: Mapping[str, str], figures: Sequence[str]) -> str:
    """The whole page; ``figures`` are SVG documents."""
    used, table = len(population.patients), population.series_in_table
    return page(
        "Age study",
        (
            facts((title.replace("_", " "), value) for title, value in provenance.items()),
            words("Patients", (), _population(population)),
            words("Not used", ("reason", "series or reports"), _not_used(population)),
            paragraph(
                f"{used} of {table} series with measurements are used, one of each patient; every other series is "
                "listed in left_out.csv, and every value that is not used in values_left_out.parquet."
            ),
            _beside_paper(study),
            paragraph(_methods(study)),
            *map(figure, figures),
            *(_structures(study, group, quantity) for group in GROUPS for quantity in QUANTITIES if study.of(group)),
        ),
    )


def with_interval(finding: Finding) -> str:
    """For people: ``0.64 (0.61 to 0.67)``; a dash where it was not tested."""
    if finding.r_s is None:
        return _NOTHING
    if finding.ci_low is None:
        return f"{finding.r_s:.2f}"
    return f"{finding.r_s:.2f} ({finding.ci_low:.2f} to {finding.ci_high:.2f})"


def p_text(p: float | None) -> str:
    """For people."""
    if p is None:
        return _NOTHING
    return f"< {_SMALLEST_P}" if p < _SMALLEST_P else f"{p:.3f}"


def _methods(study: Study) -> str:
    return (
        f"r_s is Spearman's rank correlation with age. Intervals are 95 % percentiles of {study.replicates} bootstrap "
        "draws of patients; p is two-sided. Holm's p and that of Benjamini and Hochberg (FDR) are corrected for all "
        "structures and both quantities of one group of patients. A structure that is truncated in a patient is left "
        f"out there, for volume and attenuation. Fewer than {FEWEST_PATIENTS} patients with a value are not tested. "
        "Attenuation depends on contrast agent, tube voltage and kernel, which are not corrected for. Trends are "
        "locally weighted regressions (LOWESS, half of the patients around each point)."
    )


def _population(population: Population) -> list[tuple[str, str]]:
    ages = population.ages_years
    sexes = Counter(population.sexes.tolist())
    stated = {"F": "women", "M": "men", "O": "other", "": "sex unknown (not in the analyses by sex)"}
    contrast = ", ".join(f"{word} {count}" for word, count in sorted(population.contrast.items()))
    return [
        ("patients", str(len(population.patients))),
        ("age in years", f"{ages.min():.0f} to {ages.max():.0f}, mean {ages.mean():.1f}, SD {ages.std():.1f}"),
        *((title, str(sexes[sex])) for sex, title in stated.items() if sexes[sex]),
        ("contrast agent", contrast),
        ("structures", str(len(population.structures))),
    ]


def _not_used(population: Population) -> list[tuple[str, str]]:
    without = Counter(f"without measurements: {each.outcome}" for each in population.without_rows)
    repeated = Counter(f"rows: {each.reason}" for each in population.rows_left_out)
    others = {f"rows of another model: {model}": count for model, count in population.rows_of_other_models.items()}
    counts = {**population.counts_by_reason(), **without, **repeated, **others}
    return [(reason, str(count)) for reason, count in counts.items()]


def _beside_paper(study: Study) -> str:
    rows = [
        (
            f"{each.structure.replace('_', ' ')}, {_TITLES[each.quantity]}",
            f"{each.paper_r_s:.2f}",
            with_interval(each),
            "" if each.difference is None else f"{round(each.difference, 2) + 0:+.2f}",
            p_text(each.p),
            str(each.patients),
        )
        for each in study.of("all").values()
        if each.paper_r_s is not None
    ]
    columns = ("", "paper (n = 4004)", "this study (95 % CI)", "difference", "p", "n")
    return numbers("Beside the paper (arXiv 2208.05868)", columns, rows)


def _structures(study: Study, group: str, quantity: str) -> str:
    columns = ("structure", "n", "absent", "truncated", "not said", "no value", "r_s (95 % CI)", "p", "Holm", "FDR")
    rows = [
        (
            each.structure.replace("_", " "),
            *map(str, (each.patients, each.absent, each.truncated, each.truncation_unknown, each.no_value)),
            with_interval(each),
            *map(p_text, (each.p, each.p_holm, each.p_fdr)),
        )
        for each in study.of(group).values()
        if each.quantity == quantity
    ]
    return numbers(f"{_TITLES[quantity].capitalize()}, {GROUPS[group]}", columns, rows)
