"""How much the volume of a structure depends on slice thickness and kernel: one patient, scanned in every way.

Every way of scanning a phantom comes from the same fine planes, so the anatomy is the same, and any difference between
the volumes is uncertainty. The variance within subjects is averaged over the phantoms (Bland and Altman, "Measurement
error", BMJ 1996;313:744, which also gives the coefficient of variation as a root mean square).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.measure import measure
from inference.phantom import KERNELS, Patient, grid, render, thicker_slices
from inference.structures import paper_labels
from inference.types import InvalidValueError, Segmentation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dicom_node.constancy.subject import Subject
    from inference.phantom import FieldOfView
    from inference.types import Measurements, RunReport

IN_PLANE_MM, FINE_PLANE_MM = 1.5, 1.0
"""Spacing of the fine scan."""
_THICKEST_MM = 20.0


@dataclass(frozen=True, slots=True)
class Ways:
    """Every thickness (a multiple of 1 mm) with every kernel, by its name in :data:`inference.phantom.KERNELS`."""

    thicknesses_mm: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0)
    kernels: tuple[str, ...] = ("soft", "standard", "sharp")
    phantoms: int = 2
    field_of_view: FieldOfView = "whole"

    def __post_init__(self) -> None:
        """Raises InvalidValueError for fewer than two ways, one that is listed twice, or one that can't be made."""
        for each in self.thicknesses_mm:
            if not FINE_PLANE_MM <= each <= _THICKEST_MM or each % FINE_PLANE_MM:
                raise InvalidValueError(
                    f"a slice thickness must be a multiple of {FINE_PLANE_MM:g} mm up to {_THICKEST_MM:g} mm, "
                    f"not {each:g} mm"
                )
        unknown = [each for each in self.kernels if each not in KERNELS]
        if unknown:
            raise InvalidValueError(f"no kernel is called {', '.join(unknown)}; there are {', '.join(KERNELS)}")
        for listed in (self.thicknesses_mm, self.kernels):
            if len(set(listed)) < len(listed):
                raise InvalidValueError(f"listed twice: {', '.join(map(str, listed))}")
        if len(self.thicknesses_mm) * len(self.kernels) < 2:  # noqa: PLR2004 - there is no spread of one value
            raise InvalidValueError("at least two ways of scanning are needed, as thicknesses, kernels or both")
        if self.phantoms < 1:
            raise InvalidValueError(f"at least one phantom, not {self.phantoms}")


@dataclass(frozen=True, slots=True)
class Scanned:
    """The volume of one structure in one scan; 0 where it was not found. ``true_ml`` is that of the fine scan.

    ``true_ml`` is None if the phantoms don't have the structure. ``truncated``: it touches the border of the scan.
    """

    phantom: str
    thickness_mm: float
    kernel: str
    structure: str
    volume_ml: float
    truncated: bool
    true_ml: float | None


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """Of one structure. ``phantoms``: in which it was found whole; the others don't count.

    ``mean_ml`` is the mean over ways and phantoms, ``sd_ml`` the standard deviation within a phantom, ``cv_percent``
    that relative to the phantom's mean. ``lowest_ml`` and ``highest_ml`` are of all scans, ``lowest_percent`` and
    ``highest_percent`` relative to the phantom's mean. ``thickness_cv_percent`` and ``kernel_cv_percent`` are those of
    the means by thickness and by kernel; None where only one was used. ``missed``: scans in which it was not found.
    """

    structure: str
    phantoms: int
    mean_ml: float
    sd_ml: float
    cv_percent: float
    lowest_ml: float
    highest_ml: float
    lowest_percent: float
    highest_percent: float
    thickness_cv_percent: float | None
    kernel_cv_percent: float | None
    missed: int


@dataclass(frozen=True, slots=True)
class Variation:
    """The result: every volume, the uncertainty of every structure, and the structures left out, with the reason."""

    ways: Ways
    scans: tuple[Scanned, ...]
    structures: tuple[Uncertainty, ...]
    left_out: dict[str, str]
    run: RunReport | None

    def as_json(self) -> dict[str, Any]:
        """Plain values for programs."""
        return {
            "ways": asdict(self.ways),
            "structures": [asdict(each) for each in self.structures],
            "left_out": self.left_out,
        }


def vary(subject: Subject, ways: Ways, report: Callable[[str, int, int], None]) -> Variation:
    """Scan every phantom in every way, and segment each scan.

    Raises:
        ConfigurationError: the model can't be loaded, or refuses a scan.
    """
    scans: list[Scanned] = []
    run, done = None, 0
    count = ways.phantoms * len(ways.kernels) * len(ways.thicknesses_mm)
    report("scans", 0, count)
    for seed in range(1, ways.phantoms + 1):
        for kernel in ways.kernels:
            patient = Patient.from_seed(seed)
            geometry = grid(patient, (IN_PLANE_MM, IN_PLANE_MM, FINE_PLANE_MM), ways.field_of_view)
            names = paper_labels()
            fine, truth_zyx = render(patient, geometry, {name: label for label, name in names.items()}, KERNELS[kernel])
            true_ml = _true_ml(truth_zyx, names, geometry.voxel_volume_ml)
            for thickness_mm in ways.thicknesses_mm:
                volume = thicker_slices(fine, round(thickness_mm / FINE_PLANE_MM))
                found = subject.segment(volume)
                run = found.run
                place = f"phantom-{seed:04d}", thickness_mm, kernel
                scans += _scanned(place, found, measure(volume, found), true_ml)
                done += 1
                report("scans", done, count)
    structures, left_out = uncertainties(scans)
    return Variation(ways, tuple(scans), structures, left_out, run)


def _true_ml(truth_zyx: Any, names: Any, voxel_ml: float) -> dict[str, float]:
    counts = sum((np.bincount(plane.ravel(), minlength=256) for plane in truth_zyx), np.zeros(256, np.int64))
    return {name: float(counts[label]) * voxel_ml for label, name in names.items()}


def _scanned(
    place: tuple[str, float, str], found: Segmentation, measured: Measurements, true_ml: dict[str, float]
) -> Iterator[Scanned]:
    by_name = {each.name: each for each in measured.structures}
    for name in found.names_by_label.values():
        each = by_name.get(name)
        volume_ml, truncated = (0.0, False) if each is None else (each.volume_ml, each.truncated)
        yield Scanned(*place, name, volume_ml, truncated, true_ml.get(name))


def uncertainties(scans: Sequence[Scanned]) -> tuple[tuple[Uncertainty, ...], dict[str, str]]:
    """The uncertainty of every structure, and the structures left out, with the reason.

    A phantom counts for a structure if it was found in at least one scan and is truncated in none.
    """
    thicknesses = list(dict.fromkeys(each.thickness_mm for each in scans))
    kernels = list(dict.fromkeys(each.kernel for each in scans))
    tables: dict[str, dict[str, np.ndarray[Any, np.dtype[np.float64]]]] = {}
    truncated: set[tuple[str, str]] = set()
    for each in scans:
        table = tables.setdefault(each.structure, {}).setdefault(
            each.phantom, np.zeros((len(thicknesses), len(kernels)))
        )
        table[thicknesses.index(each.thickness_mm), kernels.index(each.kernel)] = each.volume_ml
        if each.truncated:
            truncated.add((each.structure, each.phantom))
    found, left_out = [], {}
    for name, by_phantom in tables.items():
        whole = [each for phantom, each in by_phantom.items() if (name, phantom) not in truncated and each.any()]
        if whole:
            found.append(_uncertainty(name, np.stack(whole)))
        else:
            is_cut = any((name, phantom) in truncated for phantom in by_phantom)
            left_out[name] = "truncated in every phantom" if is_cut else "found in no scan"
    return tuple(found), left_out


def _uncertainty(name: str, volumes_ml: np.ndarray[Any, np.dtype[np.float64]]) -> Uncertainty:
    """``volumes_ml`` is [phantom, thickness, kernel]."""
    means = volumes_ml.mean(axis=(1, 2))
    relative = volumes_ml / means[:, None, None]
    scans = volumes_ml.reshape(len(means), -1)
    return Uncertainty(
        structure=name,
        phantoms=len(means),
        mean_ml=float(means.mean()),
        sd_ml=float(np.sqrt(scans.var(axis=1, ddof=1).mean())),
        cv_percent=_cv_percent(relative.reshape(len(means), -1)),
        lowest_ml=float(volumes_ml.min()),
        highest_ml=float(volumes_ml.max()),
        lowest_percent=float(100 * relative.min()),
        highest_percent=float(100 * relative.max()),
        thickness_cv_percent=_cv_percent(relative.mean(axis=2)) if volumes_ml.shape[1] > 1 else None,
        kernel_cv_percent=_cv_percent(relative.mean(axis=1)) if volumes_ml.shape[2] > 1 else None,
        missed=int((volumes_ml == 0).sum()),
    )


def _cv_percent(relative: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """Root mean square over the phantoms; each row has the mean 1."""
    return float(100 * np.sqrt(relative.var(axis=1, ddof=1).mean()))
