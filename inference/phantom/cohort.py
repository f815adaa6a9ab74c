"""A cohort of synthetic patients: chosen distributions of their attributes, and effects of age that are known.

An effect is the rank correlation (Spearman) of age with the volume or the attenuation of a structure *in the cohort*.
Each subject gets a target for the quantity, whose rank correlation with age is the wanted one, and the structure is
scaled or shifted until what is measured in the true labels meets the target. Without an effect, a structure keeps what
the seed draws, with the trends of :meth:`~inference.phantom.patient.Patient.from_seed`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from scipy.stats import norm, rankdata

from inference.errors import UnknownStructureError
from inference.phantom.case import FieldOfView, whole_body_grid
from inference.phantom.patient import ContrastPhase, Patient, Sex
from inference.phantom.render import render_truth
from inference.structures import paper_labels
from inference.types import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from inference.types import Geometry

Quantity = Literal["volume", "hu"]
_T = TypeVar("_T", bound=str)

FEWEST_SUBJECTS = 10
"""With an effect; fewer have too few ranks."""
_VOLUME_SD = 0.2
"""Of the logarithm of a target volume."""
_HU_SD = 10.0
_VOLUME_TOLERANCE, _HU_TOLERANCE = 0.03, 1.0
_MOST_FITS = 3
_SMALLEST_FACTOR, _LARGEST_FACTOR = 0.4, 2.5
_EXPONENT = 2.5
"""Of the volume in the radii, before it is measured: 2 for a tube, 3 for an ellipsoid."""
_REFERENCE_SUBJECTS = 15


@dataclass(frozen=True, slots=True)
class Effect:
    """A rank correlation with age. ``structure`` may leave out the side: then both sides have the effect together."""

    structure: str
    quantity: Quantity
    spearman: float

    def __post_init__(self) -> None:
        """Raises InvalidValueError for a correlation beyond 0.95, UnknownStructureError for an unknown structure."""
        if not abs(self.spearman) <= 0.95:
            raise InvalidValueError(f"rank correlation {self.spearman} of {self.structure}, expected -0.95 to 0.95")
        if not self.structures:
            raise UnknownStructureError(f"phantoms have no structure named {self.structure!r}")

    @property
    def structures(self) -> tuple[str, ...]:
        """The structure, or its left and right one."""
        known = frozenset(paper_labels().values())
        names = (self.structure, f"{self.structure}_left", f"{self.structure}_right")
        return tuple(name for name in names if name in known)


@dataclass(frozen=True, slots=True)
class Ages:
    """Ages in years: uniform from ``lowest`` to ``highest``, or normal with ``mean`` and ``sd`` within them."""

    lowest: int = 20
    highest: int = 90
    mean: float | None = None
    sd: float | None = None

    def __post_init__(self) -> None:
        """Raises InvalidValueError if there is no such distribution."""
        if not 1 <= self.lowest <= self.highest <= 120 or (self.mean is None) != (self.sd is None):
            raise InvalidValueError(f"ages from {self.lowest} to {self.highest}, expected 1 to 120, ascending")
        if self.sd is not None and self.sd <= 0:
            raise InvalidValueError(f"the standard deviation of age is {self.sd}, expected a positive number")

    def draw(self, rng: np.random.Generator, count: int) -> list[int]:
        """Draw ``count`` ages."""
        ages = np.arange(self.lowest, self.highest + 1)
        if self.mean is None or self.sd is None:
            return [int(age) for age in rng.choice(ages, count)]
        weights = np.exp(-0.5 * ((ages - self.mean) / self.sd) ** 2) + np.finfo(float).tiny
        return [int(age) for age in rng.choice(ages, count, p=weights / weights.sum())]


@dataclass(frozen=True, slots=True)
class CohortPlan:
    """What a cohort is drawn from; shares need not add up to 1.

    Subject k has the seed ``first_seed + k``. The published split of subjects is by share, at least one in each part.
    """

    count: int
    first_seed: int = 1_000_000
    ages: Ages = field(default_factory=Ages)
    female: float = 0.5
    fields_of_view: Mapping[FieldOfView, float] = field(default_factory=lambda: {"whole": 1.0})
    contrast_phases: Mapping[ContrastPhase, float] = field(
        default_factory=lambda: {"native": 0.35, "arterial": 0.2, "portal_venous": 0.45}
    )
    splits: Mapping[str, float] = field(default_factory=lambda: {"train": 0.8, "val": 0.1, "test": 0.1})
    effects: tuple[Effect, ...] = ()

    def __post_init__(self) -> None:
        """Raises InvalidValueError if it describes no cohort."""
        if self.count < 1:
            raise InvalidValueError(f"{self.count} subjects, expected at least 1")
        if not 0 <= self.female <= 1:
            raise InvalidValueError(f"share of women {self.female}, expected 0 to 1")
        for shares in (self.fields_of_view, self.contrast_phases, self.splits):
            if min(shares.values(), default=-1) < 0 or sum(shares.values()) <= 0:
                raise InvalidValueError(f"shares {dict(shares)}, expected numbers from 0, one of them positive")
        if self.effects and self.count < FEWEST_SUBJECTS:
            raise InvalidValueError(f"{self.count} subjects, effects of age need at least {FEWEST_SUBJECTS}")
        quantities = [(name, each.quantity) for each in self.effects for name in each.structures]
        twice = sorted({name for name, quantity in quantities if quantities.count((name, quantity)) > 1})
        if twice:
            raise InvalidValueError(f"two effects on {', '.join(twice)}")


@dataclass(frozen=True, slots=True)
class Member:
    """One subject of a cohort."""

    id: str
    seed: int
    age_years: int
    sex: Sex
    contrast_phase: ContrastPhase
    field_of_view: FieldOfView
    split: str

    def patient(self) -> Patient:
        """The patient without effects."""
        return Patient.from_seed(self.seed, age_years=self.age_years, sex=self.sex, contrast_phase=self.contrast_phase)


@dataclass(frozen=True, slots=True)
class Target:
    """The volume in ml, or mean attenuation in HU, that a structure of a subject shall have."""

    structure: str
    quantity: Quantity
    value: float


def draw_members(plan: CohortPlan) -> tuple[Member, ...]:
    """The subjects of a cohort; the same plan gives the same ones."""
    rng = np.random.default_rng([plan.first_seed, plan.count, 31])
    ages = plan.ages.draw(rng, plan.count)
    women = rng.random(plan.count) < plan.female
    views, phases = (_drawn(rng, shares, plan.count) for shares in (plan.fields_of_view, plan.contrast_phases))
    splits = _split(rng, plan.splits, plan.count)
    digits = max(4, len(str(plan.count)))
    return tuple(
        Member(
            id=f"s{k + 1:0{digits}}",
            seed=plan.first_seed + k,
            age_years=ages[k],
            sex="F" if women[k] else "M",
            contrast_phase=phases[k],
            field_of_view=views[k],
            split=splits[k],
        )
        for k in range(plan.count)
    )


def targets(plan: CohortPlan, members: Sequence[Member], spacing_mm: float) -> tuple[tuple[Target, ...], ...]:
    """For each subject what its structures shall measure, so that the cohort has the effects of ``plan``.

    The targets lie around the mean of the first subjects, measured at ``spacing_mm``.
    """
    if not plan.effects:
        return ((),) * len(members)
    ages = np.array([member.age_years for member in members], np.float64)
    if len(set(ages.tolist())) == 1:
        raise InvalidValueError(f"every subject is {ages[0]:.0f} years old, so nothing can depend on age")
    measured = [true_measures(member.patient(), spacing_mm) for member in members[:_REFERENCE_SUBJECTS]]
    rows: list[list[Target]] = [[] for _ in members]
    for number, effect in enumerate(plan.effects):
        scores = scores_with(effect.spearman, ages, np.random.default_rng([plan.first_seed, plan.count, 32, number]))
        for name in effect.structures:
            values = np.array([each[effect.quantity][name] for each in measured])
            if effect.quantity == "volume":
                wanted = np.exp(np.log(values).mean() + _VOLUME_SD * scores)
            else:
                wanted = values.mean() + _HU_SD * scores
            for row, value in zip(rows, wanted.tolist(), strict=True):
                row.append(Target(name, effect.quantity, value))
    return tuple(tuple(row) for row in rows)


def fitted(member: Member, wanted: Sequence[Target], spacing_mm: float) -> Patient:
    """The patient whose structures measure what is wanted, within 3 % or 1 HU of it where the anatomy allows.

    Labels are measured on a whole-body grid of ``spacing_mm``.
    """
    patient = member.patient()
    earlier: dict[str, tuple[float, float]] = {}
    for _ in range(_MOST_FITS if wanted else 0):
        measured = true_measures(patient, spacing_mm)
        sizes, shifts = dict(patient.size_factors), dict(patient.hu_shifts)
        for target in wanted:
            name, found = target.structure, measured[target.quantity].get(target.structure, 0.0)
            if target.quantity == "hu":
                if abs(target.value - found) > _HU_TOLERANCE:
                    shifts[name] = shifts.get(name, 0.0) + target.value - found
            elif found and abs(np.log(target.value / found)) > _VOLUME_TOLERANCE:
                factor = sizes.get(name, 1.0)
                exponent = _exponent(earlier.get(name), (factor, found))
                earlier[name] = factor, found
                changed = factor * (target.value / found) ** (1 / exponent)
                sizes[name] = float(np.clip(changed, _SMALLEST_FACTOR, _LARGEST_FACTOR))
        if (sizes, shifts) == (patient.size_factors, patient.hu_shifts):
            break
        patient = replace(patient, size_factors=sizes, hu_shifts=shifts)
    return patient


def true_measures(patient: Patient, spacing_mm: float) -> dict[Quantity, dict[str, float]]:
    """Volume in ml and painted attenuation in HU of every structure, on a whole-body grid of ``spacing_mm``."""
    geometry = whole_body_grid(patient, (spacing_mm, spacing_mm, spacing_mm))
    labels, hu = render_truth(patient, geometry, {name: label for label, name in paper_labels().items()})
    return {"volume": volumes_ml(labels, geometry), "hu": hu}


def volumes_ml(labels_zyx: NDArray[np.uint8], geometry: Geometry) -> dict[str, float]:
    """The volume of every structure that is present."""
    counts = np.bincount(labels_zyx.ravel(), minlength=256)
    return {name: counts[label] * geometry.voxel_volume_ml for label, name in paper_labels().items() if counts[label]}


def scores_with(spearman: float, ages: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Normal scores whose rank correlation with ``ages`` is ``spearman``, as exactly as the ranks allow.

    Found by bisection of the weight of age against noise, in which the rank correlation ascends.
    """
    by_age, noise = _normal_scores(ages), rng.standard_normal(len(ages))
    low, high = -1.0, 1.0
    for _ in range(60):
        weight = (low + high) / 2
        mixed = weight * by_age + np.sqrt(1 - weight**2) * noise
        if rank_correlation(ages, mixed) < spearman:
            low = weight
        else:
            high = weight
    return _normal_scores(high * by_age + np.sqrt(1 - high**2) * noise)


def rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Spearman's, with the mean of their ranks for ties."""
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def _normal_scores(values: NDArray[np.float64]) -> NDArray[np.float64]:
    scores: NDArray[np.float64] = norm.ppf((rankdata(values) - 0.5) / len(values))
    return scores


def _exponent(earlier: tuple[float, float] | None, now: tuple[float, float]) -> float:
    """Of the volume in the size factor, from two measurements."""
    if earlier is None or earlier[0] == now[0] or earlier[1] == now[1]:
        return _EXPONENT
    measured = np.log(now[1] / earlier[1]) / np.log(now[0] / earlier[0])
    return float(np.clip(measured, 1.0, 4.0))


def _drawn(rng: np.random.Generator, shares: Mapping[_T, float], count: int) -> list[_T]:
    names = list(shares)
    weights = np.array([shares[name] for name in names])
    return [names[k] for k in rng.choice(len(names), count, p=weights / weights.sum())]


def _split(rng: np.random.Generator, shares: Mapping[str, float], count: int) -> list[str]:
    """Exact shares in random order; every part with a share has a subject if there are as many subjects as parts."""
    names = [name for name, share in shares.items() if share > 0]
    if count <= len(names):
        return names[:count]
    total = sum(shares[name] for name in names)
    others = [name for name in names[1:] for _ in range(max(1, round(count * shares[name] / total)))]
    listed = [*others[: count - 1], *([names[0]] * (count - len(others)))]
    return [listed[k] for k in rng.permutation(count)]
