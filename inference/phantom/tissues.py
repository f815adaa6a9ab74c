"""Attenuation of every tissue of the phantom in three contrast phases, and the palette of what can be painted.

Typical values of adult abdominal and chest CT at 120 kV; they need only be plausible and ordered as in life (fat below
water below muscle below enhanced organ below bone).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from inference.phantom.patient import Patient

PHASES = ("native", "arterial", "portal_venous")

HU_BY_TISSUE: dict[str, tuple[float, float, float]] = {
    # tissue: native, arterial, portal venous
    "air": (-1000, -1000, -1000),
    "gas": (-950, -950, -950),
    "fat": (-102, -102, -98),
    "skin": (15, 20, 25),
    "muscle": (54, 58, 64),
    "soft": (40, 50, 60),
    "table": (-250, -250, -250),
    "foam": (-910, -910, -910),
    "lung": (-830, -825, -820),
    "cortical": (620, 620, 620),
    "rib": (420, 420, 425),
    "trabecular": (190, 195, 200),
    "skull": (900, 900, 900),
    "cartilage": (95, 95, 100),
    "disc": (80, 82, 85),
    "canal": (25, 25, 25),
    "liver": (58, 70, 112),
    "spleen": (48, 112, 122),
    "kidney": (33, 155, 182),
    "renal_pelvis": (8, 12, 20),
    "pancreas": (38, 98, 88),
    "adrenal": (22, 70, 62),
    "bile": (8, 8, 8),
    "urine": (5, 5, 6),
    "gut_wall": (42, 72, 84),
    "gut_fluid": (18, 18, 18),
    "stomach_fluid": (26, 28, 28),
    "stool": (35, 35, 35),
    "oesophagus": (36, 48, 55),
    "thyroid": (105, 160, 150),
    "brain": (36, 38, 40),
    "csf": (6, 6, 6),
    "myocardium": (46, 102, 106),
    "left_heart": (40, 290, 150),
    "right_heart": (40, 190, 148),
    "pulmonary": (41, 220, 145),
    "artery": (42, 305, 152),
    "vein": (40, 62, 128),
    "iliac_vein": (40, 46, 104),
    "portal": (41, 72, 166),
    "back_muscle": (52, 56, 62),
    "gluteal": (52, 55, 60),
    "iliopsoas": (56, 60, 65),
}

TEXTURE_SD_HU: dict[str, float] = {
    "air": 0,
    "gas": 0,
    "table": 0,
    "foam": 0,
    "fat": 5,
    "lung": 25,
    "cortical": 60,
    "rib": 60,
    "trabecular": 35,
    "skull": 60,
    "back_muscle": 8,
    "gluteal": 8,
    "muscle": 8,
    "stool": 60,
    "gut_fluid": 8,
}
"""Low-frequency inhomogeneity; 4 HU where not named."""


class Palette:
    """Numbers 0..255 for each pair (structure or None, tissue) that a phantom is painted with; 0 is air."""

    def __init__(self, pairs: Iterable[tuple[str | None, str]]) -> None:
        self.codes: dict[tuple[str | None, str], int] = {(None, "air"): 0}
        for pair in pairs:
            self.codes.setdefault(pair, len(self.codes))
        if len(self.codes) > 256:
            raise ValueError(f"a palette holds 256 tissues, not {len(self.codes)}")

    def codes_of_tissues(self, tissues: Iterable[str]) -> NDArray[np.bool_]:
        """Look-up table (256,): true for the codes of these tissues."""
        wanted = set(tissues)
        table = np.zeros(256, dtype=np.bool_)
        for (_, tissue), code in self.codes.items():
            table[code] = tissue in wanted
        return table

    def relabelled(self, structure: str) -> NDArray[np.uint8]:
        """Look-up table (256,) that gives every unlabelled tissue to ``structure`` and leaves the rest."""
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
        for (_, tissue), code in self.codes.items():
            table[code] = attenuation_hu(patient, tissue)
        return table

    def texture_sd_hu(self) -> NDArray[np.float32]:
        """Look-up table (256,) from code to the strength of its inhomogeneity."""
        table = np.zeros(256, dtype=np.float32)
        for (_, tissue), code in self.codes.items():
            table[code] = TEXTURE_SD_HU.get(tissue, 4)
        return table


def attenuation_hu(patient: Patient, tissue: str) -> float:
    """Mean attenuation of a tissue in this patient: phase, age and a few HU of his own."""
    phase = PHASES.index(patient.contrast_phase)
    value = HU_BY_TISSUE[tissue][phase]
    if tissue in ("air", "gas"):
        return value
    enhancement = value - HU_BY_TISSUE[tissue][0]
    own = patient.random("hu", tissue)
    value += own.normal(0, 4.0 if abs(value) < 200 else 20.0) + enhancement * own.normal(0, 0.12)
    if tissue == "trabecular":
        value *= patient.bone_factor
    if tissue == "back_muscle":
        value += patient.back_muscle_hu - HU_BY_TISSUE["back_muscle"][0]
    return float(value)
