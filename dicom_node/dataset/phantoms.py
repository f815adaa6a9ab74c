"""Writes a phantom cohort in the layout of the published data set, with a table of the true volumes and HU.

A subject is complete once ``truth/ID.json`` exists, which is written last and contains the settings. An interrupted
cohort is resumed; changed settings regenerate a subject.
"""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dicom_node import __version__
from dicom_node.dataset.files import digest_of, read_json, replaced_file, sha256_of, write_json, write_text
from dicom_node.dataset.processes import in_processes
from dicom_node.errors import ConfigurationError
from dicom_node.labelmaps.finding import CT, META
from dicom_node.labelmaps.sources import LABELS, STRUCTURES_FOLDER
from dicom_node.nifti import grid_of, write_labels, write_volume
from inference.measure import measure
from inference.phantom.case import TRUTH, grid
from inference.phantom.cohort import draw_members, fitted, rank_correlation, targets
from inference.phantom.render import render, render_truth
from inference.structures import paper_labels
from inference.types import InvalidValueError, Segmentation, Volume

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from inference.phantom.cohort import CohortPlan, Member, Target

TRUTH_TABLE = "truth.csv"
MANIFEST = "manifest.json"
_SUBJECT_TRUTH = "truth"
_FIT_SPACING_MM = 6.0
"""Fine enough for the volumes of organs to within 1 %."""
_DESCRIPTION = "dicom-node phantom: synthetic, no patient"
_META_COLUMNS = ("image_id", "age", "gender", "study_type", "split", "contrast", "seed")
_TRUTH_COLUMNS = ("image_id", "structure", "volume_ml", "mean_hu", "truncated")


@dataclass(frozen=True, slots=True)
class CohortFiles:
    """What is written for each subject, and at which spacing.

    ``masks``: a file per structure in ``segmentations/`` as in the published data, empty for absent structures, instead
    of one label map. ``truth_only``: no images at all.
    """

    spacing_xyz_mm: tuple[float, float, float]
    masks: bool = False
    truth_only: bool = False

    def __post_init__(self) -> None:
        """Raises InvalidValueError if the spacing is not positive."""
        if min(self.spacing_xyz_mm) <= 0:
            raise InvalidValueError(f"spacing must be positive, not {self.spacing_xyz_mm}")


def write_cohort(
    plan: CohortPlan, out: Path, files: CohortFiles, processes: int, report: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """Generate the subjects that are missing in ``out``, write the tables, and return the manifest.

    ``report(stage, done, total)`` is called for each subject.

    Raises:
        ConfigurationError: ``out`` can't be written, or contains something else.
        InvalidValueError: the plan can't be met.
    """
    _refuse_other_content(out)
    members = draw_members(plan)
    wanted = targets(plan, members, _FIT_SPACING_MM)
    tasks = [(member, row) for member, row in zip(members, wanted, strict=True)]
    missing = [task for task in tasks if _finished(out, files, *task) is None]
    report("phantoms", len(tasks) - len(missing), len(tasks))
    made = partial(_make, out=out, files=files)
    for done, _ in enumerate(in_processes(made, missing, processes), start=len(tasks) - len(missing) + 1):
        report("phantoms", done, len(tasks))
    truths = [_finished(out, files, *task) for task in tasks]
    rows = [row for truth in truths if truth is not None for row in truth["structures"]]
    manifest = _manifest(plan, files, members, rows)
    write_text(out / META, _table(_META_COLUMNS, map(_meta_row, members), ";"))
    write_text(out / TRUTH_TABLE, _table(_TRUTH_COLUMNS, rows, ","))
    write_json(out / MANIFEST, manifest)
    return manifest


def _refuse_other_content(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigurationError(f"{out} is not a folder")
    if any(out.iterdir()) and not ((out / MANIFEST).exists() or (out / _SUBJECT_TRUTH).is_dir()):
        raise ConfigurationError(f"{out} contains files, but no phantom cohort")


# ---- one subject, in a separate process


def _make(task: tuple[Member, Sequence[Target]], out: Path, files: CohortFiles) -> None:
    member, wanted = task
    patient = fitted(member, wanted, _FIT_SPACING_MM)
    geometry = grid(patient, files.spacing_xyz_mm, member.field_of_view)
    names = paper_labels()
    label_by_name = {name: label for label, name in names.items()}
    written: dict[str, str] = {}
    painted: Mapping[str, float] = {}
    if files.truth_only:
        labels_zyx, painted = render_truth(patient, geometry, label_by_name)
        volume = Volume(np.zeros(geometry.shape_zyx, np.int16), geometry)
    else:
        volume, labels_zyx = render(patient, geometry, label_by_name)
        written = _write_images(out, member.id, volume, labels_zyx, names, masks=files.masks)
    measured = measure(volume, Segmentation(labels_zyx, geometry, names, TRUTH))
    rows = [
        {
            "image_id": member.id,
            "structure": each.name,
            "volume_ml": round(each.volume_ml, 6),
            "mean_hu": round(painted.get(each.name, each.mean_hu), 4),
            "truncated": each.truncated,
        }
        for each in measured.structures
    ]
    digest = _digest(files, member, wanted)
    write_json(_truth_path(out, member.id), {"digest": digest, "sha256": written, "structures": rows})


def _write_images(
    out: Path, subject: str, volume: Volume, labels_zyx: Any, names: Mapping[int, str], *, masks: bool
) -> dict[str, str]:
    """Write CT and labels; returns their digests by path."""
    file_grid = grid_of(volume.geometry)
    voxels: Any = volume.voxels_zyx
    with replaced_file(out / subject / CT) as part:
        write_volume(part, voxels, file_grid, _DESCRIPTION)
    paths = [out / subject / CT]
    if masks:
        for label, name in names.items():
            paths.append(out / subject / STRUCTURES_FOLDER / f"{name}.nii.gz")
            with replaced_file(paths[-1]) as part:
                write_labels(part, (labels_zyx == label).view(np.uint8), file_grid, {1: name}, _DESCRIPTION)
    else:
        paths.append(out / subject / LABELS)
        with replaced_file(paths[-1]) as part:
            write_labels(part, labels_zyx, file_grid, names, _DESCRIPTION)
    return {path.relative_to(out).as_posix(): sha256_of(path) for path in paths}


def _finished(out: Path, files: CohortFiles, member: Member, wanted: Sequence[Target]) -> dict[str, Any] | None:
    """The record of an earlier run for the subject; None if there is none, settings differ, or files are missing."""
    truth = read_json(_truth_path(out, member.id))
    if truth is None or truth.get("digest") != _digest(files, member, wanted):
        return None
    return truth if all((out / name).is_file() for name in truth["sha256"]) else None


def _truth_path(out: Path, subject: str) -> Path:
    return out / _SUBJECT_TRUTH / f"{subject}.json"


def _digest(files: CohortFiles, member: Member, wanted: Sequence[Target]) -> str:
    return digest_of([__version__, asdict(files), asdict(member), [asdict(target) for target in wanted]])


# ---- tables


def _meta_row(member: Member) -> dict[str, Any]:
    return {
        "image_id": member.id,
        "age": member.age_years,
        "gender": member.sex.lower(),
        "study_type": member.field_of_view,
        "split": member.split,
        "contrast": member.contrast_phase,
        "seed": member.seed,
    }


def _table(columns: Sequence[str], rows: Any, delimiter: str) -> str:
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


def _manifest(
    plan: CohortPlan, files: CohortFiles, members: Sequence[Member], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    return {
        "kind": "phantom cohort",
        "dicom_node": __version__,
        "licence": "Apache-2.0",
        "statement": "Synthetic patients, no clinical meaning.",
        "plan": asdict(plan),
        "files": asdict(files),
        "mean_hu": "as painted, before point spread, texture and noise" if files.truth_only else "measured in the CT",
        "subjects": [asdict(member) for member in members],
        "effects": _effects(plan, members, rows),
    }


def _effects(plan: CohortPlan, members: Sequence[Member], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The planted effects, and the rank correlations in ``rows`` over the subjects with the structure not truncated."""
    ages = {member.id: member.age_years for member in members}
    found = []
    for effect in plan.effects:
        column = "volume_ml" if effect.quantity == "volume" else "mean_hu"
        for name in effect.structures:
            whole = [row for row in rows if row["structure"] == name and not row["truncated"]]
            achieved = None
            if len(whole) > 1:
                values = np.array([[ages[row["image_id"]], row[column]] for row in whole], np.float64).T
                achieved = round(rank_correlation(*values), 4)
            found.append(
                {
                    "structure": name,
                    "quantity": effect.quantity,
                    "spearman": effect.spearman,
                    "spearman_in_truth": achieved,
                    "whole_in_subjects": len(whole),
                }
            )
    return found
