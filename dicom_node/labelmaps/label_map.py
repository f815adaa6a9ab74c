"""A label map with its grid and its names, and how it is moved to the grid of a CT without resampling."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from dicom_node.errors import ResultUnreadable
from inference.types import Geometry, InvalidValueError, Segmentation, refuse_unusable_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from inference.types import ModelIdentity

LARGEST_OFFSET_VOXELS = 0.05
"""How far a voxel may lie from its place on the other grid: far more than float32 headers lose."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Voxels that belong to two structures. The label map gives them to ``kept``, the one that was read later."""

    covered: str
    kept: str
    voxels: int

    def __str__(self) -> str:
        return f"{self.covered} and {self.kept} overlap in {self.voxels} voxels, which are counted as {self.kept}"


@dataclass(frozen=True, slots=True, eq=False)
class LabelMap:
    """The label of every voxel: ``labels_zyx`` is uint8 on ``geometry``, 0 outside all structures.

    ``names_by_label`` names every label that was sought, present or not. ``overlaps`` and ``notes`` say what the form
    in which the segmentation was kept could not tell without a choice.

    Raises:
        InvalidValueError: array, grid and names don't fit each other.
    """

    labels_zyx: NDArray[np.uint8]
    names_by_label: Mapping[int, str]
    geometry: Geometry
    overlaps: tuple[Overlap, ...] = ()
    notes: tuple[str, ...] = ()
    _voxels: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.labels_zyx.dtype != np.uint8 or self.labels_zyx.shape != self.geometry.shape_zyx:
            seen = f"{self.labels_zyx.dtype} {self.labels_zyx.shape}"
            raise InvalidValueError(f"labels are {seen}, expected uint8 {self.geometry.shape_zyx}")
        refuse_unusable_names(self.names_by_label)
        voxels = sum((np.bincount(plane.ravel(), minlength=256) for plane in self.labels_zyx), np.zeros(256, np.int64))
        unnamed = [label for label in np.flatnonzero(voxels).tolist() if label and label not in self.names_by_label]
        if unnamed:
            raise InvalidValueError(f"labels without a name: {', '.join(map(str, unnamed))}")
        view = self.labels_zyx.view()
        view.setflags(write=False)
        object.__setattr__(self, "labels_zyx", view)
        object.__setattr__(self, "names_by_label", dict(sorted(self.names_by_label.items())))
        object.__setattr__(self, "_voxels", voxels)

    @property
    def voxels_by_name(self) -> dict[str, int]:
        """How many voxels each structure has, absent ones included, by ascending label."""
        return {name: int(self._voxels[label]) for label, name in self.names_by_label.items()}

    @property
    def present(self) -> frozenset[str]:
        """The structures that have voxels."""
        return frozenset(name for name, voxels in self.voxels_by_name.items() if voxels)

    def renamed(self, names: Mapping[str, str]) -> LabelMap:
        """The same labels, structures that are keys of ``names`` called by its values.

        Raises:
            InvalidValueError: two structures would have one name.
        """
        by_label = {label: names.get(name, name) for label, name in self.names_by_label.items()}
        overlaps = tuple(
            Overlap(names.get(each.covered, each.covered), names.get(each.kept, each.kept), each.voxels)
            for each in self.overlaps
        )
        return replace(self, names_by_label=by_label, overlaps=overlaps)

    def relabelled(self, label_by_name: Mapping[str, int]) -> LabelMap:
        """The same structures under the labels ``label_by_name``; other structures become background."""
        table = np.zeros(256, np.uint8)
        for label, name in self.names_by_label.items():
            table[label] = label_by_name.get(name, 0)
        labels_zyx = np.empty_like(self.labels_zyx)
        for source, target in zip(self.labels_zyx, labels_zyx, strict=True):
            np.take(table, source, out=target)
        kept = tuple(each for each in self.overlaps if {each.covered, each.kept} <= set(label_by_name))
        names = {label: name for name, label in label_by_name.items()}
        return LabelMap(labels_zyx, names, self.geometry, kept, self.notes)

    def on_grid(self, geometry: Geometry) -> LabelMap:
        """The same voxels in the order of ``geometry``: axes may be swapped and reversed, nothing is resampled.

        Raises:
            ResultUnreadable: ``geometry`` has other voxels; the message says which.
        """
        if self.geometry.same_grid(geometry):
            return self if self.geometry is geometry else replace(self, geometry=geometry)
        axes, reversed_axes = _order(self.geometry, geometry)
        labels_zyx = self.labels_zyx.transpose(axes)
        labels_zyx = labels_zyx[tuple(slice(None, None, -1 if flip else 1) for flip in reversed_axes)]
        return replace(self, labels_zyx=np.ascontiguousarray(labels_zyx), geometry=geometry)

    def as_segmentation(self, model: ModelIdentity) -> Segmentation:
        """The value that the engine and the measurements work on."""
        return Segmentation(self.labels_zyx, self.geometry, self.names_by_label, model)


def _order(source: Geometry, target: Geometry) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Which axis of the source array is each axis of the target's, and which of these are reversed.

    Raises:
        ResultUnreadable: the grids have other voxels.
    """
    target_from_source = np.linalg.inv(target.affine_lps) @ source.affine_lps
    turn = np.rint(target_from_source[:3, :3])
    is_permutation = bool((np.abs(turn).sum(axis=0) == 1).all() and (np.abs(turn).sum(axis=1) == 1).all())
    source_xyz, target_xyz = np.array(source.shape_zyx[::-1]), np.array(target.shape_zyx[::-1])
    if not is_permutation or (np.abs(turn) @ source_xyz != target_xyz).any():
        raise ResultUnreadable(f"the segmentation has {_described(source)}, expected the CT's {_described(target)}")
    start = np.where((turn < 0).any(axis=1), target_xyz - 1, 0)
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * (source_xyz - 1)
    seen = corners @ target_from_source[:3, :3].T + target_from_source[:3, 3]
    offset = float(np.abs(seen - (corners @ turn.T + start)).max())
    if offset > LARGEST_OFFSET_VOXELS:
        raise ResultUnreadable(
            f"the segmentation is displaced by up to {offset:.2f} voxels against its CT, expected at most "
            f"{LARGEST_OFFSET_VOXELS}"
        )
    xyz = [int(np.flatnonzero(row)[0]) for row in turn]
    flips = [bool((row < 0).any()) for row in turn]
    return (2 - xyz[2], 2 - xyz[1], 2 - xyz[0]), (flips[2], flips[1], flips[0])


def _described(geometry: Geometry) -> str:
    shape = " x ".join(str(n) for n in geometry.shape_zyx[::-1])
    spacing = " x ".join(f"{mm:.4g}" for mm in geometry.spacing_xyz_mm)
    origin = ", ".join(f"{mm:.1f}" for mm in geometry.affine_lps[:3, 3])
    return f"{shape} voxels of {spacing} mm from ({origin}) mm"
