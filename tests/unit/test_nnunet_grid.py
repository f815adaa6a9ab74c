"""Canonical axes against nibabel, resampling against scipy, windows against nnU-Net itself."""

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from scipy import ndimage
from scipy.spatial.transform import Rotation

from inference.nnunet.grid import Canonical, resample, resampled_shape
from inference.nnunet.tiles import averaged_logits, gaussian_weights, window_count, window_starts
from inference.types import Geometry

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
def test_canonical_axes_are_nibabel_s(rotation):
    strongest = np.sort(np.abs(rotation), axis=0)
    assume((strongest[2] - strongest[1]).min() > 1e-3)  # between two equally close axes either choice is right
    geometry = geometry_of(rotation)
    source = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    image = nibabel.Nifti1Image(source.transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ geometry.affine_lps)
    canonical = nibabel.as_closest_canonical(image)
    ours = Canonical.of(geometry)
    np.testing.assert_array_equal(ours.view(source), np.asarray(canonical.dataobj).transpose(2, 1, 0))
    np.testing.assert_allclose(ours.spacing_mm(geometry), canonical.header.get_zooms()[::-1], rtol=1e-5)


def test_canonical_x_ascends_to_the_right_y_to_anterior_z_to_superior():
    source = np.zeros((2, 2, 2), np.int16)
    source[1, 0, 1] = 7  # superior, anterior, left: DICOM columns ascend to the left, rows to posterior
    assert Canonical.of(geometry_of(np.eye(3), (2, 2, 2))).view(source)[1, 1, 0] == 7


def test_writing_to_the_canonical_view_writes_to_the_source():
    for rotation in (m for m in SIGNED_PERMUTATIONS if np.linalg.det(m) > 0):
        source = np.zeros((3, 4, 5), np.uint8)
        truth = np.random.default_rng(0).integers(0, 9, (3, 4, 5), dtype=np.uint8)
        canonical = Canonical.of(geometry_of(rotation, (3, 4, 5)))
        canonical.view(source)[...] = canonical.view(truth)
        np.testing.assert_array_equal(source, truth)


def test_axes_come_in_the_order_the_network_wants():
    source = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    geometry = geometry_of(np.eye(3), (3, 4, 5))
    plain, turned = Canonical.of(geometry), Canonical.of(geometry, (2, 0, 1))
    np.testing.assert_array_equal(turned.view(source), plain.view(source).transpose(2, 0, 1))
    z, y, x = plain.spacing_mm(geometry)
    assert turned.spacing_mm(geometry) == (x, z, y)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(*[st.integers(2, 14)] * 3), st.tuples(*[st.floats(0.4, 4.0)] * 3), st.floats(0.8, 5.0), st.integers(0, 99)
)
def test_resampling_is_scipy_s_zoom_rounded(shape, spacing, new_spacing, seed):
    hu = np.random.default_rng(seed).integers(-1024, 2000, shape).astype(np.int16)
    zoom = [s / new_spacing for s in spacing]
    assume(min(round(n * z) for n, z in zip(shape, zoom, strict=True)) >= 2)  # scipy's single sample lies elsewhere
    expected = ndimage.zoom(hu.astype(np.float64), zoom, order=1)
    new_shape = resampled_shape(shape, spacing, [new_spacing] * 3)
    assert new_shape == expected.shape
    ours = resample(hu, new_shape)
    ties = np.abs(expected - np.floor(expected) - 0.5) < 1e-6  # either neighbour is right
    np.testing.assert_array_equal(ours[~ties], np.rint(expected)[~ties])
    assert np.abs(ours - expected).max() <= 0.5 + 1e-6


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 400), st.integers(8, 200))
def test_windows_start_where_nnunet_s_do(size, window):
    assume(size >= window)
    assert [window_starts(size, window)] == compute_steps_for_sliding_window((size,), (window,), 0.5)


def test_gaussian_weights_are_nnunet_s():
    theirs = compute_gaussian((16, 24, 20), 1 / 8, 10, torch.float32, torch.device("cpu"))
    torch.testing.assert_close(gaussian_weights((16, 24, 20)), theirs)
    assert gaussian_weights((64, 64, 64)).min() > 0


@pytest.mark.parametrize("shape", [(40, 21, 30), (16, 16, 16), (5, 30, 9), (17, 16, 33), (1, 1, 1)])
def test_rolling_average_equals_the_average_over_the_whole_volume(shape):
    window = (16, 16, 16)
    torch.manual_seed(0)
    image = torch.randn(shape)
    network = torch.nn.Conv3d(1, 3, 5, padding=2).eval()
    calls = []
    slabs = [
        (first, logits.clone()) for first, logits in averaged_logits(image, window, network, 3, lambda: calls.append(1))
    ]
    assert [first for first, _ in slabs] == list(np.cumsum([0, *[len(logits) for _, logits in slabs]])[:-1])
    assert len(calls) == window_count(shape, window)
    before = [max(w - n, 0) // 2 for n, w in zip(shape, window, strict=True)]
    padded = torch.zeros([max(n, w) for n, w in zip(shape, window, strict=True)])
    inside = tuple(slice(b, b + n) for b, n in zip(before, shape, strict=True))
    padded[inside] = image
    sums, total = torch.zeros((*padded.shape, 3)), torch.zeros((*padded.shape, 1))
    weights = gaussian_weights(window)[..., None]
    with torch.no_grad():
        for z in window_starts(padded.shape[0], 16):
            for y in window_starts(padded.shape[1], 16):
                for x in window_starts(padded.shape[2], 16):
                    at = (slice(z, z + 16), slice(y, y + 16), slice(x, x + 16))
                    sums[at] += network(padded[at][None, None])[0].permute(1, 2, 3, 0) * weights
                    total[at] += weights
    torch.testing.assert_close(torch.cat([logits for _, logits in slabs]), (sums / total)[inside], atol=1e-4, rtol=1e-4)
