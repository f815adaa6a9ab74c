#!/usr/bin/env bash
# dicom-anonymizer 2.1.0, deid 0.4.13 and dicognito 0.19.0, each with default settings, on a CT series with a BINARY
# segmentation and a TID 1500 report. All are in one folder and are anonymised in one run.
#
# Guess (not blind): dicom-anonymizer replaces UIDs consistently, also within sequences; deid, which removes most
#        attributes, leaves dangling references; dicognito keeps everything consistent.
# Seen: dicom-anonymizer gives every instance a new SOP Instance UID, but not the references in the functional groups
#        of the segmentation, which then refer to no image; in the report it replaces every Code Value and Value Type
#        by "ANONYMIZED", so that no reader finds a measurement. deid removes SOP Class UID and SOP Instance UID
#        themselves from CT, segmentation and report. dicognito keeps all references, codes and values. Its console
#        script fails with a TypeError, because its entry point expects an argument; `python -m dicognito` works.
#
# Exits non-zero if any of this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet \
    dicom-anonymizer==2.1.0 deid==0.4.13 dicognito==0.19.0 highdicom==0.28.2 pydicom==3.0.2
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import highdicom as hd
import numpy as np
from deid.dicom import replace_identifiers
from highdicom import sr
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

BIN = Path(sys.executable).parent


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


def report(images, seg):
    device = sr.DeviceObserverIdentifyingAttributes(uid=generate_uid())
    context = sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, device))
    segment = sr.ReferencedSegment.from_segmentation(seg, segment_number=1)
    group = sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        sr.TrackingIdentifier(generate_uid(), "liver"),
        referenced_segment=segment,
        finding_type=codes.SCT.Organ,
        measurements=[sr.Measurement(codes.SCT.Volume, 102.4, codes.UCUM.CubicMillimeter)],
    )
    content = sr.MeasurementReport(context, codes.DCM.ImagingMeasurementReport, imaging_measurements=[group])
    evidence = [*images, seg]
    return sr.Comprehensive3DSR(evidence, content, generate_uid(), 3, generate_uid(), 1, manufacturer="m")


def seen_in(folder):
    """Instances without identity, references of the segmentation to no image, volumes that a reader finds."""
    files = [dcmread(path, force=True) for path in sorted(Path(folder).rglob("*.dcm"))]
    assert len(files) == 6, [path.name for path in Path(folder).rglob("*.dcm")]
    nameless = sum("SOPClassUID" not in each or "SOPInstanceUID" not in each for each in files)
    if nameless:
        return nameless, None, None
    known = {each.SOPInstanceUID for each in files}
    of = {each.Modality: each for each in files}
    references = [e.value for e in of["SEG"].iterall() if e.keyword == "ReferencedSOPInstanceUID"]
    dangling = sum(uid not in known for uid in references)
    try:
        groups = sr.Comprehensive3DSR.from_dataset(of["SR"]).content.get_volumetric_roi_measurement_groups()
        volumes = [m.value for group in groups for m in group.get_measurements()]
    except ValueError as error:
        volumes = f"ValueError: {error}"
    return nameless, f"{dangling} of {len(references)}", volumes


labels = np.zeros((4, 16, 16), np.uint8)
labels[:, 4:8, 4:9], labels[1:, 9:12, 3:5] = 1, 2

images = list(ct())
seg = segmentation(images, labels)
Path("in").mkdir()
for number, each in enumerate([*images, seg, report(images, seg)]):
    each.save_as(f"in/{number}.dcm", enforce_file_format=True)
before = seen_in("in")
print(f"before: {before}")
assert (before[0], before[2]) == (0, [102.4])
assert before[1].startswith("0 of ")

Path("by-dicom-anonymizer").mkdir()
subprocess.run([BIN / "dicom-anonymizer", "in", "by-dicom-anonymizer"], check=True, capture_output=True)
seen = seen_in("by-dicom-anonymizer")
print(f"dicom-anonymizer {version('dicom-anonymizer')}: {seen}")
count = before[1].split()[-1]
assert seen[:2] == (0, f"{count} of {count}")
assert seen[2] == "ValueError: 'ANONYMIZED' is not a valid ValueTypeValues"

Path("by-deid").mkdir()
inputs = sorted(str(path) for path in Path("in").glob("*.dcm"))
replace_identifiers(dicom_files=inputs, output_folder="by-deid", save=True)
seen = seen_in("by-deid")
print(f"deid {version('deid')}: {seen[0]} of 6 instances without SOP Class UID or SOP Instance UID")
assert seen[0] == 6

failed = subprocess.run([BIN / "dicognito", "--version"], capture_output=True, text=True)
print(f"dicognito {version('dicognito')}: console script: {failed.stderr.splitlines()[-1]}")
assert "missing 1 required positional argument" in failed.stderr
command = [sys.executable, "-m", "dicognito", "--output-directory", "by-dicognito", "in"]
subprocess.run(command, check=True, capture_output=True)
seen = seen_in("by-dicognito")
print(f"dicognito {version('dicognito')}: python -m dicognito: {seen}")
assert seen == before
PYTHON
