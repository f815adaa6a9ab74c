"""The palette of structures and tissues, and the attenuation of a tissue in one patient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inference.phantom.anatomy import tissues

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from inference.phantom.patient import Patient


GAS = ("air", "gas")


class Palette:
    """A number 0..255 for each pair (structure or None, tissue) in a phantom; 0 is air."""

    def __init__(self, pairs: Iterable[tuple[str | None, str]]) -> None:
        self.codes: dict[tuple[str | None, str], int] = {(None, "air"): 0}
        for pair in pairs:
            self.codes.setdefault(pair, len(self.codes))
        if len(self.codes) > 256:
            raise ValueError(f"a palette holds at most 256 tissues, not {len(self.codes)}")

    def codes_of_tissues(self, names: Iterable[str]) -> NDArray[np.bool_]:
        """Look-up table (256,): true for the codes of these tissues."""
        wanted = set(names)
        table = np.zeros(256, dtype=np.bool_)
        for (_, tissue), code in self.codes.items():
            table[code] = tissue in wanted
        return table

    def relabelled(self, structure: str) -> NDArray[np.uint8]:
        """Look-up table (256,) that assigns every unlabelled tissue to ``structure`` and keeps the rest."""
        table = np.arange(256, dtype=np.uint8)
        for (owner, tissue), code in self.codes.items():
            if owner is None and (structure, tissue) in self.codes:
                table[code] = self.codes[structure, tissue]
        return table

    def labels(self, label_by_name: dict[str, int]) -> NDArray[np.uint8]:
        """Look-up table (256,) from code to label."""
        table = np.zeros(256, dtype=np.uint8)
        for (structure, _), code in self.codes.items():
            if structure is not None:
                table[code] = label_by_name[structure]
        return table

    def hu(self, patient: Patient) -> NDArray[np.float32]:
        """Look-up table (256,) from code to this patient's attenuation."""
        table = np.full(256, -1000, dtype=np.float32)
        for (structure, tissue), code in self.codes.items():
            table[code] = attenuation_hu(patient, tissue)
            if structure is not None and tissue not in GAS:
                table[code] += patient.hu_shifts.get(structure, 0.0)
        return table

    def texture_sd_hu(self) -> NDArray[np.float32]:
        """Look-up table (256,) from code to the strength of its inhomogeneity."""
        table = np.zeros(256, dtype=np.float32)
        for (_, tissue), code in self.codes.items():
            table[code] = tissues()[tissue].texture_sd_hu
        return table


def attenuation_hu(patient: Patient, tissue: str) -> float:
    """Mean attenuation of a tissue in this patient: phase, age and an individual few HU."""
    row = tissues()[tissue]
    by_phase = {"native": row.native_hu, "arterial": row.arterial_hu, "portal_venous": row.portal_venous_hu}
    value = by_phase[patient.contrast_phase]
    if tissue in GAS:
        return value
    enhancement = value - row.native_hu
    own = patient.random("hu", tissue)
    value += own.normal(0, 4.0 if abs(value) < 200 else 20.0) + enhancement * own.normal(0, 0.12)
    if tissue == "trabecular":
        value *= patient.bone_factor
    if tissue == "back_muscle":
        value += patient.back_muscle_hu - row.native_hu
    return float(value)
