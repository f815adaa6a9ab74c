"""``dicom-node compare``: evaluate or pair the systems, compare, write."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicom_node.compare.agreement import (
    AgainstOthers,
    PairAgreement,
    Segmented,
    against_others,
    agreement,
    agreement_rows,
    paired_sources,
)
from dicom_node.compare.differences import Difference, differences
from dicom_node.compare.figures import differences_figure, matrix_figure, subjects_figure
from dicom_node.compare.outliers import RULE, Outlier, outliers
from dicom_node.compare.page import agreement_page, comparison_page
from dicom_node.compare.pictures import outlier_picture
from dicom_node.compare.provenance import combined, tool_of_agreement, tool_of_differences
from dicom_node.compare.scores import (
    Scored,
    counted_scores,
    read_scored,
    refuse_other_measures,
    without_other_truths,
)
from dicom_node.dataset.files import replaced_file, write_json, write_text
from dicom_node.errors import ConfigurationError, DicomNodeError
from dicom_node.evaluate.cases import Problem
from dicom_node.evaluate.figures import attributes_figure, structures_figure
from dicom_node.evaluate.predicting import segmented
from dicom_node.evaluate.provenance import Provenance, data_set_of, software_of_model, software_of_results, split_of
from dicom_node.evaluate.run import Wanted, evaluate_folder, evaluate_model, stated_over
from dicom_node.evaluate.summary import row_as_json, rows_by_attribute
from dicom_node.evaluate.tables import mean_rows, write_csv, write_parquet
from dicom_node.labelmaps import Scan, by_referenced_series, find_scans, find_segmentations

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dicom_node.compare.systems import System
    from dicom_node.evaluate.cases import Truth
    from dicom_node.labelmaps import LabelSource
    from inference.nnunet.contract import EngineOptions

PAGE = "comparison.html"
_SUMMARY = "comparison.json"
_SYSTEMS, _PAIRS, _FIGURES, _OUTLIERS = "systems", "pairs", "figures", "outliers"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Systems with a truth; ``problems`` are what was not compared, with the reasons."""

    provenance: Provenance
    differences: tuple[Difference, ...]
    problems: tuple[Problem, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values for programs."""
        return {
            "provenance": asdict(self.provenance),
            "differences": [row.as_row() for row in self.differences],
            "not_compared": [asdict(each) for each in self.problems],
        }


@dataclass(frozen=True, slots=True)
class Agreement:
    """Systems without a truth. ``differences``: the agreement of one pair of systems compared with that of another."""

    provenance: Provenance
    pairs: tuple[PairAgreement, ...]
    others: tuple[AgainstOthers, ...]
    differences: tuple[Difference, ...]
    outliers: tuple[Outlier, ...]
    problems: tuple[Problem, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values for programs."""
        return {
            "provenance": asdict(self.provenance),
            "pairs": [
                {
                    "first": pair.first,
                    "second": pair.second,
                    "subjects": len(pair.subjects),
                    "overall": row_as_json(pair.summary.overall),
                    "groups": [row_as_json(row) for row in pair.summary.groups],
                    "by_attribute": rows_by_attribute(pair.summary),
                    "structures": [row_as_json(row) for row in pair.summary.structures],
                }
                for pair in self.pairs
            ],
            "each_against_the_others": [each.as_row() for each in self.others],
            "differences": [row.as_row() for row in self.differences],
            "outlier_rule": RULE,
            "outliers": [asdict(each) for each in self.outliers],
            "not_compared": [asdict(each) for each in self.problems],
        }


# ---- with a truth


def compare_with_truth(
    systems: Sequence[System],
    truth_folder: Path | None,
    out: Path,
    wanted: Wanted,
    options: EngineOptions,
    report: Callable[[str, int, int], None],
) -> Comparison:
    """Evaluate each system that is not evaluated yet into ``out/systems``, and compare the scores.

    Raises:
        ConfigurationError: a system can't be evaluated, there is no truth to do it, the systems were evaluated in
            different ways, no score has a pair, or ``out`` can't be written.
        ResultUnreadable: a folder of one subject has more than one segmentation.
        WorkerLost: a process was ended from outside.
    """
    scored = [_scored(system, truth_folder, out, wanted, options, report) for system in systems]
    refuse_other_measures(scored)
    scored, of_other_truth = without_other_truths(scored)
    replicates = wanted.averaging.replicates
    rows, without_pair = differences(scored, replicates=replicates, seed=wanted.averaging.seed)
    if not any(row.subjects for row in rows):
        raise ConfigurationError(
            "no subject and structure was scored for two systems; subjects are "
            + ", and ".join(f"{', '.join(each.subjects[:3])} ... of {each.name}" for each in scored)
        )
    tool = tool_of_differences(replicates, scored[0].provenance.tool)
    problems = [problem for each in scored for problem in each.problems]
    comparison = Comparison(
        combined({each.name: each.provenance for each in scored}, tool),
        rows,
        (*problems, *of_other_truth, *without_pair),
    )
    _write_comparison(out, comparison, scored, replicates)
    return comparison


def _scored(
    system: System,
    truth_folder: Path | None,
    out: Path,
    wanted: Wanted,
    options: EngineOptions,
    report: Callable[[str, int, int], None],
) -> Scored:
    if isinstance(system.place, Path) and system.is_evaluated:
        return read_scored(system.name, system.place)
    if truth_folder is None:
        raise ConfigurationError(f"{system.name} is not evaluated yet: --truth is needed")
    own = replace(wanted, stated=system.stated)
    folder = out / _SYSTEMS / system.name

    def of_system(stage: str, done: int, total: int) -> None:
        report(f"{system.name}: {stage}", done, total)

    if isinstance(system.place, Path):
        evaluate_folder(system.place, truth_folder, folder, own, of_system)
    else:
        evaluate_model(system.place, options, truth_folder, folder, own, of_system)
    return read_scored(system.name, folder)


def _write_comparison(out: Path, comparison: Comparison, scored: Sequence[Scored], replicates: int) -> None:
    columns = asdict(comparison.provenance)
    rows = [{**row.as_row(), **columns} for row in comparison.differences]
    write_csv(out / "differences.csv", rows)
    write_parquet(out / "differences.parquet", rows)
    of_systems = [{"system": each.name, **row} for each in scored for row in each.rows]
    write_csv(out / "scores.csv", of_systems)
    write_parquet(out / "scores.parquet", of_systems)
    write_json(out / _SUMMARY, comparison.as_json())
    caption = comparison.provenance.line
    figures = {"subjects.svg": subjects_figure(scored, caption)}
    for first, second in combinations([each.name for each in scored], 2):
        of_pair = [
            row for row in comparison.differences if (row.first, row.second, row.measure) == (first, second, "dice")
        ]
        if any(row.subjects for row in of_pair):
            figures[f"differences {first} {second}.svg"] = differences_figure(of_pair, caption)
    _write_figures(out, figures)
    title = f"Comparison of {', '.join(each.name for each in scored)}"
    page = comparison_page(
        title,
        comparison.provenance,
        replicates,
        comparison.differences,
        list(figures.values()),
        comparison.problems,
    )
    write_text(out / PAGE, page)


def _write_figures(out: Path, figures: Mapping[str, str]) -> None:
    for name, svg in figures.items():
        write_text(out / _FIGURES / name, svg)


# ---- without a truth


def compare_agreement(
    systems: Sequence[System],
    images_folder: Path | None,
    out: Path,
    wanted: Wanted,
    options: EngineOptions,
    pictures: int,
    report: Callable[[str, int, int], None],
) -> Agreement:
    """Segment the CTs in ``images_folder`` with each system that is a model, and score each two systems on each other.

    The ``pictures`` worst outliers are drawn.

    Raises:
        ConfigurationError: a model has no CTs to segment, a folder has no segmentation, no two systems have a subject
            in common, or ``out`` can't be written.
        ResultUnreadable: a folder of one subject has more than one segmentation.
        WorkerLost: a process was ended from outside.
    """
    scans, problems = ((), []) if images_folder is None else _scans(images_folder)
    averaging = replace(wanted.averaging, convention="nnunet")
    gathered: list[Segmented] = []
    said: dict[str, Provenance] = {}
    for system in systems:
        own, provenance, not_segmented = _gathered(system, scans, out, options, report)
        gathered.append(own)
        said[system.name] = provenance
        problems += not_segmented
    gathered = _with_common_ids(gathered, [scan.id for scan in scans])
    name, version = data_set_of(images_folder) if images_folder is not None else ("unknown", "unknown")
    said = {
        system.name: stated_over(replace(said[system.name], data_set=name, data_set_version=version), system.stated)
        for system in systems
    }
    scan_of = {scan.id: scan for scan in scans}
    pairs, not_compared = agreement(
        gathered, scan_of, out / _PAIRS, averaging, wanted.tolerance_mm, wanted.processes, report
    )
    problems += not_compared
    if not any(pair.subjects and pair.names for pair in pairs):
        first = problems[0] if problems else Problem("", "nothing in common")
        raise ConfigurationError(
            f"no two systems could be compared; {len(problems)} reasons, the first of them: {first.id}: {first.reason}"
        )
    splits = {each.id: each.attributes.get("split") for pair in pairs for each in pair.subjects}
    provenance = combined(said, tool_of_agreement(averaging.replicates, wanted.tolerance_mm))
    provenance = replace(provenance, split=split_of(splits.values(), None))
    found, not_judged = outliers(pairs)
    several = len(systems) > 2  # noqa: PLR2004 - of two, there is only one pair
    result = Agreement(
        provenance,
        tuple(pairs),
        tuple(against_others(pairs, averaging)) if several else (),
        _between_pairs(pairs, provenance, averaging.replicates) if several else (),
        tuple(found),
        tuple(problems),
    )
    drawn, notes = _pictures(found[:pictures], gathered, scan_of)
    if len(found) > len(drawn):
        notes.append(Problem("outliers", f"{len(drawn)} of {len(found)} are shown as pictures"))
    if not_judged:
        listed = ", ".join(f"{name} ({pair})" for pair, name in not_judged)
        notes.append(Problem("outliers", f"not judged, because too few subjects have them: {listed}"))
    notes += [
        Problem(each.id, f"{pair.name}: {note}") for pair in pairs for each in pair.subjects for note in each.notes
    ]
    _write_agreement(out, result, drawn, notes, wanted)
    return result


def _scans(folder: Path) -> tuple[tuple[Scan, ...], list[Problem]]:
    scans, left_out = find_scans(folder)
    return scans, [Problem(each.id, f"left out of the images: {each.reason}") for each in left_out]


def _gathered(
    system: System,
    scans: Sequence[Scan],
    out: Path,
    options: EngineOptions,
    report: Callable[[str, int, int], None],
) -> tuple[Segmented, Provenance, list[Problem]]:
    """The segmentations of ``system``, who made them, and what could not be segmented."""
    place = system.place
    if isinstance(place, Path):
        sources = find_segmentations(place)
        return Segmented(system.name, sources), _made_by(software_of_results([place / name for name in sources])), []
    if not scans:
        raise ConfigurationError(f"{system.name} is a model: --images is needed, with the CTs to segment")
    sources, problems = segmented(
        scans,
        place,
        options,
        out / _SYSTEMS / system.name / "predictions",
        lambda stage, done, total: report(f"{system.name}: {stage}", done, total),
    )
    named = [Problem(each.id, f"{system.name}: {each.reason}") for each in problems]
    known = tuple(place.names_by_label.values())
    return Segmented(system.name, sources, known), _made_by(software_of_model(place)), named


def _made_by(made_by: tuple[str, str, str]) -> Provenance:
    software, model, order = made_by
    return Provenance(software=software, model=model, resampling_order=order)


def _with_common_ids(systems: Sequence[Segmented], ids: Sequence[str]) -> list[Segmented]:
    """DICOM objects that are not called as a subject by the UID of the series that they refer to."""
    result = []
    for own in systems:
        others = set(ids) | {name for other in systems if other is not own for name in other.sources}
        if others & own.sources.keys():
            result.append(own)
        else:
            result.append(replace(own, sources=by_referenced_series(own.sources)))
    return result


def _between_pairs(pairs: Sequence[PairAgreement], provenance: Provenance, replicates: int) -> tuple[Difference, ...]:
    """Whether two systems agree better than two others, on the same subjects."""
    scored = []
    for pair in pairs:
        rows = [
            {**row, "truth_ml": row["first_ml"], "found_ml": row["second_ml"], "counted": True}
            for row in agreement_rows(pair, provenance)
        ]
        scored.append(Scored(pair.name, provenance, counted_scores(rows), (), ()))
    return tuple(
        row
        for row in differences(scored, replicates=replicates)[0]
        if row.measure in ("dice", "surface_dice", "hd95_mm")
    )


def _pictures(
    chosen: Sequence[Outlier], systems: Sequence[Segmented], scans: Mapping[str, Scan]
) -> tuple[list[tuple[Outlier, bytes]], list[Problem]]:
    by_name = {system.name: system for system in systems}
    sources: dict[tuple[str, str, str], tuple[Truth, LabelSource]] = {
        (first, second, truth.id): (truth, source)
        for first, second in {(each.first, each.second) for each in chosen}
        for truth, source in paired_sources(by_name[first], by_name[second], scans)
    }
    drawn, notes = [], []
    for outlier in chosen:
        truth, source = sources[outlier.first, outlier.second, outlier.subject]
        try:
            drawn.append((outlier, outlier_picture(outlier, truth, source)))
        except DicomNodeError as error:
            notes.append(Problem(outlier.subject, f"no picture of {outlier.structure}: {error}"))
    return drawn, notes


def _write_agreement(
    out: Path,
    result: Agreement,
    drawn: Sequence[tuple[Outlier, bytes]],
    notes: Sequence[Problem],
    wanted: Wanted,
) -> None:
    columns = asdict(result.provenance)
    rows = [row for pair in result.pairs for row in agreement_rows(pair, result.provenance)]
    write_csv(out / "agreement.csv", rows)
    write_parquet(out / "agreement.parquet", rows)
    means = [
        {"first": pair.first, "second": pair.second, **row, **columns}
        for pair in result.pairs
        for row in mean_rows(pair.summary)
    ]
    write_csv(out / "means.csv", means)
    write_csv(out / "outliers.csv", [{**asdict(each), **columns} for each in result.outliers])
    write_json(out / _SUMMARY, result.as_json())
    caption = result.provenance.line
    names = list(dict.fromkeys(name for pair in result.pairs for name in (pair.first, pair.second)))
    figures = {"matrix.svg": matrix_figure(names, result.pairs, caption)} if result.others else {}
    for pair in result.pairs:
        figures |= _figures_of(pair, wanted, f"{pair.name}; {caption}")
    _write_figures(out, figures)
    for number, (_, png) in enumerate(drawn, start=1):
        with replaced_file(out / _OUTLIERS / f"{number:03}.png") as part:
            part.write_bytes(png)
    page = agreement_page(
        f"Agreement of {', '.join(names)}",
        result.provenance,
        wanted.averaging.replicates,
        result.pairs,
        result.others,
        result.differences,
        result.outliers,
        drawn,
        list(figures.values()),
        result.problems,
        notes,
    )
    write_text(out / PAGE, page)


def _figures_of(pair: PairAgreement, wanted: Wanted, caption: str) -> dict[str, str]:
    """Each structure, and the groups of subjects if anything is known about them, by file name."""
    if not (pair.subjects and pair.names):
        return {}
    name = f"{pair.first} {pair.second}"
    averaging = replace(wanted.averaging, convention="nnunet")
    of_subjects = attributes_figure(pair.summary, caption)
    figures = {f"{name}.svg": structures_figure(pair.subjects, pair.names, averaging, caption)}
    return figures if of_subjects is None else {**figures, f"{name} subjects.svg": of_subjects}
