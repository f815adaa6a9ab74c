"""The commissioning model on synthetic bodies with known labels, and on degenerate CTs."""

import numpy as np
import pytest
from scipy import ndimage

from inference.errors import SegmentationRefusedError
from inference.structures import structure
from inference.tissue import AIR, BONE, FAT, NAMES_BY_LABEL, SOFT_TISSUE, TissueParameters, TissueSegmenter
from inference.types import Geometry, Segmenter, Volume


def volume_of(hu, spacing=(1.5, 1.5, 4.0)):
    return Volume(hu, Geometry(hu.shape, np.diag([*spacing, 1.0])))


def segment(hu):
    return TissueSegmenter().segment(volume_of(hu), lambda *_: None).labels_zyx


def disc(shape, centre, radii):
    y, x = np.ogrid[: shape[1], : shape[2]]
    inside = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 < 1
    return np.broadcast_to(inside, shape)


@pytest.fixture
def chest():
    """Fat around muscle, two lungs, a spine, one arm, and a table under the back; with the truth."""
    shape = (8, 160, 220)
    truth = np.zeros(shape, np.uint8)
    truth[disc(shape, (80, 100), (60, 85))] = FAT
    truth[disc(shape, (80, 100), (52, 76))] = SOFT_TISSUE
    truth[disc(shape, (70, 60), (30, 25))] = AIR
    truth[disc(shape, (70, 140), (30, 25))] = AIR
    truth[disc(shape, (115, 100), (12, 12))] = BONE
    truth[disc(shape, (80, 205), (12, 12))] = SOFT_TISSUE
    hu = np.full(shape, -1000, np.int16)
    for label, value in {AIR: -850, FAT: -100, SOFT_TISSUE: 50, BONE: 400}.items():
        hu[truth == label] = value
    hu[:, 146:148, 20:180] = -150  # the table's shell, 3 mm thick
    return hu, truth


def test_tissues_of_a_synthetic_chest_are_found_and_the_table_is_not(chest):
    hu, truth = chest
    noisy = hu + np.random.default_rng(0).normal(0, 5, hu.shape).astype(np.int16)
    labels = segment(noisy)
    for label in NAMES_BY_LABEL:
        dice = 2 * ((labels == label) & (truth == label)).sum() / ((labels == label).sum() + (truth == label).sum())
        assert dice > 0.98, (NAMES_BY_LABEL[label], dice)
    assert not labels[:, 146:148].any()


def test_lung_behind_a_gap_in_a_thin_wall_is_still_inside(chest):
    hu, truth = chest
    hu[:, 65:70, 10:45] = np.where(truth[:, 65:70, 10:45] == AIR, -850, -1000)  # 7.5 mm of the wall is missing
    labels = segment(hu)
    left_lung = disc(hu.shape, (70, 60), (28, 23))
    assert (labels[left_lung] == AIR).mean() > 0.95
    assert not labels[:, :15].any()  # air in front of the patient


def test_air_in_a_concave_surface_is_not_inside(chest):
    hu, _ = chest
    hu[:, 10:40, 98:102] = -1000  # a deep fold of skin, 6 mm wide
    assert not (segment(hu)[:, 22:38, 99:101] == AIR).any()


def test_small_bright_islands_are_vessels_and_not_bone(chest):
    hu, _ = chest
    hu[3:5, 60:63, 99:102] = 300
    labels = segment(hu)
    assert (labels[3:5, 60:63, 99:102] == SOFT_TISSUE).all()
    assert (labels == BONE).any()


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 5, 5), (40, 9, 7)])
@pytest.mark.parametrize("content", ["air", "water", "noise"])
def test_any_ct_gets_labels(shape, dtype, content):
    hu = {
        "air": np.full(shape, -1000),
        "water": np.zeros(shape),
        "noise": np.random.default_rng(0).normal(0, 800, shape),
    }[content].astype(dtype)
    labels = segment(hu)
    assert labels.shape == shape
    if content == "air":
        assert not labels.any()
    if content == "water":
        assert (labels == SOFT_TISSUE).all()


def test_same_voxels_give_the_same_labels(chest):
    hu, _ = chest
    noisy = ndimage.gaussian_filter(np.random.default_rng(3).normal(0, 3000, hu.shape), 1).astype(np.int16)
    np.testing.assert_array_equal(segment(noisy), segment(noisy.copy()))


def test_hu_that_are_not_finite_are_refused():
    with pytest.raises(SegmentationRefusedError, match="finite"):
        segment(np.full((3, 4, 5), np.inf, np.float32))


def test_names_are_in_the_catalogue_and_the_digest_depends_on_the_parameters():
    segmenter = TissueSegmenter()
    assert isinstance(segmenter, Segmenter)
    assert {structure(name).group for name in segmenter.names_by_label.values()} == {"tissue"}
    changed = TissueSegmenter(parameters=TissueParameters(bone_above_hu=151))
    assert TissueSegmenter().identity == segmenter.identity
    assert changed.identity.digest != segmenter.identity.digest


def test_last_bit_of_the_spacing_changes_no_label():
    """2 mm is half of a 4 mm pixel: whether opening removes a strip two pixels wide depends on rounding."""
    shape = (6, 200, 120)
    hu = np.full(shape, -1000, np.int16)
    hu[disc(shape, (100, 45), (60, 40))] = 40
    hu[:, 5:195, 110:112] = 40
    answers = [
        TissueSegmenter().segment(volume_of(hu, (mm, mm, 4.0)), lambda *_: None).labels_zyx
        for mm in (4.0, np.nextafter(4.0, 0), np.nextafter(4.0, 5))
    ]
    np.testing.assert_array_equal(answers[1], answers[0])
    np.testing.assert_array_equal(answers[2], answers[0])
