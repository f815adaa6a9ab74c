"""Cohorts have the requested distributions and effects of age, as measured with scipy."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from inference.errors import UnknownStructureError
from inference.phantom import Patient, render, render_truth, whole_body_grid
from inference.phantom.anatomy import tissues
from inference.phantom.cohort import Ages, CohortPlan, Effect, Target, draw_members, fitted, scores_with, true_measures
from inference.structures import paper_labels
from inference.types import InvalidValueError

LABELS = {name: label for label, name in paper_labels().items()}
SPACING = 8.0


@settings(max_examples=60, deadline=None)
@given(st.floats(-0.95, 0.95), st.integers(20, 300), st.integers(0, 9))
def test_scores_have_the_requested_rank_correlation_with_age(wanted, count, seed):
    rng = np.random.default_rng(seed)
    ages = rng.integers(20, 91, count).astype(float)
    scores = scores_with(wanted, ages, rng)
    assert spearmanr(ages, scores).statistic == pytest.approx(wanted, abs=3 / count)
    assert abs(scores.mean()) < 0.05
    assert scores.std() == pytest.approx(1, abs=0.15)


def test_attributes_have_the_requested_distributions():
    plan = CohortPlan(
        400,
        ages=Ages(30, 80, 60, 8),
        female=0.25,
        fields_of_view={"chest": 3, "abdomen": 1},
        contrast_phases={"native": 1},
        splits={"train": 0.9, "val": 0.05, "test": 0.05},
    )
    members = draw_members(plan)
    ages = np.array([member.age_years for member in members])
    assert (ages.min() >= 30, ages.max() <= 80) == (True, True)
    assert ages.mean() == pytest.approx(60, abs=2)
    assert ages.std() == pytest.approx(8, abs=1.5)
    sexes = Counter(member.sex for member in members)
    assert 70 <= sexes["F"] <= 130
    assert 60 <= Counter(member.field_of_view for member in members)["abdomen"] <= 140
    assert {member.contrast_phase for member in members} == {"native"}
    assert Counter(member.split for member in members) == {"train": 360, "val": 20, "test": 20}
    assert [member.seed for member in members] == list(range(1_000_000, 1_000_400))
    assert members == draw_members(plan)
    patient = members[7].patient()
    assert (patient.age_years, patient.sex, patient.contrast_phase) == (
        members[7].age_years,
        members[7].sex,
        "native",
    )


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_every_part_of_a_split_has_a_subject(count):
    splits = Counter(member.split for member in draw_members(CohortPlan(count)))
    assert splits.total() == count
    assert set(splits) == set(("train", "val", "test")[:count])


def test_impossible_settings_are_refused():
    for wrong, says in (
        (lambda: CohortPlan(0), "0 subjects"),
        (lambda: CohortPlan(9, effects=(Effect("aorta", "volume", 0.5),)), "effects of age need at least 10"),
        (lambda: CohortPlan(20, effects=(Effect("kidney", "hu", 0), Effect("kidney_left", "hu", 0))), "kidney_left"),
        (lambda: CohortPlan(5, female=1.5), "share of women"),
        (lambda: CohortPlan(5, splits={"train": 0}), "one of them positive"),
        (lambda: Ages(90, 20), "ages from 90 to 20"),
        (lambda: Ages(20, 90, 50, 0), "standard deviation"),
        (lambda: Effect("aorta", "volume", 0.99), r"expected -0\.95 to 0\.95"),
    ):
        with pytest.raises(InvalidValueError, match=says):
            wrong()
    with pytest.raises(UnknownStructureError, match="no structure named 'prostate'"):
        Effect("prostate", "volume", 0.5)


def test_effect_without_a_side_applies_to_both():
    assert Effect("autochthon", "hu", -0.7).structures == ("autochthon_left", "autochthon_right")
    assert Effect("aorta", "hu", -0.7).structures == ("aorta",)


def test_age_changes_only_the_structures_that_age():
    young, old = (Patient.from_seed(5, age_years=age) for age in (25, 85))
    assert old.aorta_factor > young.aorta_factor
    assert old.back_muscle_hu < young.back_muscle_hu
    same = {"age_years": 0, "aorta_factor": 0, "back_muscle_hu": 0, "bone_factor": 0}
    assert replace(old, **same) == replace(young, **same)
    drawn = Patient.from_seed(5)
    given = {"age_years": drawn.age_years, "sex": drawn.sex, "contrast_phase": drawn.contrast_phase}
    assert Patient.from_seed(5, **given) == drawn


def test_truth_is_the_same_with_and_without_a_ct():
    patient = replace(Patient.from_seed(3), hu_shifts={"spleen": 30.0}, size_factors={"liver": 0.8})
    geometry = whole_body_grid(patient, (SPACING,) * 3)
    volume, labels = render(patient, geometry, LABELS)
    truth, hu = render_truth(patient, geometry, LABELS)
    assert np.array_equal(truth, labels)
    assert hu.keys() == {name for name, label in LABELS.items() if (labels == label).any()}
    inner = labels == LABELS["spleen"]
    assert hu["spleen"] == pytest.approx(volume.voxels_zyx[inner].mean(), abs=12)  # partial volume at 8 mm
    plain = render_truth(replace(patient, hu_shifts={}), geometry, LABELS)[1]
    assert hu["spleen"] - plain["spleen"] == pytest.approx(30.0, abs=1e-3)
    assert plain["liver"] == pytest.approx(hu["liver"])
    assert hu["trachea"] == tissues()["gas"].native_hu


def test_structure_is_fitted_to_its_targets():
    (member,) = draw_members(CohortPlan(1, first_seed=77))
    before = true_measures(member.patient(), SPACING)
    wanted = (
        Target("liver", "volume", before["volume"]["liver"] * 1.3),
        Target("aorta", "volume", before["volume"]["aorta"] * 0.75),
        Target("autochthon_left", "hu", before["hu"]["autochthon_left"] - 22.0),
    )
    after = true_measures(fitted(member, wanted, SPACING), SPACING)
    assert after["volume"]["liver"] == pytest.approx(wanted[0].value, rel=0.06)
    assert after["volume"]["aorta"] == pytest.approx(wanted[1].value, rel=0.06)
    assert after["hu"]["autochthon_left"] == pytest.approx(wanted[2].value, abs=1.0)
    assert after["volume"]["brain"] == before["volume"]["brain"]
    assert after["hu"]["autochthon_right"] == pytest.approx(before["hu"]["autochthon_right"])
