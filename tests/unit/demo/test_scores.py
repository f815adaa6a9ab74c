"""Dice of the returned segmentation, against the truth of a phantom."""

import numpy as np
import pytest

from dicom_node.demo.scores import dice_by_name
from dicom_node.results import StoredSegment, StoredSegmentation
from tests.support.analysis_results import geometry


def test_dice_counts_missed_structures_as_zero_and_ignores_absent_ones():
    grid = geometry((4, 12, 16))
    labels_zyx = np.zeros(grid.shape_zyx, np.uint8)
    labels_zyx[1:3, 2:4, 2:6] = 3
    labels_zyx[0, 8:10, 8:12] = 200
    segments = (StoredSegment(3, "kidney_left", "", ()), StoredSegment(200, "liver", "", ()))
    truth = np.zeros(grid.shape_zyx, np.uint8)
    truth[1:2, 2:4, 2:6] = 1
    truth[3, 0, 0] = 2
    received = StoredSegmentation(labels_zyx, grid, segments, "")
    dice = dice_by_name(received, truth, {1: "kidney_left", 2: "spleen", 3: "brain"})
    assert dice == {"kidney_left": pytest.approx(2 * 8 / (16 + 8)), "spleen": 0.0}
