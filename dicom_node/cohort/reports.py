"""Rows from a TID 1500 report: our codes (SNOMED CT), or those of the IBSI, which IDC and others use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dicom_node.cohort.table import StructureRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dicom_node.results import StoredStructure

_HU, _ATTENUATION = "[hnsf'U]", "112031"
_ML_PER_MM3 = 1e-3


def rows_of_report(
    structures: Sequence[StoredStructure], model: str | None, version: str | None, digest: str | None
) -> tuple[StructureRow, ...]:
    """One row for each Measurement Group."""
    return tuple(
        StructureRow(
            structure=stored.name,
            volume_ml=_volume_ml(stored),
            mean_hu=_hu(stored, "373098007", "Q4LE"),
            sd_hu=_hu(stored, "386136009", ""),
            median_hu=_hu(stored, "373099004", "Y12H"),
            minimum_hu=_hu(stored, "255605001", "1GSF"),
            maximum_hu=_hu(stored, "56851009", "84IY"),
            truncated=stored.truncated,
            model=model,
            model_version=version,
            model_digest=digest,
        )
        for stored in structures
    )


def _volume_ml(stored: StoredStructure) -> float | None:
    if stored.volume_ml is not None:
        return stored.volume_ml
    for concept in ("118565006", "YEKZ", "RNU0"):
        volume_mm3 = stored.value(concept, "", "mm3")
        if volume_mm3 is not None:
            return volume_mm3 * _ML_PER_MM3
    return None


def _hu(stored: StoredStructure, derivation: str, ibsi: str) -> float | None:
    """A statistic as a derivation of the attenuation coefficient, or as a concept of its own."""
    found = stored.value(_ATTENUATION, derivation, _HU)
    return found if found is not None or not ibsi else stored.value(ibsi, "", _HU)
