"""Which series are eligible, and which patient they belong to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import EnhancedCTImageStorage, MRImageStorage, SecondaryCaptureImageStorage

from dicom_node.errors import IdentityConflict, NotEligible, PixelDataInvalid, SeriesRejected
from dicom_node.reconstruct import reconstruct
from tests.support.ct_series import Stack, bent, noise, write


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    return write(tmp_path_factory.mktemp("series"), Stack(noise((4, 5, 7))))


def assign(**values):
    def change(header):
        for keyword, value in values.items():
            setattr(header, keyword, value)

    return change


NOT_ELIGIBLE = {
    "secondary capture": (assign(SOPClassUID=SecondaryCaptureImageStorage), "Secondary Capture Image Storage"),
    "MR": (assign(SOPClassUID=MRImageStorage), "SOP class is MR Image Storage, expected a CT image"),
    "garbled SOP class": (assign(SOPClassUID="1.2.111.10008.2.1.4.1.1.2"), "expected a CT image"),
    "other modality": (assign(Modality="PT"), "Modality is not CT"),
    "localizer": (assign(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "is a localizer (Image Type value 3)"),
    "localizer, axial": (
        assign(ImageType=["ORIGINAL", "PRIMARY", "AXIAL", "LOCALIZER"]),
        "is a localizer (Image Type value 4)",
    ),
    "localizer in lower case": (
        assign(ImageType=["original", "primary", "localizer"]),
        "is a localizer (Image Type value 3)",
    ),
    "localizer alone": (assign(ImageType="LOCALIZER"), "is a localizer (Image Type value 1)"),
    "colour": (assign(SamplesPerPixel=3, PhotometricInterpretation="RGB"), "not a greyscale image"),
    "palette": (assign(PhotometricInterpretation="PALETTE COLOR"), "not a greyscale image"),
    "perfusion map": (assign(RescaleType="US"), "not Hounsfield units"),
    "iodine image": (assign(RescaleType="MGML"), "not Hounsfield units"),
    "several frames": (assign(NumberOfFrames=2), "classic CT image that states several frames"),
    "two frames, filled up": (assign(NumberOfFrames="02"), "classic CT image that states several frames"),
    "no SOP Instance UID": (assign(SOPInstanceUID=""), "SOP Instance UID is missing"),
    "no Study Instance UID": (assign(StudyInstanceUID=None), "Study Instance UID is missing"),
    "UUID as Series Instance UID": (assign(SeriesInstanceUID="1355759b-7653-424e"), "is no valid UID"),
    "for processing": (assign(SOPClassUID="1.2.840.10008.5.1.4.1.1.2.3"), "CT Image Storage - For Processing"),
    "legacy for processing": (
        assign(SOPClassUID="1.2.840.10008.5.1.4.1.1.2.5"),
        "Enhanced CT Image Storage - For Proc",
    ),
    "65 characters": (assign(StudyInstanceUID="1." + "2" * 63), "is no valid UID"),
    "no Frame of Reference": (assign(FrameOfReferenceUID=""), "Frame of Reference UID is missing"),
}


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize(("change", "said"), NOT_ELIGIBLE.values(), ids=NOT_ELIGIBLE.keys())
def test_ineligible_series_are_refused(series, change, said):
    with pytest.raises(NotEligible) as refusal:
        reconstruct(bent(series, change))
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (assign(SOPClassUID=MRImageStorage), "expected a CT image"),
        (assign(SOPClassUID=EnhancedCTImageStorage), "1 multi-frame objects among 4"),
    ],
    ids=["MR", "multi-frame"],
)
def test_one_ineligible_instance_refuses_the_series(series, change, said):
    with pytest.raises(NotEligible, match=said):
        reconstruct(bent(series, change, 2))


@pytest.mark.parametrize("spelling", ["1", "01", "+1", "1 ", " 001"])
def test_single_frame_may_be_stated_in_any_form(series, spelling):
    def change(header):
        value = spelling.encode()
        header["NumberOfFrames"] = RawDataElement(Tag("NumberOfFrames"), "IS", len(value), value, 0, False, True)

    assert len(reconstruct(bent(series, change)).frames) == len(series.instances)


def with_localizer(series, **values):
    """``series`` with a localizer of another matrix, orientation and pixel spacing among the images."""
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}
    other = {"Rows": 4, "Columns": 4, "PixelSpacing": [2, 2], "SOPInstanceUID": "1.2.3.4", **scout, **values}
    localizer = bent(series, assign(**other), 1).instances[1]
    return replace(series, instances=(*series.instances[:2], localizer, *series.instances[2:]))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"FrameOfReferenceUID": "1.2.3.99"},
        {"Rows": 5, "Columns": 7},
        {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "LOCALIZER"]},
        {"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "CT_SOM5 TOP", "Localizer "]},
    ],
)
def test_localizer_among_the_images_is_set_aside_with_a_note(series, values):
    alone, read = reconstruct(series), reconstruct(with_localizer(series, **values))
    assert np.array_equal(read.volume.voxels_zyx, alone.volume.voxels_zyx)
    assert read.frames == alone.frames
    assert len(read.headers) == 4
    assert read.notes == ("localizers in the series: 1, set aside",)


def test_localizer_of_another_patient_is_still_a_conflict(series):
    with pytest.raises(IdentityConflict, match="Patient ID differs"):
        reconstruct(with_localizer(series, PatientID="T2"))


def test_leading_zeros_of_a_uid_are_quoted_unchanged(series):
    named = series
    for k in range(4):
        named = bent(named, assign(SOPInstanceUID=f"1.2.{k:05}.7", SeriesInstanceUID="1.2.03"), k)
    assert [frame.sop_instance_uid for frame in reconstruct(named).frames] == [f"1.2.{k:05}.7" for k in range(4)]


def test_empty_series_is_refused(series):
    with pytest.raises(NotEligible, match="no instances"):
        reconstruct(replace(series, instances=()))


TWO_OF = {
    "PatientID": ("T2", "Patient ID differs: 2 values in 4 instances"),
    "PatientName": ("Test^Two", "Patient's Name differs"),
    "PatientBirthDate": ("19700102", "Patient's Birth Date differs"),
    "PatientSex": ("", "Patient's Sex differs"),
    "IssuerOfPatientID": ("elsewhere", "Issuer of Patient ID differs"),
    "StudyInstanceUID": ("1.2.3", "Study Instance UID differs"),
    "SeriesInstanceUID": ("1.2.3", "Series Instance UID differs"),
    "FrameOfReferenceUID": ("1.2.3", "Frame of Reference UID differs"),
}


@pytest.mark.parametrize("keyword", TWO_OF)
def test_two_identities_in_one_series_are_refused_and_never_quoted(series, keyword):
    value, said = TWO_OF[keyword]
    with pytest.raises(IdentityConflict) as refusal:
        reconstruct(bent(series, assign(**{keyword: value}), 3))
    assert said in str(refusal.value)
    for secret in ("T1", "T2", "Test^", "1970"):
        assert secret not in str(refusal.value)


def test_padding_of_a_name_does_not_make_a_second_patient(series):
    reconstruct(bent(series, assign(PatientName="Test^One^^^ "), 1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("charset", ["ISO_IR 13", "nonsense", ["ISO 2022 IR 6", "ISO 2022 IR 87"], "", None])
def test_series_is_accepted_with_any_character_set(series, charset):
    reconstruct(bent(series, assign(SpecificCharacterSet=charset, PatientName=b"\xff\x1b$B\x80^\xfe")))


TYPE_2 = ["PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"]
TYPE_2 += ["AccessionNumber", "ReferringPhysicianName", "SeriesNumber", "InstanceNumber", "PositionReferenceIndicator"]
TYPE_2 += ["KVP", "AcquisitionNumber", "SliceThickness", "Manufacturer", "Modality", "ImageType", "HighBit"]


@pytest.mark.parametrize("keyword", TYPE_2)
def test_attribute_not_needed_for_geometry_and_values_may_be_missing(series, keyword):
    assert len(reconstruct(bent(series, lambda header: header.pop(keyword))).frames) == 4


TYPE_1 = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Rows"]
TYPE_1 += ["Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "BitsAllocated", "BitsStored"]
TYPE_1 += ["PixelRepresentation", "RescaleSlope", "RescaleIntercept"]


@pytest.mark.parametrize("empty", [False, True], ids=["missing", "empty"])
@pytest.mark.parametrize("keyword", TYPE_1)
def test_missing_required_attribute_is_named(series, keyword, empty):
    def change(header):
        if empty:
            header[keyword].value = None
        else:
            del header[keyword]

    with pytest.raises(SeriesRejected) as refusal:
        reconstruct(bent(series, change, 1))
    name = {"SOPClassUID": "SOP class"}.get(keyword, series.instances[0].header[keyword].name)
    assert f"{name} is missing" in str(refusal.value)


def test_invalid_number_is_named_and_not_quoted(series):
    def change(header):
        header.pop("Rows")
        header.add_new("Rows", "LO", "Smith^John")

    with pytest.raises(PixelDataInvalid, match="Rows is not numeric") as refusal:
        reconstruct(bent(series, change, 0))
    assert "Smith" not in str(refusal.value)


def test_accepted_irregularities_are_noted(series):
    assert reconstruct(series).notes == ()
    change = assign(LossyImageCompression="01", ImageType=["DERIVED", "SECONDARY"], Modality="")
    assert reconstruct(bent(series, change)).notes == (
        "the source images have undergone lossy compression",
        "the source images are derived (Image Type DERIVED SECONDARY)",
        "Modality is missing; treated as CT because of the SOP Class",
    )
