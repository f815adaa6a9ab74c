"""Canonical axes against nibabel, resampling against scipy and nnU-Net itself."""

import nibabel
import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape, resample_data_or_seg_to_shape
from scipy import ndimage
from scipy.spatial.transform import Rotation

from inference.nnunet.grid import Canonical, resampled_shape, shape_within_borders
from inference.nnunet.host.resample import resample, resample_within_borders
from inference.types import Geometry
from tests.support.nnunet_reference import change_spacing

SIGNED_PERMUTATIONS = [
    np.eye(3)[list(order)] * signs
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    for signs in np.array(np.meshgrid(*[[1, -1]] * 3)).reshape(3, -1).T
]


def geometry_of(rotation, shape_zyx=(4, 5, 6), spacing=(0.7, 0.9, 2.5)):
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing
    affine[:3, 3] = (10, -20, 30)
    return Geometry(shape_zyx, affine)


rotations = st.one_of(
    st.sampled_from([m for m in SIGNED_PERMUTATIONS if np.linalg.det(m) > 0]),
    st.integers(0, 2**32 - 1).map(lambda seed: Rotation.random(random_state=seed).as_matrix()),
)


@settings(max_examples=80, deadline=None)
@given(rotations)
def test_canonical_axes_equal_nibabels(rotation):
    strongest = np.sort(np.abs(rotation), axis=0)
    assume((strongest[2] - strongest[1]).min() > 1e-3)  # between two equally close axes either choice is right
    geometry = geometry_of(rotation)
    source = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    image = nibabel.Nifti1Image(source.transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ geometry.affine_lps)
    canonical = nibabel.as_closest_canonical(image)
    ours = Canonical.of(geometry)
    np.testing.assert_array_equal(ours.view(source), np.asarray(canonical.dataobj).transpose(2, 1, 0))
    np.testing.assert_allclose(ours.spacing_mm(geometry), canonical.header.get_zooms()[::-1], rtol=1e-5)


def test_canonical_axes_point_right_anterior_superior():
    source = np.zeros((2, 2, 2), np.int16)
    source[1, 0, 1] = 7  # superior, anterior, left: DICOM columns increase to the left, rows to posterior
    assert Canonical.of(geometry_of(np.eye(3), (2, 2, 2))).view(source)[1, 1, 0] == 7


def test_writing_to_the_canonical_view_writes_to_the_source():
    for rotation in (m for m in SIGNED_PERMUTATIONS if np.linalg.det(m) > 0):
        source = np.zeros((3, 4, 5), np.uint8)
        truth = np.random.default_rng(0).integers(0, 9, (3, 4, 5), dtype=np.uint8)
        canonical = Canonical.of(geometry_of(rotation, (3, 4, 5)))
        canonical.view(source)[...] = canonical.view(truth)
        np.testing.assert_array_equal(source, truth)


def test_axes_are_in_the_order_of_the_network():
    source = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    geometry = geometry_of(np.eye(3), (3, 4, 5))
    plain, turned = Canonical.of(geometry), Canonical.of(geometry, (2, 0, 1))
    np.testing.assert_array_equal(turned.view(source), plain.view(source).transpose(2, 0, 1))
    z, y, x = plain.spacing_mm(geometry)
    assert turned.spacing_mm(geometry) == (x, z, y)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(1, 14)] * 3),
    st.tuples(*[st.floats(0.4, 4.0)] * 3),
    st.floats(0.8, 5.0),
    st.integers(0, 99),
    st.booleans(),
)
def test_resampling_equals_totalsegmentators_bit_for_bit(shape, spacing, new_spacing, seed, fractional):
    rng = np.random.default_rng(seed)
    hu = rng.integers(-1024, 2000, shape).astype(np.int16)
    hu[rng.random(shape) < 0.5] = -1024  # flat regions, where a rounding error decides the truncated value
    if fractional:
        hu = hu.astype(np.float32) + rng.random(shape, np.float32)
    zoom = [float(np.float32(s)) / new_spacing for s in spacing]
    assume(min(round(n * z) for n, z in zip(shape, zoom, strict=True)) >= 1)
    new_shape = resampled_shape(shape, spacing, [new_spacing] * 3)
    view = hu[::-1, :, ::-1]
    np.testing.assert_array_equal(resample(view, new_shape, 1 + seed % 3), change_spacing(view, zoom))


def test_resampling_of_a_large_volume_equals_change_spacing():
    rng = np.random.default_rng(0)
    hu = ndimage.gaussian_filter(rng.normal(size=(70, 181, 167)), 2)
    hu = np.maximum(hu / np.abs(hu).max() * 2500, -1024).astype(np.int16)
    spacing = (1.2, 0.71484375, 0.71484375)
    for new_spacing in (1.5, 3.0):
        zoom = [float(np.float32(s)) / new_spacing for s in spacing]
        ours = resample(hu, resampled_shape(hu.shape, spacing, [new_spacing] * 3), 2)
        np.testing.assert_array_equal(ours, change_spacing(hu, zoom))


def test_single_precision_spacing_decides_ties_of_the_shape():
    assert resampled_shape((225, 75, 10), (0.7, 2.1, 1.5), (3.0, 3.0, 3.0)) == (52, 52, 5)


SPACINGS = st.sampled_from([0.7, 1.0, 1.5, 2.5, 5.0, 8.0])


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(*[st.integers(3, 12)] * 3),
    st.tuples(SPACINGS, SPACINGS, SPACINGS),
    st.tuples(SPACINGS, SPACINGS, SPACINGS),
    st.integers(0, 99),
)
def test_resampling_with_kept_borders_equals_nnunets(shape, spacing, new_spacing, seed):
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    new_shape = compute_new_shape(shape, spacing, new_spacing)
    assume(new_shape.min() >= 1)
    assert shape_within_borders(shape, spacing, new_spacing) == tuple(new_shape)
    expected = resample_data_or_seg_to_shape(
        values[None], new_shape, spacing, new_spacing, is_seg=False, order=3, order_z=0, force_separate_z=None
    )[0]
    np.testing.assert_allclose(
        resample_within_borders(values, tuple(new_shape), spacing, new_spacing), expected, atol=1e-6
    )
