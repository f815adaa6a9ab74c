"""The demonstration's own reader against what the node's encoder wrote."""

import numpy as np
import pytest

from dicom_node.demo.results import UnexpectedResult, dice_by_name, read_report, read_segmentation
from dicom_node.encode.run import encode
from inference.measure import measure
from inference.structures import STRUCTURES
from tests.support.analysis_results import CONTEXT, ORIENTATIONS, geometry, reconstruction, segmentation

NAMES = {3: "kidney_left", 7: "kidney_right", 200: "liver"}


def _written(tmp_path, grid, labels_zyx=None):
    source = reconstruction(grid)
    labels = segmentation(grid, NAMES, labels_zyx)
    measurements = measure(source.source, labels)
    paths = []
    for result in encode(source, labels, measurements, CONTEXT):
        path = tmp_path / f"{result.kind}.dcm"
        result.dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return labels, measurements, *paths


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("shape", [(5, 12, 16), (4, 9, 13)])  # the second: frames that do not end on a byte
def test_every_voxel_comes_back_where_it_was(tmp_path, orientation, shape):
    grid = geometry(shape, ORIENTATIONS[orientation])
    labels, _, seg, _ = _written(tmp_path, grid)
    received = read_segmentation(seg, grid)
    names = np.array([""] * 256, dtype=object)
    for segment in received.segments:
        names[segment.label] = segment.name
    truth = np.array([NAMES.get(label, "") for label in range(256)], dtype=object)
    assert np.array_equal(names[received.labels_zyx], truth[labels.labels_zyx])


def test_the_values_of_the_report_are_those_measured(tmp_path):
    grid = geometry()
    _, measurements, seg, sr = _written(tmp_path, grid)
    values = read_report(sr)
    segments = read_segmentation(seg, grid).segments
    assert len(segments) == len(values) == 3
    for segment, measured in zip(segments, measurements.structures, strict=True):
        assert values[segment.tracking_uid].volume_ml == pytest.approx(measured.volume_ml, rel=1e-6)
        assert values[segment.tracking_uid].mean_hu == pytest.approx(measured.mean_hu, abs=1e-3)


def test_colours_are_those_of_the_catalogue(tmp_path):
    grid = geometry()
    *_, seg, _ = _written(tmp_path, grid)
    rgb = {entry.name: entry.rgb for entry in STRUCTURES}
    for segment in read_segmentation(seg, grid).segments:
        assert np.allclose(np.array(segment.rgb) * 255, rgb[segment.name], atol=3)


def test_dice_counts_a_missed_structure_as_zero_and_an_absent_one_not_at_all(tmp_path):
    grid = geometry((4, 12, 16))
    labels_zyx = np.zeros(grid.shape_zyx, np.uint8)
    labels_zyx[1:3, 2:4, 2:6] = 3
    labels_zyx[0, 8:10, 8:12] = 200
    *_, seg, _ = _written(tmp_path, grid, labels_zyx)
    received = read_segmentation(seg, grid)
    truth = np.zeros(grid.shape_zyx, np.uint8)
    truth[1:2, 2:4, 2:6] = 1
    truth[3, 0, 0] = 2
    dice = dice_by_name(received, truth, {1: "kidney_left", 2: "spleen", 3: "brain"})
    assert dice == {"kidney_left": pytest.approx(2 * 8 / (16 + 8)), "spleen": 0.0}


def test_a_result_of_another_ct_is_refused(tmp_path):
    *_, seg, _ = _written(tmp_path, geometry())
    moved = geometry()
    affine = moved.affine_lps.copy()
    affine[2, 3] += 1.0
    with pytest.raises(UnexpectedResult, match="no plane of the CT"):
        read_segmentation(seg, type(moved)(moved.shape_zyx, affine))
    with pytest.raises(UnexpectedResult, match="expected a binary SEG"):
        read_segmentation(seg, geometry((5, 10, 16)))
