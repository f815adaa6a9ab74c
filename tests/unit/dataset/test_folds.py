"""Folds for any numbers of patients and series: no patient on both sides, every case validated once, sizes close."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dicom_node.dataset.folds import FOLDS, by_patient, folds

PATIENTS = st.dictionaries(st.text("abcdef012.", min_size=1, max_size=6), st.sampled_from("ABCDEFGHIJKL"), min_size=1)
"""Whose case each is."""


@given(PATIENTS)
def test_the_cases_of_a_patient_are_on_one_side_and_every_case_is_validated_once(patients):
    made = folds(by_patient(patients, patients))
    count = len(set(patients.values()))
    assert len(made) == (min(FOLDS, count) if count > 1 else 0)
    for fold in made:
        sides = [{patients[case] for case in fold[side]} for side in ("train", "val")]
        assert all(sides)
        assert sides[0].isdisjoint(sides[1])
        assert sorted(fold["train"] + fold["val"]) == sorted(patients)
    if made:
        assert sorted(case for fold in made for case in fold["val"]) == sorted(patients)


@given(PATIENTS)
def test_folds_differ_by_the_cases_of_one_patient_at_most(patients):
    groups = by_patient(patients, patients)
    sizes = [len(fold["val"]) for fold in folds(groups)]
    if sizes:
        assert max(sizes) - min(sizes) <= max(map(len, groups))


@given(PATIENTS, st.randoms())
def test_folds_do_not_depend_on_the_order_in_which_cases_are_found(patients, random):
    cases = list(patients)
    random.shuffle(cases)
    assert folds(by_patient(cases, patients)) == folds(by_patient(sorted(patients), patients))
