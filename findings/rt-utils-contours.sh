#!/usr/bin/env bash
# rt-utils 1.2.7: from contours to a mask.
#
# Guess (not blind): a pixel belongs to a structure if its centre is inside the contour.
# Seen: every pixel crossed by the contour belongs to it as well. A square of 10 x 10 mm whose edges are between
#        pixels of 1 mm gives 121 pixels instead of 100, a circle with a radius of 8 mm 233 instead of 201. Contours
#        made by rt-utils itself pass through the centres of the outermost pixels and restore their mask exactly, so
#        a round trip does not reveal this.
#
# Exits non-zero if any of this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet rt-utils==1.2.7 pydicom==3.0.2
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from rt_utils import RTStructBuilder


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


Path("ct").mkdir()
for image in ct(32, 32):
    image.PixelSpacing = [1.0, 1.0]
    image.save_as(f"ct/{image.InstanceNumber}.dcm", enforce_file_format=True)


def structure_set(mask):
    made = RTStructBuilder.create_new(dicom_series_path="ct")
    made.add_roi(mask=np.repeat(mask[:, :, np.newaxis], 4, axis=2), name="organ")
    return made


def pixels_within(points):
    """Of the mask that a contour along ``points`` (x, y in mm) gives in the first plane."""
    made = structure_set(square)
    for contour in made.ds.ROIContourSequence[0].ContourSequence:
        z = float(contour.ContourData[2])
        contour.ContourData = [value for x, y in points for value in (float(x), float(y), z)]
        contour.NumberOfContourPoints = len(points)
    return int(made.get_roi_mask_by_name("organ")[:, :, 0].sum())


square = np.zeros((32, 32), bool)
square[5:15, 5:15] = True
again = structure_set(square).get_roi_mask_by_name("organ")[:, :, 0]
angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
circle = np.column_stack([15 + 8 * np.cos(angles), 15 + 8 * np.sin(angles)])
of_square = pixels_within([(4.5, 4.5), (14.5, 4.5), (14.5, 14.5), (4.5, 14.5)])
of_circle = pixels_within(circle)
name = f"rt-utils {version('rt-utils')}"
print(f"{name}: square of 100 mm2: {of_square} pixels of 1 mm2; circle of {64 * np.pi:.0f} mm2: {of_circle}")
print(f"{name}: its own contours give the mask back: {np.array_equal(again, square)}")
assert np.array_equal(again, square)
assert (of_square, of_circle) == (121, 233)
PYTHON
