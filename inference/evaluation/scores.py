"""Agreement between a segmentation and the truth: Dice, surface Dice, 95th percentile of distances, volume error.

All structures are compared in one pass. The figures are those of ``surface-distance`` 0.1 and of nnU-Net's
``compute_metrics`` on the mask of each structure.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np

from inference.evaluation.distances import surface_distances
from inference.evaluation.surface import area_by_code, surfaces

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from inference.evaluation.surface import Surface
    from inference.types import Geometry

TOLERANCE_MM = 3.0
"""Tolerance of the normalised surface Dice, as in the paper."""
HAUSDORFF_PERCENT = 95.0
LABEL_VALUES = 256
_VOXELS_PER_SLAB = 2_000_000

Convention = Literal["paper", "nnunet"]
"""Which structures count. ``paper`` (arXiv 2208.05868): those in the truth; one that was not found counts as 0.
``nnunet`` (its ``compute_metrics``): also those that were found but are not in the truth; they count as 0."""


class Labels(Protocol):
    """A label map with names and grid: a :class:`~inference.types.Segmentation` or a value with its attributes."""

    @property
    def labels_zyx(self) -> NDArray[np.uint8]:
        """The label of every voxel."""
        ...

    @property
    def geometry(self) -> Geometry:
        """The grid."""
        ...

    @property
    def names_by_label(self) -> Mapping[int, str]:
        """The structures."""
        ...


@dataclass(frozen=True, slots=True)
class StructureScore:
    """Agreement on one structure of one case."""

    name: str
    dice: float
    surface_dice: float
    """Share of both surfaces within the tolerance of the other surface, by area."""
    hd95_mm: float
    """95th percentile of the distances between the surfaces, by area; the larger of both directions. Infinite where
    the structure is in only one of the two."""
    truth_ml: float
    found_ml: float

    @property
    def volume_error(self) -> float:
        """Found minus true volume, as a share of the true volume; NaN if there is none."""
        return (self.found_ml - self.truth_ml) / self.truth_ml if self.truth_ml else float("nan")


@dataclass(frozen=True, slots=True)
class CaseScore:
    """Agreement on one case."""

    structures: tuple[StructureScore, ...]
    """Scores of every structure in the truth."""
    only_found: tuple[StructureScore, ...]
    """Scores of every structure that was found but is not in the truth."""
    mixed_up: tuple[str, ...]
    """Paired structures with more voxels on the wrong side than on the correct side."""
    voxels_on_wrong_side: int
    """Voxels of paired structures that have the label of the counterpart."""

    def counted(self, convention: Convention) -> tuple[StructureScore, ...]:
        """The structures that count; structures in neither map never do."""
        return self.structures if convention == "paper" else self.structures + self.only_found


class _Pair(NamedTuple):
    """One structure in both maps."""

    name: str
    common_voxels: int
    truth_voxels: int
    found_voxels: int
    truth: Surface | None
    found: Surface | None


def score_case(truth: Labels, found: Labels, tolerance_mm: float = TOLERANCE_MM, threads: int = 1) -> CaseScore:
    """Compare two label maps of one grid that use the same names; structures that the truth can't name are left out.

    Raises:
        ValueError: the grids differ, or their axes are not perpendicular.
    """
    geometry = truth.geometry
    if not geometry.same_grid(found.geometry):
        raise ValueError("truth and segmentation are on different grids")
    if not geometry.is_orthogonal:
        raise ValueError("distances between surfaces need a grid with perpendicular axes")
    # the model may number its structures differently, so translate to the labels of the truth
    found_zyx = _translated(found.labels_zyx, _translation(found.names_by_label, truth.names_by_label))
    joint = _joint_histogram(truth.labels_zyx, found_zyx)
    of_truth, of_found = surfaces(truth.labels_zyx), surfaces(found_zyx)
    pairs = [
        _Pair(
            name,
            int(joint[label, label]),
            int(joint[label].sum()),
            int(joint[:, label].sum()),
            of_truth.get(label),
            of_found.get(label),
        )
        for label, name in truth.names_by_label.items()
        if label in of_truth or label in of_found
    ]

    x, y, z = geometry.spacing_xyz_mm
    areas_by_code = area_by_code((z, y, x))

    def score(pair: _Pair) -> StructureScore:
        distances = surface_distances(pair.truth, pair.found, (z, y, x), areas_by_code)
        return StructureScore(
            name=pair.name,
            dice=2.0 * pair.common_voxels / (pair.truth_voxels + pair.found_voxels),
            surface_dice=distances.surface_dice(tolerance_mm),
            hd95_mm=distances.robust_hausdorff_mm(HAUSDORFF_PERCENT),
            truth_ml=pair.truth_voxels * geometry.voxel_volume_ml,
            found_ml=pair.found_voxels * geometry.voxel_volume_ml,
        )

    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            scores = tuple(pool.map(score, pairs))
    else:
        scores = tuple(map(score, pairs))
    wrong = {
        name: (int(joint[label, twin]), int(joint[label, label])) for name, label, twin in _pairs(truth.names_by_label)
    }
    return CaseScore(
        structures=tuple(each for each in scores if each.truth_ml),
        only_found=tuple(each for each in scores if not each.truth_ml),
        mixed_up=tuple(name for name, (other, own) in wrong.items() if other > own),
        voxels_on_wrong_side=sum(other for other, _ in wrong.values()),
    )


def _translation(source: Mapping[int, str], target: Mapping[int, str]) -> NDArray[np.uint8]:
    label_by_name = {name: label for label, name in target.items()}
    table = np.zeros(LABEL_VALUES, dtype=np.uint8)
    for label, name in source.items():
        table[label] = label_by_name.get(name, 0)
    return table


def _translated(labels_zyx: NDArray[np.uint8], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if (table == np.arange(LABEL_VALUES)).all():
        return labels_zyx
    result = np.empty_like(labels_zyx)
    for plane, target in zip(labels_zyx, result, strict=True):
        np.take(table, plane, out=target)
    return result


def _joint_histogram(truth_zyx: NDArray[np.uint8], found_zyx: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Voxel counts by (truth label, found label) except (0, 0), a few planes at a time to save memory."""
    joint = np.zeros(LABEL_VALUES * LABEL_VALUES, dtype=np.int64)
    planes = max(1, _VOXELS_PER_SLAB // (truth_zyx.shape[1] * truth_zyx.shape[2]))
    for first in range(0, len(truth_zyx), planes):
        one, other = truth_zyx[first : first + planes], found_zyx[first : first + planes]
        somewhere = (one | other) != 0  # most voxels are background in both
        index = one[somewhere].astype(np.intp) * LABEL_VALUES + other[somewhere]
        joint += np.bincount(index, minlength=joint.size)
    return joint.reshape(LABEL_VALUES, LABEL_VALUES)


def _pairs(names_by_label: Mapping[int, str]) -> list[tuple[str, int, int]]:
    """Every structure with a counterpart on the other side: name, label, label of the counterpart."""
    label_by_name = {name: label for label, name in names_by_label.items()}
    pairs = []
    for name, label in label_by_name.items():
        words = name.split("_")
        twin = "_".join({"left": "right", "right": "left"}.get(word, word) for word in words)
        if twin != name and twin in label_by_name:
            pairs.append((name, label, label_by_name[twin]))
    return pairs
