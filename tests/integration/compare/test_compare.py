"""dicom-node compare: small label maps with a planted difference, readers without a truth, and everything wrong."""

from __future__ import annotations

import csv
import json
import shutil
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from click.testing import CliRunner
from PIL import Image
from scipy.stats import wilcoxon

from dicom_node.cli import main
from dicom_node.demo.phantom_series import write_series
from inference.phantom import phantom

if TYPE_CHECKING:
    from pathlib import Path

NAMES = {1: "liver", 2: "spleen", 3: "aorta"}
SUBJECTS = [f"s{number:02}" for number in range(10)]


def run(*arguments: object, code: int = 0) -> dict:
    done = CliRunner().invoke(main, ["compare", *map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def refused(*arguments: object) -> str:
    done = CliRunner().invoke(main, ["compare", *map(str, arguments)])
    assert done.exit_code != 0
    assert "Traceback" not in done.output
    return done.output


def boxes(smaller: dict[int, int] | None = None) -> np.ndarray:
    """Three boxes; ``smaller``: by how many planes the boxes are cut at one side."""
    labels = np.zeros((24, 24, 24), np.uint8)
    for label in NAMES:
        first = 2 + 7 * (label - 1)
        labels[3 : 21 - (smaller or {}).get(label, 0), 3:21, first : first + 6] = label
    return labels


def save(folder: Path, labels_by_subject: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    for subject, labels in labels_by_subject.items():
        image = sitk.GetImageFromArray(labels)
        image.SetSpacing((2.0, 2.0, 2.0))
        sitk.WriteImage(image, str(folder / f"{subject}.nii.gz"))
    (folder / "labels.json").write_text(json.dumps({str(label): name for label, name in NAMES.items()}))
    return folder


def cut(seed: int, more: dict[int, int] | None = None) -> dict[str, np.ndarray]:
    """Segmentations of every subject: boxes cut by 1 to 4 planes, and by ``more`` where given."""
    random = np.random.default_rng(seed)
    return {
        subject: boxes({label: int(random.integers(1, 5)) + (more or {}).get(label, 0) for label in NAMES})
        for subject in SUBJECTS
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A truth, and three systems: A and C are alike, B always cuts more off the aorta."""
    folder = tmp_path_factory.mktemp("data")
    save(folder / "truth", dict.fromkeys(SUBJECTS, boxes()))
    save(folder / "A", cut(1))
    save(folder / "B", cut(2, {3: 5}))
    save(folder / "C", cut(3))
    return folder


@pytest.fixture(scope="module")
def compared(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    systems = [data / name for name in "ABC"]
    options = ("--processes", 1, "--software", "B=Program 3.1", "--data-set", "boxes", "--data-set-version", "1")
    return out, run(*systems, "--truth", data / "truth", "--out", out, *options)


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.from_elsewhere: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        sources = [value for key, value in attrs if key in ("src", "href", "xlink:href")]
        self.from_elsewhere += [each for each in sources if not each.startswith(("#", "data:image/png;base64,"))]


def test_the_planted_difference_is_found_and_no_other(compared):
    _, printed = compared
    better = {
        (row["first"], row["second"], row["name"]): row["better"]
        for row in printed["differences"]
        if row["measure"] == "dice" and row["of"] == "structure" and row["better"]
    }
    assert better == {("A", "B", "aorta"): "A", ("B", "C", "aorta"): "C"}


def test_tables_hold_what_scipy_finds_in_the_files_themselves(data, compared):
    """Dice from SimpleITK's arrays, the test from scipy."""
    out, printed = compared
    assert json.loads((out / "comparison.json").read_text()) == printed
    dice = {name: [] for name in "AB"}
    for name, values in dice.items():
        for subject in SUBJECTS:
            found = sitk.GetArrayFromImage(sitk.ReadImage(str(data / name / f"{subject}.nii.gz"))) == 3
            values.append(2 * (found & (boxes() == 3)).sum() / (found.sum() + (boxes() == 3).sum()))
    (row,) = [
        row
        for row in table(out / "differences.csv")
        if (row["first"], row["second"], row["measure"], row["name"]) == ("A", "B", "dice", "aorta")
    ]
    differences = np.subtract(dice["A"], dice["B"])
    assert float(row["difference"]) == pytest.approx(differences.mean())
    assert float(row["p"]) == pytest.approx(wilcoxon(differences).pvalue)
    assert float(row["effect"]) == 1
    rows = pq.read_table(out / "differences.parquet").to_pylist()
    assert [each["p"] for each in rows] == [float(each["p"]) for each in table(out / "differences.csv")]
    scores = pq.read_table(out / "scores.parquet").to_pylist()
    assert {(each["system"], each["subject"]) for each in scores} == {(a, b) for a in "ABC" for b in SUBJECTS}


def test_every_table_says_what_its_figures_are_of(compared):
    out, printed = compared
    assert printed["provenance"]["software"] == "A: unknown; B: Program 3.1; C: unknown"
    assert printed["provenance"]["data_set"] == "boxes"
    for row in [*table(out / "differences.csv"), *table(out / "scores.csv")]:
        assert all(row[key] for key in ("data_set", "data_set_version", "software", "model", "resampling_order"))
        assert row["tool"].startswith("dicom-node ")
    assert "boxes" in (out / "figures" / "subjects.svg").read_text()


def test_the_page_needs_nothing_from_elsewhere_and_says_that_it_is_research(compared):
    out, printed = compared
    text = (out / "comparison.html").read_text()
    page = Page(text)
    assert page.from_elsewhere == []
    assert "script" not in page.names
    assert page.names.count("svg") == 4  # the subjects, and three pairs
    assert "research software" in text
    assert "not cleared or approved for clinical use" in text
    assert all(printed["provenance"][key] in text for key in ("data_set", "software", "tool"))


def test_evaluations_are_compared_as_they_are(compared, tmp_path):
    """Without the truth and the segmentations, and with the same result."""
    out, printed = compared
    again = run(*[out / "systems" / name for name in "ABC"], "--out", tmp_path)
    assert again["differences"] == printed["differences"]
    assert not (tmp_path / "systems").exists()


def test_what_has_no_pair_is_listed_with_the_reason(data, tmp_path):
    other = shutil.copytree(data / "B", tmp_path / "B")
    (other / "s03.nii.gz").unlink()
    sitk.WriteImage(sitk.GetImageFromArray(boxes()[:, :-1]), str(other / "s04.nii.gz"))
    (other / "s05.nii.gz").write_bytes((data / "B" / "s05.nii.gz").read_bytes()[:60])
    names = {"1": "liver", "2": "spleen", "3": "portal_vein"}
    (other / "labels.json").write_text(json.dumps(names))
    arguments = ("--truth", data / "truth", "--out", tmp_path / "out", "--processes", 1)
    content = run(data / "A", other, *arguments, code=3)
    reasons = [(each["id"], each["reason"]) for each in content["not_compared"]]
    assert ("s03", "B: no segmentation of this subject") in reasons
    assert any(name == "s04" and "expected the CT's" in reason for name, reason in reasons)
    assert any(name == "s05" and "B: " in reason for name, reason in reasons)
    assert ("aorta", "scored for A only, so not compared with B") in reasons
    for subject in ("s03", "s04", "s05"):
        assert (subject, "scored for A only, so not compared with B") in reasons
    rows = {row["name"]: row for row in content["differences"] if row["measure"] == "dice"}
    assert (rows["liver"]["subjects"], rows["aorta"]["subjects"], rows["aorta"]["p"]) == (7, 0, None)


def test_systems_that_were_evaluated_in_different_ways_are_refused(data, compared, tmp_path):
    evaluated = compared[0] / "systems" / "A"
    arguments = ("--truth", data / "truth", "--tolerance", 1, "--data-set", "boxes", "--data-set-version", 1)
    said = refused(evaluated, data / "B", *arguments, "--processes", 1, "--out", tmp_path)
    assert "B was evaluated with tool" in said


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["A"], "1 given, expected at least 2"),
        (["A", "A"], "would both be called A"),
        (["A", "nothing"], "no model or folder of a model is named 'nothing'"),
        (["A", "phantom_demo_104"], "--images is needed"),
        (["A", "B", "--software", "D=x"], "expected NAME=TEXT with one of A, B"),
        (["A", "B", "--truth", "truth", "--images", "truth"], "--images is for comparisons without --truth"),
    ],
)
def test_bad_input_is_refused_with_what_was_seen(data, tmp_path, arguments, reason, monkeypatch):
    monkeypatch.chdir(data)
    assert reason in " ".join(refused(*arguments, "--out", tmp_path / "out").split())


# ---- without a truth


@pytest.fixture(scope="module")
def readers(data, tmp_path_factory):
    """A, B and C as readers; in s07, C has marked the spleen at a wrong place."""
    folder = tmp_path_factory.mktemp("readers")
    other = shutil.copytree(data / "C", folder / "C")
    labels = cut(3)["s07"]
    labels[labels == 2] = 0
    labels[3:6, 3:21, 9:15] = 2
    save(folder / "new", {"s07": labels})
    shutil.copy(folder / "new" / "s07.nii.gz", other / "s07.nii.gz")
    out = folder / "out"
    return out, run(data / "A", data / "B", other, "--out", out, "--processes", 1)


def test_agreement_is_that_of_the_files(data, readers):
    out, printed = readers
    arrays = {
        name: [sitk.GetArrayFromImage(sitk.ReadImage(str(data / name / f"{subject}.nii.gz"))) for subject in SUBJECTS]
        for name in "AB"
    }
    expected = {}
    for label, structure in NAMES.items():
        dice = [
            2 * ((one == label) & (other == label)).sum() / ((one == label).sum() + (other == label).sum())
            for one, other in zip(*arrays.values(), strict=True)
        ]
        expected[structure] = np.mean(dice)
    (pair,) = [each for each in printed["pairs"] if (each["first"], each["second"]) == ("A", "B")]
    assert {each["name"]: each["dice"] for each in pair["structures"]} == pytest.approx(expected)
    assert pair["overall"]["dice"] == pytest.approx(np.mean(list(expected.values())))
    assert len(table(out / "agreement.csv")) == 3 * 10 * 3
    assert len(pq.read_table(out / "agreement.parquet").to_pylist()) == 90


def test_the_planted_outlier_is_found_and_shown(readers):
    out, printed = readers
    found = {(each["subject"], each["structure"], each["first"], each["second"]) for each in printed["outliers"]}
    assert found == {("s07", "spleen", "A", "C"), ("s07", "spleen", "B", "C")}
    pictures = sorted((out / "outliers").iterdir())
    assert len(pictures) == 2
    pixels = np.asarray(Image.open(pictures[0]).convert("RGB")).astype(int)
    blue = (pixels[..., 2] > pixels[..., 0] + 60).sum()
    orange = (pixels[..., 0] > pixels[..., 2] + 60).sum()
    assert blue > 500  # what only A marked
    text = (out / "comparison.html").read_text()
    page = Page(text)
    assert page.names.count("img") == 2
    assert page.from_elsewhere == []
    assert "not cleared or approved for clinical use" in text
    assert "median absolute deviations" in text
    assert orange < blue  # C marked three planes, A at least twelve


def test_each_reader_against_the_others_and_pairs_against_pairs(readers):
    _, printed = readers
    dice = {(each["first"], each["second"]): each["overall"]["dice"] for each in printed["pairs"]}
    others = {each["name"]: each["dice"] for each in printed["each_against_the_others"]}
    assert others["A"] == pytest.approx((dice["A", "B"] + dice["A", "C"]) / 2)
    assert others["B"] == pytest.approx((dice["A", "B"] + dice["B", "C"]) / 2)
    (row,) = [
        row
        for row in printed["differences"]
        if (row["first"], row["second"], row["measure"], row["name"]) == ("A and B", "A and C", "dice", "aorta")
    ]
    assert row["better"] == "A and C"  # B always cut more off the aorta


def test_agreement_by_subject_attribute_is_that_of_the_rows(data, tmp_path):
    """Sex, age and split in meta.csv of the CTs; of one subject nothing is known."""
    images = tmp_path / "images"
    lines = ["image_id;age;gender;split"]
    for number, subject in enumerate(SUBJECTS):
        (images / subject).mkdir(parents=True)
        image = sitk.GetImageFromArray(np.full((24, 24, 24), 40, np.int16))
        image.SetSpacing((2.0, 2.0, 2.0))
        sitk.WriteImage(image, str(images / subject / "ct.nii.gz"))
        lines.append(f"{subject};{35 + 5 * number};{'mf'[number % 2]};{'test' if number < 3 else 'train'}")
    (images / "meta.csv").write_text("\n".join(lines[:-1]) + "\n")
    out = tmp_path / "out"
    arguments = [data / "A", data / "B", "--images", images, "--out", out, "--processes", 1, "--replicates", 100]
    done = CliRunner().invoke(main, ["compare", *map(str, arguments)], catch_exceptions=False, env={"COLUMNS": "120"})
    assert done.exit_code == 0
    assert "Agreement by subject attribute" in done.stdout
    assert "age: under 40" in done.stdout
    rows = pq.read_table(out / "agreement.parquet").to_pylist()
    (pair,) = json.loads((out / "comparison.json").read_text())["pairs"]
    assert pair["by_attribute"].keys() == {"split", "sex", "age"}
    assert [row["name"] for row in pair["by_attribute"]["age"]] == ["under 40", "40 to 59", "60 to 79", "unknown"]
    for attribute, means in pair["by_attribute"].items():
        by_value: dict[str, list[float]] = {}
        for row in rows:
            by_value.setdefault(row[attribute] or "unknown", []).append(row["dice"])
        expected = {value: np.mean(dice) for value, dice in by_value.items()}
        assert {row["name"]: row["dice"] for row in means} == pytest.approx(expected)
        assert sum(row["subjects"] for row in means) == len(SUBJECTS)
    assert {row["age"] for row in rows} == {"under 40", "40 to 59", "60 to 79", None}
    in_csv = {(row["of"], row["name"]) for row in table(out / "means.csv")}
    assert {("sex", "M"), ("sex", "F"), ("sex", "unknown"), ("age", "60 to 79")} <= in_csv
    listed = table(out / "agreement.csv")
    assert {row["evaluated_split"] for row in listed} == {"all (none 1, test 3, train 6)"}
    assert {row["split"] for row in listed if row["subject"] == "s02"} == {"test"}
    text = (out / "comparison.html").read_text()
    assert "<h2>A and B: by sex</h2>" in text
    assert "<h2>A and B: by age</h2>" in text
    figure = (out / "figures" / "A B subjects.svg").read_text()
    assert "sex: M (n = 5)" in figure
    assert "research software" in figure


def test_two_readers_have_no_others_and_what_only_one_has_is_listed(data, tmp_path):
    other = shutil.copytree(data / "B", tmp_path / "B")
    (other / "s03.nii.gz").unlink()
    sitk.WriteImage(sitk.GetImageFromArray(boxes()[:, :-1]), str(other / "s04.nii.gz"))
    (other / "labels.json").write_text(json.dumps({"1": "liver", "2": "spleen", "3": "portal_vein"}))
    content = run(data / "A", other, "--out", tmp_path / "out", "--processes", 1, code=3)
    reasons = {each["id"]: each["reason"] for each in content["not_compared"]}
    assert reasons["s03"] == "no segmentation by B, so not compared with A"
    assert "voxels" in reasons["s04"]
    assert reasons["aorta"] == "A and B: not compared, never named by B"
    assert reasons["portal_vein"] == "A and B: not compared, never named by A"
    assert content["each_against_the_others"] == content["differences"] == []
    assert content["pairs"][0]["subjects"] == 8


def test_segs_are_paired_by_their_series_and_models_segment_the_images(tmp_path):
    """Two SEGs of one CT under names of their own, without the CT; then one of them against the model that made it."""
    case = phantom(7, (6.0, 6.0, 6.0), "chest")
    write_series(case, tmp_path / "ct")
    for name in ("one", "other"):
        done = CliRunner().invoke(
            main,
            ["segment", str(tmp_path / "ct"), "--model", "tissue", "--out", str(tmp_path / name)],
            catch_exceptions=False,
        )
        assert done.exit_code == 0, done.output
        (seg,) = [path for path in tmp_path.joinpath(name).rglob("*.dcm") if pydicom.dcmread(path).Modality == "SEG"]
        (tmp_path / f"{name} segs").mkdir()
        shutil.copy(seg, tmp_path / f"{name} segs" / f"file of {name}.dcm")
    segs = [f"{name}={tmp_path / f'{name} segs'}" for name in ("one", "other")]
    content = run(*segs, "--out", tmp_path / "out", "--processes", 1)
    assert content["pairs"][0]["overall"]["dice"] == 1
    content = run(segs[0], "tissue", "--images", tmp_path / "ct", "--out", tmp_path / "b", "--processes", 1)
    assert content["pairs"][0]["overall"]["dice"] == 1
    assert "tissue: dicom-node" in content["provenance"]["software"]
