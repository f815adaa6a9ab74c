"""The types that the DICOM packages and the segmentation engine share.

Conventions:

* Arrays are indexed ``[z, y, x]`` = ``[plane, row, column]``, which their names say: ``voxels_zyx``.
* An ``affine_lps`` is a 4 x 4 float64 matrix that maps the homogeneous index ``(x, y, z, 1)`` = (column, row, plane)
  to millimetres in the DICOM patient coordinate system (LPS: +x to the patient's Left, +y Posterior, +z Superior;
  PS3.3 C.7.6.2.1.1).  Its columns are therefore ``spacing * direction`` of columns, rows and planes, its last column
  the centre of voxel ``[0, 0, 0]``.
* Planes ascend along the normal ``row direction x column direction``, so every grid is right-handed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

AIR_HU = -1024
"""What a model sees where nothing was imaged: the lowest value of the usual 12-bit scale of CT."""
_HIGHEST_LABEL = 255
ORTHOGONALITY_TOLERANCE = 1e-3
"""Largest cosine between two axes of a grid that still counts as orthogonal (0.06 degrees)."""


class InvalidValueError(ValueError):
    """A value was constructed from parts that are invalid or contradict each other."""


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """The position of a regular grid of voxels in the patient.

    Right-handed by construction; orthogonal unless it describes the frames of a tilted gantry (``is_orthogonal``).

    Raises:
        InvalidValueError: shape not positive, affine not finite, singular or left-handed.
    """

    shape_zyx: tuple[int, int, int]
    affine_lps: NDArray[np.float64]

    def __post_init__(self) -> None:
        affine = np.array(self.affine_lps, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise InvalidValueError(f"affine_lps must be a finite 4 x 4 matrix, not {affine.tolist()}")
        if len(self.shape_zyx) != 3 or min(self.shape_zyx) < 1:  # noqa: PLR2004 - z, y, x
            raise InvalidValueError(f"shape_zyx must be three positive integers, not {self.shape_zyx}")
        if np.linalg.det(affine[:3, :3]) <= 0:
            raise InvalidValueError("affine_lps is singular or left-handed; planes must ascend along row x column")
        affine.setflags(write=False)
        object.__setattr__(self, "affine_lps", affine)
        object.__setattr__(self, "shape_zyx", tuple(int(n) for n in self.shape_zyx))

    @property
    def spacing_xyz_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring columns, rows and planes, each measured along its own grid axis, in mm."""
        x, y, z = np.linalg.norm(self.affine_lps[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def direction(self) -> NDArray[np.float64]:
        """3 x 3 matrix whose columns are the unit vectors of the column, row and plane index (LPS)."""
        matrix: NDArray[np.float64] = self.affine_lps[:3, :3] / np.linalg.norm(self.affine_lps[:3, :3], axis=0)
        return matrix

    @property
    def is_orthogonal(self) -> bool:
        """Whether the three grid axes are perpendicular (false for the frames of a tilted gantry)."""
        cosines = self.direction.T @ self.direction - np.eye(3)
        return bool(np.abs(cosines).max() <= ORTHOGONALITY_TOLERANCE)

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in millilitres (from the determinant, so also correct for sheared grids)."""
        return float(np.linalg.det(self.affine_lps[:3, :3])) / 1000.0

    def same_grid(self, other: Geometry, tolerance_mm: float = 1e-3) -> bool:
        """Whether both describe the same voxels to within ``tolerance_mm`` at every corner."""
        if self.shape_zyx != other.shape_zyx:
            return False
        z, y, x = (n - 1 for n in self.shape_zyx)
        corners = np.array([[i, j, k, 1] for i in (0, x) for j in (0, y) for k in (0, z)], dtype=np.float64).T
        return bool(np.abs((self.affine_lps - other.affine_lps) @ corners).max() <= tolerance_mm)


@dataclass(frozen=True, slots=True)
class MinimumExtent:
    """The smallest volume that a model accepts: ``slices``, and ``extent_mm`` (voxels x spacing) along every axis."""

    slices: int = 1
    extent_mm: float = 0.0

    def refusal(self, geometry: Geometry) -> str | None:
        """Why a volume on ``geometry`` is too small, with the numbers; None if it is large enough."""
        if geometry.shape_zyx[0] < self.slices:
            return f"{geometry.shape_zyx[0]} slices; the model needs at least {self.slices}"
        extent_xyz_mm = [n * mm for n, mm in zip(geometry.shape_zyx[::-1], geometry.spacing_xyz_mm, strict=True)]
        if min(extent_xyz_mm) < self.extent_mm:
            seen = " x ".join(f"{extent:.1f}" for extent in extent_xyz_mm)
            return f"the volume measures {seen} mm; the model needs at least {self.extent_mm:g} mm along every axis"
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Padding:
    """Which voxels hold no measurement: whatever an image has around the reconstruction circle to be a rectangle.

    Those of plane k whose HU lie from ``lowest_hu[k]`` to ``highest_hu[k]`` (both included; NaN: none of this plane)
    and, where the HU alone do not tell, that lie in ``region_zyx``: [planes, rows, columns], or one plane for all.
    """

    lowest_hu: NDArray[np.float64]
    highest_hu: NDArray[np.float64]
    region_zyx: NDArray[np.bool_] | None = None

    def found_in(self, voxels_zyx: NDArray[Any], first_plane: int = 0) -> NDArray[np.bool_]:
        """Where ``voxels_zyx``, the planes of the volume from ``first_plane`` on, are padding."""
        planes = slice(first_plane, first_plane + len(voxels_zyx))
        lowest, highest = self._bounds(voxels_zyx.dtype, planes)
        found: NDArray[np.bool_] = voxels_zyx >= lowest
        found &= voxels_zyx <= highest
        if self.region_zyx is not None:
            found &= self.region_zyx if len(self.region_zyx) == 1 else self.region_zyx[planes]
        return found

    def _bounds(self, dtype: np.dtype[Any], planes: slice) -> tuple[NDArray[Any], NDArray[Any]]:
        """In the type of the voxels: a comparison in another one would copy them, and differ where HU were rounded."""
        lowest, highest = self.lowest_hu[planes], self.highest_hu[planes]
        if np.issubdtype(dtype, np.integer):
            limits = np.iinfo(dtype)
            # no bounds, or bounds between two whole numbers, are an empty range
            stated = np.ceil(lowest) <= np.minimum(np.floor(highest), limits.max)
            stated &= np.floor(highest) >= limits.min
            lowest = np.where(stated, np.maximum(np.ceil(lowest), limits.min), limits.max)
            highest = np.where(stated, np.minimum(np.floor(highest), limits.max), limits.min)
        return lowest.astype(dtype)[:, None, None], highest.astype(dtype)[:, None, None]

    def cropped(self, box: tuple[slice, slice, slice]) -> Padding:
        """Of the part of the volume in ``box``."""
        region = self.region_zyx
        if region is not None:
            region = region[(slice(None) if len(region) == 1 else box[0], *box[1:])]
        return Padding(self.lowest_hu[box[0]], self.highest_hu[box[0]], region)


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """A CT volume in Hounsfield units; the array is made read-only.

    ``voxels_zyx`` is int16 where the HU are whole numbers that fit, else float32. ``padding`` says which of them were
    never measured; None where there is none. They keep the values that the images give them.
    """

    voxels_zyx: NDArray[np.int16] | NDArray[np.float32]
    geometry: Geometry
    padding: Padding | None = None

    def __post_init__(self) -> None:
        if self.voxels_zyx.dtype not in (np.dtype(np.int16), np.dtype(np.float32)):
            raise InvalidValueError(f"HU must be int16 or float32, not {self.voxels_zyx.dtype}")
        if self.voxels_zyx.shape != self.geometry.shape_zyx:
            raise InvalidValueError(f"array {self.voxels_zyx.shape} does not fit grid {self.geometry.shape_zyx}")
        if self.padding is not None:
            _refuse_other_shape(self.padding, self.geometry.shape_zyx)
        view = self.voxels_zyx.view()
        view.setflags(write=False)
        object.__setattr__(self, "voxels_zyx", view)

    def with_air_for_padding(self) -> Volume:
        """The volume as a model should see it, padding as :data:`AIR_HU`; this one where it has no padding."""
        if self.padding is None:
            return self
        voxels = self.voxels_zyx.copy()
        for k in range(len(voxels)):
            voxels[k][self.padding.found_in(voxels[k : k + 1], k)[0]] = AIR_HU
        return Volume(voxels, self.geometry)


def _refuse_other_shape(padding: Padding, shape_zyx: tuple[int, int, int]) -> None:
    if not padding.lowest_hu.shape == padding.highest_hu.shape == shape_zyx[:1]:
        raise InvalidValueError(f"padding of {len(padding.lowest_hu)} planes in a volume of {shape_zyx[0]}")
    region = padding.region_zyx
    if region is not None and (region.shape[1:] != shape_zyx[1:] or len(region) not in (1, shape_zyx[0])):
        raise InvalidValueError(f"a region of padding {region.shape} does not fit grid {shape_zyx}")


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model made a segmentation, in enough detail to tell two results apart years later.

    ``digest`` is the SHA-256 (hex) of the model's files, or of the algorithm's parameters for a rule-based model.
    ``intended_use`` is printed on every result; an empty one is refused.
    """

    name: str
    version: str
    digest: str
    family: str
    """``"nnU-Net"`` or ``"Thresholding"``; becomes the coded Algorithm Family of PS3.3 10-19 (CID 7162)."""
    intended_use: str = "Research use only - not for clinical use"

    def __post_init__(self) -> None:
        for attribute in ("name", "version", "digest", "family", "intended_use"):
            if not getattr(self, attribute):
                raise InvalidValueError(f"ModelIdentity.{attribute} must not be empty")


@dataclass(frozen=True, slots=True)
class RunNote:
    """Something that went otherwise than planned during a run, such as a fallback, in one sentence for users.

    ``changes_answer``: the labels may differ from those of a run that went as planned, even if only by rounding.
    """

    text: str
    changes_answer: bool = False


@dataclass(frozen=True, slots=True)
class RunReport:
    """What ran the model, in enough detail to explain why two runs took different times or gave different labels.

    ``backend`` names the engine and its version (``OpenVINO 2026.4.1``, ``torch 2.13.0``, ``numpy 2.3.4``), ``device``
    where the convolutions ran (``CPU``, ``cuda:0 NVIDIA H200``), ``precision`` their arithmetic (``bfloat16``);
    several are joined by commas. ``stage_seconds`` are wall seconds.
    """

    backend: str
    device: str
    precision: str
    notes: tuple[RunNote, ...] = ()
    stage_seconds: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of_several(cls, runs: Sequence[RunReport]) -> RunReport:
        """One report for models that ran one after the other; seconds of stages with the same name are added."""
        seconds: dict[str, float] = {}
        for run in runs:
            for stage, spent in run.stage_seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + spent
        return cls(
            _joined(run.backend for run in runs),
            _joined(run.device for run in runs),
            _joined(run.precision for run in runs),
            tuple(dict.fromkeys(note for run in runs for note in run.notes)),
            seconds,
        )

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values, for :meth:`from_json`."""
        return {
            "backend": self.backend,
            "device": self.device,
            "precision": self.precision,
            "notes": [asdict(note) for note in self.notes],
            "stage_seconds": dict(self.stage_seconds),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> RunReport:
        """The report from the values of :meth:`to_json`."""
        return cls(**{**content, "notes": tuple(RunNote(**note) for note in content["notes"])})


def _joined(values: Iterable[str]) -> str:
    """Each value once and in order; a value may itself be several joined ones."""
    return ", ".join(dict.fromkeys(word for value in values for word in value.split(", ") if word))


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """Label map on the grid of the volume it was made from.

    ``run`` says what ran; None for labels from elsewhere (a truth, a file).

    ``names_by_label`` has every label that the model can assign (except background, 0), present or not; each name is a
    structure of :mod:`inference.structures`.
    """

    labels_zyx: NDArray[np.uint8]
    geometry: Geometry
    names_by_label: Mapping[int, str]
    model: ModelIdentity
    run: RunReport | None = None

    def __post_init__(self) -> None:
        if self.labels_zyx.dtype != np.uint8:
            raise InvalidValueError(f"labels must be uint8, not {self.labels_zyx.dtype}")
        if self.labels_zyx.shape != self.geometry.shape_zyx:
            raise InvalidValueError(f"labels {self.labels_zyx.shape} do not fit grid {self.geometry.shape_zyx}")
        if 0 in self.names_by_label or not self.names_by_label:
            raise InvalidValueError("names_by_label must name labels 1..255; 0 is background and has no name")
        refuse_unusable_names(self.names_by_label)
        highest = int(self.labels_zyx.max(initial=0))
        if highest and highest > max(self.names_by_label):
            raise InvalidValueError(f"label {highest} has no name (highest named: {max(self.names_by_label)})")
        view = self.labels_zyx.view()
        view.setflags(write=False)
        object.__setattr__(self, "labels_zyx", view)
        object.__setattr__(self, "names_by_label", dict(sorted(self.names_by_label.items())))


def refuse_unusable_names(names_by_label: Mapping[int, str]) -> None:
    """Require names of labels 1..255, each used once.

    Raises:
        InvalidValueError: another label, an empty name, or a name of two labels.
    """
    names = list(names_by_label.values())
    for label, name in names_by_label.items():
        if not isinstance(label, int) or not 0 < label <= _HIGHEST_LABEL:
            raise InvalidValueError(f"names_by_label must name labels 1..{_HIGHEST_LABEL}, not {label!r}")
        if not isinstance(name, str) or not name:
            raise InvalidValueError(f"label {label} has no name")
        if names.count(name) > 1:
            raise InvalidValueError(f"{name} names more than one label")


@dataclass(frozen=True, slots=True)
class ShapeMeasurement:
    """The shape of one structure, as :mod:`inference.shape` defines it.

    ``elongation`` and ``flatness`` are the lengths of the minor and the least axis divided by that of the major axis;
    None if that is 0.
    """

    mesh_volume_mm3: float
    surface_area_mm2: float
    sphericity: float
    maximum_diameter_mm: float
    major_axis_mm: float
    minor_axis_mm: float
    least_axis_mm: float
    elongation: float | None
    flatness: float | None


@dataclass(frozen=True, slots=True)
class StructureMeasurement:
    """One structure on the original grid, with HU statistics over its voxels; absent structures have no measurement.

    ``truncated``: the structure touches the border of the imaged region, so its volume is a lower bound.
    ``shape`` is None unless it was requested.
    """

    name: str
    label: int
    voxel_count: int
    volume_ml: float
    mean_hu: float
    sd_hu: float
    min_hu: float
    max_hu: float
    median_hu: float
    truncated: bool
    shape: ShapeMeasurement | None = None


@dataclass(frozen=True, slots=True)
class Measurements:
    """Every structure that was found, by ascending label, and the names of those that were sought but not found."""

    structures: tuple[StructureMeasurement, ...]
    not_found: tuple[str, ...]


@runtime_checkable
class Segmenter(Protocol):
    """A model that was loaded on construction; ``segment`` may be called any number of times."""

    @property
    def identity(self) -> ModelIdentity:
        """Which model this is."""
        ...

    @property
    def names_by_label(self) -> Mapping[int, str]:
        """Every label that the model can assign."""
        ...

    def segment(self, volume: Volume, progress: Callable[[float, str], None]) -> Segmentation:
        """Label every voxel of an orthogonal ``volume``; the result lies on the same grid.

        ``progress(fraction, stage)`` receives the fraction (0..1) of the whole work and a short English stage name.
        """
        ...


@runtime_checkable
class TwoStepSegmenter(Segmenter, Protocol):
    """A segmenter that can prepare one volume in one thread while it infers another in a second thread."""

    def prepare(self, volume: Volume, progress: Callable[[float, str], None]) -> Any:
        """Do everything that needs no network."""
        ...

    def infer(self, prepared: Any, progress: Callable[[float, str], None]) -> Segmentation:
        """Label every voxel of a prepared volume."""
        ...
