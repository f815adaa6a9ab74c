#!/usr/bin/env bash
# highdicom 0.28.2 and SimpleITK 2.5.7: the order of planes of one CT series.
#
# Guess (not blind): both stack planes along row x column, so arrays of one series can be compared plane by plane.
# Seen: slices at z = 0, 2, 4, 6 mm are planes 0, 1, 2, 3 of the array of SimpleITK and 3, 2, 1, 0 of highdicom's.
#        Each is consistent with its own affine; an array of one with the affine of the other is mirrored.
#
# Exits non-zero if any of this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet SimpleITK==2.5.7 highdicom==0.28.2 pydicom==3.0.2
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
from pathlib import Path

import highdicom as hd
import numpy as np
import SimpleITK as sitk
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
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


images = list(ct())  # every voxel of the plane at z = 2 n mm has the value n
Path("ct").mkdir()
for image in images:
    image.save_as(f"ct/{image.InstanceNumber}.dcm", enforce_file_format=True)
read = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames("ct"))
of_itk = [int(plane.max()) for plane in sitk.GetArrayViewFromImage(read)]
volume = hd.get_volume_from_series(images)
of_highdicom = [int(plane.max()) for plane in volume.array]
print(f"SimpleITK {sitk.__version__}: planes {of_itk}, first at z = {read.GetOrigin()[2]:g} mm")
print(f"highdicom {hd.__version__}: planes {of_highdicom}, first at z = {volume.affine[2, 3]:g} mm")
assert (of_itk, read.GetOrigin()[2]) == ([0, 1, 2, 3], 0.0)
assert (of_highdicom, volume.affine[2, 3]) == ([3, 2, 1, 0], 6.0)
PYTHON
