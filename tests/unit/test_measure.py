"""Measurements against the simplest possible computation, voxel by voxel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from inference.measure import measure
from inference.padding import find_padding
from inference.types import Geometry, InvalidValueError, ModelIdentity, Segmentation, Volume

MODEL = ModelIdentity("test", "1", "0" * 64, "Thresholding")
NAMES = {1: "liver", 2: "spleen", 3: "aorta", 255: "brain"}


def place(shape, spacing=(0.7, 0.9, 2.5)):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-100, 30, 7)
    return Geometry(shape, affine)


def result(labels, names=NAMES):
    return Segmentation(labels, place(labels.shape), names, MODEL)


shapes = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))
whole = st.integers(-32768, 32767)
fractional = st.floats(-3024, 3071, width=32)


@settings(max_examples=60, deadline=None)
@given(st.data(), shapes, st.booleans())
def test_measurements_equal_the_naive_computation_per_label(data, shape, is_whole):
    dtype, values = (np.int16, whole) if is_whole else (np.float32, fractional)
    hu = data.draw(hnp.arrays(dtype, shape, elements=values))
    labels = data.draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 3, 255])))
    measured = measure(Volume(hu, place(shape)), result(labels))
    present = [label for label in NAMES if (labels == label).any()]
    assert [m.label for m in measured.structures] == present
    assert set(measured.not_found) == {name for label, name in NAMES.items() if label not in present}
    for m in measured.structures:
        inside = hu[labels == m.label].astype(np.float64)
        assert m.name == NAMES[m.label]
        assert m.voxel_count == inside.size
        assert m.volume_ml == pytest.approx(inside.size * 0.7 * 0.9 * 2.5 / 1000, rel=1e-12)
        assert (m.min_hu, m.max_hu, m.median_hu) == (inside.min(), inside.max(), np.median(inside))
        assert m.mean_hu == pytest.approx(inside.mean(), rel=1e-9, abs=1e-6)
        assert m.sd_hu == pytest.approx(inside.std(), rel=1e-7, abs=1e-6)
    assert sum(m.voxel_count for m in measured.structures) == np.count_nonzero(labels)


@pytest.mark.parametrize(
    ("touching", "truncated"),
    [
        ((0, 5, 5), True), ((9, 5, 5), True), ((5, 0, 5), True), ((5, 9, 5), True),
        ((5, 5, 0), True), ((5, 5, 9), True), ((5, 5, 5), False), ((1, 1, 8), False),
    ],
)  # fmt: skip
def test_structure_at_the_edge_of_the_imaged_region_is_truncated(touching, truncated):
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[touching] = 1
    measured = measure(Volume(np.full((10, 10, 10), 40, np.int16), place((10, 10, 10))), result(labels))
    assert measured.structures[0].truncated is truncated


def test_structure_is_truncated_by_the_circular_field_of_view_and_not_by_air():
    y, x = np.mgrid[:64, :64] - 31.5
    inside_circle = np.hypot(x, y) < 30
    hu = np.full((4, 64, 64), -1000, np.int16)
    hu[:, ~inside_circle] = -3024
    labels = np.zeros(hu.shape, np.uint8)
    labels[1:3, 28:36, 20:40] = 1
    labels[1:3, 40:50, 20:60] = 2
    labels[:, ~inside_circle] = 0
    volume = Volume(hu, place(hu.shape), find_padding(hu))
    by_name = {m.name: m for m in measure(volume, result(labels)).structures}
    assert not by_name["liver"].truncated
    assert by_name["spleen"].truncated


def test_air_clipped_at_the_end_of_the_scale_is_not_padding():
    hu = np.full((4, 20, 20), -1024, np.int16)
    labels = np.zeros(hu.shape, np.uint8)
    labels[1:3, 8:12, 8:12] = 1
    hu[labels == 1] = 50
    volume = Volume(hu, place(hu.shape), find_padding(hu))
    assert not measure(volume, result(labels)).structures[0].truncated


def test_empty_label_map_has_no_measurements():
    measured = measure(Volume(np.zeros((2, 3, 4), np.int16), place((2, 3, 4))), result(np.zeros((2, 3, 4), np.uint8)))
    assert measured.structures == ()
    assert measured.not_found == tuple(NAMES.values())


def test_labels_on_another_grid_are_refused():
    labels = np.zeros((2, 3, 4), np.uint8)
    displaced = Segmentation(labels, place((2, 3, 4), (0.7, 0.9, 2.6)), NAMES, MODEL)
    with pytest.raises(InvalidValueError, match="grid"):
        measure(Volume(np.zeros((2, 3, 4), np.int16), place((2, 3, 4))), displaced)


def test_hu_that_are_not_finite_are_refused_inside_a_structure():
    hu = np.zeros((2, 3, 4), np.float32)
    hu[1, 1, 1] = np.nan
    with pytest.raises(InvalidValueError, match="finite"):
        measure(Volume(hu, place(hu.shape)), result(np.ones((2, 3, 4), np.uint8)))
