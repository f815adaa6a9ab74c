"""Scores against values computed by hand; test_peers.py compares them with other packages."""

from __future__ import annotations

import numpy as np
import pytest

from inference.evaluation.scores import score_case
from inference.evaluation.table import tabulate
from inference.types import Geometry, ModelIdentity, Segmentation

MODEL = ModelIdentity("test", "1", "0" * 64, "Synthetic")
NAMES = {1: "spleen", 2: "kidney_right", 3: "kidney_left"}


def _segmentation(labels, spacing=(1.0, 1.0, 1.0), names=None):
    labels = np.asarray(labels, dtype=np.uint8)
    return Segmentation(labels, Geometry(labels.shape, np.diag([*spacing, 1.0])), names or NAMES, MODEL)


def _cube(first, size=10, shape=(30, 30, 30), label=1):
    labels = np.zeros(shape, dtype=np.uint8)
    z, y, x = first
    labels[z : z + size, y : y + size, x : x + size] = label
    return labels


def test_equal_label_maps_score_one():
    case = _segmentation(_cube((5, 5, 5)))
    (score,) = score_case(case, case).structures
    assert (score.dice, score.surface_dice, score.truth_ml, score.found_ml) == (1.0, 1.0, 1.0, 1.0)


def test_dice_of_a_shifted_cube():
    """A 10-cube moved by 5 shares half of its voxels: Dice 0.5."""
    (score,) = score_case(_segmentation(_cube((5, 5, 5))), _segmentation(_cube((5, 5, 10)))).structures
    assert score.dice == pytest.approx(0.5)


def test_surface_dice_is_measured_in_millimetres():
    """Shifted by two voxels along x: within 3 mm with 1 mm voxels, but not everywhere with 2 mm voxels."""
    truth, found = _cube((5, 5, 5)), _cube((5, 5, 7))
    fine = score_case(_segmentation(truth), _segmentation(found))
    coarse = score_case(_segmentation(truth, (2.0, 1, 1)), _segmentation(found, (2.0, 1, 1)))
    assert fine.structures[0].surface_dice == 1.0
    assert coarse.structures[0].surface_dice < 0.9
    assert coarse.structures[0].dice == fine.structures[0].dice


def test_missed_structure_counts_zero_and_absent_one_is_ignored():
    truth, nothing = _cube((5, 5, 5)), np.zeros((30, 30, 30), dtype=np.uint8)
    invented = score_case(_segmentation(nothing), _segmentation(truth))
    assert invented.counted("paper") == ()
    assert [(each.name, each.dice, each.surface_dice) for each in invented.counted("nnunet")] == [("spleen", 0.0, 0.0)]
    (score,) = score_case(_segmentation(truth), _segmentation(nothing)).structures
    assert (score.dice, score.surface_dice, score.hd95_mm, score.volume_error) == (0.0, 0.0, float("inf"), -1.0)


def test_labels_of_the_model_may_differ():
    truth = _segmentation(_cube((5, 5, 5), label=2))
    found = _segmentation(_cube((5, 5, 5), label=7), names={7: "kidney_right", 2: "spleen"})
    (score,) = score_case(truth, found).structures
    assert (score.name, score.dice) == ("kidney_right", 1.0)


def test_swapped_sides_are_counted():
    truth = _cube((5, 5, 5), label=2) + _cube((5, 5, 18), label=3)
    swapped = np.where(truth == 2, 3, np.where(truth == 3, 2, 0))
    score = score_case(_segmentation(truth), _segmentation(swapped))
    assert set(score.mixed_up) == {"kidney_right", "kidney_left"}
    assert score.voxels_on_wrong_side == 2000
    right = score_case(_segmentation(truth), _segmentation(truth))
    assert right.mixed_up == ()
    assert right.voxels_on_wrong_side == 0


def test_volume_error_and_distance_of_a_grown_cube():
    """A 10-cube found as a 12-cube: 728 voxels more, and its corners are one voxel away along each axis."""
    (score,) = score_case(_segmentation(_cube((5, 5, 5))), _segmentation(_cube((4, 4, 4), 12))).structures
    assert score.volume_error == pytest.approx(0.728)
    assert score.hd95_mm == pytest.approx(2**0.5)


def test_number_of_threads_does_not_change_the_scores():
    truth = _cube((5, 5, 5), label=2) + _cube((5, 5, 18), label=3)
    found = _cube((6, 5, 5), label=2) + _cube((5, 3, 18), label=3)
    one, two = (score_case(_segmentation(truth), _segmentation(found), threads=threads) for threads in (1, 2))
    assert one == two
    assert len(one.structures) == 2


def test_different_grids_are_refused():
    with pytest.raises(ValueError, match="grids"):
        score_case(_segmentation(_cube((5, 5, 5))), _segmentation(_cube((5, 5, 5)), (1, 1, 2)))


def test_table_averages_over_cases_then_over_structures():
    perfect = score_case(_segmentation(_cube((5, 5, 5))), _segmentation(_cube((5, 5, 5))))
    half = score_case(_segmentation(_cube((5, 5, 5))), _segmentation(_cube((5, 5, 10))))
    kidney = _segmentation(_cube((5, 5, 5), label=2))
    table = tabulate([perfect, half, score_case(kidney, kidney)])
    assert [(row.name, row.cases, row.dice_mean) for row in table.rows] == [("spleen", 2, 0.75), ("kidney_right", 1, 1)]
    assert table.dice_mean == pytest.approx(0.875)
    assert table.worst.name == "spleen"
    assert "| spleen | 2 | 0.750 | 0.500 |" in table.as_markdown()
    assert table.as_json()["structures"][0]["dice_min"] == pytest.approx(0.5)
