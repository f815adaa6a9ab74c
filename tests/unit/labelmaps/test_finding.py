"""Subjects in every layout on disk; everything else is named with the reason."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from dicom_node.encode.run import encode
from dicom_node.errors import ConfigurationError, ResultUnreadable
from dicom_node.labelmaps import (
    ContourObject,
    DicomImage,
    SegmentationObject,
    find_scans,
    find_segmentations,
    find_subjects,
)
from dicom_node.nifti import grid_of, write_labels
from dicom_node.reconstruct import reconstruct
from dicom_node.types import ResultRequest, SegmentationForm
from inference.types import Geometry
from tests.support import ct_series
from tests.support.analysis_results import CONTEXT, measured, segmentation

AFFINE = np.diag([1.5, 1.5, 1.5, 1.0])
SHAPE = (6, 5, 4)
NAMES = {1: "liver", 2: "spleen"}
META = "\ufeffimage_id;age;gender;split\ns0001;61;m;train\ns0002;;f;test\ns0003;045Y;x;val\ns0009;1;m;train\n"


def nifti(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), path)


def published(folder, name, seed=0):
    labels = np.random.default_rng(seed).integers(0, 3, SHAPE)
    nifti(folder / name / "ct.nii.gz", labels.astype(np.int16) * 30)
    for label, structure in NAMES.items():
        nifti(folder / name / "segmentations" / f"{structure}.nii.gz", (labels == label).astype(np.uint8))


def test_published_layout_with_the_attributes_from_meta_csv(tmp_path):
    for number, name in enumerate(["s0001", "s0002", "s0003"]):
        published(tmp_path, name, number)
    (tmp_path / "s0003" / "ct.nii.gz").unlink()
    nifti(tmp_path / "s0004" / "ct.nii.gz", np.zeros(SHAPE, np.int16))
    (tmp_path / "meta.csv").write_text(META, encoding="utf-8")
    found = find_subjects(tmp_path)
    assert found.layout == "published"
    assert {each.id: each.reason for each in found.left_out} == {
        "s0003": "no ct.nii.gz",
        "s0004": "neither segmentations/ nor labels.nii.gz beside ct.nii.gz",
        "s0009": "in meta.csv, but there is no such folder",
    }
    first, second = found.subjects
    assert (first.id, first.age_years, first.sex, first.split) == ("s0001", 61, "M", "train")
    assert (second.id, second.age_years, second.sex, second.split) == ("s0002", None, "F", "test")
    volume = first.image.read()
    assert np.array_equal(first.read_labels(volume.geometry).labels_zyx * 30, volume.voxels_zyx)


def test_meta_csv_of_another_kind_is_refused(tmp_path):
    published(tmp_path, "s0001")
    for content, says in (
        ("name;age\ns0001;3\n", "has the columns name, age, expected image_id"),
        ("image_id,age\ns0001,3\ns0001,4\n", "two rows for s0001"),
    ):
        (tmp_path / "meta.csv").write_text(content)
        with pytest.raises(ConfigurationError, match=says):
            find_subjects(tmp_path)
    (tmp_path / "meta.csv").write_bytes(b"image_id;\xff\xfe\n")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        find_subjects(tmp_path)


def test_raw_data_of_nnunet_are_found(tmp_path):
    for split, names in (("Tr", ["a", "b"]), ("Ts", ["c"])):
        for name in names:
            nifti(tmp_path / f"images{split}" / f"{name}_0000.nii.gz", np.zeros(SHAPE, np.int16))
            nifti(tmp_path / f"labels{split}" / f"{name}.nii.gz", np.ones(SHAPE, np.uint8))
    (tmp_path / "labelsTr" / "b.nii.gz").unlink()
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1}}))
    found = find_subjects(tmp_path)
    assert [(each.id, each.split) for each in found.subjects] == [("a", "train"), ("c", "test")]
    assert [(each.id, each.reason) for each in found.left_out] == [("b", "no file in labelsTr")]
    assert found.subjects[1].read_labels(found.subjects[1].image.read().geometry).present == {"liver"}
    (tmp_path / "splits_final.json").write_text('[{"train": [], "val": ["a"]}]')
    assert [each.split for each in find_subjects(tmp_path).subjects] == ["val", "test"]
    (tmp_path / "splits_final.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="is no list of folds"):
        find_subjects(tmp_path)


def test_nnunet_test_subject_with_the_id_of_a_training_subject_is_left_out(tmp_path):
    for split, value in (("Tr", 1), ("Ts", 2)):
        nifti(tmp_path / f"images{split}" / "a_0000.nii.gz", np.zeros(SHAPE, np.int16))
        nifti(tmp_path / f"labels{split}" / "a.nii.gz", np.full(SHAPE, value, np.uint8))
    found = find_subjects(tmp_path)
    assert [(each.id, each.split) for each in found.subjects] == [("a", "train")]
    assert [(each.id, each.reason) for each in found.left_out] == [("a", "in imagesTs, and in imagesTr already")]


def test_pairs_of_folders_are_found(tmp_path):
    for name in ("a", "b"):
        nifti(tmp_path / "images" / f"{name}.nii.gz", np.zeros(SHAPE, np.int16))
    nifti(tmp_path / "labels" / "a.nii.gz", np.zeros(SHAPE, np.uint8))
    found = find_subjects(tmp_path)
    assert [each.id for each in found.subjects] == ["a"]
    assert [(each.id, each.reason) for each in found.left_out] == [("b", "no file in labels")]


def ct_with_results(folder, request, seed):
    """A CT series and the node's results for it, in one folder."""
    folder.mkdir()
    stored = np.random.default_rng(seed).integers(0, 2000, (4, 9, 10)).astype(np.uint16)
    series = ct_series.write(folder, ct_series.Stack(stored))
    source = reconstruct(series)
    labels = np.zeros(source.source.geometry.shape_zyx, np.uint8)
    labels[1:3, 2:6, 3:8] = 1
    on_grid = segmentation(source.source.geometry, NAMES, labels)
    for result in encode(source, on_grid, measured(source, on_grid), CONTEXT, {"files": request}):
        (folder / f"result_{result.kind}.dcm").write_bytes(result.content)
    return series.series_instance_uid, labels


def test_dicom_series_are_found_with_the_objects_that_refer_to_them(tmp_path):
    contours = ResultRequest(segmentation=SegmentationForm.NONE, report=False, contours=("organ",))
    binary = ResultRequest(segmentation=SegmentationForm.BINARY, report=True)
    both = ResultRequest(segmentation=SegmentationForm.LABELMAP, report=False, contours=("organ",))
    by_seg, labels = ct_with_results(tmp_path / "1", binary, 1)
    by_contours, _ = ct_with_results(tmp_path / "2", contours, 2)
    twice, _ = ct_with_results(tmp_path / "3", both, 3)
    stray = tmp_path / "stray.dcm"
    shutil.copy(tmp_path / "1" / "result_SEG.dcm", stray)
    dataset = dcmread(stray)
    dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()
    dataset.save_as(stray)
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "1" / "0.dcm").read_bytes()[:-50])
    found = find_subjects(tmp_path)
    assert found.layout == "DICOM"
    by_id = {each.id: each for each in found.subjects}
    assert by_id.keys() == {by_seg, by_contours}
    assert isinstance(by_id[by_seg].segmentation, SegmentationObject)
    assert isinstance(by_id[by_contours].segmentation, ContourObject)
    reasons = {each.id: each.reason for each in found.left_out}
    assert reasons.keys() == {"stray.dcm", "cut.dcm", twice}
    assert reasons["stray.dcm"] == "refers to no CT series in the folder"
    assert reasons[twice] == "2 segmentations refer to this CT series, expected one"
    assert reasons["cut.dcm"].startswith("damaged")
    for subject in found.subjects:
        assert isinstance(subject.image, DicomImage)
        read = subject.read_labels(subject.image.read().geometry)
        assert np.array_equal(read.labels_zyx != 0, labels != 0)
        assert read.present == {"liver"}
        assert subject.sex == "O"


def test_results_are_found_without_their_ct(tmp_path):
    grid = Geometry((4, 5, 6), AFFINE)
    labels = np.ones(grid.shape_zyx, np.uint8)
    for path in (tmp_path / "a.nii.gz", tmp_path / "b" / "labels.nii.gz"):
        path.parent.mkdir(exist_ok=True)
        write_labels(path, labels, grid_of(grid), NAMES, "test")
    for structure in NAMES.values():
        nifti(tmp_path / "c" / f"{structure}.nii.gz", np.zeros(SHAPE, np.uint8))
    (tmp_path / "notes.txt").write_text("not a result")
    found = find_segmentations(tmp_path)
    assert found.keys() == {"a", "b", "c"}
    assert found["c"].read().names_by_label == NAMES
    assert found["b"].read(grid).present == {"liver"}
    write_labels(tmp_path / "b.nii.gz", labels, grid_of(grid), NAMES, "test")
    with pytest.raises(ConfigurationError, match="two segmentations of b"):
        find_segmentations(tmp_path)


def test_folder_without_a_known_layout_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("nothing")
    with pytest.raises(ConfigurationError, match="has no subjects: expected a folder per subject"):
        find_subjects(tmp_path)
    with pytest.raises(ConfigurationError, match="has no segmentations"):
        find_segmentations(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.txt").write_text("nothing")
    with pytest.raises(ResultUnreadable, match="b has 0 segmentations, expected one"):
        find_segmentations(tmp_path)


def test_scans_have_the_attributes_of_subjects(tmp_path):
    published(tmp_path / "published", "s0001")
    (tmp_path / "published" / "meta.csv").write_text("image_id;age;gender;split\ns0001;61;m;val\n")
    nnunet, dicom = tmp_path / "nnunet", tmp_path / "dicom"
    for suffix, name in (("Tr", "a"), ("Tr", "b"), ("Ts", "c")):
        nifti(nnunet / f"images{suffix}" / f"{name}_0000.nii.gz", np.zeros(SHAPE, np.int16))
        nifti(nnunet / f"labels{suffix}" / f"{name}.nii.gz", np.ones(SHAPE, np.uint8))
    (nnunet / "dataset.json").write_text(json.dumps({"labels": {"liver": 1}, "cases_of_one_patient": [["a", "b"]]}))
    (nnunet / "splits_final.json").write_text('[{"train": ["a"], "val": ["b"]}]')
    dicom.mkdir()
    for number in range(2):
        ct_with_results(dicom / str(number), ResultRequest(report=False), number)
    for folder in (tmp_path / "published", nnunet, dicom):
        scans, left_out = find_scans(folder)
        assert left_out == ()
        assert {each.id: each.attributes for each in scans} == {
            each.id: each.attributes for each in find_subjects(folder).subjects
        }
        assert scans[0].split in {"train", "val", None}
    assert [each.patient for each in find_scans(nnunet)[0]] == ["a", "a", "c"]
    assert len({each.patient for each in find_scans(dicom)[0]}) == 1, "both have the same Patient ID"
    assert all(each.sex == "O" and "T1" not in each.attributes.values() for each in find_scans(dicom)[0])


def test_a_description_that_is_none_is_refused(tmp_path):
    nifti(tmp_path / "imagesTr" / "a_0000.nii.gz", np.zeros(SHAPE, np.int16))
    nifti(tmp_path / "labelsTr" / "a.nii.gz", np.ones(SHAPE, np.uint8))
    for content in ("[]", "{", '{"cases_of_one_patient": [3]}'):
        (tmp_path / "dataset.json").write_text(content)
        with pytest.raises(ConfigurationError, match="no description of a data set"):
            find_subjects(tmp_path)
