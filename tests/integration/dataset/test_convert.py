"""Conversion of data sets on disk: equal to nibabel and scipy, readable by nnU-Net, and every fault named."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from click.testing import CliRunner
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from nnunetv2.utilities.utils import get_identifiers_from_splitted_dataset_folder
from scipy.ndimage import zoom

from dicom_node.cli import main
from dicom_node.encode.run import encode
from dicom_node.labelmaps import find_subjects
from dicom_node.reconstruct import reconstruct
from dicom_node.types import ResultRequest, SegmentationForm
from inference.parts import parts, total
from tests.support import ct_series
from tests.support.analysis_results import CONTEXT, measured, segmentation

if TYPE_CHECKING:
    from pathlib import Path

AFFINE = np.array([[-2.0, 0, 0, 31.5], [0, -2.0, 0, 17.25], [0, 0, 2.5, -310.0], [0, 0, 0, 1.0]])
SHAPE_XYZ = (23, 19, 14)
TWO = ("--structures", "liver,spleen", "--set", "total_3mm", "--processes", "1")


def run(source: Path, out: Path, *options: str, code: int = 0) -> dict:
    arguments = ["dataset", "convert", str(source), str(out), "--json", *options]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def save(path: Path, array_xyz: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array_xyz, affine), path)
    return path


def published(folder: Path, names: dict[str, str], structures: list[str], shape: tuple[int, ...] = SHAPE_XYZ) -> None:
    """A data set in the published layout: CTs of noise in air, boxes as structures; ``names`` determine the split."""
    lines = ["image_id;age;gender;split"]
    for number, (name, split) in enumerate(names.items()):
        rng = np.random.default_rng(number)
        hu = np.full(shape, -1000, np.int16)
        hu[2:-2, 2:-2] = rng.integers(-120, 300, (shape[0] - 4, shape[1] - 4, shape[2]))
        save(folder / name / "ct.nii.gz", hu)
        labels = boxes(shape, len(structures), number)
        for label, structure in enumerate(structures, start=1):
            save(folder / name / "segmentations" / f"{structure}.nii.gz", (labels == label).astype(np.uint8))
        lines.append(f"{name};{40 + number};m;{split}")
    (folder / "meta.csv").write_text("\n".join(lines) + "\n")


def boxes(shape: tuple[int, ...], count: int, seed: int) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    rng = np.random.default_rng([seed, 5])
    for label in range(1, count + 1):
        corner = [int(rng.integers(0, n - 4)) for n in shape]
        labels[tuple(slice(first, first + 4) for first in corner)] = label
    return labels


def digests(out: Path) -> dict[str, str]:
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


# ---- what is written


@pytest.mark.parametrize("order", [1, 3])
def test_images_and_labels_equal_those_of_nibabel_and_scipy(tmp_path, order):
    """TotalSegmentator's steps with the libraries it uses: closest canonical, then zoom by old / new spacing."""
    published(tmp_path / "in", {"s1": "train"}, ["liver", "spleen"])
    run(tmp_path / "in", tmp_path / "out", *TWO, "--order", str(order))
    (folder,) = (tmp_path / "out").glob("Dataset*")
    ct = nib.as_closest_canonical(nib.load(tmp_path / "in" / "s1" / "ct.nii.gz"))
    factors = np.array([2.0, 2.0, 2.5]) / 3.0
    expected = zoom(ct.get_fdata(), factors, order=order, mode="nearest").astype(np.int32)
    image = nib.load(folder / "imagesTr" / "s1_0000.nii.gz")
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert np.array_equal(np.asanyarray(image.dataobj), expected)
    assert np.allclose(image.affine[:3, :3], np.diag([3.0, 3.0, 3.0]))
    assert np.allclose(image.affine[:3, 3], ct.affine[:3, 3])
    merged = np.zeros(SHAPE_XYZ, np.uint8)
    for label, name in enumerate(["liver", "spleen"], start=1):
        mask = nib.load(tmp_path / "in" / "s1" / "segmentations" / f"{name}.nii.gz")
        merged[np.asanyarray(mask.dataobj) > 0] = label
    canonical = np.asanyarray(nib.as_closest_canonical(nib.Nifti1Image(merged, AFFINE)).dataobj)
    labels = nib.load(folder / "labelsTr" / "s1.nii.gz")
    assert np.array_equal(np.asanyarray(labels.dataobj), zoom(canonical, factors, order=0, mode="nearest"))
    assert np.array_equal(labels.affine, image.affine)
    assert json.loads((folder / "dataset.json").read_text())["resampling"] == {
        "image_order": order,
        "label_order": 0,
        "spacing_mm": 3.0,
    }


def test_ct_with_the_requested_spacing_keeps_its_voxels(tmp_path):
    published(tmp_path / "in", {"s1": "train"}, ["liver", "spleen"])
    for path in (tmp_path / "in").rglob("*.nii.gz"):
        save(path, np.asanyarray(nib.load(path).dataobj), np.diag([-1.5, -1.5, 1.5, 1.0]))
    run(tmp_path / "in", tmp_path / "out", "--structures", "liver,spleen", "--set", "total_1.5mm")
    (folder,) = (tmp_path / "out").glob("Dataset*")
    image = nib.load(folder / "imagesTr" / "s1_0000.nii.gz")
    expected = nib.as_closest_canonical(nib.load(tmp_path / "in" / "s1" / "ct.nii.gz"))
    assert np.array_equal(np.asanyarray(image.dataobj), np.asanyarray(expected.dataobj))
    assert np.array_equal(image.affine, expected.affine)


@pytest.mark.parametrize(("classes", "first_id", "total_ids"), [("v1", 251, (256, 301)), ("v2", 291, (297, 298))])
def test_nnunet_accepts_each_of_the_seven_data_sets(tmp_path, classes, first_id, total_ids):
    structures = list(total(classes).names_by_label.values())
    names = {"s0001": "train", "s0002": "train", "s0003": "val", "s0004": "test"}
    published(tmp_path / "in", names, structures, (28, 28, 16))
    run(tmp_path / "in", tmp_path / "out", "--source-name", "test data 1.0", "--processes", "1")
    folders = sorted(path.name for path in (tmp_path / "out").glob("Dataset*"))
    assert [int(name[7:10]) for name in folders] == [*range(first_id, first_id + 5), *total_ids]
    for folder, labels in zip(folders, (*parts(classes).values(), total(classes), total(classes)), strict=True):
        path = tmp_path / "out" / folder
        if folder in (folders[0], folders[-1]):  # it takes two seconds per data set
            verify_dataset_integrity(str(path), num_processes=1)
        content = json.loads((path / "dataset.json").read_text())
        assert content["labels"] == {"background": 0, **labels.label_by_name}
        assert content["reference"] == "test data 1.0"
        identifiers = get_identifiers_from_splitted_dataset_folder(str(path / "imagesTr"), ".nii.gz")
        assert sorted(identifiers) == ["s0001", "s0002", "s0003"]
        splits = json.loads((path / "splits_final.json").read_text())
        assert splits == [{"train": ["s0001", "s0002"], "val": ["s0003"]}]
        assert [each.name for each in (path / "labelsTs").iterdir()] == ["s0004.nii.gz"]
    found = find_subjects(tmp_path / "out" / folders[1])
    assert len(found.subjects) == 4
    assert found.left_out == ()
    inodes = {(tmp_path / "out" / name / "imagesTr" / "s0001_0000.nii.gz").stat().st_ino for name in folders[:5]}
    assert len(inodes) == 1, "parts share the images"


def test_dicom_series_with_seg_or_contours(tmp_path):
    """Left stays left: SimpleITK finds the structure at the same place in both files."""
    folders = {}
    for number, form in enumerate((SegmentationForm.BINARY, SegmentationForm.NONE)):
        folder = tmp_path / "in" / str(number)
        folder.mkdir(parents=True)
        stored = np.full((8, 30, 34), 24, np.uint16)
        stored[:, 6:24, 6:28] = np.random.default_rng(number).integers(950, 1200, (8, 18, 22))
        series = ct_series.write(folder, ct_series.Stack(stored))
        source = reconstruct(series)
        labels = np.zeros(stored.shape, np.uint8)
        labels[2:6, 8:18, 20:26] = 1
        on_grid = segmentation(source.source.geometry, {1: "spleen", 2: "liver"}, labels)
        request = ResultRequest(
            segmentation=form, report=False, contours=("organ",) if form is SegmentationForm.NONE else ()
        )
        for result in encode(source, on_grid, measured(source, on_grid), CONTEXT, {"files": request}):
            (folder / "result.dcm").write_bytes(result.content)
        index = np.argwhere(labels).mean(axis=0)[::-1]
        folders[series.series_instance_uid] = (source.source.geometry.affine_lps @ [*index, 1])[:3]
    report = run(tmp_path / "in", tmp_path / "out", "--structures", "spleen,liver", "--set", "total_1mm")
    assert report["layout"] == "DICOM"
    assert {each["kind"] for each in report["findings"]} == {"missing"}
    for uid, centre_lps in folders.items():
        (path,) = (tmp_path / "out").glob(f"Dataset*/labelsTr/{uid}.nii.gz")
        image = sitk.ReadImage(str(path))
        x, y, z = np.argwhere(sitk.GetArrayFromImage(image) == 1).mean(axis=0)[::-1]
        assert image.TransformContinuousIndexToPhysicalPoint((x, y, z)) == pytest.approx(centre_lps, abs=1.0)
    assert not list((tmp_path / "out").glob("Dataset*/splits_final.json")), "no published split, and one patient"
    (description,) = (tmp_path / "out").glob("Dataset*/dataset.json")
    assert json.loads(description.read_text())["cases_of_one_patient"] == [sorted(folders)]
    assert "T1" not in description.read_text(), "the Patient ID"


def test_dicom_series_that_form_no_upright_volume_are_refused_with_the_numbers(tmp_path):
    steps = {"tilted": (0.0, 0.9, 2.5), "gap": (0.0, 0.0, 2.5)}
    ids = {}
    for name, step in steps.items():
        folder = tmp_path / "in" / name
        folder.mkdir(parents=True)
        stored = np.full((8, 20, 22), 24, np.uint16)
        stored[:, 4:16, 4:18] = 1050
        series = ct_series.write(folder, ct_series.Stack(stored, step_mm=step))
        ids[series.series_instance_uid] = name
        source = reconstruct(series)
        labels = np.zeros(stored.shape, np.uint8)
        labels[2:4, 6:10, 6:10] = 1
        on_grid = segmentation(source.source.geometry, {1: "liver"}, labels)
        requests = {"files": ResultRequest(report=False)}
        (result,) = encode(source, on_grid, measured(source, on_grid), CONTEXT, requests)
        (folder / "result.dcm").write_bytes(result.content)
    (tmp_path / "in" / "gap" / "4.dcm").unlink()
    report = run(tmp_path / "in", tmp_path / "out", "--structures", "liver", code=3)
    found = {ids[name]: text for name, text in reasons(report).items()}
    assert found["tilted"].startswith("the gantry is tilted")
    assert found["gap"].startswith("gap of 5 mm after plane 4 of 7, expected 2.5 mm")
    assert report["sets"][0]["train"] == 0


# ---- what is wrong with a source


def reasons(report: dict) -> dict[str, str]:
    return {each["id"]: each["text"] for each in report["findings"] if each["fault"]}


def test_every_bad_subject_is_named_with_the_reason_and_the_others_are_converted(tmp_path):
    source = tmp_path / "in"
    names = dict.fromkeys(
        ("good", "cut", "nan", "moved", "shape", "gone", "values", "metres", "overlaps", "split", "sheared"), "train"
    )
    published(source, {**names, "split": "holdout"}, ["liver", "spleen"])
    cut = source / "cut" / "ct.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-300])
    hu = np.zeros(SHAPE_XYZ, np.float32)
    hu[3, 4, 5] = np.nan
    save(source / "nan" / "ct.nii.gz", hu)
    moved = AFFINE.copy()
    moved[2, 3] += 1.25
    for structure in ("liver", "spleen"):
        path = source / "moved" / "segmentations" / f"{structure}.nii.gz"
        save(path, np.asanyarray(nib.load(path).dataobj), moved)
        save(source / "shape" / "segmentations" / f"{structure}.nii.gz", np.zeros((23, 19, 13), np.uint8))
        save(source / "overlaps" / "segmentations" / f"{structure}.nii.gz", np.ones(SHAPE_XYZ, np.uint8))
    (source / "gone" / "segmentations" / "spleen.nii.gz").unlink()
    save(source / "values" / "segmentations" / "liver.nii.gz", boxes(SHAPE_XYZ, 2, 9))
    metres = nib.load(source / "metres" / "ct.nii.gz")
    metres.header.set_xyzt_units("meter")
    nib.save(metres, source / "metres" / "ct.nii.gz")
    sheared = AFFINE.copy()
    sheared[1, 2] = 0.6
    save(source / "sheared" / "ct.nii.gz", np.zeros(SHAPE_XYZ, np.int16), sheared)
    (source / "stray" / "segmentations").mkdir(parents=True)
    report = run(source, tmp_path / "out", *TWO, code=3)
    expected = {
        "cut": "truncated",
        "nan": "1 voxels are not finite numbers",
        "moved": "displaced by up to 0.50 voxels",
        "shape": "23 x 19 x 13 voxels",
        "gone": "spleen: not segmented",
        "values": "a mask of one structure has the values",
        "metres": "the grid is in metres, expected millimetres",
        "split": "split is 'holdout', expected train, val, test",
        "sheared": "the grid is sheared",
    }
    found = reasons(report)
    assert found.keys() == expected.keys()
    for name, says in expected.items():
        assert says in found[name], name
    assert report["left_out"] == [{"id": "stray", "reason": "no ct.nii.gz"}]
    (only,) = report["sets"]
    assert (only["train"], only["refused"]) == (2, 9)
    (overlap,) = [each for each in report["findings"] if each["kind"] == "overlap"]
    assert overlap["id"] == "overlaps"
    assert f"overlap in {np.prod(SHAPE_XYZ)} voxels, which are counted as spleen" in overlap["text"]
    (folder,) = (tmp_path / "out").glob("Dataset*")
    assert sorted(path.name for path in (folder / "labelsTr").iterdir()) == ["good.nii.gz", "overlaps.nii.gz"]
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 2
    page = (tmp_path / "out" / "validation.html").read_text()
    assert all(f"<td>{name}</td>" in page for name in (*expected, "stray", "overlaps"))
    assert "not cleared or approved for clinical use" in page
    assert json.loads((tmp_path / "out" / "validation.json").read_text()) == report
    absent = run(source, tmp_path / "absent", *TWO, "--absent-where-missing", code=3)
    assert "gone" not in reasons(absent)


def test_empty_lost_and_unknown_structures_are_noted(tmp_path):
    source = tmp_path / "in"
    published(source, {"empty": "train", "small": "val"}, ["liver", "tumour"])
    point = np.zeros(SHAPE_XYZ, np.uint8)
    save(source / "empty" / "segmentations" / "liver.nii.gz", point)
    point[1, 1, 1] = 1
    save(source / "small" / "segmentations" / "liver.nii.gz", point)
    report = run(source, tmp_path / "out", "--structures", "liver", "--set", "total_9mm")
    kinds = {(each["id"], each["kind"]): each["text"] for each in report["findings"]}
    assert kinds["empty", "empty"] == "none of the 1 structures of total_9mm is present"
    assert kinds["small", "lost"] == "liver: lost by resampling to 9 mm"
    assert kinds["small", "unknown"] == "tumour: not among the classes, and in none of the sets"
    assert not any(each["fault"] for each in report["findings"])
    assert report["sets"][0]["subjects_with_structure"] == {"liver": 1}


def test_overlapping_masks_are_merged_per_data_set_and_the_later_label_wins(tmp_path):
    """As in TotalSegmentator's converter: the aorta belongs to another part than liver and spleen."""
    names = total("v1").label_by_name
    published(tmp_path / "in", {"s1": "train"}, ["liver", "spleen", "aorta", "face"])
    everywhere = np.ones(SHAPE_XYZ, np.uint8)
    for structure in ("liver", "spleen", "rib_left_1"):
        save(tmp_path / "in" / "s1" / "segmentations" / f"{structure}.nii.gz", everywhere)
    options = ("--set", "organs", "--set", "ribs", "--set", "total_3mm", "--absent-where-missing")
    report = run(tmp_path / "in", tmp_path / "out", *options)
    labels = {
        path.parent.parent.name[10:].partition("_")[2]: np.asanyarray(nib.load(path).dataobj)
        for path in (tmp_path / "out").glob("Dataset*/labelsTr/s1.nii.gz")
    }
    organs, ribs = parts("v1")["organs"].label_by_name, parts("v1")["ribs"].label_by_name
    assert set(np.unique(labels["TotalSegmentator_part1_organs"])) == {organs["liver"], organs["aorta"]}
    assert set(np.unique(labels["TotalSegmentator_part5_ribs"])) == {ribs["rib_left_1"]}
    assert set(np.unique(labels["TotalSegmentator_total_3mm"])) == {names["rib_left_1"], names["face"]}
    overlaps = {
        (each["text"].split(" overlap")[0], *each["sets"]) for each in report["findings"] if each["kind"] == "overlap"
    }
    assert ("spleen and liver", "organs", "total_3mm") in overlaps
    assert ("liver and rib_left_1", "total_3mm") in overlaps


def test_structures_can_be_renamed(tmp_path):
    published(tmp_path / "in", {"s1": "train"}, ["Leber", "Milz"])
    (tmp_path / "names.json").write_text('{"Leber": "liver", "Milz": "spleen"}')
    report = run(tmp_path / "in", tmp_path / "out", *TWO, "--rename", str(tmp_path / "names.json"))
    assert report["sets"][0]["subjects_with_structure"] == {"liver": 1, "spleen": 1}
    run(tmp_path / "in", tmp_path / "other", *TWO, code=3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "s1 has only structures of both versions; state --classes v1 or v2"),
        (["--classes", "v2", "--set", "heart"], "unknown set 'heart', expected organs, vertebrae"),
        (["--structures", "liver", "--set", "organs"], "unknown set 'organs', expected only total_3mm"),
        (["--classes", "v1", "--set", "ribs", "--set", "ribs"], "expected each once"),
        (["--classes", "v1", "--structures", "liver"], "can't be combined"),
    ],
)
def test_impossible_request_is_refused_before_anything_is_written(tmp_path, options, says):
    published(tmp_path / "in", {"s1": "train"}, ["liver", "spleen"])
    done = CliRunner().invoke(main, ["dataset", "convert", str(tmp_path / "in"), str(tmp_path / "out"), *options])
    assert done.exit_code in (1, 2)
    assert says in " ".join(done.output.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_data_set_not_converted_here_is_left_untouched(tmp_path):
    published(tmp_path / "in", {"s1": "train"}, ["liver", "spleen"])
    for name in ("Dataset301_structures_3mm", "Dataset256_Lung"):
        (tmp_path / "out" / name).mkdir(parents=True)
        (tmp_path / "out" / name / "dataset.json").write_text("{}")
    run(tmp_path / "in", tmp_path / "out", *TWO)
    assert (tmp_path / "out" / "Dataset302_structures_3mm").is_dir()
    options = ("--classes", "v1", "--set", "total_3mm")
    done = CliRunner().invoke(main, ["dataset", "convert", str(tmp_path / "in"), str(tmp_path / "out"), *options])
    assert done.exit_code == 1
    assert "Dataset256_Lung exists, but was not written by a conversion" in " ".join(done.output.split())
    for name in ("Dataset301_structures_3mm", "Dataset256_Lung"):
        assert [path.name for path in (tmp_path / "out" / name).iterdir()] == ["dataset.json"]


def test_two_conversions_into_one_folder_at_once_make_two_data_sets(tmp_path):
    processes = []
    for name in ("first", "second"):
        published(tmp_path / name, {f"{name}1": "train"}, ["liver", "spleen"])
        arguments = ["dataset", "convert", str(tmp_path / name), str(tmp_path / "out"), *TWO]
        processes.append(subprocess.Popen([sys.executable, "-m", "dicom_node.cli", *arguments]))
    assert [process.wait() for process in processes] == [0, 0]
    made = sorted((tmp_path / "out").glob("Dataset*"))
    assert [path.name for path in made] == ["Dataset301_structures_3mm", "Dataset302_structures_3mm"]
    subjects = {path.name for each in made for path in each.glob("labelsTr/*")}
    assert subjects == {"first1.nii.gz", "second1.nii.gz"}
    assert len({json.loads((each / "dataset.json").read_text())["reference"] for each in made}) == 2


# ---- several series of one patient


def patients(source: Path, whose: dict[str, str], splits: dict[str, str] | None = None) -> None:
    """``whose`` patient each subject is, as a column of meta.csv."""
    published(source, dict.fromkeys(whose, "train"), ["liver", "spleen"])
    lines = [f"{name};{patient};{(splits or {}).get(name, '')}" for name, patient in whose.items()]
    (source / "meta.csv").write_text("\n".join(["image_id;patient_id;split", *lines]) + "\n")


def test_series_of_one_patient_are_in_one_fold(tmp_path):
    whose = {"s1": "a", "s2": "a", "s3": "b", "s4": "c", "s5": "a"}
    patients(tmp_path / "in", whose)
    run(tmp_path / "in", tmp_path / "out", *TWO)
    (folder,) = (tmp_path / "out").glob("Dataset*")
    folds = json.loads((folder / "splits_final.json").read_text())
    assert [fold["val"] for fold in folds] == [["s1", "s2", "s5"], ["s3"], ["s4"]]
    assert [fold["train"] for fold in folds] == [["s3", "s4"], ["s1", "s2", "s4", "s5"], ["s1", "s2", "s3", "s5"]]
    assert json.loads((folder / "dataset.json").read_text())["cases_of_one_patient"] == [["s1", "s2", "s5"]]
    found = find_subjects(folder)
    assert [each.patient for each in found.subjects] == ["s1", "s1", "s3", "s4", "s1"], "called by the first case"
    patients(tmp_path / "in", {name: name for name in whose})
    run(tmp_path / "in", tmp_path / "out", *TWO)
    assert not (folder / "splits_final.json").exists(), "with one series of each patient, nnU-Net's own folds are right"
    assert "cases_of_one_patient" not in json.loads((folder / "dataset.json").read_text())


def test_a_stated_split_that_divides_a_patient_is_kept_and_remarked(tmp_path):
    splits = {"s1": "train", "s2": "val", "s3": "test", "s4": "test"}
    patients(tmp_path / "in", {"s1": "a", "s2": "a", "s3": "b", "s4": "b"}, splits)
    report = run(tmp_path / "in", tmp_path / "out", *TWO)
    remarks = {each["id"]: each["text"] for each in report["findings"] if each["kind"] == "split"}
    assert remarks == {
        "s1": "in train, and other series of the same patient in val",
        "s2": "in val, and other series of the same patient in train",
    }
    (folder,) = (tmp_path / "out").glob("Dataset*")
    assert json.loads((folder / "splits_final.json").read_text()) == [{"train": ["s1"], "val": ["s2"]}]


# ---- runs that are repeated


def test_killed_conversion_is_resumed_with_the_same_result(tmp_path):
    names = {f"s{k}": "val" if k == 3 else "train" for k in range(8)}
    published(tmp_path / "in", names, ["liver", "spleen"], (60, 60, 60))
    options = ["--structures", "liver,spleen", "--set", "total_1mm", "--set", "total_3mm", "--processes", "2"]
    run(tmp_path / "in", tmp_path / "whole", *options)
    arguments = ["dataset", "convert", str(tmp_path / "in"), str(tmp_path / "killed"), *options]
    process = subprocess.Popen([sys.executable, "-m", "dicom_node.cli", *arguments])
    deadline = time.monotonic() + 60
    while not list((tmp_path / "killed").glob("*/subjects/*.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.2)  # its workers end at once
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*/subjects/*.json")}
    assert before
    run(tmp_path / "in", tmp_path / "killed", *options)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in before} == before, "converted once"


def test_only_changed_subjects_are_converted_again(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    published(source, {"s1": "train", "s2": "train", "s3": "val"}, ["liver", "spleen"])
    run(source, out, *TWO)
    (folder,) = out.glob("Dataset*")
    first = {path: path.stat().st_mtime_ns for path in folder.rglob("s*.nii.gz")}
    assert len(first) == 6
    run(source, out, *TWO)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("s*.nii.gz")} == first
    save(source / "s2" / "segmentations" / "liver.nii.gz", boxes(SHAPE_XYZ, 1, 77))
    shutil.rmtree(source / "s3")
    (source / "meta.csv").write_text("image_id;split\ns1;test\ns2;train\n")
    run(source, out, *TWO)
    now = {path.relative_to(folder).as_posix(): path for path in folder.rglob("s*.nii.gz")}
    assert now.keys() == {
        *("imagesTs/s1_0000.nii.gz", "labelsTs/s1.nii.gz"),
        *("imagesTr/s2_0000.nii.gz", "labelsTr/s2.nii.gz"),
    }
    assert now["labelsTr/s2.nii.gz"].stat().st_mtime_ns != first[now["labelsTr/s2.nii.gz"]]
    assert not (folder / "splits_final.json").exists()


def test_a_conversion_can_be_a_source_and_other_names_count_as_changed_content(tmp_path):
    """Names are stored in the label maps' headers and in dataset.json, which is used if a header has none."""
    published(tmp_path / "in", {"s1": "train", "s2": "val", "s3": "test"}, ["liver", "spleen"])
    run(tmp_path / "in", tmp_path / "out", *TWO)
    (folder,) = (tmp_path / "out").glob("Dataset*")
    report = run(folder, tmp_path / "again", *TWO)
    (again,) = (tmp_path / "again").glob("Dataset*")
    assert [report["sets"][0][split] for split in ("train", "val", "test")] == [1, 1, 1]
    first, second = (
        {name: digest for name, digest in digests(each).items() if name.endswith("nii.gz")} for each in (folder, again)
    )
    assert first == second, "nothing is resampled twice"
    for path in folder.rglob("labels*/*.nii.gz"):
        image = nib.load(path)
        save(path, np.asanyarray(image.dataobj), image.affine)  # without names in the header
    run(folder, tmp_path / "again", *TWO)
    before = digests(again)
    content = json.loads((folder / "dataset.json").read_text())
    content["labels"] = {"background": 0, "spleen": 1, "liver": 2}
    (folder / "dataset.json").write_text(json.dumps(content))
    run(folder, tmp_path / "again", *TWO)
    changed = {name for name, digest in digests(again).items() if before[name] != digest}
    assert {name for name in changed if name.startswith("labels")} == {
        *("labelsTr/s1.nii.gz", "labelsTr/s2.nii.gz", "labelsTs/s3.nii.gz")
    }


def test_sets_are_independent_of_each_other(tmp_path):
    published(tmp_path / "in", {"s1": "train"}, ["liver", "spleen"])
    one, _other = (
        ("--structures", "liver,spleen", "--set", "total_3mm"),
        ("--structures", "spleen", "--set", "total_4mm"),
    )
    run(tmp_path / "in", tmp_path / "out", *one)
    kept = digests(tmp_path / "out" / "Dataset301_structures_3mm")
    run(tmp_path / "in", tmp_path / "out", "--structures", "spleen", "--set", "total_4mm")
    assert digests(tmp_path / "out" / "Dataset301_structures_3mm") == kept
    assert (tmp_path / "out" / "Dataset302_structures_4mm").is_dir()
