"""The file of percentiles is read as it was written, and refused if anything is wrong with it; values are placed."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.dataset.files import digest_of
from dicom_node.errors import ConfigurationError
from dicom_node.percentiles import PERCENTILES, Curve, NoCurve, OfModel, read_percentiles
from inference.types import InvalidValueError
from tests.support.reference_percentiles import references, written

DIGEST = "ab" * 32
CURVE = Curve(
    structure="aorta",
    quantity="volume_ml",
    sex="F",
    patients=120,
    ages_years=(50, 51, 53),
    patients_near=(30, 31, 33),
    values=tuple((each * 1.0, each * 2.0, each * 3.0) for each in (10, 20, 30, 40, 40, 40, 50)),
)
REFERENCES = references(
    (CURVE,),
    created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    left_out=(NoCurve(structure="aorta", quantity="volume_ml", sex="M", patients=80, reason="few"),),
)


def test_what_is_read_is_what_was_written(tmp_path):
    written(tmp_path / "p.json", REFERENCES)
    assert read_percentiles(tmp_path / "p.json", DIGEST) == REFERENCES
    content = json.loads((tmp_path / "p.json").read_text())
    assert content["sha256"] == REFERENCES.digest()
    assert (content["schema_name"], content["schema_version"]) == ("dicom-node reference percentiles", 1)
    assert content["created_at"] == "2026-01-02T03:04:05Z"
    assert "not a norm" in content["statement"]


@pytest.mark.parametrize(
    ("value", "age", "expected"),
    [
        (9.99, 50, "<3"),
        (10, 50, 3),
        (15, 50, 6.5),
        (30, 50, 25),
        (40, 50, 70),  # the curves of 50, 75 and 90 are 40 there
        (45, 50, 93.5),
        (50, 50, 97),
        (50.01, 50, ">97"),
        (22.5, 50.5, 6.5),
        (100, 51, 97),
        (100, 51.5, None),  # 52 is not in the curve
        (100, 49.9, None),
        (100, 53.1, None),
        (100, float("nan"), None),
    ],
)
def test_a_value_is_placed_between_the_curves(value, age, expected):
    assert REFERENCES.percentile_of("aorta", "volume_ml", value, age, "F") == expected


@pytest.mark.parametrize(("age", "near"), [(50, 30), (50.4, 30), (50.6, 31), (53, 33), (52, None), (60, None)])
def test_patients_near_are_those_of_the_nearest_whole_year(age, near):
    assert CURVE.near(age) == near


def test_without_a_curve_there_is_no_percentile():
    assert REFERENCES.percentile_of("aorta", "volume_ml", 20.0, 50, "M") is None
    assert REFERENCES.percentile_of("liver", "volume_ml", 20.0, 50, "F") is None
    with pytest.raises(InvalidValueError, match="'female': expected one of"):
        REFERENCES.percentile_of("aorta", "volume_ml", 20.0, 50, "female")
    with pytest.raises(InvalidValueError, match="must be finite, not nan"):
        REFERENCES.percentile_of("aorta", "volume_ml", float("nan"), 50, "F")


@given(
    rows=st.lists(st.lists(st.floats(-1e6, 1e6), min_size=7, max_size=7).map(sorted), min_size=2, max_size=2),
    values=st.lists(st.floats(-2e6, 2e6), min_size=2, max_size=2).map(sorted),
    age=st.floats(60, 61),
)
def test_a_larger_value_never_has_a_lower_percentile(rows, values, age):
    curve = CURVE.model_copy(update={"ages_years": (60, 61), "values": tuple(zip(*rows, strict=True))})
    low, high = ({"<3": 0, ">97": 100}.get(each, each) for each in (curve.percentile_of(v, age) for v in values))
    assert 0 <= low <= high <= 100
    at = curve.at(age)
    if len(set(at)) == len(at):
        placed = [curve.percentile_of(value, age) for value in at]
        np.testing.assert_allclose(placed, PERCENTILES)


def changed(folder, change, *, signed=True):
    content = REFERENCES.model_dump(mode="json")
    digest = digest_of(content)
    change(content)
    file = folder / "p.json"
    file.write_text(json.dumps({**content, "sha256": digest_of(content) if signed else digest}))
    return file


def curve_with(**changes):
    return lambda content: content["curves"][0].update(changes)


FLAT = [[1.0, 1.0, 1.0]] * 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(schema_name="percentiles of others"), "has the schema 'percentiles of others', expected"),
        (lambda c: c.update(schema_version=2), "has version 2 of the schema, expected 1"),
        (lambda c: c.update(note=""), "note: Extra inputs are not permitted"),
        (lambda c: c.pop("statement"), "statement: Field required"),
        (lambda c: c["sample"].update(source_digest="12"), "sample.source_digest: String should match"),
        (lambda c: c.update(percentiles=[5, 10, 25, 50, 75, 90, 95]), r"are \(5, 10.*expected \(3, 10"),
        (lambda c: c["curves"].append(c["curves"][0]), "must be there once only"),
        (curve_with(patients=119), "has 119 patients, expected 120 to 240"),
        (curve_with(patients=241), "has 241 patients, expected 120 to 240"),
        (curve_with(sex="W"), "curves.0.sex: Input should be 'all', 'F' or 'M'"),
        (curve_with(ages_years=[50, 50, 53]), "ages_years must have at least one age, and ascend"),
        (curve_with(ages_years=[], patients_near=[], values=[[]] * 7), "at least one age"),
        (curve_with(ages_years=[50, 51.5, 53]), "curves.0.ages_years.1: Input should be a valid integer"),
        (curve_with(ages_years=[50, 51]), "must have 2 entries, one for each age"),
        (curve_with(values=[[1, 1, 1]] * 7), "its values are not written as by dicom-node"),
        (lambda c: c.update(created_at="2026-01-02T03:04:05+00:00"), "its values are not written as by dicom-node"),
        (lambda c: c["sample"].update(cohort=""), "sample.cohort: String should have at least 1 character"),
        (lambda c: c["sample"].update(cohort="x" * 65), "sample.cohort: String should have at most 64"),
        (curve_with(values=FLAT[1:]), "6 rows of values, expected 7"),
        (curve_with(values=[[2.0, 1.0, 1.0], *FLAT[1:]]), "must not fall from one percentile to the next"),
        (curve_with(values=[[float("nan"), 1.0, 1.0], *FLAT[1:]]), "curves.0.values.0.0: Input should be a finite"),
    ],
)
def test_a_file_with_anything_else_is_refused(tmp_path, change, message):
    with pytest.raises(ConfigurationError, match=message):
        read_percentiles(changed(tmp_path, change))


def test_a_changed_number_is_detected(tmp_path):
    file = changed(tmp_path, curve_with(patients=121), signed=False)
    with pytest.raises(ConfigurationError, match="was changed after it was written"):
        read_percentiles(file)


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"schema_name": "x"}', "\udce9"])
def test_what_is_no_such_document_is_refused(tmp_path, text):
    (tmp_path / "p.json").write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigurationError, match="is no file of reference percentiles"):
        read_percentiles(tmp_path / "p.json")


def test_percentiles_of_another_model_are_refused(tmp_path):
    written(tmp_path / "p.json", REFERENCES)
    with pytest.raises(ConfigurationError, match=f"digest {DIGEST}, expected {'ef' * 32}: values of different models"):
        read_percentiles(tmp_path / "p.json", "ef" * 32)
    unknown = references((CURVE,), model=OfModel(name="total", version="1", digest=""))
    written(tmp_path / "u.json", unknown)
    assert read_percentiles(tmp_path / "u.json") == unknown
    for digest in (DIGEST, ""):
        with pytest.raises(ConfigurationError, match="digest unknown, expected"):
            read_percentiles(tmp_path / "u.json", digest)
