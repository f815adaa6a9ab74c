#!/usr/bin/env bash
# pydicom-seg 0.4.1 and dcmrtstruct2nii 5, as installed by pip in November 2026, with pydicom 3.0.2.
#
# Guess: their requirements exclude pydicom 3 if they don't work with it.
# Seen: both accept pydicom 3 and can't be used with it: `import pydicom_seg` raises ModuleNotFoundError
#        (pydicom._storage_sopclass_uids), dcmrtstruct2nii raises AttributeError (pydicom.read_file) when it opens a
#        file. With pydicom 2.4.5, pydicom-seg reads every voxel of a BINARY segmentation and refuses a label map.
#
# Exits non-zero if any of this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/new"
"$work/new/bin/pip" install --quiet pydicom-seg==0.4.1 dcmrtstruct2nii==5 pydicom==3.0.2
python3 -m venv "$work/old"
"$work/old/bin/pip" install --quiet pydicom-seg==0.4.1 pydicom==2.4.5
python3 -m venv "$work/writer"
"$work/writer/bin/pip" install --quiet highdicom==0.28.2 pydicom==3.0.2
cd "$work"

"$work/writer/bin/python" -W ignore - <<'PYTHON'
import highdicom as hd
import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid


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
np.save("labels.npy", labels)
images = list(ct())
segmentation(images, labels).save_as("binary.dcm")
segmentation(images, labels, "LABELMAP").save_as("labelmap.dcm")
structures = Dataset()
structures.file_meta = FileMetaDataset()
structures.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
structures.SOPClassUID, structures.SOPInstanceUID = RTStructureSetStorage, generate_uid()
structures.Modality, structures.StructureSetLabel = "RTSTRUCT", "1"
structures.StructureSetROISequence, structures.ROIContourSequence = [], []
structures.save_as("structures.dcm", enforce_file_format=True)
PYTHON

"$work/new/bin/python" -W ignore - <<'PYTHON'
from importlib.metadata import requires, version


def import_pydicom_seg():
    import pydicom_seg


def list_structures():
    from dcmrtstruct2nii import list_rt_structs

    list_rt_structs("structures.dcm")


EXPECTED = {
    "pydicom-seg": (import_pydicom_seg, "ModuleNotFoundError: No module named 'pydicom._storage_sopclass_uids'"),
    "dcmrtstruct2nii": (list_structures, "AttributeError: module 'pydicom' has no attribute 'read_file'"),
}
for name, (attempt, expected) in EXPECTED.items():
    try:
        attempt()
        seen = "works"
    except (ImportError, AttributeError) as error:
        seen = f"{type(error).__name__}: {error}"
    asks = next(each for each in requires(name) if each.startswith("pydicom"))
    print(f"{name} {version(name)}, which requires {asks}, with pydicom {version('pydicom')}: {seen}")
    assert seen == expected, "the behaviour has changed"
PYTHON

"$work/old/bin/python" -W ignore - <<'PYTHON'
from importlib.metadata import version

import numpy as np
import pydicom_seg
from pydicom import dcmread

name = f"pydicom-seg {version('pydicom-seg')} with pydicom {version('pydicom')}"
read = pydicom_seg.MultiClassReader().read(dcmread("binary.dcm"))
is_equal = np.array_equal(read.data, np.load("labels.npy"))
print(f"{name}: BINARY: every voxel {is_equal}, spacing {read.spacing}")
assert is_equal
try:
    pydicom_seg.MultiClassReader().read(dcmread("labelmap.dcm"))
    seen = "read"
except ValueError as error:
    seen = f"ValueError: {error}"
print(f"{name}: label map: {seen}")
assert seen.startswith("ValueError"), "the behaviour has changed"
PYTHON
