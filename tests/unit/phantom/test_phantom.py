"""The synthetic patient is complete, correctly oriented, repeatable, and independent of its voxel grid."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from inference.phantom import Patient, Phantom, grid, phantom, render, write_nifti
from inference.structures import paper_labels
from inference.types import Geometry

NAMES = paper_labels()
LABELS = {name: label for label, name in NAMES.items()}
SPACING = 5.0
SEEDS = (1, 2, 3)
ANATOMY_OF_SEED_1 = Path(__file__).with_name("anatomy_of_seed_1.csv")

# (smallest, largest) ml in adults; generous, because the phantom only has to be plausible
PLAUSIBLE_ML = {
    "liver": (700, 2400),
    "spleen": (80, 420),
    "kidney_left": (80, 320),
    "kidney_right": (80, 320),
    "adrenal_gland_left": (2, 9),
    "adrenal_gland_right": (2, 9),
    "gallbladder": (10, 80),
    "brain": (1000, 1900),
    "aorta": (100, 520),
    "pancreas": (30, 160),
    "urinary_bladder": (80, 500),
    "lung_lower_lobe_left": (500, 2200),
    "lung_middle_lobe_right": (120, 1100),
    "heart_ventricle_left": (50, 220),
    "vertebrae_L3": (20, 80),
    "rib_left_6": (10, 50),
    "rib_right_12": (3, 25),
    "femur_left": (130, 420),
    "autochthon_left": (350, 1100),
}


@pytest.fixture(scope="module")
def phantoms() -> dict[int, Phantom]:
    return {seed: phantom(seed, (SPACING, SPACING, SPACING)) for seed in SEEDS}


def _centres_mm(case: Phantom) -> dict[str, np.ndarray]:
    """Centroid of each structure relative to the patient's midline, in LPS, mm."""
    labels = case.truth.labels_zyx
    flat = labels.ravel()
    counts = np.bincount(flat, minlength=105).astype(float)
    z, y, x = np.indices(labels.shape, sparse=True)
    sums = [np.bincount(flat, weights=np.broadcast_to(axis, labels.shape).ravel(), minlength=105) for axis in (x, y, z)]
    index = np.stack([*(s / np.maximum(counts, 1) for s in sums), np.ones(105)])
    centres = (case.volume.geometry.affine_lps @ index)[:3].T - np.array(case.patient.offset_lps_mm)
    return {name: centres[label] for label, name in NAMES.items()}


def test_every_structure_is_present(phantoms):
    for case in phantoms.values():
        present = set(np.unique(case.truth.labels_zyx)) - {0}
        assert {NAMES[label] for label in present} == set(NAMES.values())


def test_anatomy_is_the_one_used_to_train_the_demo_model(phantoms):
    """Rounding may change a voxel; an error in a table of the anatomy changes a structure."""
    labels = phantoms[1].truth.labels_zyx
    counts, centres = np.bincount(labels.ravel(), minlength=105), _centres_mm(phantoms[1])
    with ANATOMY_OF_SEED_1.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["structure"] for row in rows] == list(NAMES.values())
    for row in rows:
        name = row["structure"]
        assert abs(counts[LABELS[name]] - int(row["voxels"])) <= 2 + 0.01 * int(row["voxels"]), name
        centre = [float(row[f"{axis}_mm"]) for axis in "xyz"]
        assert np.abs(centres[name] - centre).max() < 0.5, name


def test_pairs_are_on_their_sides(phantoms):
    """LPS: x increases towards the patient's left."""
    for case in phantoms.values():
        centres = _centres_mm(case)
        for name, centre in centres.items():
            if "left" in name.split("_"):
                other = centres.get(name.replace("left", "right"))
                assert other is None or centre[0] > other[0], name


def test_body_is_asymmetric_like_a_real_one(phantoms):
    for case in phantoms.values():
        centres = _centres_mm(case)
        assert centres["liver"][0] < -20 < 20 < centres["spleen"][0]
        assert centres["stomach"][0] > 10
        assert centres["gallbladder"][0] < -20
        assert centres["heart_ventricle_left"][0] > centres["heart_atrium_right"][0] + 20
        assert centres["inferior_vena_cava"][0] < centres["aorta"][0]
        assert centres["duodenum"][0] < centres["stomach"][0]


def test_head_is_above_feet(phantoms):
    for case in phantoms.values():
        centres = _centres_mm(case)
        spine = [f"vertebrae_C{n}" for n in range(1, 8)] + [f"vertebrae_T{n}" for n in range(1, 13)]
        spine += [f"vertebrae_L{n}" for n in range(1, 6)] + ["sacrum"]
        heights = [centres[name][2] for name in spine]
        assert heights == sorted(heights, reverse=True)
        assert centres["brain"][2] > centres["vertebrae_C3"][2]
        assert centres["femur_left"][2] < centres["hip_left"][2]
        for side in ("left", "right"):
            ribs = [centres[f"rib_{side}_{n}"][2] for n in range(1, 11)]
            assert ribs == sorted(ribs, reverse=True)


def test_front_is_in_front(phantoms):
    for case in phantoms.values():
        centres = _centres_mm(case)
        assert centres["face"][1] < centres["brain"][1] - 30
        assert centres["heart_ventricle_right"][1] < centres["vertebrae_T8"][1]
        assert centres["scapula_left"][1] > centres["clavicula_left"][1]


def test_volumes_are_plausible(phantoms):
    for seed, case in phantoms.items():
        counts = np.bincount(case.truth.labels_zyx.ravel(), minlength=105)
        for name, (smallest, largest) in PLAUSIBLE_ML.items():
            volume = counts[LABELS[name]] * SPACING**3 / 1000
            assert smallest < volume < largest, f"{name} of seed {seed}: {volume:.0f} ml"


def test_tissues_have_their_typical_attenuation(phantoms):
    for case in phantoms.values():
        hu, labels = case.volume.voxels_zyx, case.truth.labels_zyx

        def median(name, hu=hu, labels=labels):
            return np.median(hu[labels == LABELS[name]])

        assert median("lung_upper_lobe_left") < -700
        assert median("trachea") < -850
        assert 25 < median("liver") < 170
        assert median("femur_left") > 100
        assert median("urinary_bladder") < median("liver")
        assert hu.min() >= -1024
        assert hu.max() <= 3071


def test_seed_decides_everything():
    first, again, other = (phantom(seed, (9.0, 9.0, 9.0)) for seed in (11, 11, 12))
    assert np.array_equal(first.volume.voxels_zyx, again.volume.voxels_zyx)
    assert np.array_equal(first.truth.labels_zyx, again.truth.labels_zyx)
    assert first.patient != other.patient


def test_patient_is_independent_of_the_grid():
    """Every voxel of an oblique grid has the label of the axial grid at that position."""
    patient = Patient.from_seed(5)
    axial = grid(patient, (2.0, 2.0, 2.0), "abdomen")
    _, fine = render(patient, axial, LABELS)
    angle = np.deg2rad(17)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([4.0, -3.0, -5.0])  # rows towards anterior, planes downwards: right-handed
    shape = (40, 60, 80)
    middle = axial.affine_lps @ np.array([*(np.array(axial.shape_zyx[::-1]) / 2), 1])
    affine[:3, 3] = middle[:3] - affine[:3, :3] @ (np.array(shape[::-1]) / 2)
    oblique = Geometry(shape, affine)
    _, coarse = render(patient, oblique, LABELS)
    z, y, x = np.indices(shape)
    index = np.stack([x, y, z, np.ones(shape)]).reshape(4, -1)
    nearest = np.rint(np.linalg.inv(axial.affine_lps) @ oblique.affine_lps @ index).astype(int)[2::-1]
    inside = np.all((nearest >= 0) & (nearest < np.array(axial.shape_zyx)[:, None]), axis=0)
    there = fine[tuple(nearest[:, inside])]
    here = coarse.ravel()[inside]
    structures = here > 0
    assert structures.sum() > 20_000
    assert (there[structures] == here[structures]).mean() > 0.93  # the rest is within 2 mm of a boundary


def test_ageing_changes_aorta_and_muscle():
    """The trends examined in the age study: wider aorta, fattier back muscles."""
    patients = [Patient.from_seed(seed) for seed in range(300)]
    ages = [patient.age_years for patient in patients]
    assert np.corrcoef(ages, [patient.aorta_factor for patient in patients])[0, 1] > 0.5
    assert np.corrcoef(ages, [patient.back_muscle_hu for patient in patients])[0, 1] < -0.6


@pytest.mark.parametrize(
    ("view", "in_view", "out_of_view"),
    [("chest", "heart_myocardium", "urinary_bladder"), ("abdomen", "kidney_left", "brain")],
)
def test_fields_of_view_contain_only_their_structures(view, in_view, out_of_view):
    case = phantom(4, (6.0, 6.0, 6.0), view)
    assert (case.truth.labels_zyx == LABELS[in_view]).any()
    assert not (case.truth.labels_zyx == LABELS[out_of_view]).any()


def test_nifti_pair_keeps_positions_and_voxels(tmp_path):
    case = phantom(6, (8.0, 7.0, 9.0), "chest")
    ct, labels = (sitk.ReadImage(str(path)) for path in write_nifti(case, tmp_path))
    assert np.array_equal(sitk.GetArrayFromImage(ct), case.volume.voxels_zyx)
    assert np.array_equal(sitk.GetArrayFromImage(labels), case.truth.labels_zyx)
    corner = ct.TransformIndexToPhysicalPoint((3, 5, 7))  # SimpleITK uses LPS too
    assert np.allclose(corner, (case.volume.geometry.affine_lps @ [3, 5, 7, 1])[:3], atol=1e-3)
