"""Small data sets of phantoms in nnU-Net's raw format, written with nibabel, not with `dicom-node dataset`."""

import json

import nibabel
import numpy as np

from inference.phantom import Patient, render, whole_body_grid
from inference.structures import paper_labels


def phantom(seed, spacing_mm):
    """CT and true labels of a whole body, on one grid."""
    patient = Patient.from_seed(seed)
    labels = {name: label for label, name in paper_labels().items()}
    return render(patient, whole_body_grid(patient, (spacing_mm,) * 3), labels)


def write_raw_data_set(folder, spacing_mm, count, first_seed=500):
    """Write ``count`` phantoms to ``folder``, whose name must have the form Dataset901_test."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for k in range(count):
        volume, labels = phantom(first_seed + k, spacing_mm)
        affine = np.diag([-1, -1, 1, 1]) @ volume.geometry.affine_lps
        for path, array in (
            (folder / "imagesTr" / f"s{k}_0000.nii.gz", volume.voxels_zyx),
            (folder / "labelsTr" / f"s{k}.nii.gz", labels),
        ):
            nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0), affine), path)
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{name: label for label, name in paper_labels().items()}},
        "numTraining": count,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "NibabelIOWithReorient",
        "reference": "phantoms of the tests",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder
