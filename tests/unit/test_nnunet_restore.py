"""Labels back on the source grid, against trilinear interpolation of everything."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from inference.nnunet.restore import Restorer


def restore(logits, shape, slab=3, network_shape=None, offset=(0, 0, 0), interpolation="smooth"):
    labels = np.zeros(shape, np.uint8)
    classes = logits.shape[-1]
    restorer = Restorer(
        labels, network_shape or logits.shape[:3], offset, logits.shape[:3], np.arange(classes, dtype=np.uint8),
        interpolation=interpolation,
    )  # fmt: skip
    for first in range(0, logits.shape[0], slab):
        restorer.accept(first, torch.from_numpy(logits[first : first + slab].copy()))
    return labels


def positions(shape, network_shape):
    axes = [np.linspace(0, m - 1, n) if n > 1 else np.zeros(1) for n, m in zip(shape, network_shape, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


sizes = st.tuples(*[st.integers(1, 9)] * 3)


@settings(max_examples=60, deadline=None)
@given(sizes, st.tuples(*[st.integers(1, 15)] * 3), st.integers(0, 99), st.integers(1, 5))
def test_smooth_is_the_highest_of_the_interpolated_logits_of_the_surrounding_labels(network_shape, shape, seed, slab):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(*network_shape, 4)).astype(np.float32)
    restored = restore(logits, shape, slab)
    at = positions(shape, network_shape)
    interpolated = np.stack(
        [ndimage.map_coordinates(logits[..., c].astype(float), at, order=1, mode="nearest") for c in range(4)], axis=-1
    )
    winners = logits.argmax(-1)
    low = [np.clip(np.floor(a + 1e-9).astype(int), 0, max(m - 2, 0)) for a, m in zip(at, network_shape, strict=True)]
    corners = np.stack(
        [
            winners[tuple(np.minimum(lo + d, m - 1) for lo, d, m in zip(low, delta, network_shape, strict=True))]
            for delta in np.ndindex(2, 2, 2)
        ]
    )
    for c in range(4):  # a label that none of the eight surrounding voxels has is no candidate
        interpolated[~(corners == c).any(axis=0), c] = -np.inf
    ordered = np.sort(interpolated, axis=-1)
    decided = ordered[..., -1] - ordered[..., -2] > 1e-4
    np.testing.assert_array_equal(restored[decided], interpolated.argmax(-1)[decided])


@settings(max_examples=30, deadline=None)
@given(sizes, st.tuples(*[st.integers(1, 15)] * 3), st.integers(0, 99))
def test_nearest_takes_the_nearest_voxel_s_label(network_shape, shape, seed):
    logits = np.random.default_rng(seed).normal(size=(*network_shape, 5)).astype(np.float32)
    at = positions(shape, network_shape)
    nearest = tuple(np.floor(a + 0.5).astype(int) for a in at)
    ties = (np.abs(at - np.floor(at) - 0.5) < 1e-9).any(axis=0)
    restored = restore(logits, shape, interpolation="nearest")
    np.testing.assert_array_equal(restored[~ties], logits.argmax(-1)[nearest][~ties])


def test_on_the_network_s_own_grid_nothing_changes():
    logits = np.random.default_rng(0).normal(size=(7, 6, 5, 9)).astype(np.float32)
    for interpolation in ("smooth", "nearest"):
        np.testing.assert_array_equal(restore(logits, (7, 6, 5), interpolation=interpolation), logits.argmax(-1))


def test_outside_the_box_that_the_network_saw_is_background():
    logits = np.zeros((2, 3, 4, 2), np.float32)
    logits[..., 1] = 1
    labels = restore(logits, (10, 10, 10), network_shape=(10, 10, 10), offset=(5, 2, 1))
    expected = np.zeros((10, 10, 10), np.uint8)
    expected[5:7, 2:5, 1:5] = 1
    np.testing.assert_array_equal(labels, expected)


def test_background_of_a_later_part_keeps_what_an_earlier_one_found():
    labels = np.full((2, 2, 2), 9, np.uint8)
    logits = np.zeros((2, 2, 2, 2), np.float32)
    logits[..., 0] = 1
    logits[0, 0, 0, 1] = 2
    Restorer(labels, (2, 2, 2), (0, 0, 0), (2, 2, 2), np.array([0, 5], np.uint8)).accept(0, torch.from_numpy(logits))
    assert labels[0, 0, 0] == 5
    assert (labels.ravel()[1:] == 9).all()


@pytest.mark.parametrize("factor", [2.5, 4.0])
def test_smooth_borders_are_nearer_to_the_truth_than_nearest(factor):
    shape = (60, 60, 60)
    coarse = tuple(round(n / factor) for n in shape)

    def distance(at, size):
        return np.sqrt((((at.T / (np.array(size) - 1) - 0.5) * 2) ** 2).sum(-1)).T - 0.7

    inside = distance(positions(shape, shape), shape) < 0
    signed = distance(positions(coarse, coarse), coarse).astype(np.float32) * 10
    logits = np.stack([signed, -signed], axis=-1)

    def dice(labels):
        return 2 * (labels.astype(bool) & inside).sum() / (labels.astype(bool).sum() + inside.sum())

    smooth, nearest = dice(restore(logits, shape)), dice(restore(logits, shape, interpolation="nearest"))
    assert smooth > 0.98
    assert smooth - nearest > 0.005
