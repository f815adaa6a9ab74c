#!/usr/bin/env bash
# dcmqi 1.5.7: segimage2itkimage on a segmentation of a CT with a tilted gantry (each plane shifted by 1 mm
# from the previous one).
#
# Guess (not blind): an image on an orthogonal grid, with every frame in it, and no warning about the shear.
# Seen: two outcomes, both with exit status 0. If every frame begins inside the orthogonal grid spanned by the
#        outermost frames, the frames are stacked on it unchanged and the shear is lost silently: here the last plane
#        is 3 mm off. If a frame begins outside, as here with -2 mm per plane, "ERROR: Frame ... is
#        outside image geometry" is printed, and no image is written, only meta.json.
#
# Exits non-zero if any of this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet dcmqi==1.5.7 highdicom==0.28.2 pydicom==3.0.2 SimpleITK==2.5.7
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import highdicom as hd
import numpy as np
import SimpleITK as sitk
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


def converted(step_mm):
    images = list(ct(step_mm=step_mm))
    segmentation(images, labels).save_as("segmentation.dcm")
    folder = Path(f"to{step_mm[1]:g}")
    folder.mkdir()
    program = Path(sys.executable).with_name("segimage2itkimage")
    options = ["--outputDirectory", str(folder), "--outputType", "nrrd", "--mergeSegments"]
    done = subprocess.run([program, "--inputDICOM", "segmentation.dcm", *options], capture_output=True, text=True)
    printed = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line or "arning" in line]
    print(f"dcmqi {version('dcmqi')}: {step_mm[1]:g} mm per plane: exit {done.returncode}, {printed or 'no warning'}")
    assert done.returncode == 0
    return printed, sorted(folder.glob("*.nrrd"))


labels = np.zeros((4, 16, 16), np.uint8)
labels[:, 4:8, 4:9], labels[1:, 9:12, 3:5] = 1, 2

printed, (file,) = converted((0.0, 1.0, 2.0))
image = sitk.ReadImage(str(file))
last = len(labels) - 1
row, column = np.argwhere(sitk.GetArrayViewFromImage(image)[last] == 1).min(0).tolist()
said = image.TransformIndexToPhysicalPoint((column, row, last))[1]
true = 4 * 0.8 + last * 1.0
print(f"    top of the organ in the last plane: y = {said:.1f} mm, in the segmentation {true:.1f} mm")
assert printed == []
assert abs(said - true) > 2.9
printed, files = converted((0.0, -2.0, 2.0))
assert files == []
assert "outside image geometry" in printed[0]
PYTHON
