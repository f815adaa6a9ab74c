#!/usr/bin/env bash
# highdicom 0.28.2 (pydicom 3.0.2): lazy retrieval of frames from a BINARY segmentation.
#
# Guess (not blind): lazy retrieval fails whenever frames begin within a byte, that is, unless Rows x Columns is a
#        multiple of 8.
# Seen: it depends on the remainder. 0, 1, 2 and 4 work although most of these frames begin within a byte; 3, 5, 6 and
#        7 raise ValueError "cannot reshape array". Without lazy retrieval every shape is read correctly. A possible
#        explanation: the number of bytes read is that of a frame that begins on a byte boundary, one too few for a
#        frame that extends into another byte; with a remainder that divides 8, no frame does.
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
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SHAPES = [(16, 16), (15, 15), (14, 15), (17, 19), (14, 14), (15, 19), (15, 18), (13, 19)]  # remainders 0 to 7
PLANES = 9  # more than 8, so that every possible first bit occurs


def ct(rows, columns):
    study, series, frame_of_reference = generate_uid(), generate_uid(), generate_uid()
    for plane in range(PLANES):
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
        image.ImageOrientationPatient, image.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2.0 * plane]
        image.PixelSpacing, image.SliceThickness = [1.0, 1.0], 2.0
        image.Rows, image.Columns = rows, columns
        yield image


def segmentation(images, mask):
    organ = hd.seg.SegmentDescription(1, "organ", codes.SCT.Organ, codes.SCT.Liver, "MANUAL")
    uids = {"series_instance_uid": generate_uid(), "sop_instance_uid": generate_uid()}
    device = {"manufacturer": "m", "manufacturer_model_name": "m"}
    device |= {"software_versions": "1", "device_serial_number": "1"}
    return hd.seg.Segmentation(images, mask, "BINARY", [organ], series_number=2, instance_number=1, **uids, **device)


for rows, columns in SHAPES:
    mask = np.zeros((PLANES, rows, columns), np.uint8)
    mask[:, 4:9, 3:12] = 1
    segmentation(list(ct(rows, columns)), mask).save_as("segmentation.dcm")
    whole = hd.seg.segread("segmentation.dcm").get_volume(combine_segments=True).array
    assert np.array_equal(whole[::-1], mask) or np.array_equal(whole, mask), (rows, columns)
    try:
        lazy = hd.seg.segread("segmentation.dcm", lazy_frame_retrieval=True).get_volume(combine_segments=True).array
        seen = "equal" if np.array_equal(lazy, whole) else "different"
    except ValueError as error:
        seen = f"ValueError: {error}"
    remainder = rows * columns % 8
    print(f"highdicom {hd.__version__}: {rows} x {columns}, remainder {remainder}: {seen}")
    expected = "equal" if remainder in (0, 1, 2, 4) else "ValueError: cannot reshape array"
    assert seen.startswith(expected), "the behaviour has changed"
PYTHON
