"""Faulty headers, from the file to the results: valid objects with exactly the received names, or a refusal that
names the attribute. There is no other outcome, and no refusal shows a patient.
"""

from __future__ import annotations

import json
import subprocess
from io import BytesIO
from typing import TYPE_CHECKING

import highdicom
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.charset import python_encoding
from pydicom.datadict import keyword_for_tag

from dicom_node.encode.pages.banner import IN_HEADER, NOT_STATED, banner
from dicom_node.encode.run import encode, encode_notice
from dicom_node.encode.source.identity import TYPE_2
from dicom_node.encode.source.series import name_series, prepare
from dicom_node.errors import ConfigurationError, EncodingError, IdentityConflict, SeriesRejected
from dicom_node.reconstruct import reconstruct
from dicom_node.route.requests import OPTIONS
from dicom_node.route.rules import Rules
from dicom_node.route.rules_file import load_rules
from dicom_node.settings import DestinationSettings, Settings, TissueModelSettings
from dicom_node.types import EncodedResult, ResultKind, ResultRequest, SegmentationForm
from inference.errors import UnknownStructureError
from inference.measure import measure
from inference.structures import _required_code
from inference.types import InvalidValueError, Segmentation
from tests.support import raw_series
from tests.support.analysis_results import CONTEXT, MODEL, asymmetric_labels, geometry, reconstruction, segmentation
from tests.support.raw_series import PATIENT_ID, SURNAME, changed, encoded, padded, plane_elements, sequence, tag_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.support.raw_series import Change

pytestmark = pytest.mark.filterwarnings("ignore")

OBJECTS = ResultRequest(segmentation=SegmentationForm.BOTH, contours=("organ",))
EVERYTHING = ResultRequest(segmentation=SegmentationForm.BOTH, contours=("organ",), capture=True, document=True)
NAMES = {1: "liver", 5: "spleen"}
AS_THEY_CAME = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "OtherPatientNames",
    "AccessionNumber",
    "ReferringPhysicianName",
)
SECRETS = (SURNAME, PATIENT_ID, "Anna", "Haus")


def results(paths: list[Path], request: ResultRequest = OBJECTS) -> tuple[EncodedResult, ...]:
    source = reconstruct(raw_series.read(paths))
    grid = source.source.geometry
    labels = Segmentation(asymmetric_labels(grid.shape_zyx, sorted(NAMES)), grid, NAMES, MODEL)
    return encode(source, labels, measure(source.source, labels), CONTEXT, {"pacs": request})


def notice(paths: list[Path]) -> tuple[EncodedResult, ...]:
    headers = [instance.header for instance in raw_series.read(paths).instances]
    return encode_notice(headers, "demo", "no volume", CONTEXT, ("pacs",))


def made_or_refused(make, *arguments) -> tuple[EncodedResult, ...] | str:
    """The results, or the message of a refusal, which must contain no patient data."""
    try:
        return make(*arguments)
    except (SeriesRejected, EncodingError) as error:
        refusal = error
    said = str(refusal)
    assert "unexpected" not in said, repr(refusal.__cause__)
    assert not any(secret in said for secret in SECRETS)
    return said


def refuse_other_names(made: tuple[EncodedResult, ...], elements: raw_series.Elements) -> None:
    """Check that every object has the names in ``elements``, byte for byte."""
    for result in made:
        written = result.dataset
        for keyword in AS_THEY_CAME:
            tag = tag_of(keyword)
            came = elements[tag][1] if tag in elements else b"" if keyword in TYPE_2 else None
            element = written.get_item(tag) if tag in written else None
            value = None if element is None else element.value or b""
            assert value == (None if came is None else padded(came, elements[tag][0] if came else LO)), keyword


def read_as_a_whole(made: tuple[EncodedResult, ...]) -> None:
    """Check that pydicom can read every element of every object, and highdicom every object of a kind it knows."""
    for result in made:
        for element in result.dataset.iterall():
            assert element.value is not Ellipsis
        if result.kind in (ResultKind.SEGMENTATION, ResultKind.LABELMAP):
            assert len(highdicom.seg.segread(BytesIO(result.content)).SegmentSequence) >= len(NAMES)
        if result.kind in (ResultKind.REPORT, ResultKind.NOTICE):
            assert highdicom.sr.srread(BytesIO(result.content)).content


UN, LO, SQ, CS, DS, IS, PN = b"UN", b"LO", b"SQ", b"CS", b"DS", b"IS", b"PN"
LONG = b"1.2.826.0.1.3680043.8.498." + b"9" * 38
ISSUER = sequence(encoded({0x00400032: (b"UT", b"1.2.3"), 0x00400033: (CS, b"ISO")}))
PRIVATE = {
    0x00110010: (LO, b"ACME 1.1"),
    0x00111001: (PN, b"Nobody^Private"),
    0x00111002: (SQ, sequence(encoded({0x00110010: (LO, b"ACME 1.1"), 0x00111003: (UN, b"\0\1\2\3")}))),
    0x00091010: (UN, b"no creator"),
}
SOUND: Mapping[str, Mapping[str | int, Change]] = {
    "nothing wrong": {},
    "nothing of type 2": dict.fromkeys((*TYPE_2, "SpecificCharacterSet", "SeriesNumber", "SliceThickness")),
    "type 2 empty": dict.fromkeys((*TYPE_2, "SeriesNumber", "SliceThickness", "BodyPartExamined"), b""),
    "type 2 blank": dict.fromkeys((*TYPE_2, "SeriesNumber", "SliceThickness"), b"  "),
    "UN for what everybody knows": {
        keyword: (UN, plane_elements(0)[tag_of(keyword)][1])
        for keyword in ("PatientName", "PatientID", "StudyDate", "PixelSpacing", "StudyInstanceUID", "SeriesNumber")
    },
    "UN that nobody knows": {0x00100FFF: (UN, b"?"), 0x0008FFF0: (UN, b"\xff" * 9), 0x00120099: (b"ZZ", b"?")},
    "implicit VR in UN": {
        "IssuerOfPatientIDQualifiersSequence": (
            UN,
            sequence(encoded({0x00400032: (b"UT", b"1.2.3"), 0x00400033: (CS, b"ISO")}, implicit_vr=True)),
        )
    },
    "issuers": {"IssuerOfPatientIDQualifiersSequence": ISSUER, "IssuerOfAccessionNumberSequence": ISSUER},
    "issuer without items": {"IssuerOfPatientIDQualifiersSequence": b""},
    "private groups": PRIVATE,
    "private sequence in the issuer": {"IssuerOfPatientIDQualifiersSequence": sequence(ISSUER[8:] + encoded(PRIVATE))},
    "UIDs of 64 characters": {"StudyInstanceUID": LONG, "SeriesInstanceUID": LONG, "FrameOfReferenceUID": LONG + b"\0"},
    "UIDs with blanks": {"StudyInstanceUID": b"1.2.3 ", "FrameOfReferenceUID": b"1.2.4 \0"},
    "numbers without sense": {"SeriesNumber": b"1" * 14, "SliceThickness": b"thick", "PatientWeight": b"1e"},
    "numbers beyond all sense": {"SeriesNumber": b"-2147483649", "SliceThickness": b"-0", "PatientSize": b"NaN"},
    "lossy without sense": {
        "LossyImageCompression": b"01",
        "LossyImageCompressionRatio": b"10 to 1",
        "LossyImageCompressionMethod": b"jpeg",
    },
    "small letters": {"PatientSex": b"f", "BodyPartExamined": b"chest", "PatientIdentityRemoved": b"yes"},
    "days that never were": {"StudyDate": b"20260230", "PatientBirthDate": b"invalid", "StudyTime": b"25:61"},
    "days of a query": {"StudyDate": b"20260101-20260302", "PatientBirthDate": b"-1950", "StudyTime": b"1000-1100"},
    "days of the old standard": {"StudyDate": b"2026.03.04", "StudyTime": b"10:00:00"},
    "time zones that are none": {"TimezoneOffsetFromUTC": b"+2500"},
    "time zones in words": {"TimezoneOffsetFromUTC": b"CET"},
    "too long": {"StudyDescription": b"x" * 65, "StudyID": b"y" * 17, "PatientComments": b"z" * 10241},
    "several where one may be": {
        "StudyID": b"1\\2",
        "StudyDescription": b"a\\b",
        "PositionReferenceIndicator": b"a\\b",
        "SeriesNumber": b"1\\2",
        "SliceThickness": b"3\\4",
        "PatientSex": b"M\\F",
    },
    "control characters": {"StudyDescription": b"a\x07b", "Manufacturer": b"\x01", "StudyID": b"a\nb"},
    "a scanner of blanks": {"Manufacturer": b"   ", "StationName": b"s" * 30, "SoftwareVersions": b"1\\" + b"2" * 70},
    "a name of many components": {"PatientName": f"{SURNAME}^a^b^c^d^e^f=g^h=i=j=k".encode()},
    "a name of 300 letters": {"PatientName": SURNAME.encode() * 30},
    "several names": {"OtherPatientNames": b"One^A\\Two^B", "ReferringPhysicianName": b"A^B\\C^D"},
    "an ID of many words": {"PatientID": b"a\\b" * 40, "AccessionNumber": b"1234567890123456789\\\\"},
    "a name of another VR": {"PatientName": (LO, b"Name^LO"), "PatientID": (b"OB", b"bytes")},
    "a name that ends in zeros": {"PatientName": b"Zero\0\0", "PatientID": b"\0"},
    "a character set in small letters": {"SpecificCharacterSet": b"iso_ir 100", "PatientName": b"M\xfcller"},
    "a day of no VR": {"StudyDate": (b"ZZ", b""), "StudyTime": (b"ZZ", b"10")},
    "functional groups of a classic image": {"PerFrameFunctionalGroupsSequence": ISSUER},
}
REFUSED: Mapping[str, tuple[Mapping[str | int, Change], str]] = {
    "no study": ({"StudyInstanceUID": None}, "Study Instance UID"),
    "study without sense": ({"StudyInstanceUID": b"1.2..3"}, "Study Instance UID"),
    "study of 65 characters": ({"StudyInstanceUID": LONG + b"1"}, "Study Instance UID"),
    "two studies": ({"StudyInstanceUID": b"1.2\\1.3"}, "Study Instance UID"),
    "no series": ({"SeriesInstanceUID": b""}, "Series Instance UID"),
    "name as sequence": ({"PatientName": (SQ, ISSUER)}, "Patient's Name"),
    "name of no VR": ({"PatientName": (b"ZZ", b"")}, "Patient's Name"),
    "name without an end": ({"PatientName": (UN, b"A" * 65535)}, "Patient's Name"),
    "ID without an end": ({"PatientID": (UN, b"A" * 66000)}, "Patient ID"),
    "issuer as text": ({"IssuerOfPatientIDQualifiersSequence": (LO, b"Haus")}, "Issuer of Patient ID Qualifiers"),
    "issuer without sense": ({"IssuerOfPatientIDQualifiersSequence": b"Haus"}, "Issuer of Patient ID Qualifiers"),
    "character set as numbers": ({"SpecificCharacterSet": (b"FD", b"ISO_IR 100")}, ""),
}
REFUSED_AS_VOLUME: Mapping[str, tuple[Mapping[str | int, Change], str]] = {
    "no Frame of Reference": ({"FrameOfReferenceUID": b""}, "Frame of Reference UID"),
    "spacing in words": ({"PixelSpacing": b"wide\\high"}, "Pixel Spacing"),
    "one spacing of two": ({"PixelSpacing": b"0.7"}, "Pixel Spacing"),
    "spacing as text": ({"PixelSpacing": (LO, b"12")}, "Pixel Spacing"),
    "rows as text": ({"Rows": (LO, b"six")}, "Rows"),
    "slope without sense": ({"RescaleSlope": b"NaN"}, "Rescale Slope"),
    "orientation as sequence": ({"ImageOrientationPatient": (SQ, ISSUER)}, "Image Orientation"),
}


@pytest.mark.parametrize("name", SOUND)
def test_fault_that_leaves_the_identity_intact_gives_results_with_the_received_names(tmp_path, name) -> None:
    paths = raw_series.write(tmp_path, SOUND[name])
    for make in (results, notice):
        made = made_or_refused(make, paths)
        assert not isinstance(made, str), made
        refuse_other_names(made, changed(plane_elements(0), SOUND[name]))
        read_as_a_whole(made)


@pytest.mark.parametrize("name", ["nothing of type 2", "issuers", "UN that nobody knows", "private groups", "too long"])
def test_such_faults_give_results_in_implicit_vr_too(tmp_path, name) -> None:
    paths = raw_series.write(tmp_path, SOUND[name], implicit_vr=True)
    for make in (results, notice):
        refuse_other_names(make(paths), changed(plane_elements(0), SOUND[name]))


@pytest.mark.parametrize("name", REFUSED)
def test_fault_in_identity_or_position_is_refused_by_name(tmp_path, name) -> None:
    changes, said = REFUSED[name]
    paths = raw_series.write(tmp_path, changes)
    for make in (results, notice):
        refusal = made_or_refused(make, paths)
        assert isinstance(refusal, str), refusal
        assert said in refusal


@pytest.mark.parametrize("name", REFUSED_AS_VOLUME)
def test_images_without_a_volume_are_refused_by_name_with_a_notice(tmp_path, name) -> None:
    changes, said = REFUSED_AS_VOLUME[name]
    paths = raw_series.write(tmp_path, changes)
    refusal = made_or_refused(results, paths)
    assert isinstance(refusal, str), refusal
    assert said in refusal
    refuse_other_names(notice(paths), changed(plane_elements(0), changes))


def test_issuers_are_kept_with_the_attributes_of_the_standard(tmp_path) -> None:
    item = encoded({0x00080005: (CS, b"ISO_IR 144"), 0x00400031: (b"UT", "Юг".encode("iso8859-5"))} | PRIVATE)
    paths = raw_series.write(tmp_path, {"IssuerOfPatientIDQualifiersSequence": sequence(item)})
    for result in (*results(paths), *notice(paths)):
        (issuer,) = result.dataset.IssuerOfPatientIDQualifiersSequence
        assert issuer.LocalNamespaceEntityID == "Юг"
        assert len(issuer) == 2


FAULTY = [keyword_for_tag(tag) for tag in plane_elements(0) if tag != tag_of("PixelData")]
FAULTY += ["TimezoneOffsetFromUTC", "OtherPatientNames", "IssuerOfPatientIDQualifiersSequence", "StationName"]
FAULTY += ["SharedFunctionalGroupsSequence", "PatientIdentityRemoved", "LossyImageCompression", "NumberOfFrames"]
FAULTY += ["DeidentificationMethodCodeSequence", "IssuerOfAccessionNumberSequence", "PerFrameFunctionalGroupsSequence"]
VRS = st.sampled_from([b"UN", b"LO", b"SQ", b"OB", b"US", b"FD", b"DS", b"IS", b"AT", b"PN", b"UI", b"UT", b"ZZ"])
VALUES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b" ", b"NaN", b"1e999", b"-1", b"0", b"1.2.3", b"A\\B", b"\x1b$B", b"9" * 70, ISSUER]),
)


@example(changes={"SpecificCharacterSet": (b"SQ", b"\0")})  # pydicom raises OSError
@given(st.dictionaries(st.sampled_from(FAULTY), st.one_of(st.none(), VALUES, st.tuples(VRS, VALUES)), max_size=3))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_header_gives_results_with_its_names_or_a_refusal(tmp_path, changes) -> None:
    paths = raw_series.write(tmp_path, changes)
    elements = changed(plane_elements(0), changes)
    for make in (results, notice):
        made = made_or_refused(make, paths)
        if not isinstance(made, str):
            refuse_other_names(made, elements)


# ---- character sets


def escaped(*parts: tuple[bytes, str, str]) -> bytes:
    """Parts of text, each after the escape sequence of its character set (PS3.3 tables C.12-3 and C.12-4)."""
    return b"".join(escape + text.encode(codec) for escape, text, codec in parts)


CHARACTER_SETS: list[tuple[bytes | None, bytes, str]] = [
    (None, b"Plain^Name", "Plain, Name"),
    (b"", b"", NOT_STATED),
    (b"ISO_IR 6", b"Plain^Name^M^Dr^", "Plain, Name M Dr"),
    (b"ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ".encode("shift_jis"), IN_HEADER),
    (b"ISO_IR 100", "Ängström^Ü".encode("latin-1"), "Ängström, Ü"),
    (b"ISO_IR 101", "Wałęsa^Lech".encode("iso8859-2"), "Wałęsa, Lech"),
    (b"ISO_IR 109", "Ĉarlo^Ŝi".encode("iso8859-3"), "Ĉarlo, Ŝi"),
    (b"ISO_IR 110", "Šķēle^Ģ".encode("iso8859-4"), "Šķēle, Ģ"),
    (b"ISO_IR 126", "Διονυσιος^Λ".encode("iso8859-7"), "Διονυσιος, Λ"),
    (b"ISO_IR 127", "قباني^لنزار".encode("iso8859-6"), IN_HEADER),
    (b"ISO_IR 138", "שרון^דבורה".encode("iso8859-8"), IN_HEADER),
    (b"ISO_IR 144", "Люксембург^Ж".encode("iso8859-5"), "Люксембург, Ж"),
    (b"ISO_IR 148", "Çavuşoğlu^İ".encode("iso8859-9"), "Çavuşoğlu, İ"),
    (b"ISO_IR 166", "นามสกุล^ก".encode("tis-620"), IN_HEADER),
    (b"ISO_IR 192", "Λώπης^中村=中村".encode(), IN_HEADER),
    (b"ISO_IR 192", "Wang^Xiao=王^小東=".encode(), "Wang, Xiao"),
    (b"GB18030", "Wang^XiaoDong=王^小东".encode("gb18030"), "Wang, XiaoDong"),
    (b"GB18030", "王^小东".encode("gb18030"), IN_HEADER),
    (b"GBK", "王^小东".encode("gbk"), IN_HEADER),
    (b"ISO 2022 GBK", "王^小东".encode("gbk"), IN_HEADER),
    (b"ISO 2022 58", "王^小东".encode("gb2312"), IN_HEADER),
    (b"ISO 2022 IR 6", b"Plain", "Plain"),
    (b"ISO 2022 IR 100", "Müller".encode("latin-1"), "Müller"),
    (b"\\ISO 2022 IR 100", escaped((b"\x1b-A", "Müller", "latin-1")), "Müller"),
    (b"\\ISO 2022 IR 101", escaped((b"\x1b-B", "Wałęsa", "iso8859-2")), "Wałęsa"),
    (b"\\ISO 2022 IR 109", escaped((b"\x1b-C", "Ĉarlo", "iso8859-3")), "Ĉarlo"),
    (b"\\ISO 2022 IR 110", escaped((b"\x1b-D", "Šķēle", "iso8859-4")), "Šķēle"),
    (b"\\ISO 2022 IR 126", escaped((b"\x1b-F", "Διον", "iso8859-7")), "Διον"),
    (b"\\ISO 2022 IR 127", escaped((b"\x1b-G", "قباني", "iso8859-6")), IN_HEADER),
    (b"\\ISO 2022 IR 138", escaped((b"\x1b-H", "שרון", "iso8859-8")), IN_HEADER),
    (b"ISO 2022 IR 6\\ISO 2022 IR 144", escaped((b"A^", "", "ascii"), (b"\x1b-L", "Люк", "iso8859-5")), "A, Люк"),
    (b"\\ISO 2022 IR 148", escaped((b"\x1b-M", "Çavuş", "iso8859-9")), "Çavuş"),
    (b"\\ISO 2022 IR 166", escaped((b"\x1b-T", "นาม", "tis-620")), IN_HEADER),
    (b"\\ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", "Yamada, Tarou"),
    (b"ISO 2022 IR 13\\ISO 2022 IR 87", b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J", IN_HEADER),
    (b"\\ISO 2022 IR 159", b"Ding=" + "丂".encode("iso2022_jp_2"), "Ding"),
    (b"\\ISO 2022 IR 149", b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7", "Hong, Gildong"),
    (b"\\ISO 2022 IR 58", b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=", "Zhang, XiaoDong"),
    (b"ISO 2022 IR 87", b"\x1b$B;3ED\x1b(B", IN_HEADER),
    # bytes that cannot be decoded with certainty are never shown as letters
    (None, b"M\xfcller^J", IN_HEADER),
    (b"ISO_IR 6", b"M\xfcller^J", IN_HEADER),
    (b"ISO_IR 999", b"M\xfcller^J", IN_HEADER),
    (b"ISO_IR 999", b"Plain^J", "Plain, J"),
    (b"utf-8", "Müller".encode(), IN_HEADER),
    (b"ISO_IR 192", b"M\xfcller^J", IN_HEADER),
    (b"ISO_IR 100\\ISO_IR 999", b"M\xfcller^J", IN_HEADER),
    (b"\\ISO 2022 IR 144", b"\x1b-L\xbb\xee\x1b(B\xdab", IN_HEADER),
    (b"\\ISO 2022 IR 87", b"Yamada\x1b$B", "Yamada"),
    (b"\\ISO 2022 IR 87", b"M\xfcller=\x1b$B;3ED\x1b(B", IN_HEADER),
    (b"ISO_IR 100", b"\x1b[31mRed", IN_HEADER),
]


def test_every_supported_character_set_is_tested() -> None:
    tried = {term.decode() for terms, _, _ in CHARACTER_SETS for term in (terms or b"").split(b"\\")}
    assert python_encoding.keys() <= tried


@pytest.mark.parametrize(
    ("terms", "name", "shown"), CHARACTER_SETS, ids=[f"{n} {terms}" for n, (terms, *_) in enumerate(CHARACTER_SETS)]
)
def test_names_are_copied_and_drawn_in_every_character_set(tmp_path, terms, name, shown) -> None:
    changes = {"SpecificCharacterSet": terms} | dict.fromkeys(("PatientName", "ReferringPhysicianName"), name)
    changes |= dict.fromkeys(("PatientID", "OtherPatientNames", "AccessionNumber"), name)
    paths = raw_series.write(tmp_path, changes)
    made = (*results(paths), *notice(paths))
    refuse_other_names(made, changed(plane_elements(0), changes))
    for result in made:
        assert list(stated(result.dataset)) == list(stated(dcmread(paths[0]))), result.kind
    assert banner(prepare(reconstruct(raw_series.read(paths))).identity).patient_name == shown


def stated(dataset: Dataset) -> list[str]:
    """The terms of Specific Character Set; absent and empty mean the same."""
    value = dataset.get("SpecificCharacterSet") or ""
    return [value] if isinstance(value, str) else value


@pytest.mark.parametrize(
    ("terms", "name"),
    [(b"ISO_IR 100", "Müller".encode("latin-1")), (b"GB18030", "王^小东".encode("gb18030")), (b"?", b"$\\alpha$ \x1b")],
)
def test_pages_are_made_for_every_patient(tmp_path, terms, name) -> None:
    changes = {"SpecificCharacterSet": terms, "PatientName": name, "StudyDescription": name, "AccessionNumber": name}
    made = results(raw_series.write(tmp_path, changes), EVERYTHING)
    assert {result.kind for result in made} == set(ResultKind) - {ResultKind.NOTICE}
    refuse_other_names(made, changed(plane_elements(0), changes))


def test_same_bytes_in_two_character_sets_are_two_patients(tmp_path) -> None:
    name = "Müller".encode("latin-1")
    paths = raw_series.write(tmp_path, {"PatientName": name})
    other = changed(plane_elements(1), {"PatientName": name, "SpecificCharacterSet": b"ISO_IR 144"})
    paths[1].write_bytes(raw_series.part10(other))
    for make in (results, notice):
        with pytest.raises(IdentityConflict, match="Patient's Name differs: 2 values"):
            make(paths)


def test_character_sets_may_differ_if_no_letter_depends_on_them(tmp_path) -> None:
    paths = raw_series.write(tmp_path, {})
    paths[1].write_bytes(raw_series.part10(changed(plane_elements(1), {"SpecificCharacterSet": b"ISO_IR 192"})))
    assert results(paths)
    assert notice(paths)


@pytest.mark.parametrize("keyword", ["PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex"])
def test_two_patients_in_one_series_get_no_notice(tmp_path, keyword) -> None:
    paths = raw_series.write(tmp_path, {})
    paths[2].write_bytes(raw_series.part10(changed(plane_elements(2), {keyword: None})))
    with pytest.raises(IdentityConflict, match="differs: 2 values"):
        name_series([instance.header for instance in raw_series.read(paths).instances])


# ---- a checker of the standard


@pytest.mark.parametrize(
    "name",
    [
        "nothing of type 2",
        "type 2 blank",
        "lossy without sense",
        "days that never were",
        "several where one may be",
        "control characters",
        "a scanner of blanks",
        "private sequence in the issuer",
    ],
)
def test_no_header_fault_leads_to_an_object_that_dciodvfy_rejects(tmp_path, name) -> None:
    paths = raw_series.write(tmp_path, SOUND[name])
    for number, result in enumerate((*results(paths), *notice(paths))):
        if result.kind is ResultKind.LABELMAP:
            continue  # dciodvfy of 2022 does not know it
        file = tmp_path / f"result{number}.dcm"
        file.write_bytes(result.content)
        checked = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, check=False)
        said = (checked.stdout + checked.stderr).splitlines()
        assert not [line for line in said if line.startswith("Error")], result.kind


# ---- labels


@pytest.mark.parametrize(
    ("labels_zyx", "names", "said"),
    [
        (np.zeros((5, 12, 17), np.uint8), NAMES, r"\(5, 12, 17\) do not fit grid \(5, 12, 16\)"),
        (np.zeros((5, 12), np.uint8), NAMES, "do not fit grid"),
        (np.zeros((5, 12, 16), np.int32), NAMES, "uint8, not int32"),
        (np.zeros((5, 12, 16), np.bool_), NAMES, "uint8, not bool"),
        (np.full((5, 12, 16), 6, np.uint8), NAMES, "label 6 has no name"),
        (np.zeros((5, 12, 16), np.uint8), {}, "0 is background"),
        (np.zeros((5, 12, 16), np.uint8), {0: "liver"}, "0 is background"),
        (np.zeros((5, 12, 16), np.uint8), {256: "liver"}, "1..255, not 256"),
        (np.zeros((5, 12, 16), np.uint8), {"1": "liver"}, "1..255, not '1'"),
        (np.zeros((5, 12, 16), np.uint8), {1: "liver", 2: "liver"}, "liver names more than one label"),
        (np.zeros((5, 12, 16), np.uint8), {1: ""}, "label 1 has no name"),
    ],
)
def test_inconsistent_labels_cannot_be_created(labels_zyx, names, said) -> None:
    with pytest.raises(InvalidValueError, match=said):
        Segmentation(labels_zyx, geometry(), names, MODEL)


def test_label_without_name_is_refused_where_it_is_found() -> None:
    source = reconstruction()
    labels_zyx = asymmetric_labels(source.source.geometry.shape_zyx, [1, 3, 5])
    labels = segmentation(source.source.geometry, NAMES, labels_zyx)
    with pytest.raises(InvalidValueError, match=r"label 3 \(\d+ voxels\) has no name"):
        measure(source.source, labels)


def test_labels_of_another_grid_are_refused() -> None:
    source = reconstruction()
    labels = segmentation(geometry((5, 12, 15)), NAMES)
    with pytest.raises(EncodingError, match="grid"):
        encode(source, labels, measure(reconstruction(geometry((5, 12, 15))).source, labels), CONTEXT)


@pytest.mark.parametrize("names", [{1: "liver", 2: "phlogiston"}, {1: "phlogiston"}], ids=["absent", "present"])
def test_structure_unknown_to_the_catalogue_is_refused_by_name(names) -> None:
    source = reconstruction()
    labels = segmentation(source.source.geometry, names, asymmetric_labels(source.source.geometry.shape_zyx, [1]))
    with pytest.raises(EncodingError, match="has no structure named 'phlogiston'"):
        encode(source, labels, measure(source.source, labels), CONTEXT)


def test_structure_without_codes_cannot_be_created() -> None:
    row = {"name": "phlogiston", "type_code": "", "type_scheme": "SCT", "type_meaning": "Phlogiston"}
    with pytest.raises(UnknownStructureError, match="phlogiston has no type code"):
        _required_code(row, "type")


# ---- requests of destinations

SETTINGS = Settings(
    models={"tissue": TissueModelSettings(kind="tissue")},
    destinations={"pacs": DestinationSettings(host="127.0.0.1", port=104, ae_title="PACS")},
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["liver", "pacs"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["to", *OPTIONS, "x"]), inner),
    max_leaves=6,
)


@given(
    value=ANYTHING
    | st.lists(st.fixed_dictionaries({"to": st.just("pacs")}, optional=dict.fromkeys(OPTIONS, ANYTHING)), max_size=2)
)
def test_any_request_is_accepted_or_refused_with_its_location(value, tmp_path_factory) -> None:
    rules_file = tmp_path_factory.mktemp("rules") / "rules.yaml"
    rule = {"name": "r", "model": "tissue", "when": [], "destinations": value}
    rules_file.write_text(json.dumps({"rules": [rule]}))
    said, rules = "", Rules(())
    try:
        rules = load_rules(rules_file, SETTINGS)
    except ConfigurationError as error:
        said = str(error)
    assert all(line.startswith(f"{rules_file}:1: rules[0].destinations") for line in said.splitlines())
    assert all(isinstance(request, ResultRequest) for rule in rules.rules for request in rule.requests.values())
    assert said or rules.rules
