"""One synthetic patient: everything that the seed determines, and the smooth deviation from the reference adult."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Points = NDArray[np.float64]

Sex = Literal["F", "M"]
ContrastPhase = Literal["native", "arterial", "portal_venous"]

LANDMARK_HEIGHTS_MM = np.array([-300.0, 0.0, 105.0, 285.0, 440.0, 585.0, 715.0, 900.0])
"""Mid-thigh, femoral heads, promontory, top of L1, heart, top of T1, skull base and vertex of the reference adult."""


@dataclass(frozen=True, slots=True)
class Patient:
    """The parameters of one synthetic adult. Lengths are mm, factors are relative to the reference adult.

    The position and size of each organ is not listed here, but drawn by :meth:`shift_mm` and :meth:`size` from the seed
    and the structure's name, so that a change to one structure does not affect the others.
    """

    seed: int
    age_years: int
    sex: Sex
    height_factor: float
    width_factor: float
    depth_factor: float
    fat_mm: float
    contrast_phase: ContrastPhase
    arms_raised: bool
    yaw_deg: float
    """Rotation about the long axis on the table."""
    offset_lps_mm: tuple[float, float, float]
    """Position of the midpoint of the femoral heads in LPS."""
    noise_sd_hu: float
    aorta_factor: float
    """Diameter of the aorta; grows with age."""
    back_muscle_hu: float
    """Attenuation of the deep muscles of the back; falls with age as they turn fatty."""
    bone_factor: float
    """Density of trabecular bone; falls with age."""
    size_factors: Mapping[str, float] = field(default_factory=dict)
    """Sizes of structures relative to those that were drawn: the radii of their solids are multiplied by this."""
    hu_shifts: Mapping[str, float] = field(default_factory=dict)
    """Attenuation of structures relative to that which was drawn, in HU; gas keeps its own."""

    @classmethod
    def from_seed(
        cls,
        seed: int,
        *,
        age_years: int | None = None,
        sex: Sex | None = None,
        contrast_phase: ContrastPhase | None = None,
    ) -> Patient:
        """Draw a patient; the same arguments always give the same patient.

        Age, sex and contrast phase are drawn too if they are not given; whatever else is drawn is the same either way,
        but for its trends with age and sex.

        Trends with age follow the age study of arXiv 2208.05868 (section "Aging"): the aorta widens, back muscle loses
        attenuation. They are strong enough for a few hundred patients to show both.
        """
        rng = np.random.default_rng([seed, 104])
        drawn_age, drawn_sex = int(rng.integers(20, 91)), rng.random()
        age = drawn_age if age_years is None else age_years
        sex = sex or ("M" if drawn_sex < 0.5 else "F")
        decades = (age - 55) / 10.0
        male = 1.0 if sex == "M" else -1.0
        phases: tuple[ContrastPhase, ...] = ("native", "arterial", "portal_venous")
        return cls(
            seed=seed,
            age_years=age,
            sex=sex,
            height_factor=float(np.clip(0.95 + 0.022 * male + rng.normal(0, 0.022), 0.87, 1.02)),
            width_factor=float(np.clip(0.98 + 0.02 * male + rng.normal(0, 0.025), 0.9, 1.06)),
            depth_factor=float(np.clip(0.98 + 0.015 * male + rng.normal(0, 0.03), 0.9, 1.07)),
            fat_mm=float(np.clip(rng.gamma(4.0, 4.5), 6.0, 36.0)),
            contrast_phase=_chosen(contrast_phase, phases[int(rng.choice(3, p=[0.35, 0.2, 0.45]))]),
            arms_raised=bool(rng.random() < 0.55),
            yaw_deg=float(rng.normal(0, 2.5)),
            offset_lps_mm=(float(rng.normal(0, 6)), float(rng.normal(-10, 8)), float(rng.normal(-900, 150))),
            noise_sd_hu=float(rng.uniform(6, 24)),
            aorta_factor=float(np.clip(1.0 + 0.045 * decades + rng.normal(0, 0.06), 0.78, 1.35)),
            back_muscle_hu=float(52.0 - 5.5 * decades + rng.normal(0, 5)),
            bone_factor=float(np.clip(1.0 - 0.09 * decades + rng.normal(0, 0.1), 0.5, 1.5)),
        )

    def random(self, *purpose: str) -> np.random.Generator:
        """A separate random stream for each purpose."""
        return np.random.default_rng([self.seed, *(zlib.crc32(word.encode()) for word in purpose)])

    def shift_mm(self, name: str, sd_mm: float) -> Points:
        """Displacement of one structure from its usual position, (x, y, z) in the body frame."""
        shift: Points = np.clip(self.random("shift", name).normal(0, sd_mm, 3), -2.2 * sd_mm, 2.2 * sd_mm)
        return shift

    def size(self, name: str, sd: float) -> float:
        """Linear size of one structure relative to the reference."""
        return float(np.exp(np.clip(self.random("size", name).normal(0, sd), -2.2 * sd, 2.2 * sd)))

    def turn_deg(self, name: str, sd_deg: float) -> Points:
        """Yaw, pitch and roll of one structure relative to its usual posture."""
        turn: Points = self.random("turn", name).normal(0, sd_deg, 3)
        return turn


def _chosen(given: ContrastPhase | None, drawn: ContrastPhase) -> ContrastPhase:
    return drawn if given is None else given


class Build:
    """The patient's smooth deviation from the reference adult: proportions along the body, curvature of the spine.

    Neighbouring structures move together, which preserves the topology of the reference adult.
    """

    def __init__(self, patient: Patient) -> None:
        self.patient = patient
        rng = patient.random("build")
        stretch = np.exp(rng.normal(0, 0.03, len(LANDMARK_HEIGHTS_MM) - 1))
        lengths = np.diff(LANDMARK_HEIGHTS_MM) * stretch
        self._heights = np.concatenate([[0.0], np.cumsum(lengths)]) - lengths[0]
        self._across = np.exp(rng.normal(0, 0.03, len(LANDMARK_HEIGHTS_MM)))
        self._depth = np.exp(rng.normal(0, 0.03, len(LANDMARK_HEIGHTS_MM)))
        self._sway_mm = np.stack([rng.normal(0, 3.5, 3), rng.normal(0, 3.5, 3)])
        self._phase = rng.uniform(0, 2 * np.pi, (2, 3))
        self._tilt = rng.normal(0, 0.008, 2)

    def height(self, z: float | Points) -> Points:
        """Height in this patient that corresponds to height ``z`` in the reference adult."""
        return np.asarray(np.interp(z, LANDMARK_HEIGHTS_MM, self._heights))

    def across(self, z: float | Points) -> Points:
        """Scale factor of left-right distances at reference height ``z``."""
        return np.asarray(np.interp(z, LANDMARK_HEIGHTS_MM, self._across))

    def depth(self, z: float | Points) -> Points:
        """Scale factor of anterior-posterior distances at reference height ``z``."""
        return np.asarray(np.interp(z, LANDMARK_HEIGHTS_MM, self._depth))

    def sway(self, z: float | Points) -> Points:
        """Displacement (x, y) of the whole section at reference height ``z``, shape (..., 2)."""
        height = np.asarray(z, dtype=np.float64)[..., None, None]
        waves = self._sway_mm * np.sin(2 * np.pi * height / np.array([900.0, 600.0, 400.0]) + self._phase)
        result: Points = waves.sum(axis=-1) + self._tilt * np.asarray(z, dtype=np.float64)[..., None]
        return result

    def place(self, points: Points) -> Points:
        """Map reference positions (..., 3) to this patient."""
        z = points[..., 2]
        sway = self.sway(z)
        return np.stack(
            [
                points[..., 0] * self.across(z) + sway[..., 0],
                points[..., 1] * self.depth(z) + sway[..., 1],
                self.height(z),
            ],
            axis=-1,
        )
