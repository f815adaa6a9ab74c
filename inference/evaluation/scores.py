"""Agreement between a segmentation and the truth.

Structures are counted by the rule of the paper (arXiv 2208.05868): a structure that is absent from the truth does not
count; a structure in the truth that was not found counts as 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from inference.types import Geometry, Segmentation

TOLERANCE_MM = 3.0
"""Tolerance of the normalised surface Dice, as in the paper."""
LABEL_VALUES = 256


@dataclass(frozen=True, slots=True)
class StructureScore:
    """Agreement on one structure of one case."""

    name: str
    dice: float
    surface_dice: float
    """Share of both surfaces that lies within the tolerance of the other surface."""
    truth_ml: float
    found_ml: float


@dataclass(frozen=True, slots=True)
class CaseScore:
    """Agreement on one case, for every structure in the truth."""

    structures: tuple[StructureScore, ...]
    mixed_up: tuple[str, ...]
    """Paired structures with more voxels on the wrong side than on the correct side."""
    voxels_on_wrong_side: int
    """Voxels of paired structures that have the label of the counterpart."""


def score_case(truth: Segmentation, found: Segmentation, tolerance_mm: float = TOLERANCE_MM) -> CaseScore:
    """Compare two segmentations of one grid that use the same names.

    Raises:
        ValueError: the grids differ.
    """
    if not truth.geometry.same_grid(found.geometry):
        raise ValueError("truth and segmentation are on different grids")
    # the model may number its structures differently, so translate to the labels of the truth
    table = _translation(found.names_by_label, truth.names_by_label)
    joint = _joint_histogram(truth.labels_zyx, found.labels_zyx, table)
    scores = []
    truth_boxes = _boxes(truth.labels_zyx)
    found_boxes = _boxes(found.labels_zyx, table)
    for label, name in truth.names_by_label.items():
        truth_count = int(joint[label].sum())
        if truth_count == 0:
            continue
        found_count = int(joint[:, label].sum())
        box = _union(truth_boxes[label], found_boxes.get(label))
        scores.append(
            StructureScore(
                name=name,
                dice=2.0 * float(joint[label, label]) / (truth_count + found_count),
                surface_dice=surface_dice(
                    truth.labels_zyx[box] == label, table[found.labels_zyx[box]] == label, truth.geometry, tolerance_mm
                ),
                truth_ml=truth_count * truth.geometry.voxel_volume_ml,
                found_ml=found_count * truth.geometry.voxel_volume_ml,
            )
        )
    wrong = {
        name: (int(joint[label, twin]), int(joint[label, label])) for name, label, twin in _pairs(truth.names_by_label)
    }
    return CaseScore(
        structures=tuple(scores),
        mixed_up=tuple(name for name, (other, own) in wrong.items() if other > own),
        voxels_on_wrong_side=sum(other for other, _ in wrong.values()),
    )


def surface_dice(
    truth_zyx: NDArray[np.bool_], found_zyx: NDArray[np.bool_], geometry: Geometry, tolerance_mm: float
) -> float:
    """Normalised surface Dice of two masks (Nikolov et al., arXiv 1809.04430).

    A surface is the set of mask voxels with a neighbour (of six) outside the mask; distances are between voxel centres.
    0 if one mask is empty, 1 if both are.
    """
    if not truth_zyx.any() and not found_zyx.any():
        return 1.0
    if not truth_zyx.any() or not found_zyx.any():
        return 0.0
    first, second = (_surface_mm(mask, geometry) for mask in (truth_zyx, found_zyx))
    near = sum(
        int(np.isfinite(cKDTree(other).query(own, distance_upper_bound=tolerance_mm + 1e-6)[0]).sum())
        for own, other in ((first, second), (second, first))
    )
    return near / (len(first) + len(second))


def _surface_mm(mask: NDArray[np.bool_], geometry: Geometry) -> NDArray[np.float64]:
    surface = mask & ~ndimage.binary_erosion(mask)
    points: NDArray[np.float64] = np.argwhere(surface)[:, ::-1] @ geometry.affine_lps[:3, :3].T
    return points


def _translation(source: Mapping[int, str], target: Mapping[int, str]) -> NDArray[np.uint8]:
    label_by_name = {name: label for label, name in target.items()}
    table = np.zeros(LABEL_VALUES, dtype=np.uint8)
    for label, name in source.items():
        table[label] = label_by_name.get(name, 0)
    return table


def _joint_histogram(
    truth_zyx: NDArray[np.uint8], found_zyx: NDArray[np.uint8], table: NDArray[np.uint8]
) -> NDArray[np.int64]:
    """Voxel counts by (truth label, found label), plane by plane to keep memory small."""
    joint = np.zeros(LABEL_VALUES * LABEL_VALUES, dtype=np.int64)
    for truth_plane, found_plane in zip(truth_zyx, found_zyx, strict=True):
        index = truth_plane.astype(np.int32) * LABEL_VALUES + table[found_plane]
        joint += np.bincount(index.ravel(), minlength=LABEL_VALUES * LABEL_VALUES)
    return joint.reshape(LABEL_VALUES, LABEL_VALUES)


def _boxes(
    labels_zyx: NDArray[np.uint8], table: NDArray[np.uint8] | None = None
) -> dict[int, tuple[slice, slice, slice]]:
    boxes: dict[int, tuple[slice, slice, slice]] = {}
    for index, box in enumerate(ndimage.find_objects(labels_zyx)):
        label = index + 1 if table is None else int(table[index + 1])
        if box is not None and label:
            boxes[label] = _union(box, boxes.get(label))
    return boxes


def _union(first: tuple[slice, slice, slice], second: tuple[slice, slice, slice] | None) -> tuple[slice, slice, slice]:
    if second is None:
        return first
    z, y, x = (slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True))
    return z, y, x


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
