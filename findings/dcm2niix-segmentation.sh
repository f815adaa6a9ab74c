#!/usr/bin/env bash
# dcm2niix 1.0.20260724: conversion of DICOM segmentations to NIfTI.
#
# Guess: segmentations are refused or skipped, because they are not images from a scanner.
# Seen: a BINARY segmentation (two segments on 4 planes) becomes one mask of 7 planes, with all segments in sequence,
#        with the warning that 1 bit is experimental; the planes have the spacing of the CT, so the stack extends beyond
#        the images. A label map of the same volume becomes a label map with every voxel in place. Exit status 0 for
#        both.
#
# Exits non-zero if any of this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet dcm2niix==1.0.20260724 highdicom==0.28.2 pydicom==3.0.2 nibabel==5.4.2
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import highdicom as hd
import nibabel
import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def ct(rows=16, columns=16, planes=4, step_mm=(0.0, 0.0, 2.0)):
    study, series, frame_of_reference = generate_uid(), generate_uid(), generate_uid()
    for plane in range(planes):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series
        image.FrameOfReferenceUID, image.PositionReferenceIndicator = frame_of_reference, ""
        image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex = "Phantom", "1", "", ""
        image.StudyDate, image.StudyTime, image.StudyID = "20260101", "120000", "1"
        image.AccessionNumber = image.ReferringPhysicianName = image.Manufacturer = ""
        image.Modality, image.SeriesNumber, image.InstanceNumber = "CT", 1, plane + 1
        image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        image.ImagePositionPatient = [plane * each for each in step_mm]
        image.PixelSpacing, image.SliceThickness = [0.8, 0.8], 2.0
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.Rows, image.Columns, image.PixelRepresentation = rows, columns, 1
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
        image.RescaleSlope, image.RescaleIntercept, image.RescaleType = 1, 0, "HU"
        image.KVP, image.AcquisitionNumber = 120, 1
        image.PixelData = np.full((rows, columns), plane, np.int16).tobytes()
        yield image


def segmentation(images, labels, form="BINARY"):
    device = {"manufacturer": "m", "manufacturer_model_name": "m"}
    device |= {"software_versions": "1", "device_serial_number": "1"}
    organs = [
        hd.seg.SegmentDescription(number, name, codes.SCT.Organ, code, "MANUAL")
        for number, name, code in ((1, "liver", codes.SCT.Liver), (2, "spleen", codes.SCT.Spleen))
    ]
    return hd.seg.Segmentation(images, labels, form, organs, generate_uid(), 2, generate_uid(), 1, **device)


labels = np.zeros((4, 16, 16), np.uint8)
labels[:, 4:8, 4:9], labels[1:, 9:12, 3:5] = 1, 2

images = list(ct())
for form in ("BINARY", "LABELMAP"):
    folder = Path(form)
    folder.mkdir()
    segmentation(images, labels, form).save_as(folder / "segmentation.dcm")
    program = Path(sys.executable).with_name("dcm2niix")
    done = subprocess.run([program, "-f", "out", folder], capture_output=True, text=True)
    (file,) = folder.glob("*.nii")
    image = nibabel.load(file)
    voxels = np.asarray(image.dataobj)
    is_experimental = "experimental" in done.stdout
    print(
        f"dcm2niix {version('dcm2niix')}: {form}: exit {done.returncode}, {voxels.shape}, "
        f"values {np.unique(voxels).tolist()}, {'experimental' if is_experimental else 'no warning'}"
    )
    assert done.returncode == 0
    if form == "BINARY":
        assert voxels.shape == (16, 16, 7)
        assert np.unique(voxels).tolist() == [0, 1]
        assert is_experimental
        assert image.header.get_zooms()[2] == 2.0
        continue
    found = np.zeros_like(labels)
    for index in np.argwhere(voxels):
        x, y, z = image.affine[:3, :3] @ index + image.affine[:3, 3]
        found[round(z / 2), round(-y / 0.8), round(-x / 0.8)] = voxels[tuple(index)]  # RAS to LPS
    assert np.array_equal(found, labels)
PYTHON
