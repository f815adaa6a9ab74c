"""The uncertainty of a volume over the ways of scanning, and the scans themselves."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dicom_node.constancy.variation import Scanned, Ways, uncertainties
from inference.phantom import KERNELS, Patient, grid, render, thicker_slices
from inference.structures import paper_labels
from inference.types import InvalidValueError

WAYS = [(thickness, kernel) for thickness in (1.0, 5.0) for kernel in ("soft", "sharp")]


def scans(volumes, truncated=()):
    return [
        Scanned(phantom, *way, "liver", volume, (phantom, way) in truncated, None)
        for phantom, own in volumes.items()
        for way, volume in zip(WAYS, own, strict=True)
    ]


def test_spread_is_within_a_phantom_and_not_between_them():
    one, other = [100.0, 102.0, 98.0, 104.0], [1000.0, 1000.0, 1010.0, 1030.0]
    ((row,), left_out) = uncertainties(scans({"a": one, "b": other}))
    assert left_out == {}
    assert row.mean_ml == pytest.approx(np.mean([np.mean(one), np.mean(other)]))
    assert row.sd_ml == pytest.approx(np.sqrt(np.mean([np.var(one, ddof=1), np.var(other, ddof=1)])))
    cvs = [stats.variation(each, ddof=1) for each in (one, other)]
    assert row.cv_percent == pytest.approx(100 * np.sqrt(np.mean(np.square(cvs))))
    assert (row.lowest_ml, row.highest_ml) == (98.0, 1030.0)
    assert row.highest_percent == pytest.approx(100 * 104 / np.mean(one))


def test_what_depends_on_thickness_alone_is_told_from_what_depends_on_the_kernel():
    ((row,), _) = uncertainties(scans({"a": [90.0, 90.0, 110.0, 110.0]}))
    assert row.kernel_cv_percent == 0
    assert row.thickness_cv_percent == pytest.approx(100 * np.std([0.9, 1.1], ddof=1))


def test_truncated_and_missing_structures_are_left_out_with_the_reason():
    cut = scans({"a": [1.0, 1.0, 1.0, 1.0], "b": [2.0, 2.0, 2.0, 2.5]}, {("a", WAYS[3])})
    ((row,), _) = uncertainties(cut)
    assert (row.phantoms, row.lowest_ml) == (1, 2.0)
    assert uncertainties(scans({"a": [1.0] * 4}, {("a", WAYS[0])})) == ((), {"liver": "truncated in every phantom"})
    assert uncertainties(scans({"a": [0.0] * 4})) == ((), {"liver": "found in no scan"})
    ((row,), _) = uncertainties(scans({"a": [0.0, 4.0, 4.0, 4.0]}))
    assert (row.missed, row.lowest_percent) == (1, 0.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"thicknesses_mm": (2.5,)},
        {"kernels": ("blunt",)},
        {"thicknesses_mm": (1.0,), "kernels": ("soft",)},
        {"thicknesses_mm": (2.0, 2.0)},
        {"phantoms": 0},
    ],
)
def test_ways_that_cannot_be_made_are_refused(wrong):
    with pytest.raises(InvalidValueError):
        Ways(**wrong)


@pytest.fixture(scope="module")
def rendered():
    patient = Patient.from_seed(1)
    geometry = grid(patient, (3.0, 3.0, 1.0), "head_neck")
    labels = {name: label for label, name in paper_labels().items()}
    return {name: render(patient, geometry, labels, kernel) for name, kernel in KERNELS.items()}


def test_a_sharper_kernel_shows_the_same_anatomy_with_more_noise(rendered):
    (soft, labels), (standard, same), (sharp, _) = (rendered[name] for name in ("soft", "standard", "sharp"))
    assert (labels == same).all()
    name, label = next((name, label) for label, name in paper_labels().items() if (labels == label).sum() > 500)
    spread = [volume.voxels_zyx[labels == label].astype(float).std() for volume in (soft, standard, sharp)]
    assert spread == sorted(spread), name


def test_thick_slices_are_means_that_lie_where_their_planes_are(rendered):
    fine, _ = rendered["standard"]
    thick = thicker_slices(fine, 5)
    count = fine.geometry.shape_zyx[0] // 5
    assert thick.geometry.shape_zyx == (count, *fine.geometry.shape_zyx[1:])
    assert thick.geometry.spacing_xyz_mm == pytest.approx((3.0, 3.0, 5.0))
    middle = fine.geometry.affine_lps @ [0, 0, 7, 1]
    assert thick.geometry.affine_lps @ [0, 0, 1, 1] == pytest.approx(middle)
    assert np.abs(thick.voxels_zyx[1] - fine.voxels_zyx[5:10].mean(axis=0)).max() <= 0.5
    assert thicker_slices(fine, 1) is fine
    with pytest.raises(InvalidValueError, match="a slice of 10000 planes"):
        thicker_slices(fine, 10000)
