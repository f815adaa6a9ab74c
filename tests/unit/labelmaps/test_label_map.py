"""Label maps on the grid of their CT: reordered voxel by voxel, never resampled, refused if the voxels differ."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.errors import ResultUnreadable
from dicom_node.labelmaps import LabelMap
from inference.types import Geometry, InvalidValueError
from tests.support.analysis_results import GRIDS

NAMES = {1: "liver", 2: "spleen", 250: "aorta"}
ORDERS = [(axes, flips) for axes in permutations(range(3)) for flips in product([1, -1], repeat=3)]


def reordered(geometry: Geometry, axes: tuple[int, ...], flips: tuple[int, ...]) -> Geometry | None:
    """The grid whose index axis i (x, y, z) runs along axis ``axes[i]`` of ``geometry``; None if it is left-handed."""
    shape = np.array(geometry.shape_zyx[::-1])
    affine = np.eye(4)
    affine[:3, 3] = geometry.affine_lps[:3, 3]
    for i, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        affine[:3, i] = flip * geometry.affine_lps[:3, axis]
        if flip < 0:
            affine[:3, 3] += (shape[axis] - 1) * geometry.affine_lps[:3, axis]
    if np.linalg.det(affine[:3, :3]) <= 0:
        return None
    x, y, z = (int(shape[axis]) for axis in axes)
    return Geometry((z, y, x), affine)


def label_at(label_map: LabelMap, lps_mm: np.ndarray) -> int:
    x, y, z = np.rint(np.linalg.inv(label_map.geometry.affine_lps) @ [*lps_mm, 1])[:3].astype(int)
    return int(label_map.labels_zyx[z, y, x])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(ORDERS), st.sampled_from(sorted(GRIDS)), st.integers(0, 99))
def test_every_voxel_keeps_its_place_in_the_patient(order, grid, seed):
    geometry = GRIDS[grid][0]
    other = reordered(geometry, *order)
    if other is None:
        return
    labels = np.random.default_rng(seed).choice([0, 1, 2, 250], geometry.shape_zyx).astype(np.uint8)
    label_map = LabelMap(labels, NAMES, geometry)
    moved = label_map.on_grid(other)
    assert moved.labels_zyx.shape == other.shape_zyx
    for z, y, x in np.ndindex(geometry.shape_zyx):
        assert label_at(moved, (geometry.affine_lps @ [x, y, z, 1])[:3]) == labels[z, y, x]
    back = moved.on_grid(geometry)
    assert np.array_equal(back.labels_zyx, labels)


def test_other_voxels_are_refused_with_the_difference():
    geometry = Geometry((4, 5, 6), np.diag([1.5, 1.5, 3.0, 1.0]))
    label_map = LabelMap(np.zeros((4, 5, 6), np.uint8), NAMES, geometry)
    moved = geometry.affine_lps.copy()
    moved[2, 3] = 1.5
    for other, says in (
        (Geometry((5, 5, 6), geometry.affine_lps), "6 x 5 x 4 voxels .* expected the CT's 6 x 5 x 5"),
        (Geometry((4, 5, 6), np.diag([1.5, 1.5, 2.5, 1.0])), r"displaced by up to 0\.60 voxels"),
        (Geometry((4, 5, 6), moved), r"displaced by up to 0\.50 voxels"),
    ):
        with pytest.raises(ResultUnreadable, match=says):
            label_map.on_grid(other)


def test_rounding_of_float32_headers_is_accepted():
    affine = np.diag([0.7, 0.7, 1.3, 1.0])
    affine[:3, 3] = (-349.123456, -512.987654, 1234.567891)
    geometry = Geometry((3, 4, 5), affine)
    rounded = Geometry((3, 4, 5), affine.astype(np.float32).astype(np.float64))
    labels = np.arange(60).reshape(3, 4, 5) % 3
    moved = LabelMap(labels.astype(np.uint8), NAMES, rounded).on_grid(geometry)
    assert np.array_equal(moved.labels_zyx, labels)
    assert moved.geometry is geometry


def test_voxels_are_counted_by_name():
    labels = np.zeros((2, 3, 4), np.uint8)
    labels[0, 0, :3] = 2
    label_map = LabelMap(labels, NAMES, Geometry((2, 3, 4), np.eye(4)))
    assert label_map.voxels_by_name == {"liver": 0, "spleen": 3, "aorta": 0}
    assert label_map.present == {"spleen"}
    again = label_map.relabelled({"spleen": 7, "pancreas": 1})
    assert again.voxels_by_name == {"pancreas": 0, "spleen": 3}
    assert np.array_equal(again.labels_zyx == 7, labels == 2)


def test_labels_without_a_name_and_other_types_are_refused():
    grid = Geometry((1, 1, 2), np.eye(4))
    with pytest.raises(InvalidValueError, match="labels without a name: 3"):
        LabelMap(np.array([[[3, 1]]], np.uint8), NAMES, grid)
    with pytest.raises(InvalidValueError, match="expected uint8"):
        LabelMap(np.zeros((1, 1, 2), np.int32), NAMES, grid)
    with pytest.raises(InvalidValueError, match="liver names more than one label"):
        LabelMap(np.zeros((1, 1, 2), np.uint8), {1: "liver", 2: "liver"}, grid)
