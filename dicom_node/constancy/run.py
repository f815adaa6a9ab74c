"""``dicom-node constancy``: accept the answer of a model on phantoms, and check later that it is still the same."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from dicom_node.constancy.baseline import (
    CT,
    LABELS,
    TRUTH,
    AcceptedPhantom,
    Answer,
    Baseline,
    Limits,
    empty_folder,
    is_accepted,
    read_baseline,
    replace_folder,
    write_baseline,
)
from dicom_node.constancy.comparing import Check, changes_between, compare
from dicom_node.constancy.conditions import conditions_of
from dicom_node.dataset.files import replaced_file, sha256_of
from dicom_node.errors import ConfigurationError
from dicom_node.labelmaps.nifti_files import read_label_file
from dicom_node.nifti import grid_of, read_volume, write_labels, write_volume
from inference.evaluation.scores import score_case
from inference.measure import measure
from inference.phantom import phantom
from inference.types import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dicom_node.constancy.comparing import Compared
    from dicom_node.constancy.subject import Subject
    from inference.evaluation.scores import Labels
    from inference.phantom import FieldOfView, Phantom
    from inference.types import Segmentation, Volume

    Report = Callable[[str, int, int], None]

FIRST_SEED = 1
"""Seeds 1 to 20 are never used for training the demo model."""
MOST_PHANTOMS = 20
_DESCRIPTION = "dicom-node phantom: synthetic, no patient"


@dataclass(frozen=True, slots=True)
class Plan:
    """The phantoms of an acceptance: how many, on which grid, which part of the body."""

    phantoms: int = 3
    spacing_xyz_mm: tuple[float, float, float] = (1.5, 1.5, 3.0)
    field_of_view: FieldOfView = "whole"

    def __post_init__(self) -> None:
        """Raises InvalidValueError for no phantom, too many, or a spacing that is not positive."""
        if not 1 <= self.phantoms <= MOST_PHANTOMS:
            raise InvalidValueError(f"1 to {MOST_PHANTOMS} phantoms, not {self.phantoms}")
        if min(self.spacing_xyz_mm) <= 0:
            raise InvalidValueError(f"spacing must be positive, not {self.spacing_xyz_mm}")


def accept(
    subject: Subject, folder: Path, plan: Plan, limits: Limits, report: Report, *, replace: bool = False
) -> Baseline:
    """Draw the phantoms of ``plan``, segment them, and keep all of it in ``folder`` as the accepted answer.

    Until it is complete, an earlier baseline stays as it is.

    Raises:
        ConfigurationError: there is a baseline and ``replace`` is false, ``folder`` can't be written, or the model
            can't be loaded or refuses a phantom.
    """
    if is_accepted(folder) and not replace:
        raise ConfigurationError(f"{folder} already has a baseline; --replace accepts the model again")
    new = empty_folder(folder.with_name(f".part-{folder.name}"))
    accepted, found = [], None
    for number in range(plan.phantoms):
        report("phantoms", number, plan.phantoms)
        case = phantom(FIRST_SEED + number, plan.spacing_xyz_mm, plan.field_of_view)
        name = f"phantom-{case.patient.seed:04d}"
        _write_case(new / name, case)
        volume = read_volume(new / name / CT)[0]  # as every check reads it: the file rounds the grid
        found = subject.segment(volume)
        _write_labels(new / name / LABELS, found)
        accepted.append(
            AcceptedPhantom(
                id=name,
                seed=case.patient.seed,
                labels_sha256=_labels_sha256(found),
                files={file: sha256_of(new / name / file) for file in (CT, TRUTH, LABELS)},
                structures=_answers(volume, found, new / name / TRUTH),
            )
        )
    report("phantoms", plan.phantoms, plan.phantoms)
    run = None if found is None else found.run
    baseline = Baseline(_now(), subject.identity, conditions_of(run), limits, tuple(accepted))
    write_baseline(new, baseline)
    replace_folder(new, folder)
    return baseline


def check(subject: Subject, folder: Path, report: Report, before_each: Callable[[], None] = lambda: None) -> Check:
    """Segment the phantoms of the baseline in ``folder`` again and compare the answer with the accepted one.

    ``before_each`` is called before every phantom.

    Raises:
        ConfigurationError: there is no sound baseline, or the model can't be loaded or refuses a phantom.
    """
    baseline = read_baseline(folder)
    compared: list[Compared] = []
    identical, found = 0, None
    for number, accepted in enumerate(baseline.phantoms):
        report("phantoms", number, len(baseline.phantoms))
        before_each()
        volume = read_volume(folder / accepted.id / CT)[0]
        found = subject.segment(volume)
        is_same = _labels_sha256(found) == accepted.labels_sha256
        identical += is_same
        compared += _compared(folder / accepted.id, accepted, volume, found, baseline.limits, is_same=is_same)
    report("phantoms", len(baseline.phantoms), len(baseline.phantoms))
    conditions = conditions_of(None if found is None else found.run)
    return Check(
        checked_at=_now(),
        accepted_at=baseline.accepted_at,
        model=subject.identity,
        accepted_model=baseline.model,
        conditions=conditions,
        changes=changes_between((baseline.model, baseline.conditions), (subject.identity, conditions)),
        structures=tuple(compared),
        phantoms=len(baseline.phantoms),
        identical=identical,
    )


def _compared(
    folder: Path, accepted: AcceptedPhantom, volume: Volume, found: Segmentation, limits: Limits, *, is_same: bool
) -> list[Compared]:
    voxel_ml = volume.geometry.voxel_volume_ml
    if is_same:
        dice_by_name = {each.name: 1.0 for each in accepted.structures}
        answers = accepted.structures
    else:
        dice_by_name = _dice_by_name(read_label_file(folder / LABELS), found)
        answers = _answers(volume, found, folder / TRUTH)
    return list(compare(accepted.id, accepted.structures, answers, dice_by_name, voxel_ml, limits))


def _write_case(folder: Path, case: Phantom) -> None:
    grid = grid_of(case.volume.geometry)
    voxels_zyx, truth = case.volume.voxels_zyx, case.truth
    with replaced_file(folder / CT) as part:
        write_volume(part, voxels_zyx, grid, _DESCRIPTION)  # type: ignore[arg-type]  # phantoms have whole HU
    with replaced_file(folder / TRUTH) as part:
        write_labels(part, truth.labels_zyx, grid, truth.names_by_label, _DESCRIPTION)


def _write_labels(path: Path, found: Segmentation) -> None:
    description = f"{found.model.name}; research use only"
    with replaced_file(path) as part:
        write_labels(part, found.labels_zyx, grid_of(found.geometry), found.names_by_label, description)


def _labels_sha256(found: Segmentation) -> str:
    """Of the labels and their names: a label that is called otherwise is another answer."""
    digest = hashlib.sha256(repr(sorted(found.names_by_label.items())).encode())
    for plane in found.labels_zyx:
        digest.update(plane.tobytes())
    return digest.hexdigest()


def _answers(volume: Volume, found: Segmentation, truth: Path) -> tuple[Answer, ...]:
    measured = {each.name: each for each in measure(volume, found).structures}
    dice_by_name = _dice_by_name(read_label_file(truth), found)
    return tuple(
        Answer(
            name,
            measured[name].volume_ml if name in measured else 0.0,
            measured[name].mean_hu if name in measured else None,
            dice_by_name.get(name),
        )
        for name in found.names_by_label.values()
    )


def _dice_by_name(expected: Labels, found: Labels) -> dict[str, float]:
    """Of the structures that ``expected`` can name and that are in one of the two."""
    return {each.name: each.dice for each in score_case(expected, found).counted("nnunet")}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
