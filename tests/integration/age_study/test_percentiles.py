"""The command on tables whose distribution is known, with patients and values to leave out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy.stats import norm

from dicom_node import __version__
from dicom_node.cli import main
from dicom_node.percentiles import PERCENTILES, read_percentiles
from tests.support.cohort_tables import DIGEST, row, written

if TYPE_CHECKING:
    from pathlib import Path

PATIENTS = 800


def percentiles(source: Path, out: Path, *options: str) -> dict:
    call = ["cohort", "percentiles", str(source), "--out", str(out), "--json", *options]
    done = CliRunner().invoke(main, call, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def median_volume_ml(age, sex):
    return (60 if sex == "F" else 90) * np.exp(age / 100)


def table(folder: Path, patients: int = PATIENTS) -> Path:
    """Log-normal volumes that differ by sex, normal HU; a tenth is truncated, most have no spleen."""
    random = np.random.default_rng(11)
    rows = []
    for number in range(patients):
        age, sex = float(random.integers(20, 85)), "FM"[number % 2]
        values = {
            "volume_ml": float(median_volume_ml(age, sex) * np.exp(0.2 * random.normal())),
            "mean_hu": float(60 - 0.5 * age + 8 * random.normal()),
            "truncated": bool(random.random() < 0.1),
        }
        rows.append(row(f"p{number:03}", "aorta", age_years=age, sex=sex, **values))
        if number < 50:
            rows.append(row(f"p{number:03}", "spleen", age_years=age, sex=sex))
    rows += [row("no age", age_years=None), row("child", age_years=7.0, volume_ml=1.0), row("p000", series="again")]
    return written(folder / "t.parquet", rows)


def test_percentiles_of_a_known_distribution_are_recovered_by_sex(tmp_path):
    percentiles(table(tmp_path), tmp_path / "p.json")
    references = read_percentiles(tmp_path / "p.json", DIGEST)
    share = np.array(PERCENTILES) / 100
    for sex in ("F", "M"):
        volumes = references.curve("aorta", "volume_ml", sex)
        ages = np.array(volumes.ages_years)
        below = norm.cdf(np.log(np.array(volumes.values) / median_volume_ml(ages, sex)) / 0.2)
        hu = np.array(references.curve("aorta", "mean_hu", sex).values)
        below_hu = norm.cdf((hu - 60 + 0.5 * ages) / 8)
        error = np.sqrt(share * (1 - share) / (volumes.patients / 4))
        for each in (below, below_hu):
            assert (np.abs(each.mean(axis=1) - share) < 3 * error).all()
            assert (np.diff(each, axis=0) >= 0).all()
        assert references.percentile_of("aorta", "volume_ml", median_volume_ml(50, sex), 50.0, sex) == pytest.approx(
            50, abs=12
        )
    # of all, the median woman is below the middle, the median man above it
    woman, man = (references.percentile_of("aorta", "volume_ml", median_volume_ml(50, s), 50.0, "all") for s in "FM")
    assert woman < 35
    assert man > 65


def test_who_is_in_it_is_as_in_the_age_study_and_counted(tmp_path):
    source = table(tmp_path)
    facts = percentiles(source, tmp_path / "p.json")
    references = read_percentiles(tmp_path / "p.json")
    study = ["cohort", "age", str(source), "--out", str(tmp_path / "age"), "--json", "--replicates", "100"]
    done = CliRunner().invoke(main, study, catch_exceptions=False)
    age = json.loads(done.stdout)
    for key in ("patients", "series_in_table", "series_left_out", "rows_left_out", "contrast"):
        assert facts[key] == age[key], key
    assert (facts["patients"], sum(facts["series_left_out"].values())) == (PATIENTS, 3)
    rows = pd.read_parquet(source)
    whole = rows[(rows.structure == "aorta") & ~rows.truncated & (rows.age_years >= 18) & (rows.series != "again")]
    for sex, own in (("all", whole), ("F", whole[whole.sex == "F"]), ("M", whole[whole.sex == "M"])):
        curve = references.curve("aorta", "volume_ml", sex)
        assert curve.patients == len(own)
        assert own.age_years.min() <= curve.ages_years[0] <= curve.ages_years[-1] <= own.age_years.max()
        near = [int((np.abs(own.age_years - each) <= 5).sum()) for each in curve.ages_years]
        assert list(curve.patients_near) == near
        assert min(near) >= 10
    assert {each.structure: each.reason for each in references.left_out} == {
        "spleen": "25 patients have a value, expected at least 120"
    }
    reasons = {reason.partition(":")[0]: count for reason, count in references.sample.values_left_out.items()}
    assert reasons == {"absent": PATIENTS - 50, "truncated": PATIENTS - len(whole)}
    assert (references.node_version, references.model.digest) == (__version__, DIGEST)


def test_the_digest_of_the_source_is_that_of_its_content(tmp_path):
    source = table(tmp_path, patients=20)
    first = percentiles(source, tmp_path / "1.json")["source_digest"]
    assert percentiles(source.rename(tmp_path / "other.parquet"), tmp_path / "2.json")["source_digest"] == first
    (tmp_path / "more").mkdir()
    assert percentiles(table(tmp_path / "more", patients=21), tmp_path / "3.json")["source_digest"] != first


def test_ages_with_few_patients_near_and_equal_values_have_no_curve(tmp_path):
    random = np.random.default_rng(2)
    ages = np.r_[random.integers(30, 40, 100), random.integers(70, 80, 100), [20, 95]].astype(float)
    rows = [
        row(f"p{number:03}", age_years=age, volume_ml=100 + random.random(), mean_hu=40.0)
        for number, age in enumerate(ages)
    ]
    percentiles(written(tmp_path / "t.parquet", rows), tmp_path / "p.json")
    references = read_percentiles(tmp_path / "p.json")
    volumes = references.curve("aorta", "volume_ml", "F")
    assert not {20, 50, 55, 60, 95} & set(volumes.ages_years)
    assert {30, 39, 70, 79} <= set(volumes.ages_years)
    assert references.percentile_of("aorta", "volume_ml", 100.5, 55.0, "F") is None
    reasons = {(each.quantity, each.sex): each.reason for each in references.left_out}
    assert reasons["mean_hu", "F"] == "all values are equal"
    assert reasons["volume_ml", "M"] == "0 patients have a value, expected at least 120"
