"""``dicom-node evaluate``: pair the files, segment if requested, score, average, write."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from dicom_node.dataset.files import write_text
from dicom_node.dataset.processes import in_processes
from dicom_node.errors import ConfigurationError
from dicom_node.evaluate.cases import Problem, find_truth, paired
from dicom_node.evaluate.figures import attributes_figure, structures_figure
from dicom_node.evaluate.page import evaluation_page
from dicom_node.evaluate.predicting import segmented
from dicom_node.evaluate.provenance import (
    Provenance,
    Stated,
    data_set_of,
    software_of_model,
    software_of_results,
    split_of,
    tool,
)
from dicom_node.evaluate.scoring import SubjectScores, score_subject
from dicom_node.evaluate.summary import Averaging, Summary, comparable, row_as_json, rows_by_attribute, summarise
from dicom_node.evaluate.tables import (
    MEANS_CSV,
    SCORES_CSV,
    SCORES_PARQUET,
    SUMMARY_JSON,
    mean_rows,
    score_rows,
    write_csv,
    write_parquet,
    write_summary,
)
from dicom_node.labelmaps import find_segmentations
from inference.evaluation.scores import TOLERANCE_MM

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from dicom_node.evaluate.cases import Truth
    from dicom_node.labelmaps import LabelSource
    from dicom_node.segment.model import Model
    from inference.nnunet.contract import EngineOptions

PAGE = "evaluation.html"
_PREDICTIONS, _SUBJECTS, _FIGURES = "predictions", "subjects", "figures"


@dataclass(frozen=True, slots=True)
class Wanted:
    """The request. ``split``: only the subjects of this one; ``processes`` 0: one per core."""

    averaging: Averaging = field(default_factory=Averaging)
    tolerance_mm: float = TOLERANCE_MM
    split: str | None = None
    stated: Stated = field(default_factory=Stated)
    processes: int = 0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result; ``problems`` lists what was not evaluated, with the reasons."""

    provenance: Provenance
    summary: Summary
    problems: tuple[Problem, ...]
    subjects: tuple[SubjectScores, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values for programs."""
        summary = self.summary
        return {
            "provenance": {key.replace(" ", "_"): value for key, value in self.provenance.by_title().items()},
            "overall": row_as_json(summary.overall),
            "groups": [row_as_json(row) for row in summary.groups],
            "by_attribute": rows_by_attribute(summary),
            "structures": [row_as_json(row) for row in summary.structures],
            "subjects": len(self.subjects),
            "not_evaluated": [{"id": each.id, "reason": each.reason} for each in self.problems],
        }


def evaluate_model(
    model: Model,
    options: EngineOptions,
    truth_folder: Path,
    out: Path,
    wanted: Wanted,
    report: Callable[[str, int, int], None],
) -> Evaluation:
    """Segment the CTs of ``truth_folder`` with ``model`` into ``out``, and evaluate the result.

    Raises:
        ConfigurationError: there is no subject, the model can't be loaded, or ``out`` can't be written.
        WorkerLost: a process was killed from outside.
    """
    truths, problems = _chosen(truth_folder, wanted.split)
    sources, not_segmented = segmented(truths, model, options, out / _PREDICTIONS, report)
    failed = {each.id for each in not_segmented}
    made_by = software_of_model(model)
    known = tuple(model.names_by_label.values())
    left = [truth for truth in truths if truth.id not in failed]
    return _evaluated(truth_folder, out, wanted, report, left, sources, [*problems, *not_segmented], made_by, known)


def evaluate_folder(
    predictions: Path, truth_folder: Path, out: Path, wanted: Wanted, report: Callable[[str, int, int], None]
) -> Evaluation:
    """Evaluate the segmentations in ``predictions``, which are named like the subjects of ``truth_folder``.

    Raises:
        ConfigurationError: one of the folders has no subject, or ``out`` can't be written.
        ResultUnreadable: a folder of one subject has more than one segmentation.
        WorkerLost: a process was killed from outside.
    """
    sources = find_segmentations(predictions)
    truths, problems = _chosen(truth_folder, wanted.split)
    if wanted.split is not None:
        others = {truth.id for truth in find_truth(truth_folder)[0]} - {truth.id for truth in truths}
        sources = {name: source for name, source in sources.items() if name not in others}
    made_by = software_of_results([predictions / name for name in sources])
    return _evaluated(truth_folder, out, wanted, report, truths, sources, problems, made_by, None)


def _chosen(folder: Path, split: str | None) -> tuple[list[Truth], list[Problem]]:
    truths, problems = find_truth(folder)
    chosen = [truth for truth in truths if split is None or truth.attributes.get("split") == split]
    if not chosen:
        raise ConfigurationError(
            f"{folder} has no subject" + (f" of the split {split!r}" if split else "") + f" among {len(truths)}"
        )
    return chosen, list(problems)


def _evaluated(
    truth_folder: Path,
    out: Path,
    wanted: Wanted,
    report: Callable[[str, int, int], None],
    truths: Sequence[Truth],
    sources: dict[str, LabelSource],
    problems: list[Problem],
    made_by: tuple[str, str, str],
    known: tuple[str, ...] | None,
) -> Evaluation:
    pairs, unpaired = paired(truths, sources)
    problems += unpaired
    subjects: list[SubjectScores] = []
    work = partial(score_subject, folder=out / _SUBJECTS, tolerance_mm=wanted.tolerance_mm)
    report("scoring", 0, len(pairs))
    for done, ((truth, _), scores) in enumerate(in_processes(work, pairs, wanted.processes), start=1):
        report("scoring", done, len(pairs))
        if isinstance(scores, str):
            problems.append(Problem(truth.id, scores))
        else:
            subjects.append(scores)
    subjects.sort(key=lambda each: each.id)
    if not subjects:
        first = problems[0] if problems else Problem("", "no subject")
        raise ConfigurationError(
            f"no subject could be evaluated; {len(problems)} problems, the first: {first.id}: {first.reason}"
        )
    names, unnamed = comparable(subjects, wanted.averaging, known)
    problems += unnamed
    if not names:
        raise ConfigurationError(
            "truth and segmentations have no structure with the same name: "
            f"{', '.join(subjects[0].truth_names[:5])} ... and {', '.join(subjects[0].found_names[:5])} ..."
        )
    provenance = _provenance(truth_folder, wanted, subjects, made_by)
    summary = summarise(subjects, names, wanted.averaging)
    evaluation = Evaluation(provenance, summary, tuple(problems), tuple(subjects))
    _write(out, evaluation, names, wanted.averaging)
    return evaluation


def _provenance(
    truth_folder: Path, wanted: Wanted, subjects: Sequence[SubjectScores], made_by: tuple[str, str, str]
) -> Provenance:
    name, version = data_set_of(truth_folder)
    software, model, order = made_by
    found = Provenance(
        data_set=name,
        data_set_version=version,
        split=split_of((subject.attributes.get("split") for subject in subjects), wanted.split),
        software=software,
        model=model,
        resampling_order=order,
        tool=tool(wanted.averaging.convention, wanted.tolerance_mm),
    )
    return stated_over(found, wanted.stated)


def stated_over(found: Provenance, stated: Stated) -> Provenance:
    """What a person states, and where they state nothing what was found."""
    given = {
        "data_set": stated.data_set,
        "data_set_version": stated.data_set_version,
        "software": stated.software,
        "model": stated.model,
        "resampling_order": stated.resampling_order,
    }
    return replace(found, **{key: value for key, value in given.items() if value is not None})


def _write(out: Path, evaluation: Evaluation, names: Sequence[str], averaging: Averaging) -> None:
    rows = score_rows(evaluation.subjects, names, evaluation.provenance, averaging)
    write_csv(out / SCORES_CSV, rows)
    write_parquet(out / SCORES_PARQUET, rows)
    write_csv(out / MEANS_CSV, [{**row, **_columns(evaluation.provenance)} for row in mean_rows(evaluation.summary)])
    write_summary(out / SUMMARY_JSON, evaluation.as_json())
    caption = evaluation.provenance.line
    figures = {
        "structures.svg": structures_figure(evaluation.subjects, names, averaging, caption),
        "subjects.svg": attributes_figure(evaluation.summary, caption),
    }
    for name, svg in figures.items():
        if svg is not None:
            write_text(out / _FIGURES / name, svg)
    notes = [Problem(each.id, note) for each in evaluation.subjects for note in each.notes]
    notes += [
        Problem(each.id, f"{name}: more voxels on the opposite side than on its own")
        for each in evaluation.subjects
        for name in each.mixed_up
    ]
    page = evaluation_page(
        "Evaluation",
        evaluation.provenance,
        averaging,
        evaluation.summary,
        [svg for svg in figures.values() if svg is not None],
        evaluation.problems,
        notes,
    )
    write_text(out / PAGE, page)


def _columns(provenance: Provenance) -> dict[str, str]:
    return {key.replace(" ", "_"): value for key, value in provenance.by_title().items()}
