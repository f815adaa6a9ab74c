"""Tilted gantries: upright for the model, and back on the source frames for the results."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.errors import GeometryRefused
from dicom_node.reconstruct import labels_on_source, reconstruct
from dicom_node.reconstruct.tilt import back_on_source, upright
from inference.types import Geometry, Volume
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


@settings(max_examples=40, deadline=None)
@given(shears)
def test_linear_field_keeps_its_position_in_the_patient(shear):
    """Interpolation is exact for a linear function of position wherever all four neighbours are source pixels."""
    shape = (5, 9, 8)
    geometry = source_volume(shape, shear).geometry

    def field(grid):
        k, j, i = np.meshgrid(*[range(n) for n in grid.shape_zyx], indexing="ij")
        places = np.stack([i, j, k, np.ones_like(i)], axis=-1) @ grid.affine_lps.T
        return (places[..., :3] @ np.array([2.0, 3.0, 5.0])).astype(np.float32)

    stood = upright(Volume(field(geometry), geometry), shear)
    assert stood.geometry.is_orthogonal
    expected = field(stood.geometry)
    to_source = np.linalg.inv(geometry.affine_lps) @ stood.geometry.affine_lps
    k, j, i = np.meshgrid(*[range(n) for n in stood.geometry.shape_zyx], indexing="ij")
    x, y = (np.stack([i, j, k, np.ones_like(i)], axis=-1) @ to_source.T)[..., :2].transpose(3, 0, 1, 2)
    inside = (x >= 0) & (x <= shape[2] - 1) & (y >= 0) & (y <= shape[1] - 1)
    assert inside.any(axis=(1, 2)).all()
    assert np.abs(stood.voxels_zyx - expected)[inside].max() < 1e-3
    outside = (x <= -1) | (x >= shape[2]) | (y <= -1) | (y >= shape[1])
    assert (stood.voxels_zyx[outside] == -1024).all()


@settings(max_examples=40, deadline=None)
@given(shears)
def test_labels_are_mapped_back_to_the_nearest_source_pixel(shear):
    """Each source pixel gets the label of the upright voxel nearest to it in the patient: at most half a pixel away."""
    shape = (5, 9, 8)
    source = source_volume(shape, shear)
    stood = upright(source, shear).geometry
    _, j, i = np.meshgrid(*[range(n) for n in stood.shape_zyx], indexing="ij")
    for index, axis in ((i, 0), (j, 1)):
        labels = back_on_source(index.astype(np.uint8), shape, shear)
        ks, js, is_ = np.meshgrid(*[range(n) for n in shape], indexing="ij")
        places = np.stack([is_, js, ks, np.ones_like(is_)], axis=-1) @ source.geometry.affine_lps.T
        exact = (places @ np.linalg.inv(stood.affine_lps).T)[..., axis]
        assert np.abs(labels - exact).max() <= 0.5 + 1e-9


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
