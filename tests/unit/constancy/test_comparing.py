"""Limits, and what is said about the cause."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.constancy.baseline import Answer, Limits
from dicom_node.constancy.comparing import compare

VOXEL_ML = 0.01
LIMITS = Limits(lowest_dice=0.99, volume_percent=1.0, mean_hu=3.0, free_voxels=5)


def exceeded(old_voxels, new_voxels, common, hu=(50.0, 50.0), limits=LIMITS):
    old, new = (
        Answer("liver", voxels * VOXEL_ML, value if voxels else None, None)
        for voxels, value in zip((old_voxels, new_voxels), hu, strict=True)
    )
    dice = 2 * common / (old_voxels + new_voxels)
    (row,) = compare("p", [old], [new], {"liver": dice}, VOXEL_ML, limits)
    return set(row.exceeded)


@pytest.mark.parametrize(
    ("voxels", "expected"),
    [
        ((10000, 10000, 10000), set()),
        ((10000, 10000, 9901), set()),
        ((10000, 10000, 9899), {"dice"}),
        ((10000, 10101, 10000), {"volume"}),
        ((10000, 10099, 10000), set()),
        ((10, 12, 9), set()),
        ((10, 16, 10), {"dice", "volume"}),
        ((0, 5, 0), set()),
        ((0, 6, 0), {"dice", "volume", "found"}),
        ((600, 0, 0), {"dice", "volume", "not found"}),
    ],
)
def test_limits_at_their_edges(voxels, expected):
    assert exceeded(*voxels) == expected


def test_attenuation_counts_however_small_the_structure_is():
    assert exceeded(5, 5, 5, (50.0, 53.5)) == {"mean HU"}
    assert exceeded(5, 5, 5, (50.0, 52.5)) == set()


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 400))
def test_no_structure_within_the_free_voxels_is_beyond_a_limit(only_old, only_new, common):
    if common == only_old == only_new == 0:
        return
    beyond = exceeded(common + only_old, common + only_new, common)
    different = only_old + only_new
    if different <= 5:
        assert not beyond
    if "dice" in beyond:
        assert 2 * common / (2 * common + different) < 0.99


def test_a_structure_that_is_in_neither_answer_is_no_row():
    empty = Answer("liver", 0.0, None, None)
    assert list(compare("p", [empty], [empty], {}, VOXEL_ML, LIMITS)) == []


def test_a_structure_that_only_the_new_model_knows_is_a_row():
    (row,) = compare("p", [], [Answer("spleen", 30.0, 50.0, 0.9)], {}, VOXEL_ML, LIMITS)
    assert (row.structure, row.dice, set(row.exceeded)) == ("spleen", 0.0, {"dice", "volume", "found"})
