"""The command on phantoms with effects that are known, and on the data set of a cohort with things to leave out."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy.stats import spearmanr

from dicom_node import __version__
from dicom_node.cli import main
from dicom_node.cohort.pseudonym import Pseudonyms
from dicom_node.cohort.subject import Dates
from dicom_node.cohort.table import CohortTable, Origin
from inference.structures import paper_labels
from tests.support.cohort_tables import DIGEST, row, written

if TYPE_CHECKING:
    from pathlib import Path

STRUCTURES = ("aorta", "autochthon_left", "liver", "spleen", "brain")


def age_study(source: Path, out: Path, *options: str) -> dict:
    call = ["cohort", "age", str(source), "--out", str(out), "--json", *options]
    done = CliRunner().invoke(main, call, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def found(content, structure, quantity="volume_ml", group="all"):
    (one,) = (
        each
        for each in content["findings"]
        if (each["structure"], each["quantity"], each["group"]) == (structure, quantity, group)
    )
    return one


def test_effects_planted_in_phantoms_are_recovered_from_their_truth(tmp_path):
    planted = ("aorta:volume:0.64", "autochthon:hu:-0.74", "spleen:volume:0")
    options = [word for effect in planted for word in ("--planted", effect)]
    cohort = [
        "dataset",
        "phantom",
        str(tmp_path / "c"),
        "--n",
        "11",
        "--truth-only",
        "--spacing",
        "9",
        "9",
        "9",
        *options,
    ]
    assert CliRunner().invoke(main, cohort, catch_exceptions=False).exit_code == 0
    content = age_study(tmp_path / "c", tmp_path / "out", "--replicates", "200")
    assert content["patients"] == 11
    assert content["provenance"]["source"] == "truth of a phantom cohort"
    assert found(content, "aorta")["r_s"] == pytest.approx(0.64, abs=0.1)
    for side in ("left", "right"):
        one = found(content, f"autochthon_{side}", "mean_hu")
        assert one["r_s"] == pytest.approx(-0.74, abs=0.1)
        assert one["ci_low"] < one["r_s"] < one["ci_high"] < 0
        assert (one["paper_r_s"], one["patients"]) == (-0.74, 11)
    spleen = found(content, "spleen")
    assert spleen["r_s"] == pytest.approx(0, abs=0.2)
    assert spleen["p_fdr"] > 0.05
    assert spleen["ci_low"] < 0 < spleen["ci_high"]


def cohort_table(folder: Path) -> Path:
    """A data set as a run writes it: 40 patients, and one series for each reason to leave it out."""
    pseudonyms = Pseudonyms.of_key(bytes(range(32)))
    table = CohortTable(folder)
    table.open_for(pseudonyms, Dates.NONE)
    random = np.random.default_rng(5)
    rows = []
    for number in range(40):
        age = float(random.integers(20, 90))
        for structure in STRUCTURES:
            volume = 100 + (age if structure == "aorta" else 0) + 10 * random.normal()
            changes = {"truncated": bool(random.random() < 0.2), "sex": "FM"[number % 2]}
            rows.append(row(f"p{number:02}", structure, age_years=age, volume_ml=volume, **changes))
    rows += [row("no age", age_years=None), row("child", age_years=7.0), row("p00", series="again", age_years=99.0)]
    rows += [row("no sex", sex=None)]
    # the part is called as a run would call it
    written(folder / "measurements" / f"{pseudonyms.uid('1')}.parquet", rows)
    table.write_reason(pseudonyms.uid("9"), "s", pseudonyms.uid("9"), Origin.COMPUTED, "refused", "4 slices")
    return folder


def test_everything_is_used_or_listed_and_the_tables_agree(tmp_path):
    out = tmp_path / "out"
    content = age_study(cohort_table(tmp_path / "cohort"), out, "--replicates", "100")
    assert (content["patients"], content["series_in_table"]) == (41, 44)
    assert sum(content["series_left_out"].values()) == 3
    with (out / "left_out.csv").open() as file:
        listed = list(csv.DictReader(file))
    assert {each["series"] for each in listed if each["what"] == "series"} == {"no age-series", "child-series", "again"}
    assert [each["reason"] for each in listed if each["what"] == "without rows"] == ["refused: 4 slices"]
    values = pd.read_parquet(out / "values_left_out.parquet")
    table = pd.read_parquet(out / "correlations.parquet")
    assert set(table.model_digest) == {DIGEST}
    for _, each in table.iterrows():
        of_group = {"all": 41, "F": 20, "M": 20}[each.group]
        assert each.patients + each.absent + each.truncated + each.truncation_unknown + each.no_value == of_group
    own = table[(table.group == "all") & (table.quantity == "volume_ml")].set_index("structure")
    for structure in STRUCTURES:
        assert (
            own.truncated[structure] == (values[values.structure == structure].reason.str.startswith("truncated")).sum()
        )
    source = pd.read_parquet(tmp_path / "cohort" / "measurements")
    adults = source[(source.age_years >= 18) & (source.series != "again")]
    aorta = adults[(adults.structure == "aorta") & ~adults.truncated]
    expected = spearmanr(aorta.age_years, aorta.volume_ml)
    assert own.r_s["aorta"] == pytest.approx(expected.statistic, abs=1e-12)
    assert own.p["aorta"] == pytest.approx(expected.pvalue, rel=1e-9)
    assert pd.read_csv(out / "correlations.csv").r_s.to_numpy() == pytest.approx(table.r_s.to_numpy(), nan_ok=True)


def test_the_page_states_model_software_research_counts_and_the_paper(tmp_path):
    out = tmp_path / "out"
    age_study(cohort_table(tmp_path / "cohort"), out, "--replicates", "100")
    page = (out / "age-study.html").read_text()
    for text in (
        "not a medical device",
        DIGEST,
        f"dicom-node {__version__}",
        "no age: it is missing, or 000Y</td><td>1<",
        "younger than 18 years</td><td>1<",
        "without measurements: refused</td><td>1<",
        "41 of 44 series",
        "<td>0.64</td>",
        "sex unknown",
    ):
        assert text in page, text
    assert page.count("<svg") == 3
    for name in ("paper", "volume_ml_over_age", "mean_hu_over_age"):
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_structure_in_few_patients_is_listed_and_not_tested(tmp_path):
    rows = [
        row(f"p{number:02}", structure, age_years=20.0 + number) for number in range(12) for structure in STRUCTURES
    ]
    rows = [each for each in rows if each["structure"] != "brain" or each["pseudonym"] < "p05"]
    content = age_study(written(tmp_path / "t.parquet", rows), tmp_path / "out", "--replicates", "100")
    brain, liver = found(content, "brain"), found(content, "liver")
    assert (brain["patients"], brain["absent"], brain["r_s"], brain["p_fdr"]) == (5, 7, None, None)
    assert (liver["patients"], liver["r_s"]) == (12, None)  # all values are equal
    assert set(paper_labels().values()) >= set(STRUCTURES)
