"""Another library decides, for every pixel centre, whether the outlines enclose it."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.path import Path
from scipy.ndimage import gaussian_filter

from dicom_node.encode.decimals import decimal_strings, longest_text
from dicom_node.encode.rtstruct.contours import outlines
from dicom_node.errors import EncodingError

UNBOUNDED = 10**6


def times_enclosed(found: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """How many of the outlines enclose each pixel centre, by winding number."""
    rows, columns = np.indices(shape)
    centres = np.column_stack((columns.ravel(), rows.ravel()))
    times = np.zeros(shape, dtype=int)
    for outline in found:
        closed = Path(np.vstack((outline, outline[:1])) / 2, closed=True)
        times += closed.contains_points(centres).reshape(shape)
    return times


@settings(max_examples=150, deadline=timedelta(seconds=10))
@given(arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))), st.sampled_from([4, 9, 30, UNBOUNDED]))
def test_any_region_is_restored_pixel_by_pixel(region: np.ndarray, longest: int) -> None:
    found = outlines(region, longest)
    assert np.array_equal(times_enclosed(found, region.shape), region)
    assert all(4 <= len(outline) <= longest for outline in found)


@pytest.mark.parametrize("seed", range(4))
def test_sponge_is_restored_pixel_by_pixel(seed: int) -> None:
    region = gaussian_filter(np.random.default_rng(seed).random((70, 90)), 1.3) > 0.48
    found = outlines(region, UNBOUNDED)
    assert np.array_equal(times_enclosed(found, region.shape), region)


def test_holes_are_joined_to_their_outline_by_bridges_inside_the_region() -> None:
    region = np.ones((40, 60), dtype=bool)
    region[5:12, 5:12] = region[5:30, 20:24] = region[25:35, 40:55] = False
    region[27:33, 43:50] = True  # an island in a hole
    found = outlines(region, UNBOUNDED)
    assert len(found) == 2
    for outline in found:
        steps = np.diff(np.vstack((outline, outline[:1])), axis=0)
        for (column, row), (right, down) in zip(outline, steps, strict=True):
            # neither straight nor diagonal steps leave the region; bridges run along pixel centres
            assert right == 0 or down == 0 or abs(right) == abs(down)
            if down == 0 and row % 2 == 0:
                first, last = sorted((column, column + right))
                assert region[row // 2, (first + 1) // 2 : (last + 1) // 2].all()


def test_outer_outline_and_holes_have_opposite_orientation() -> None:
    region = np.ones((9, 9), dtype=bool)
    region[3:6, 3:6] = False
    (outline,) = outlines(region, UNBOUNDED)
    column, row = outline.T / 2
    area = 0.5 * abs(np.dot(column, np.roll(row, -1)) - np.dot(row, np.roll(column, -1)))
    # corners are cut by an eighth of a pixel each: of the region outside, of the hole inside
    assert area == pytest.approx(81 - 9 - 4 / 8 + 4 / 8)


def test_vertices_on_a_straight_line_are_omitted() -> None:
    (outline,) = outlines(np.ones((50, 80), dtype=bool), UNBOUNDED)
    assert len(outline) == 8


def test_empty_region_has_no_outline() -> None:
    assert outlines(np.zeros((3, 4), dtype=bool), UNBOUNDED) == []


# ---- decimal strings


def texts(values: np.ndarray) -> list[str]:
    characters, ends = decimal_strings(values)
    text = characters.tobytes().decode("ascii")
    assert text.count("\\") == len(values)
    assert [text[end - 1] for end in ends] == ["\\"] * len(values)
    return text.split("\\")[:-1]


@settings(max_examples=150)
@given(st.lists(st.floats(-9.9e9, 9.9e9), min_size=1))
def test_values_are_kept_to_a_tenth_of_a_micrometre(values: list[float]) -> None:
    found = texts(np.array(values))
    assert all(len(text) <= 16 for text in found)
    assert max(len(text) + 1 for text in found) <= longest_text(max(abs(value) for value in values))
    assert np.allclose([float(text) for text in found], values, rtol=1e-15, atol=0.500001e-4)


def test_redundant_zeros_are_omitted() -> None:
    values = np.array([0.0, -0.00001, 100.0, -12.5, 0.0625, -0.25, 7.00009, 1234.5678, -9999999999.9999])
    assert texts(values) == ["0", "0", "100", "-12.5", "0.0625", "-0.25", "7.0001", "1234.5678", "-9999999999.9999"]


@pytest.mark.parametrize("value", [1e10, -1e10, float("inf"), float("nan")])
def test_value_that_fits_no_decimal_string_is_refused(value: float) -> None:
    with pytest.raises(EncodingError, match="does not fit into a decimal string"):
        decimal_strings(np.array([1.0, value]))
