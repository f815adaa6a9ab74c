"""Two patients under one Series Instance UID are distinguished by bytes, whatever was parsed before."""

from __future__ import annotations

from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, dcmread, dcmwrite

from dicom_node.errors import EncodingError, IdentityConflict
from dicom_node.standard.identity import PATIENT_STUDY_SERIES, refuse_mixed_identity, states

LATIN_1, UTF_8 = "ISO_IR 100", "ISO_IR 192"


def header(**values) -> Dataset:
    """A header as after reading: its elements are raw bytes."""
    dataset = Dataset()
    for keyword, value in {"SpecificCharacterSet": LATIN_1, "PatientID": "1", **values}.items():
        setattr(dataset, keyword, value)
    buffer = BytesIO()
    dcmwrite(buffer, dataset, implicit_vr=False, little_endian=True)
    buffer.seek(0)
    return dcmread(buffer, force=True)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"PatientName": "Müller"}, {"PatientName": "Müller^^^"}),
        ({"PatientName": "Muller"}, {"PatientName": "Muller", "SpecificCharacterSet": UTF_8}),
        ({"PatientSex": ""}, {}),
    ],
    ids=["empty name components", "ASCII in two character sets", "empty and absent"],
)
def test_same_identity(one, other):
    refuse_mixed_identity([header(**one), header(**other)], PATIENT_STUDY_SERIES)


@pytest.mark.parametrize(
    ("one", "other", "named"),
    [
        ({"PatientName": "Müller"}, {"PatientName": "Muller"}, "Patient's Name"),
        ({"PatientName": "Müller"}, {}, "Patient's Name"),
        ({"PatientID": "1"}, {"PatientID": "01"}, "Patient ID"),
        ({"SeriesInstanceUID": "1.2"}, {"SeriesInstanceUID": "1.20"}, "Series Instance UID"),
    ],
)
def test_different_identity(one, other, named):
    with pytest.raises(IdentityConflict, match=f"^{named} differs: 2 values in 3 instances$"):
        refuse_mixed_identity([header(**one), header(**one), header(**other)], PATIENT_STUDY_SERIES)


def test_same_bytes_in_two_character_sets_are_two_names():
    headers = [header(PatientName="Ã¼"), header(PatientName="ü", SpecificCharacterSet=UTF_8)]
    assert headers[0].get_item("PatientName").value == headers[1].get_item("PatientName").value
    with pytest.raises(IdentityConflict):
        refuse_mixed_identity(headers, ["PatientName"])


@given(st.lists(st.booleans(), min_size=2, max_size=5), st.sampled_from(["Müller^Eva", "A^B", ""]))
def test_previously_parsed_elements_make_no_difference(was_read, name):
    headers = [header(PatientName=name) for _ in was_read]
    for each, read in zip(headers, was_read, strict=True):
        if read:
            assert str(each.PatientName) == name
    refuse_mixed_identity(headers, PATIENT_STUDY_SERIES)


def test_name_that_is_not_text_is_refused_without_its_value():
    sequence = header(OtherPatientIDsSequence=[Dataset()])
    sequence.add_new("PatientName", "SQ", [])
    with pytest.raises(EncodingError, match="Patient's Name is a sequence"):
        refuse_mixed_identity([sequence], ["PatientName"])


def test_states_of_an_identity():
    assert states(header(FrameOfReferenceUID="1.2"), "FrameOfReferenceUID")
    assert not states(header(FrameOfReferenceUID=""), "FrameOfReferenceUID")
    assert not states(header(), "FrameOfReferenceUID")
