#!/usr/bin/env bash
# highdicom 0.28.2 (pydicom 3.0.2): a structured report on images of an unknown SOP class.
#
# Guess (not blind): any SOP class is accepted as evidence, because only UIDs are copied from it.
# Seen: KeyError with the SOP Class UID for CT for Processing Image Storage (2026) and for a private class, even though
#        the content does not refer to these images at all. For CT Image Storage the report is made.
#
# Exits non-zero if any of this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet highdicom==0.28.2 pydicom==3.0.2
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import highdicom as hd
import numpy as np
from highdicom import sr
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


def report(images):
    device = sr.DeviceObserverIdentifyingAttributes(uid=generate_uid())
    context = sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, device))
    volume = sr.Measurement(codes.SCT.Volume, 1.0, codes.UCUM.CubicMillimeter)
    group = sr.MeasurementsAndQualitativeEvaluations(sr.TrackingIdentifier(generate_uid(), "1"), measurements=[volume])
    content = sr.MeasurementReport(context, codes.DCM.ImagingMeasurementReport, imaging_measurements=[group])
    return sr.Comprehensive3DSR(images, content, generate_uid(), 3, generate_uid(), 1, manufacturer="m")


CLASSES = {
    "CT Image Storage": (str(CTImageStorage), "made"),
    "CT for Processing Image Storage": ("1.2.840.10008.5.1.4.1.1.2.3", "KeyError"),
    "a private SOP class": ("1.2.826.0.1.3680043.8.498.1", "KeyError"),
}
for name, (uid, expected) in CLASSES.items():
    images = list(ct())
    for image in images:
        image.SOPClassUID = uid
    try:
        report(images)
        seen = "made"
    except KeyError as error:
        seen = f"KeyError: {error}"
    print(f"highdicom {hd.__version__}: {name}: {seen}")
    assert seen.startswith(expected), "the behaviour has changed"
PYTHON
