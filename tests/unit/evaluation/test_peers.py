"""The measures against DeepMind's surface-distance 0.1 and nnU-Net's compute_metrics, on the same masks."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from inference.evaluation.scores import score_case
from inference.evaluation.surface import area_by_code
from inference.phantom import phantom
from inference.types import Geometry, ModelIdentity, Segmentation

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import surface_distance

MODEL = ModelIdentity("test", "1", "0" * 64, "Synthetic")
NAMES = {1: "spleen", 2: "liver", 3: "kidney_right", 4: "kidney_left"}


pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
"""surface-distance 0.1 calls scipy functions by their old names."""


@pytest.fixture(autouse=True, scope="module")
def an_old_numpy():
    """surface-distance 0.1 uses np.Inf, which numpy 2 removed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "Inf", np.inf, raising=False)
        yield


def segmentation(labels_zyx, spacing_zyx, names=None):
    geometry = Geometry(labels_zyx.shape, np.diag([*spacing_zyx[::-1], 1.0]))
    return Segmentation(labels_zyx.astype(np.uint8), geometry, names or NAMES, MODEL)


def reference(truth, found, spacing_zyx, tolerance_mm):
    """Surface Dice and HD95 of two masks by surface-distance."""
    distances = surface_distance.compute_surface_distances(truth, found, spacing_zyx)
    return (
        surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm),
        surface_distance.compute_robust_hausdorff(distances, 95),
    )


def is_at_a_step(truth, found, spacing_zyx):
    """Whether the share of an area reaches exactly 95 %: rounding of the sum then decides which distance is taken."""
    distances = surface_distance.compute_surface_distances(truth, found, spacing_zyx)
    shares = [np.cumsum(distances[name]) / distances[name].sum() for name in ("surfel_areas_gt", "surfel_areas_pred")]
    return any(np.abs(each - 0.95).min(initial=1) < 1e-9 for each in shares)


def check(truth_zyx, found_zyx, spacing_zyx, tolerance_mm, names=None):
    """Compare all structures of two label maps; return how many there were."""
    truth, found = (segmentation(each, spacing_zyx, names) for each in (truth_zyx, found_zyx))
    case = score_case(truth, found, tolerance_mm)
    scores = {each.name: each for each in case.counted("nnunet")}
    assert [each.name for each in case.structures] == [
        name for label, name in truth.names_by_label.items() if (truth_zyx == label).any()
    ]
    for label, name in truth.names_by_label.items():
        masks = truth_zyx == label, found_zyx == label
        if not (masks[0] | masks[1]).any():
            assert name not in scores
            continue
        score = scores[name]
        surface_dice, hd95 = reference(*masks, spacing_zyx, tolerance_mm)
        assert score.dice == pytest.approx(surface_distance.compute_dice_coefficient(*masks), abs=1e-6)
        assert score.surface_dice == pytest.approx(surface_dice, abs=1e-6)
        if not is_at_a_step(*masks, spacing_zyx):
            assert score.hd95_mm == pytest.approx(hd95, abs=1e-6)
    return len(scores)


spacings = st.tuples(*[st.sampled_from([0.5, 0.7, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0])] * 3)
shapes = st.tuples(*[st.integers(1, 7)] * 3)


@st.composite
def label_maps(draw):
    shape = draw(shapes)
    fill = st.just(0) if draw(st.booleans()) else st.integers(0, 4)
    return tuple(draw(arrays(np.uint8, shape, elements=st.integers(0, 4), fill=fill)) for _ in range(2))


@settings(max_examples=300, deadline=None)
@given(label_maps(), spacings, st.sampled_from([0.5, 1.0, 1.5, 3.0, 3.5]))
@example((np.zeros((3, 3, 3), np.uint8), np.ones((3, 3, 3), np.uint8)), (1.0, 1.0, 1.0), 3.0)
@example((np.full((1, 1, 1), 2, np.uint8), np.full((1, 1, 1), 3, np.uint8)), (5.0, 0.5, 0.5), 3.0)
def test_scores_of_any_label_maps_equal_the_reference(maps, spacing, tolerance):
    check(*maps, spacing, tolerance)


@settings(max_examples=30, deadline=None)
@given(st.data(), spacings)
def test_scores_of_distant_structures_equal_the_reference(data, spacing):
    """Farther apart than the local search, so that the k-d tree is used."""
    maps = []
    for _ in range(2):
        labels = np.zeros((24, 30, 36), np.uint8)
        for label in (1, 2):
            first = [data.draw(st.integers(0, n - 4)) for n in labels.shape]
            size = [data.draw(st.integers(1, 4)) for _ in range(3)]
            labels[tuple(slice(a, a + n) for a, n in zip(first, size, strict=True))] = label
        maps.append(labels)
    check(*maps, spacing, 3.0)


@pytest.mark.parametrize("spacing", [(4.0, 4.0, 4.0), (6.0, 3.0, 3.0)])
def test_scores_of_104_moved_and_resampled_structures_equal_the_reference(spacing):
    case = phantom(7, spacing[::-1])
    labels = case.truth.labels_zyx
    coarse = labels[::2, ::2, ::2].repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
    other = np.zeros_like(labels)
    z, y, x = labels.shape
    other[:, 1:, 2:] = coarse[:z, : y - 1, : x - 2]
    assert check(labels, other, spacing, 3.0, case.truth.names_by_label) == 104


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.5, 0.7, 3.1), (5.0, 0.73, 0.8)])
def test_areas_of_all_256_neighbourhoods_equal_the_reference(spacing):
    expected = surface_distance.lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
    assert area_by_code(spacing) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(label_maps())
def test_dice_equals_nnunets(tmp_path_factory, maps):
    folder = tmp_path_factory.mktemp("nnunet")
    files = [str(folder / f"{name}.nii.gz") for name in ("truth", "found")]
    for labels, file in zip(maps, files, strict=True):
        sitk.WriteImage(sitk.GetImageFromArray(labels), file)
    expected = compute_metrics(*files, SimpleITKIO(), list(NAMES))["metrics"]
    case = score_case(*(segmentation(labels, (1.0, 1.0, 1.0)) for labels in maps))
    scores = {each.name: each for each in case.counted("nnunet")}
    for label, name in NAMES.items():
        if np.isnan(expected[label]["Dice"]):
            assert name not in scores
        else:
            assert scores[name].dice == pytest.approx(expected[label]["Dice"], abs=1e-6)
            assert scores[name].truth_ml * 1000 == pytest.approx(expected[label]["n_ref"])
            assert scores[name].found_ml * 1000 == pytest.approx(expected[label]["n_pred"])
