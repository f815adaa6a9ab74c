"""Faults detected before a training starts that would otherwise end it after days."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from inference.errors import TrainingError
from inference.training.planning import SPLITS, DataSet, check_fold


def data_set(folder, cases, folds=None):
    if folds is not None:
        (folder / SPLITS).write_text(json.dumps([{"train": ["a"], "val": ["b"]}] * folds))
    return DataSet(folder, {}, tuple(f"s{number}" for number in range(cases)), "0" * 64)


@pytest.mark.parametrize(
    ("cases", "folds", "fold", "reason"),
    [
        (9, 1, 1, "has 1 folds, from 0; there is no fold 1"),
        (9, None, 5, "has 5 folds, from 0; there is no fold 5"),
        (4, None, 0, "4 cases, too few for nnU-Net's own 5 folds"),
    ],
)
def test_missing_fold_is_refused_before_the_training(tmp_path, cases, folds, fold, reason):
    with pytest.raises(TrainingError, match=reason):
        check_fold(data_set(tmp_path, cases, folds), fold)


@pytest.mark.parametrize(("cases", "folds", "fold"), [(9, 2, 1), (5, None, 4), (2, 1, 0), (1, None, "all")])
def test_existing_fold_is_accepted(tmp_path, cases, folds, fold):
    check_fold(data_set(tmp_path, cases, folds), fold)


def test_nnunets_own_folds_are_refused_where_a_patient_has_several_cases(tmp_path):
    described = {"cases_of_one_patient": [["s1", "s2"]]}
    data = replace(data_set(tmp_path, 9), description=described)
    with pytest.raises(TrainingError, match=r"no splits_final\.json, and several cases of one patient"):
        check_fold(data, 0)
    check_fold(data, "all")
    check_fold(replace(data_set(tmp_path, 9, 5), description=described), 0)
