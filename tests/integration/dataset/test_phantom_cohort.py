"""Cohorts on disk: readable by others, identical after a kill, with the planted effects."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import spearmanr

from dicom_node.cli import main
from dicom_node.labelmaps import find_subjects
from inference.structures import paper_labels

SMALL = ("--spacing", "9", "9", "9", "--processes", "2")


def made(out: Path, *options: str) -> dict:
    done = CliRunner().invoke(main, ["dataset", "phantom", str(out), "--json", *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def rows(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def digests(out: Path) -> dict[str, str]:
    return {
        name: digest
        for path in sorted((out / "truth").glob("*.json"))
        for name, digest in json.loads(path.read_text())["sha256"].items()
    }


def test_planted_effects_are_in_the_truth(tmp_path):
    planted = ("aorta:volume:0.64", "autochthon:hu:-0.74", "spleen:volume:0")
    options = [word for effect in planted for word in ("--planted", effect)]
    manifest = made(tmp_path / "c", "--n", "11", "--truth-only", *SMALL, *options)
    assert not list((tmp_path / "c").glob("s*/*"))
    ages = {row["image_id"]: int(row["age"]) for row in rows(tmp_path / "c" / "meta.csv", ";")}
    truth = rows(tmp_path / "c" / "truth.csv")
    for structure, column, wanted in (
        ("aorta", "volume_ml", 0.64),
        ("autochthon_left", "mean_hu", -0.74),
        ("autochthon_right", "mean_hu", -0.74),
        ("spleen", "volume_ml", 0.0),
    ):
        own = [row for row in truth if row["structure"] == structure]
        assert len(own) == 11
        found = spearmanr([ages[row["image_id"]] for row in own], [float(row[column]) for row in own]).statistic
        assert found == pytest.approx(wanted, abs=0.1), structure
        (stated,) = [each for each in manifest["effects"] if each["structure"] == structure]
        assert stated["spearman_in_truth"] == pytest.approx(found, abs=1e-4)


def test_cohort_is_a_data_set_whose_truth_matches_its_files(tmp_path):
    made(tmp_path, "--n", "2", "--field-of-view", "chest", "--masks", "--contrast", "native", *SMALL)
    found = find_subjects(tmp_path)
    assert (found.layout, len(found.subjects), found.left_out) == ("published", 2, ())
    subject = found.subjects[0]
    meta = rows(tmp_path / "meta.csv", ";")[0]
    assert (subject.age_years, subject.sex) == (float(meta["age"]), meta["gender"].upper())
    volume = subject.image.read()
    label_map = subject.read_labels(volume.geometry)
    assert sorted(label_map.names_by_label.values()) == sorted(paper_labels().values())
    ct = nib.load(tmp_path / subject.id / "ct.nii.gz")
    assert nib.aff2axcodes(ct.affine) == ("L", "P", "S")
    for row in rows(tmp_path / "truth.csv"):
        if row["image_id"] != subject.id:
            continue
        mask = nib.load(tmp_path / subject.id / "segmentations" / f"{row['structure']}.nii.gz")
        assert np.array_equal(mask.affine, ct.affine)
        inside = np.asanyarray(mask.dataobj) == 1
        assert inside.sum() * 0.729 == pytest.approx(float(row["volume_ml"]), rel=1e-6)
        assert ct.get_fdata()[inside].mean() == pytest.approx(float(row["mean_hu"]), abs=1e-3)


def test_killed_cohort_is_resumed_with_the_same_result(tmp_path):
    options = ["--n", "4", "--field-of-view", "abdomen", *SMALL]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    made(whole, *options)
    command = [sys.executable, "-m", "dicom_node.cli", "dataset", "phantom", str(killed), *options]
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(killed.glob("truth/*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while any(_is_alive(int(child)) for child in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_is_alive(int(child)) for child in children), "workers outlive the command"
    before = {path.name: path.stat().st_mtime_ns for path in killed.glob("truth/*.json")}
    assert len(before) > 0
    made(killed, *options)
    assert digests(killed) == digests(whole)
    assert len(digests(whole)) == 8
    for name in ("meta.csv", "truth.csv", "manifest.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert {name: (killed / "truth" / name).stat().st_mtime_ns for name in before} == before, "made once"


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_changed_settings_regenerate_the_subjects(tmp_path):
    made(tmp_path, "--n", "1", "--field-of-view", "head_neck", *SMALL)
    first = digests(tmp_path)
    made(tmp_path, "--n", "1", "--field-of-view", "head_neck", "--ages", "80-90", *SMALL)
    assert digests(tmp_path) != first


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--n", "3", "--ages", "old"], "expected a form such as 20-90 or 20-90:62:15"),
        (["--n", "3", "--ages", "90-20"], "ages from 90 to 20"),
        (["--n", "3", "--field-of-view", "toe"], "'toe', expected whole, head_neck"),
        (["--n", "3", "--contrast", "native:much"], "'much' is not a number"),
        (["--n", "20", "--planted", "aorta:width:0.5"], "expected a form such as aorta:volume:0.64"),
        (["--n", "20", "--planted", "nose:volume:0.5"], "no structure named 'nose'"),
        (["--n", "3", "--planted", "aorta:volume:0.5"], "effects of age need at least 10"),
        (["--n", "20", "--ages", "50-50", "--planted", "aorta:volume:0.5"], "every subject is 50 years old"),
    ],
)
def test_impossible_settings_are_a_usage_error(tmp_path, options, says):
    done = CliRunner().invoke(main, ["dataset", "phantom", str(tmp_path / "c"), *options])
    assert done.exit_code == 2
    assert says in " ".join(done.output.replace("│", " ").split())
    assert not (tmp_path / "c").exists()


def test_folder_with_other_files_is_left_untouched(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    done = CliRunner().invoke(main, ["dataset", "phantom", str(tmp_path), "--n", "1"])
    assert done.exit_code == 1
    assert "contains files, but no phantom cohort" in done.output
