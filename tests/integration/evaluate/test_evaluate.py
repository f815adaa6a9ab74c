"""dicom-node evaluate: three phantoms with the demo model, every form of segmentation, and every kind of bad input."""

from __future__ import annotations

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
import surface_distance
from click.testing import CliRunner
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from dicom_node.cli import main
from dicom_node.demo.phantom_series import write_series
from dicom_node.labelmaps import find_segmentations
from inference.phantom import phantom
from inference.structures import paper_labels

if TYPE_CHECKING:
    from pathlib import Path

MODEL = "phantom_demo_104"


def run(*arguments: object, code: int = 0) -> dict:
    done = CliRunner().invoke(main, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "cohort"
    run("dataset", "phantom", out, "--n", 3, "--spacing", 6, 6, 6, "--processes", 1)
    return out


@pytest.fixture(scope="module")
def evaluated(cohort, tmp_path_factory):
    """Evaluation of the demo model, and what the command printed."""
    out = tmp_path_factory.mktemp("evaluated")
    return out, run("evaluate", MODEL, "--truth", cohort, "--out", out, "--processes", 1)


def scores(out: Path, name: str = "scores.csv") -> list[dict[str, str]]:
    with (out / name).open() as file:
        return list(csv.DictReader(file))


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_every_score_equals_that_of_surface_distance_and_nnunet(cohort, evaluated, monkeypatch):
    """The files are read by SimpleITK, not by the node's own readers."""
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)  # surface-distance 0.1 predates numpy 2
    out, _ = evaluated
    rows = {(row["subject"], row["structure"]): row for row in scores(out)}
    assert len(rows) == 3 * 104
    for subject in ("s0001", "s0002", "s0003"):
        files = [str(cohort / subject / "labels.nii.gz"), str(out / "predictions" / f"{subject}.nii.gz")]
        of_nnunet = compute_metrics(*files, SimpleITKIO(), list(paper_labels()))["metrics"]
        images = [sitk.ReadImage(file) for file in files]
        truth, found = (sitk.GetArrayFromImage(image) for image in images)
        spacing = images[0].GetSpacing()[::-1]
        for label, name in paper_labels().items():
            row = rows[subject, name]
            distances = surface_distance.compute_surface_distances(truth == label, found == label, spacing)
            assert float(row["dice"]) == pytest.approx(of_nnunet[label]["Dice"], abs=1e-6)
            assert float(row["surface_dice"]) == pytest.approx(
                surface_distance.compute_surface_dice_at_tolerance(distances, 3.0), abs=1e-6
            )
            hd95 = surface_distance.compute_robust_hausdorff(distances, 95)
            assert float(row["hd95_mm"] or "inf") == pytest.approx(hd95, abs=1e-6)
            counts = of_nnunet[label]["n_pred"], of_nnunet[label]["n_ref"]
            assert float(row["volume_error"]) == pytest.approx((counts[0] - counts[1]) / counts[1], abs=1e-6)


def test_means_are_those_of_the_rows_and_lie_within_their_intervals(evaluated):
    out, printed = evaluated
    rows = scores(out)
    by_structure = {
        name: [float(row["dice"]) for row in rows if row["structure"] == name] for name in paper_labels().values()
    }
    overall = printed["overall"]
    assert overall["dice"] == pytest.approx(np.mean([np.mean(each) for each in by_structure.values()]))
    assert 0.6 < overall["dice_low"] < overall["dice"] < overall["dice_high"] < 1
    assert (overall["subjects"], overall["structures"]) == (3, 104)
    assert {each["name"]: each["structures"] for each in printed["groups"]} == {
        "organ": 27,
        "bone": 59,
        "muscle": 10,
        "vessel": 8,
    }
    assert {"sex", "age", "contrast", "field of view", "split"} == set(printed["by_attribute"])
    for values in printed["by_attribute"].values():
        assert sum(each["subjects"] for each in values) == 3


def test_every_table_states_what_was_scored(evaluated):
    out, printed = evaluated
    assert printed["provenance"]["data_set"] == "phantom cohort"
    assert printed["provenance"]["model"].startswith(MODEL)
    assert printed["provenance"]["resampling_order"].startswith("1 ")
    for row in [*scores(out), *scores(out, "means.csv")]:
        assert row["tool"].startswith("dicom-node evaluate")
        assert all(row[key] for key in ("data_set", "data_set_version", "software", "model", "resampling_order"))
    assert json.loads((out / "evaluation.json").read_text()) == printed
    table = pq.read_table(out / "scores.parquet").to_pylist()
    assert len(table) == 312
    assert [row["dice"] for row in table] == [float(row["dice"]) for row in scores(out)]
    assert {row["model"] for row in table} == {printed["provenance"]["model"]}


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.from_elsewhere: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.from_elsewhere += [v for k, v in attrs if k in ("src", "href", "xlink:href") and not v.startswith("#")]


def test_page_needs_no_external_resource_and_no_script(evaluated):
    out, printed = evaluated
    text = (out / "evaluation.html").read_text()
    page = Elements(text)
    assert page.from_elsewhere == []
    assert "script" not in page.names
    assert page.names.count("svg") == 2
    assert "@media print" in text
    assert f"{printed['overall']['dice']:.3f}" in text
    assert "research software" in text
    assert "not cleared or approved for clinical use" in text
    assert all(value in text for value in ("phantom cohort", MODEL, "arXiv 2208.05868"))


def test_finished_scores_are_kept_and_removed_ones_are_computed_again(cohort, evaluated, tmp_path):
    out = shutil.copytree(evaluated[0], tmp_path / "again")
    files = sorted([*out.glob("predictions/*"), *out.glob("subjects/*")])
    before = {path: path.stat().st_mtime_ns for path in files}
    lost = out / "predictions" / "s0002.nii.gz"
    lost.write_bytes(lost.read_bytes()[:100])
    again = run("evaluate", MODEL, "--truth", cohort, "--out", out, "--processes", 1)
    assert again == evaluated[1]
    changed = {path.relative_to(out).as_posix() for path in files if path.stat().st_mtime_ns != before[path]}
    assert changed == {"predictions/s0002.nii.gz", "predictions/s0002.json"}


def save(path: Path, labels_zyx: np.ndarray, like: Path) -> None:
    image = sitk.GetImageFromArray(labels_zyx)
    image.CopyInformation(sitk.ReadImage(str(like)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


NAMES = {1: "spleen", 2: "kidney_right", 3: "kidney_left", 4: "gallbladder", 5: "liver"}


@pytest.fixture
def faulty(cohort, tmp_path):
    """A folder of segmentations: one correct, one on another grid, one without a subject, one damaged."""
    folder = tmp_path / "predictions"
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(cohort / "s0001" / "labels.nii.gz")))
    labels = np.where(truth <= 3, truth, 0).astype(np.uint8)  # no gallbladder, no liver
    save(folder / "s0001.nii.gz", labels, cohort / "s0001" / "labels.nii.gz")
    save(folder / "nobody.nii.gz", labels, cohort / "s0001" / "labels.nii.gz")
    image = sitk.GetImageFromArray(labels[:, :-1])
    sitk.WriteImage(image, str(folder / "s0002.nii.gz"))
    (folder / "s0003.nii.gz").write_bytes((folder / "s0001.nii.gz").read_bytes()[:-200])
    names = {str(label): name for label, name in NAMES.items() if name != "liver"}
    (folder / "labels.json").write_text(json.dumps(names))
    return folder


def test_mismatches_are_listed_with_the_reason(cohort, faulty, tmp_path):
    content = run("evaluate", faulty, "--truth", cohort, "--out", tmp_path / "out", "--processes", 1, code=3)
    assert content["subjects"] == 1
    reasons = {each["id"]: each["reason"] for each in content["not_evaluated"]}
    assert reasons["nobody"] == "no truth for this segmentation"
    assert re.search("the segmentation has .* voxels .*, expected the CT's", reasons["s0002"])
    assert "damaged" in reasons["s0003"] or "truncated" in reasons["s0003"]
    assert reasons["liver"] == "in the truth, but no segmentation names it: not evaluated"
    assert len(reasons) == 3 + 100
    assert "s0002" in (tmp_path / "out" / "evaluation.html").read_text()


def test_missed_structure_counts_as_zero_and_missing_provenance_is_unknown(cohort, faulty, tmp_path):
    arguments = ("--structures", "spleen,gallbladder", "--software", "Program 3.1", "--processes", "1")
    content = run("evaluate", faulty, "--truth", cohort, "--out", tmp_path / "out", *arguments, code=3)
    found = {each["name"]: each for each in content["structures"]}
    assert found["spleen"]["dice"] == 1
    assert (found["gallbladder"]["dice"], found["gallbladder"]["missed"]) == (0, 1)
    assert found["gallbladder"]["hd95_mm"] is None
    assert content["overall"]["dice"] == 0.5
    provenance = content["provenance"]
    assert provenance["software"] == "Program 3.1"
    assert provenance["model"] == provenance["resampling_order"] == "unknown"


@pytest.mark.parametrize(("convention", "dice", "subjects"), [("paper", 1.0, 1), ("nnunet", 0.5, 2)])
def test_structure_absent_from_the_truth_counts_by_the_chosen_convention(tmp_path, convention, dice, subjects):
    """nnU-Net's own mean over both cases is 0.5; the paper does not count the second."""
    both = np.zeros((8, 8, 8), np.uint8)
    both[2:6, 2:6, 2:6] = 1
    for number, truth in enumerate((both, np.zeros_like(both))):
        for folder, labels in (("truth", truth), ("found", both)):
            (tmp_path / folder).mkdir(exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(labels), str(tmp_path / folder / f"{number}.nii.gz"))
    for folder in ("truth", "found"):
        (tmp_path / folder / "labels.json").write_text('{"1": "spleen"}')
    arguments = ("--convention", convention, "--processes", "1")
    content = run("evaluate", tmp_path / "found", "--truth", tmp_path / "truth", "--out", tmp_path / "out", *arguments)
    assert (content["overall"]["dice"], content["overall"]["subjects"]) == (dice, subjects)
    assert content["overall"]["invented"] == 1


def test_seg_rtstruct_and_results_of_segment_are_read(tmp_path):
    """Truth: a CT series and its SEG. Segmentations: the same as a results folder, and as contours."""
    case = phantom(7, (5.0, 5.0, 5.0), "chest")
    uid = write_series(case, tmp_path / "truth" / "ct")
    result = tmp_path / "results" / uid
    run("segment", tmp_path / "truth" / "ct", "--model", "tissue", "--out", result, "--results", "contours: [tissue]")
    by_modality = {str(pydicom.dcmread(path).Modality): path for path in result.glob("*.dcm")}
    seg, contours = by_modality["SEG"], by_modality["RTSTRUCT"]
    shutil.copy(seg, tmp_path / "truth" / "seg.dcm")
    as_contours = tmp_path / "contours"
    as_contours.mkdir()
    shutil.copy(contours, as_contours / f"{uid}.dcm")
    assert set(find_segmentations(tmp_path / "results")) == {uid}
    arguments = ("--truth", tmp_path / "truth", "--processes", "1")
    content = run("evaluate", tmp_path / "results", *arguments, "--out", tmp_path / "a", code=0)
    assert content["overall"]["dice"] == 1
    assert content["provenance"]["software"].startswith("dicom-node ")
    assert content["provenance"]["model"].startswith("tissue")
    content = run("evaluate", as_contours, *arguments, "--out", tmp_path / "b", code=0)
    assert content["overall"]["dice"] > 0.97


def test_one_split_can_be_evaluated_alone(cohort, evaluated, tmp_path):
    arguments = ("--split", "test", "--processes", "1")
    content = run("evaluate", evaluated[0] / "predictions", "--truth", cohort, "--out", tmp_path, *arguments)
    assert content["subjects"] == 1
    assert content["provenance"]["split"] == "test (1 subjects)"
    done = CliRunner().invoke(
        main, ["evaluate", MODEL, "--truth", str(cohort), "--out", str(tmp_path), "--split", "dev"]
    )
    assert done.exit_code == 1
    assert "no subject of the split 'dev' among 3" in done.output
