"""Label maps written by nibabel, SimpleITK and this node, valid and invalid."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from dicom_node.errors import ResultUnreadable
from dicom_node.labelmaps import LabelFile, Overlap, StructureFiles, open_source
from dicom_node.nifti import grid_of, write_labels
from inference.types import Geometry

AFFINE_RAS = np.array([[-1.5, 0, 0, 90.0], [0, -1.5, 0, 70.0], [0, 0, 3.0, -40.0], [0, 0, 0, 1.0]])
GRID = Geometry((4, 5, 6), np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE_RAS)
NAMES = {1: "liver", 2: "spleen"}


def labels(seed=0):
    return np.random.default_rng(seed).integers(0, 3, GRID.shape_zyx).astype(np.uint8)


def save(path, array_xyz, affine=AFFINE_RAS, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array_xyz.astype(dtype), affine), path)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_label_map_of_any_number_type_is_read_with_given_names(tmp_path, dtype):
    path = save(tmp_path / "a.nii.gz", labels().T, dtype=dtype)
    label_map = LabelFile(path, NAMES).read(GRID)
    assert np.array_equal(label_map.labels_zyx, labels())
    assert label_map.names_by_label == NAMES


def test_names_are_found_in_our_header_and_next_to_the_file(tmp_path):
    path = tmp_path / "labels.nii.gz"
    write_labels(path, labels(), grid_of(GRID), NAMES, "test")
    assert LabelFile(path).read(GRID).names_by_label == NAMES
    other = save(tmp_path / "labelsTr" / "a.nii.gz", labels().T)
    with pytest.raises(ResultUnreadable, match=r"a\.nii\.gz: no names for its labels"):
        LabelFile(other).read()
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1, "spleen": 2}}))
    assert LabelFile(other).read().names_by_label == NAMES


def test_contradictory_names_are_refused(tmp_path):
    path = tmp_path / "labels.nii.gz"
    write_labels(path, labels(), grid_of(GRID), NAMES, "test")
    (tmp_path / "labels.json").write_text('{"1": "liver", "2": "kidney_left"}')
    with pytest.raises(ResultUnreadable, match=r"label 2 is spleen in its header and kidney_left in labels\.json"):
        LabelFile(path).read()


def test_labels_written_by_simpleitk_are_read_on_the_grid_of_the_ct(tmp_path):
    """ITK writes columns towards the left and rows towards the back; in this CT they run to the right and the front."""
    affine = np.diag([-1.5, -1.5, 3.0, 1.0])
    affine[:3, 3] = (-90.0, -70.0, -40.0)
    ct = Geometry(GRID.shape_zyx, affine)
    image = sitk.GetImageFromArray(np.ascontiguousarray(labels()[:, ::-1, ::-1]))
    image.SetSpacing((1.5, 1.5, 3.0))
    image.SetOrigin((-90.0 - 5 * 1.5, -70.0 - 4 * 1.5, -40.0))
    sitk.WriteImage(image, tmp_path / "a.nii.gz")
    assert np.array_equal(LabelFile(tmp_path / "a.nii.gz", NAMES).read(ct).labels_zyx, labels())


def masks(folder, arrays):
    for name, array in arrays.items():
        save(folder / f"{name}.nii.gz", array.T)
    return folder


def test_folder_of_masks_is_read_as_one_label_map(tmp_path):
    folder = masks(tmp_path / "segmentations", {name: labels() == label for label, name in NAMES.items()})
    label_map = open_source(tmp_path).read(GRID)
    assert label_map.names_by_label == {1: "liver", 2: "spleen"}
    assert np.array_equal(label_map.labels_zyx, labels())
    assert label_map.overlaps == ()
    given = StructureFiles(folder, {"spleen": 40, "liver": 41, "pancreas": 3}).read(GRID)
    assert given.voxels_by_name == {"pancreas": 0, "spleen": (labels() == 2).sum(), "liver": (labels() == 1).sum()}


def test_overlap_is_counted_and_the_later_label_kept(tmp_path):
    liver, spleen, aorta = (np.zeros(GRID.shape_zyx, bool) for _ in range(3))
    liver[1:3, :, :3] = spleen[2:, :, 2:5] = aorta[2, 0, 2] = True
    folder = masks(tmp_path, {"liver": liver, "spleen": spleen, "aorta": aorta})
    found = StructureFiles(folder, {"liver": 1, "spleen": 2, "aorta": 3}).read()
    assert found.overlaps == (Overlap("liver", "spleen", 5), Overlap("spleen", "aorta", 1))
    assert found.voxels_by_name == {"liver": 25, "spleen": 29, "aorta": 1}


def test_file_that_is_not_a_label_map_is_refused_by_name(tmp_path):
    cases = {
        "fraction": (labels().T * 0.5, np.float32, r"fraction\.nii\.gz: plane 0 has the value 0\.5"),
        "negative": (-labels().T.astype(int), np.int16, "has the value -[12]; labels are whole numbers from 0 to 255"),
        "large": (labels().T.astype(int) * 200, np.int16, "has the value 400"),
        "nan": (np.where(labels().T == 1, np.nan, 0), np.float32, "has the value nan"),
    }
    for name, (array, dtype, says) in cases.items():
        path = save(tmp_path / f"{name}.nii.gz", array, dtype=dtype)
        with pytest.raises(ResultUnreadable, match=says):
            LabelFile(path, NAMES).read()
    cut = save(tmp_path / "cut.nii.gz", np.random.default_rng(1).integers(0, 2, (40, 40, 40)))
    cut.write_bytes(cut.read_bytes()[:-400])
    with pytest.raises(ResultUnreadable, match=r"cut\.nii\.gz: the gzip stream is damaged or truncated"):
        LabelFile(cut, {1: "liver"}).read()
    inches = nib.load(save(tmp_path / "metres.nii.gz", labels().T))
    inches.header.set_xyzt_units("meter")
    nib.save(inches, tmp_path / "metres.nii.gz")
    with pytest.raises(ResultUnreadable, match="the grid is in metres, expected millimetres"):
        LabelFile(tmp_path / "metres.nii.gz", NAMES).read()


def test_masks_of_several_values_or_grids_are_refused(tmp_path):
    folder = masks(tmp_path, {"a": labels() == 1, "b": labels()})
    with pytest.raises(ResultUnreadable, match=r"b\.nii\.gz: a mask of one structure has the values [12] and [12]"):
        StructureFiles(folder).read()
    save(folder / "b.nii.gz", np.zeros((6, 5, 3)))
    with pytest.raises(ResultUnreadable, match=r"b\.nii\.gz: it does not lie on the grid of a\.nii\.gz"):
        StructureFiles(folder).read()
    with pytest.raises(ResultUnreadable, match="none of 2 NIfTI files has the name of a wanted structure"):
        StructureFiles(folder, {"liver": 1}).read()
