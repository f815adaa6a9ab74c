"""Writes the phantom to files: a CT series with the truth, or a pair of NIfTI files."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from dicom_node.demo.ct_series import SyntheticPatient, write_ct_series
from dicom_node.errors import ConfigurationError
from inference.phantom import FieldOfView, Phantom, phantom, write_nifti

if TYPE_CHECKING:
    from pathlib import Path


def write_phantom(
    seed: int, out: Path, spacing_xyz_mm: tuple[float, float, float], field_of_view: str, file_format: str
) -> str:
    """Make patient ``seed``, write it to ``out`` and return a line that says which files were written.

    ``dicom``: the CT series in ``out/ct`` and the NIfTI pair in ``out/nifti``; ``nifti``: the pair in ``out``.

    Raises:
        ConfigurationError: an unknown field of view or a spacing that is not positive.
    """
    known: tuple[FieldOfView, ...] = get_args(FieldOfView)
    chosen = next((name for name in known if name == field_of_view), None)
    if chosen is None:
        raise ConfigurationError(f"unknown field of view {field_of_view!r}; known: {', '.join(known)}")
    if min(spacing_xyz_mm) <= 0:
        raise ConfigurationError(f"spacing must be positive, not {spacing_xyz_mm}")
    case = phantom(seed, spacing_xyz_mm, chosen)
    if file_format == "nifti":
        ct, labels = write_nifti(case, out)
        return f"{ct} and {labels}"
    series_uid = write_series(case, out / "ct")
    write_nifti(case, out / "nifti")
    planes = case.volume.geometry.shape_zyx[0]
    return f"{planes} CT images of series {series_uid} in {out / 'ct'}, truth in {out / 'nifti'}"


def write_series(case: Phantom, folder: Path) -> str:
    """Write the CT of ``case`` as a DICOM series and return its Series Instance UID."""
    patient = SyntheticPatient(
        seed=case.patient.seed,
        age_years=case.patient.age_years,
        sex=case.patient.sex,
        contrast=case.patient.contrast_phase != "native",
    )
    return write_ct_series(case.volume, folder, patient)
