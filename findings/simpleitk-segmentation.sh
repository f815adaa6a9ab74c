#!/usr/bin/env bash
# SimpleITK 2.5.7 (GDCM inside): reading DICOM segmentations.
#
# Guess (not blind): the geometry of a BINARY segmentation comes from its functional groups, as for Enhanced CT; or
#        the file is refused. A label map segmentation, one volume of 8 bits, is the simpler of the two and is read.
# Seen: the BINARY object (4 planes, 0.8 x 0.8 x 2 mm, two segments in 4 and 3 frames) is read without an error as 7
#        planes of 1 x 1 x 1 mm, all segments in sequence as 0 and 255. The label map of the same volume is
#        refused: "Unable to determine ImageIO reader".
#
# Exits non-zero if any of this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet SimpleITK==2.5.7 highdicom==0.28.2 pydicom==3.0.2
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
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


labels = np.zeros((4, 16, 16), np.uint8)
labels[:, 4:8, 4:9], labels[1:, 9:12, 3:5] = 1, 2

images = list(ct())
segmentation(images, labels).save_as("binary.dcm")
segmentation(images, labels, "LABELMAP").save_as("labelmap.dcm")
image = sitk.ReadImage("binary.dcm")
values = np.unique(sitk.GetArrayViewFromImage(image)).tolist()
print(f"SimpleITK {sitk.__version__}: BINARY: size {image.GetSize()}, spacing {image.GetSpacing()}, values {values}")
assert image.GetSize() == (16, 16, 7)
assert image.GetSpacing() == (1.0, 1.0, 1.0)
assert values == [0, 255]
try:
    sitk.ReadImage("labelmap.dcm")
except RuntimeError as error:
    message = str(error)
else:
    raise SystemExit("the behaviour has changed: the label map was read")
print(f"SimpleITK {sitk.__version__}: label map: {message.splitlines()[-1]}")
assert "Unable to determine ImageIO reader" in message
PYTHON
