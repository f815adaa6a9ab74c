"""Segmentations written by other programs, compared with masks published by their authors or used to make them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from dicom_node.demo.phantom_series import write_series
from dicom_node.errors import ResultUnreadable
from dicom_node.labelmaps import ContourObject, LabelFile, SegmentationObject, find_subjects, open_source
from inference.phantom import phantom


def together(folder: Path, *sources: Path) -> Path:
    """A folder with everything in ``sources``."""
    folder.mkdir()
    for source in sources:
        for path in source.iterdir() if source.is_dir() else [source]:
            shutil.copy(path, folder / path.name)
    return folder


def test_contours_of_a_planning_system_equal_the_published_mask(shared_data, tmp_path):
    """The thigh of the Image Biomarker Standardisation Initiative: contours by MIM, and the mask behind its values."""
    ibsi = shared_data / "theibsi+data_sets"
    folder = together(tmp_path / "ct", ibsi / "STS_008_CT", ibsi / "STS_008_CT_reference" / "RS.dcm")
    found = find_subjects(folder)
    assert found.left_out == ()
    (subject,) = found.subjects
    assert isinstance(subject.segmentation, ContourObject)
    geometry = subject.image.read().geometry
    contours = subject.read_labels(geometry)
    mask = LabelFile(ibsi / "STS_008_CT_reference" / "CT_mask.nii.gz", {1: "GTV_Mass_CT"}).read(geometry)
    assert contours.voxels_by_name == mask.voxels_by_name == {"GTV_Mass_CT": 8862}
    assert np.array_equal(contours.labels_zyx, mask.labels_zyx)


def test_segmentation_by_dcmqi_equals_the_mask_it_was_made_from(shared_data, tmp_path):
    dcmqi = shared_data / "QIICR+dcmqi"
    folder = together(tmp_path / "ct", dcmqi / "ct-3slice", dcmqi / "ct-3slice_reference" / "liver.dcm")
    (subject,) = find_subjects(folder).subjects
    assert isinstance(subject.segmentation, SegmentationObject)
    label_map = subject.read_labels(subject.image.read().geometry)
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(dcmqi / "ct-3slice_reference" / "liver_seg.nrrd")))
    assert label_map.voxels_by_name == {"Liver": 107098}
    assert np.array_equal(label_map.labels_zyx > 0, mask > 0)
    overlapping = open_source(dcmqi / "ct-3slice_reference" / "partial_overlaps.dcm")
    with pytest.raises(ResultUnreadable, match="segments overlap in frame 2"):
        overlapping.read(label_map.geometry)


def test_contours_by_plastimatch_equal_the_masks_they_were_made_from(tmp_path):
    case = phantom(7, (3.0, 3.0, 5.0), "chest")
    write_series(case, tmp_path / "ct")
    geometry, labels = case.truth.geometry, case.truth.labels_zyx
    names = ("aorta", "heart_myocardium", "lung_upper_lobe_left", "vertebrae_T5")
    label_of = {name: label for label, name in case.truth.names_by_label.items()}
    for name in names:
        image = sitk.GetImageFromArray((labels == label_of[name]).astype(np.uint8))
        image.SetSpacing(geometry.spacing_xyz_mm)
        image.SetOrigin(geometry.affine_lps[:3, 3].tolist())
        (tmp_path / "masks").mkdir(exist_ok=True)
        sitk.WriteImage(image, str(tmp_path / "masks" / f"{name}.nrrd"))
    program = shutil.which("plastimatch", path=str(Path(sys.executable).parent)) or shutil.which("plastimatch")
    if program is None:
        pytest.skip("plastimatch is not installed")
    arguments = ("--input-prefix", "masks", "--output-dicom", "out", "--referenced-ct", "ct")
    done = subprocess.run([program, "convert", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    (path,) = [path for path in (tmp_path / "out").rglob("*") if isinstance(_source(path), ContourObject)]
    read = open_source(path).read(geometry)
    assert set(read.names_by_label.values()) == set(names), done.stdout
    for label, name in read.names_by_label.items():
        found, truth = read.labels_zyx == label, labels == label_of[name]
        dice = 2 * np.count_nonzero(found & truth) / (np.count_nonzero(found) + np.count_nonzero(truth))
        assert dice > 0.98, name


def _source(path: Path) -> object:
    try:
        return open_source(path)
    except ResultUnreadable:
        return None
