"""Tilted gantries: upright for the model, and back on the source frames for the results."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.analysis import on_source_grid, reconstructed
from dicom_node.errors import GeometryRefused
from dicom_node.reconstruct import labels_on_source, reconstruct
from dicom_node.reconstruct.tilt import back_on_source, upright
from inference.tissue import TissueSegmenter
from inference.types import Geometry, Volume
from tests.support.chest import chest_hu, outside_circle
from tests.support.ct_series import Stack, noise, tilted_axes, write


@pytest.mark.parametrize("degrees", [-25.0, 18.5, 5.0])
def test_source_keeps_the_tilt_and_the_volume_is_upright(tmp_path, degrees):
    stack = Stack(noise((8, 12, 10)), orientation=tilted_axes(degrees))
    result = reconstruct(write(tmp_path, stack))
    assert not result.source.geometry.is_orthogonal
    assert result.volume.geometry.is_orthogonal
    assert f"gantry tilt of {abs(degrees):.1f} degrees" in result.notes[0]
    np.testing.assert_array_equal(result.source.voxels_zyx, stack.stored.astype(int) - 1024)
    for k in range(8):
        np.testing.assert_allclose((result.source.geometry.affine_lps @ [0, 0, k, 1])[:3], stack.position(k), atol=1e-6)
    spacing = result.volume.geometry.spacing_xyz_mm
    np.testing.assert_allclose(spacing, (0.5, 0.75, 2.5 * math.cos(math.radians(degrees))), atol=1e-6)


def test_series_without_tilt_is_unchanged(tmp_path):
    result = reconstruct(write(tmp_path, Stack(noise((4, 6, 5)))))
    assert result.volume is result.source
    labels = np.ones((4, 6, 5), np.uint8)
    assert labels_on_source(result, labels) is labels


def test_tilt_beyond_any_gantry_is_refused(tmp_path):
    with pytest.raises(GeometryRefused, match=r"sheared by 50\.0 degrees"):
        reconstruct(write(tmp_path, Stack(noise((4, 6, 5)), orientation=tilted_axes(50))))


def source_volume(shape, shear, voxels=None):
    affine = np.diag([0.5, 0.75, 2.5, 1.0])
    affine[:3, 2] += [shear[0] * 0.5, shear[1] * 0.75, 0]
    return Volume(noise(shape).astype(np.int16) if voxels is None else voxels, Geometry(shape, affine))


shears = st.tuples(st.floats(-3, 3), st.floats(-3, 3))


@settings(max_examples=60, deadline=None)
@given(shears)
def test_every_pixel_keeps_its_value_within_half_a_pixel_of_its_place(shear):
    shape = (5, 9, 8)
    source = source_volume(shape, shear, np.arange(math.prod(shape), dtype=np.int16).reshape(shape))
    stood = upright(source, shear)
    assert stood.geometry.is_orthogonal
    k, j, i = (index.ravel() for index in np.indices(shape))
    found = np.argsort(stood.voxels_zyx, axis=None)[-math.prod(shape) :]
    np.testing.assert_array_equal(stood.voxels_zyx.ravel()[found], source.voxels_zyx.ravel())
    at_k, at_j, at_i = np.unravel_index(found, stood.geometry.shape_zyx)
    in_patient = source.geometry.affine_lps @ [i, j, k, np.ones(len(k))]
    exact_i, exact_j, exact_k, _ = np.linalg.inv(stood.geometry.affine_lps) @ in_patient
    np.testing.assert_allclose(at_k, exact_k, atol=1e-6)
    assert max(np.abs(at_i - exact_i).max(), np.abs(at_j - exact_j).max()) <= 0.5 + 1e-5
    assert np.count_nonzero(stood.voxels_zyx != -1024) == math.prod(shape)


@settings(max_examples=60, deadline=None)
@given(shears)
def test_labels_come_back_to_the_very_pixels(shear):
    source = source_volume((5, 9, 8), shear)
    labels = (upright(source, shear).voxels_zyx % 251).astype(np.uint8)
    np.testing.assert_array_equal(back_on_source(labels, (5, 9, 8), shear), source.voxels_zyx % 251)


def tissue_ml(folder, hu, degrees):
    """Volume of each class of the tissue model; all planes are the same distance apart along the table."""
    folder.mkdir()
    ct = reconstructed(write(folder, Stack((hu.astype(int) + 1024).astype(np.int16), orientation=tilted_axes(degrees))))
    found = TissueSegmenter().segment(ct.volume, lambda *_: None)
    labels = on_source_grid(ct, found).labels_zyx
    voxel_ml = ct.source.geometry.voxel_volume_ml
    return {name: (labels == label).sum() * voxel_ml for label, name in found.names_by_label.items()}


@pytest.mark.parametrize("is_padded", [False, True], ids=["no padding", "padding"])
@pytest.mark.parametrize("degrees", [20, -12, 7])
def test_tissue_of_a_tilted_phantom_has_its_true_volume(tmp_path, degrees, is_padded):
    """The same images, sheared: the volume of each class falls with the distance between the planes, and by no more."""
    hu = chest_hu()
    if is_padded:
        hu[:, outside_circle()] = -3024
    straight, tilted = tissue_ml(tmp_path / "0", hu, 0), tissue_ml(tmp_path / "tilted", hu, degrees)
    assert min(straight.values()) > 0
    for name, volume_ml in straight.items():
        assert tilted[name] == pytest.approx(volume_ml * math.cos(math.radians(degrees)), rel=5e-3), name


def test_shifts_by_whole_pixels_are_lossless_both_ways():
    source = source_volume((4, 6, 5), (2.0, -1.0))
    stood = upright(source, (2.0, -1.0))
    assert stood.geometry.shape_zyx == (4, 9, 11)
    for k in range(4):
        np.testing.assert_array_equal(stood.voxels_zyx[k, 3 - k : 9 - k, 2 * k : 2 * k + 5], source.voxels_zyx[k])
    labels = (stood.voxels_zyx > 2000).astype(np.uint8)
    back = back_on_source(labels, (4, 6, 5), (2.0, -1.0))
    np.testing.assert_array_equal(back, (source.voxels_zyx > 2000).astype(np.uint8))


def test_labels_on_another_grid_are_refused(tmp_path):
    result = reconstruct(write(tmp_path, Stack(noise((4, 6, 5)), orientation=tilted_axes(10))))
    with pytest.raises(ValueError, match="not on the volume's grid"):
        labels_on_source(result, np.zeros((4, 6, 5), np.uint8))
