"""Who is in the study: everything that is not used is listed with a reason, and the numbers add up."""

from __future__ import annotations

from collections import Counter
from datetime import date

import numpy as np
import pandas as pd
import pytest

from dicom_node.age_study import selection
from dicom_node.age_study.selection import Rules, select
from dicom_node.age_study.sources import read_source
from dicom_node.errors import ConfigurationError
from tests.support.cohort_tables import row, written


def selected(tmp_path, rows, **rules):
    return select(read_source(written(tmp_path / "rows.parquet", rows)), Rules(**rules))


def reasons_of(population):
    return {each.series: each.reason for each in population.left_out}


def test_patients_without_an_age_or_too_young_are_listed(tmp_path):
    ages = {"a": 50.0, "b": None, "c": 17.9, "d": 18.0, "e": 0.5}
    rows = [row(name, age_years=age) for name, age in ages.items()]
    population = selected(tmp_path, rows)
    assert population.patients == ("a", "d")
    assert reasons_of(population) == {
        "b-series": selection.NO_AGE,
        "c-series": "younger than 18 years",
        "e-series": "younger than 18 years",
    }
    assert selected(tmp_path, rows, youngest_years=0).patients == ("a", "c", "d", "e")


def test_one_series_of_a_patient_is_used_the_earliest_study_and_its_best_series(tmp_path):
    def series(study, name, day, structures=("aorta",), **changes):
        return [row("p", each, study=study, series=name, study_date=day, **changes) for each in structures]

    early, late = date(2016, 3, 1), date(2020, 3, 1)
    rows = [
        *series("late", "x", late, ("aorta", "liver", "spleen")),
        *series("early", "one structure", early),
        *series("early", "two, thick", early, ("aorta", "liver"), slice_thickness_mm=5.0),
        *series("early", "two, thin", early, ("aorta", "liver"), slice_thickness_mm=1.0),
        *series("early", "three, truncated", early, ("aorta", "liver", "spleen"), truncated=True),
        *series("undated", "y", None, ("aorta", "liver", "spleen")),
    ]
    population = selected(tmp_path, rows)
    assert population.series == ("two, thin",)
    assert reasons_of(population) == {
        "x": selection.OTHER_STUDY,
        "y": selection.OTHER_STUDY,
        **dict.fromkeys(("one structure", "two, thick", "three, truncated"), selection.OTHER_SERIES),
    }
    assert selected(tmp_path, rows[::-1]).series == population.series


def test_rows_of_several_models_are_refused_unless_one_is_named(tmp_path):
    rows = [
        row("a"),
        row("a", "liver", model_digest="cd" * 32),
        row("b", model_digest="cd" * 32),
        row("c", model_digest=None),
    ]
    with pytest.raises(ConfigurationError, match=r"of 3 models.*total 1 \(digest unknown\): 1 rows"):
        selected(tmp_path, rows)
    population = selected(tmp_path, rows, model_digest="cdcd")
    assert (population.patients, population.structures) == (("a", "b"), ("aorta", "liver"))
    assert population.reasons.tolist() == [[selection.ABSENT, ""], ["", selection.ABSENT]]
    assert reasons_of(population) == {"c-series": selection.OTHER_MODEL}
    assert sum(population.rows_of_other_models.values()) == 2
    with pytest.raises(ConfigurationError, match="0 models have a digest that begins with 'ee'"):
        selected(tmp_path, rows, model_digest="ee")


def test_truncated_absent_and_missing_values_are_left_out_of_their_structure_only(tmp_path):
    rows = [
        row("a"),
        row("a", "liver", truncated=True),
        row("b", truncated=None),
        row("b", "liver", volume_ml=0.0),
        row("c", volume_ml=None, mean_hu=None),
        row("d", volume_ml=None),
    ]
    population = selected(tmp_path, rows)
    assert population.reasons.tolist() == [
        ["", selection.TRUNCATED],
        [selection.TRUNCATION_UNKNOWN, selection.ABSENT],
        [selection.NO_VALUE, selection.ABSENT],
        ["", selection.ABSENT],
    ]
    assert np.isfinite(population.volume_ml).tolist() == [[True, False], [False, False], [False, False], [False, False]]
    assert np.isfinite(population.mean_hu[:, 0]).tolist() == [True, False, False, True]
    listed = Counter(each.reason for each in population.values_left_out())
    assert listed == {
        selection.ABSENT: 3,
        selection.TRUNCATED: 1,
        selection.TRUNCATION_UNKNOWN: 1,
        selection.NO_VALUE: 1,
    }
    kept = selected(tmp_path, rows, keeps_unknown_truncation=True)
    assert np.isfinite(kept.volume_ml[:, 0]).tolist() == [True, True, False, False]


def test_what_contradicts_itself_is_listed(tmp_path):
    rows = [
        row("a"),
        row("b", age_years=50.0),
        row("b", "liver", age_years=51.0),
        row("c", series="c1", sex="F"),
        row("c", series="c2", sex="M"),
        row("d", sex="M"),
        row("d", "liver", sex=None),
    ]
    population = selected(tmp_path, rows)
    assert population.patients == ("a",)
    assert reasons_of(population) == {
        "b-series": selection.AMBIGUOUS,
        "d-series": selection.AMBIGUOUS,
        "c1": selection.TWO_SEXES,
        "c2": selection.TWO_SEXES,
    }


def test_a_structure_that_is_there_twice_is_used_once_and_the_other_is_listed(tmp_path):
    rows = [row("a", volume_ml=1.0, origin="stored report"), row("a", volume_ml=2.0), row("b", volume_ml=3.0)]
    population = selected(tmp_path, rows)
    assert population.volume_ml.ravel().tolist() == [2.0, 3.0]
    assert [(each.series, each.structure, each.reason) for each in population.rows_left_out] == [
        ("a-series", "aorta", selection.REPEATED)
    ]


def test_no_patient_left_is_said_with_the_reasons(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no patient is left for the study: no age.* \(2\)"):
        selected(tmp_path, [row("a", age_years=None), row("b", age_years=None)])


def test_what_is_no_table_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="is no table of measurements"):
        read_source(tmp_path)
    file = written(tmp_path / "rows.parquet", [{**row("a")}])
    pd.read_parquet(file).drop(columns=["age_years", "sex"]).to_parquet(file)
    with pytest.raises(ConfigurationError, match="has no column age_years, sex"):
        read_source(file)
    file.write_bytes(b"PAR1")
    with pytest.raises(ConfigurationError, match="can't be read as a table of measurements"):
        read_source(file)
