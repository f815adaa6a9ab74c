"""One phantom as a case: a synthetic patient on a grid, with the CT and the true labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import SimpleITK as sitk  # noqa: N813

from inference.phantom.anatomy import fields_of_view
from inference.phantom.patient import Build, Patient
from inference.phantom.render import lps_from_body, render
from inference.structures import paper_labels
from inference.types import Geometry, ModelIdentity, Segmentation, Volume

if TYPE_CHECKING:
    from pathlib import Path

FieldOfView = Literal["whole", "head_neck", "chest", "abdomen", "chest_abdomen", "trunk"]

TRUTH = ModelIdentity(
    name="phantom-truth",
    version="1",
    digest="0" * 64,
    family="Synthetic",
    intended_use="Synthetic patient - no clinical meaning",
)


@dataclass(frozen=True, slots=True, eq=False)
class Phantom:
    """A synthetic patient, the CT, and the label of every voxel centre, on one grid."""

    patient: Patient
    volume: Volume
    truth: Segmentation


def grid(
    patient: Patient,
    spacing_xyz_mm: tuple[float, float, float],
    field_of_view: FieldOfView = "whole",
    shift_mm: tuple[float, ...] = (0.0, 0.0, 0.0),
) -> Geometry:
    """An axial grid (head first, supine) around the given region of this patient.

    Args:
        patient: the patient to cover.
        spacing_xyz_mm: distance between columns, rows and planes.
        field_of_view: the region; narrow ones cut off the arms as in a routine examination.
        shift_mm: displacement of the first voxel, which moves the voxel centres relative to the body.
    """
    covered = fields_of_view()[field_of_view]
    low, high = (float(z) for z in Build(patient).height(np.array([covered.bottom_mm, covered.top_mm])))
    affine = lps_from_body(patient)
    bottom, top = ((affine @ [0.0, 0.0, z, 1.0])[2] for z in (low, high))
    x, y, _ = patient.offset_lps_mm
    half = covered.half_width_mm
    depth = (140.0, 175.0)
    first = np.array([x - half, y - depth[0], bottom]) + np.asarray(shift_mm)
    size = np.array([2 * half, sum(depth), top - bottom])
    columns, rows, planes = (int(n) for n in np.ceil(size / np.asarray(spacing_xyz_mm)))
    affine_lps = np.diag([*spacing_xyz_mm, 1.0])
    affine_lps[:3, 3] = first
    return Geometry((planes, rows, columns), affine_lps)


def whole_body_grid(
    patient: Patient, spacing_xyz_mm: tuple[float, float, float], shift_mm: tuple[float, ...] = (0.0, 0.0, 0.0)
) -> Geometry:
    """A grid from mid-thigh to the vertex with both arms."""
    return grid(patient, spacing_xyz_mm, "whole", shift_mm)


def phantom(
    seed: int, spacing_xyz_mm: tuple[float, float, float] = (0.8, 0.8, 2.0), field_of_view: FieldOfView = "whole"
) -> Phantom:
    """Draw a patient and simulate the scan; the same arguments always give the same voxels."""
    patient = Patient.from_seed(seed)
    geometry = grid(patient, spacing_xyz_mm, field_of_view)
    names = paper_labels()
    volume, labels = render(patient, geometry, {name: label for label, name in names.items()})
    return Phantom(patient, volume, Segmentation(labels, geometry, names, TRUTH))


def write_nifti(case: Phantom, folder: Path) -> tuple[Path, Path]:
    """Write ``ct.nii.gz`` and ``labels.nii.gz`` to ``folder`` (created if missing) and return both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "ct.nii.gz", folder / "labels.nii.gz"
    for path, array in zip(paths, (case.volume.voxels_zyx, case.truth.labels_zyx), strict=True):
        image = sitk.GetImageFromArray(array)
        geometry = case.volume.geometry
        image.SetSpacing(geometry.spacing_xyz_mm)
        image.SetOrigin(geometry.affine_lps[:3, 3].tolist())
        image.SetDirection(geometry.direction.ravel().tolist())
        sitk.WriteImage(image, str(path), useCompression=True)
    return paths
