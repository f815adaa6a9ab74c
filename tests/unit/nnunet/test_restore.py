"""Labels back on the source grid, against trilinear interpolation of everything and against scipy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from inference.nnunet.contract import Head
from inference.nnunet.host.restore import Restorer

LOGITS = Head(None, None)
sizes = st.tuples(*[st.integers(1, 9)] * 3)
source_sizes = st.tuples(*[st.integers(1, 20)] * 3)
alignments = st.sampled_from(["corners", "centres"])
seeds = st.integers(0, 999)


def random_logits(seed, shape, classes=4):
    return np.random.default_rng(seed).normal(size=(classes, *shape)).astype(np.float32)


def restore(
    values, shape, slab=3, network_shape=None, offset=(0, 0, 0), interpolation="smooth", alignment="corners",
    head=LOGITS, labels=None, threads=1,
):  # fmt: skip
    labels = np.zeros(shape, np.uint8) if labels is None else labels
    classes = len(values) if head.weights is None else len(head.weights)
    box = values.shape[1:]
    restorer = Restorer(
        labels, network_shape or box, offset, box, np.arange(classes, dtype=np.uint8), head,
        interpolation=interpolation, alignment=alignment, threads=threads,
    )  # fmt: skip
    for first in range(0, box[0], slab):
        passing = values[:, first : first + slab].copy()
        restorer.accept(first, passing)
        passing[:] = np.nan  # the caller may reuse its slab
    return labels


def positions(shape, network_shape, alignment):
    """The position of each source voxel in network voxels: [axis, z, y, x]."""
    if alignment == "corners":
        axes = [np.linspace(0, m - 1, n) if n > 1 else np.zeros(1) for n, m in zip(shape, network_shape, strict=True)]
    else:
        axes = [
            np.clip((np.arange(n) + 0.5) * m / n - 0.5, 0, m - 1) for n, m in zip(shape, network_shape, strict=True)
        ]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def restored_dense(logits, shape, alignment):
    """Every logit interpolated at every source voxel, in float64; the winning label, and its margin.

    Only the labels of the eight network voxels around a source voxel are candidates.
    """
    at = positions(shape, logits.shape[1:], alignment)
    interpolated = np.stack([ndimage.map_coordinates(c.astype(float), at, order=1, mode="nearest") for c in logits])
    winners = logits.argmax(0)
    low = np.floor(at + 1e-9).astype(int)
    corners = np.stack(
        [
            winners[tuple(np.minimum(lo + d, m - 1) for lo, d, m in zip(low, delta, logits.shape[1:], strict=True))]
            for delta in np.ndindex(2, 2, 2)
        ]
    )
    for c in range(len(logits)):
        interpolated[c][~(corners == c).any(axis=0)] = -np.inf
    ordered = np.sort(interpolated, axis=0)
    return interpolated.argmax(0), ordered[-1] - ordered[-2]


@settings(max_examples=80, deadline=None)
@given(sizes, source_sizes, alignments, seeds, st.integers(1, 9), st.integers(1, 3))
def test_smooth_label_has_the_highest_interpolated_logit(network_shape, shape, alignment, seed, slab, threads):
    logits = random_logits(seed, network_shape)
    restored = restore(logits, shape, slab, alignment=alignment, threads=threads)
    winners, lead = restored_dense(logits, shape, alignment)
    decided = lead > 1e-4
    np.testing.assert_array_equal(restored[decided], winners[decided])


def test_many_adjacent_labels_and_many_strips_per_plane():
    logits = random_logits(3, (6, 40, 30), classes=60)
    restored = restore(logits, (13, 101, 64), threads=2)
    winners, lead = restored_dense(logits, (13, 101, 64), "corners")
    np.testing.assert_array_equal(restored[lead > 1e-4], winners[lead > 1e-4])


@settings(max_examples=30, deadline=None)
@given(sizes, source_sizes, seeds, st.sampled_from(["smooth", "nearest"]), alignments)
def test_slabs_strips_and_threads_do_not_change_the_labels(network_shape, shape, seed, interpolation, alignment):
    logits = random_logits(seed, network_shape)
    whole = restore(logits, shape, 99, interpolation=interpolation, alignment=alignment)
    for slab in (1, 2, 5):
        np.testing.assert_array_equal(
            restore(logits, shape, slab, interpolation=interpolation, alignment=alignment, threads=slab), whole
        )


@settings(max_examples=30, deadline=None)
@given(sizes, source_sizes, seeds, st.integers(1, 4))
def test_features_with_their_head_give_the_same_labels_as_logits(network_shape, shape, seed, slab):
    rng = np.random.default_rng(seed)
    # small integers: the products are exact in float32 in any order
    features = rng.integers(-9, 9, (5, *network_shape)).astype(np.float32)
    head = Head(rng.integers(-9, 9, (12, 5)).astype(np.float32), rng.integers(-9, 9, 12).astype(np.float32))
    logits = head.logits(features.reshape(5, -1)).T.reshape(12, *network_shape)
    for interpolation in ("smooth", "nearest"):
        np.testing.assert_array_equal(
            restore(features, shape, slab, head=head, interpolation=interpolation),
            restore(logits, shape, interpolation=interpolation),
        )


@settings(max_examples=150, deadline=None)
@given(st.tuples(*[st.integers(1, 14)] * 3), st.tuples(*[st.integers(1, 40)] * 3), seeds)
def test_nearest_equals_scipys_zoom_of_the_label_map_bit_for_bit(network_shape, shape, seed):
    logits = random_logits(seed, network_shape, classes=7)
    factors = np.array(shape) / np.array(network_shape)  # computed from the target shape like in TotalSegmentator
    expected = ndimage.zoom(logits.argmax(0).astype(float), factors, mode="nearest", order=0).astype(np.uint8)
    np.testing.assert_array_equal(restore(logits, shape, interpolation="nearest"), expected)


@settings(max_examples=60, deadline=None)
@given(sizes, source_sizes, seeds)
def test_nearest_with_kept_voxel_borders_equals_scipys_grid_mode(network_shape, shape, seed):
    logits = random_logits(seed, network_shape, classes=7)
    factors = np.array(shape) / np.array(network_shape)
    expected = ndimage.zoom(logits.argmax(0), factors, mode="nearest", order=0, grid_mode=True)
    at = positions(shape, network_shape, "centres")
    ties = (np.abs(at - np.floor(at) - 0.5) < 1e-9).any(axis=0)
    restored = restore(logits, shape, interpolation="nearest", alignment="centres")
    np.testing.assert_array_equal(restored[~ties], expected[~ties])


@settings(max_examples=30, deadline=None)
@given(
    sizes, source_sizes, seeds, st.permutations(range(3)), st.tuples(*[st.booleans()] * 3),
    st.sampled_from(["smooth", "nearest"]), alignments,
)  # fmt: skip
def test_views_of_the_source_are_written_in_place(network_shape, shape, seed, order, flips, interpolation, alignment):
    logits = random_logits(seed, network_shape)
    source = np.zeros([shape[order.index(axis)] for axis in range(3)], np.uint8)
    view = source.transpose(order)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    assert view.shape == shape
    restore(logits, shape, interpolation=interpolation, alignment=alignment, labels=view)
    np.testing.assert_array_equal(
        view, restore(logits, shape, interpolation=interpolation, alignment=alignment), strict=True
    )


@settings(max_examples=30, deadline=None)
@given(sizes, st.tuples(*[st.integers(1, 3)] * 3), seeds)
def test_source_voxel_on_a_network_voxel_has_its_label(network_shape, factors, seed):
    logits = random_logits(seed, network_shape, classes=6)
    logits[1] = logits[2] * np.float32(1 + 1e-6)  # nearly equal: rounding must not decide
    shape = tuple((m - 1) * f + 1 for m, f in zip(network_shape, factors, strict=True))
    restored = restore(logits, shape)
    np.testing.assert_array_equal(restored[tuple(slice(None, None, f) for f in factors)], logits.argmax(0))


def test_no_gap_between_adjacent_labels():
    rng = np.random.default_rng(0)
    winners = rng.integers(1, 4, (6, 7, 8))
    logits = np.stack([(winners == c) * 1.0 for c in range(4)]).astype(np.float32)
    logits[0] = 0.9  # background is a close second everywhere, and would win between any two labels
    assert (restore(logits, (20, 30, 40)) != 0).all()


@pytest.mark.parametrize("interpolation", ["smooth", "nearest"])
@pytest.mark.parametrize("alignment", ["corners", "centres"])
def test_voxels_outside_the_networks_box_are_background(interpolation, alignment):
    logits = np.zeros((2, 2, 3, 4), np.float32)
    logits[1] = 1
    labels = restore(
        logits, (10, 10, 10), network_shape=(10, 10, 10), offset=(5, 2, 1), interpolation=interpolation,
        alignment=alignment,
    )  # fmt: skip
    expected = np.zeros((10, 10, 10), np.uint8)
    expected[5:7, 2:5, 1:5] = 1
    np.testing.assert_array_equal(labels, expected)


def test_labels_inside_a_box_equal_those_for_the_whole_grid():
    logits = random_logits(7, (9, 10, 11))
    shape = (20, 27, 33)
    whole = restore(logits, shape)
    box = np.s_[2:8, 3:9, 1:10]
    part = restore(logits[:, *box].copy(), shape, network_shape=(9, 10, 11), offset=(2, 3, 1))
    at = positions(shape, (9, 10, 11), "corners")
    inside = ((at.T >= [2, 3, 1]) & (at.T <= [7, 8, 9])).all(axis=-1).T
    assert inside.sum() > 1000
    np.testing.assert_array_equal(part[inside], whole[inside])


def test_background_of_a_later_part_keeps_the_labels_of_an_earlier_one():
    labels = np.full((2, 2, 2), 9, np.uint8)
    logits = np.zeros((2, 2, 2, 2), np.float32)
    logits[0] = 1
    logits[1, 0, 0, 0] = 2
    restorer = Restorer(
        labels, (2, 2, 2), (0, 0, 0), (2, 2, 2), np.array([0, 5], np.uint8), LOGITS,
        interpolation="smooth", alignment="corners",
    )  # fmt: skip
    restorer.accept(0, logits)
    assert labels[0, 0, 0] == 5
    assert (labels.ravel()[1:] == 9).all()


def test_slab_out_of_order_is_refused():
    restorer = Restorer(
        np.zeros((4, 4, 4), np.uint8), (4, 4, 4), (0, 0, 0), (4, 4, 4), np.arange(2, dtype=np.uint8), LOGITS,
        interpolation="smooth", alignment="corners",
    )  # fmt: skip
    restorer.accept(0, np.zeros((2, 2, 4, 4), np.float32))
    with pytest.raises(ValueError, match=r"at plane 3; expected .* at plane 2"):
        restorer.accept(3, np.zeros((2, 1, 4, 4), np.float32))


@pytest.mark.parametrize("factor", [2.5, 4.0])
@pytest.mark.parametrize("alignment", ["corners", "centres"])
def test_smooth_borders_are_nearer_to_the_truth_than_nearest(factor, alignment):
    shape = (60, 60, 60)
    coarse = tuple(round(n / factor) for n in shape)
    centre = (np.array(shape) - 1) / 2

    def distance(at):
        return np.sqrt((((at.T - centre) / 30) ** 2).sum(-1)).T - 0.7

    inside = distance(positions(shape, shape, alignment)) < 0
    signed = distance(positions(coarse, shape, alignment)).astype(np.float32) * 10
    logits = np.stack([signed, -signed])

    def dice(labels):
        return 2 * (labels.astype(bool) & inside).sum() / (labels.astype(bool).sum() + inside.sum())

    smooth = dice(restore(logits, shape, alignment=alignment))
    assert smooth > 0.98
    assert smooth - dice(restore(logits, shape, interpolation="nearest", alignment=alignment)) > 0.005
