"""The header of a data set, read from untrusted bytes."""

from __future__ import annotations

import struct
from contextlib import suppress
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, Sequence, dcmwrite
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless

from dicom_node.errors import MalformedDataset
from dicom_node.receive.header import MOST_ELEMENTS_OF_A_SLICE, read_header
from dicom_node.standard.walk import walk

SYNTAXES = [ImplicitVRLittleEndian, ExplicitVRLittleEndian]


def encoded(dataset: Dataset, syntax: str) -> bytes:
    buffer = BytesIO()
    dcmwrite(buffer, dataset, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    return buffer.getvalue()


def ct(*, undefined_lengths: bool = False) -> Dataset:
    inner = Dataset()
    inner.SeriesInstanceUID = "9.9.9"
    item = Dataset()
    item.ReferencedSOPInstanceUID = "8.8.8"
    item.ReferencedSeriesSequence = Sequence([inner, Dataset()])
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.SOPInstanceUID = "1.2.3.4.5"
    dataset.ReferencedStudySequence = Sequence([item, item])
    dataset.StudyInstanceUID = "1.2.3"
    dataset.SeriesInstanceUID = "1.2.3.4"
    dataset.InstanceNumber = 17
    dataset.ImagePositionPatient = [-250.5, -100, 31.25]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.NumberOfFrames = 3
    dataset.add_new(0x00091001, "UN", b"private!")
    dataset.PixelData = bytes(range(200))
    dataset["PixelData"].VR = "OW"
    if undefined_lengths:
        dataset["ReferencedStudySequence"].is_undefined_length = True
        for nested in dataset.ReferencedStudySequence:
            nested.is_undefined_length_sequence_item = True
            nested["ReferencedSeriesSequence"].is_undefined_length = True
    return dataset


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined_lengths", [False, True])
def test_only_the_top_level_is_read(syntax, undefined_lengths):
    header = read_header(encoded(ct(undefined_lengths=undefined_lengths), syntax), syntax)
    assert header.sop_class_uid == "1.2.840.10008.5.1.4.1.1.2"
    assert header.sop_instance_uid == "1.2.3.4.5"
    assert header.study_instance_uid == "1.2.3"
    assert header.series_instance_uid == "1.2.3.4"
    assert (header.instance_number, header.number_of_frames) == (17, 3)
    assert header.position_mm == 31.25
    assert header.orientation == (1, 0, 0, 0, 1, 0)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined_lengths", [False, True])
def test_data_set_cut_inside_an_element_is_malformed(syntax, undefined_lengths):
    whole = encoded(ct(undefined_lengths=undefined_lengths), syntax)
    ends = element_ends(whole, syntax)
    for length in range(1, len(whole)):
        if length not in ends:
            with pytest.raises(MalformedDataset):
                read_header(whole[:length], syntax)


def element_ends(whole: bytes, syntax: str) -> set[int]:
    """Where a prefix is a valid data set: after each top-level element."""
    ends, part = set(), Dataset()
    full = ct(undefined_lengths=b"\xff\xff\xff\xff" in whole)
    for element in full:
        part.add(element)
        ends.add(len(encoded(part, syntax)))
    return ends


def test_encapsulated_pixel_data_is_skipped_and_must_be_complete():
    dataset = ct()
    dataset.PixelData = encapsulate([b"\xfe\xff\x0d\xe0" * 30, b"frame two"])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    whole = encoded(dataset, JPEG2000Lossless)
    assert read_header(whole, JPEG2000Lossless).sop_instance_uid == "1.2.3.4.5"
    for missing in (1, 4, 8, 9, 40):
        with pytest.raises(MalformedDataset):
            read_header(whole[:-missing], JPEG2000Lossless)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("has_pixels", [True, False])
def test_pixel_data_position_is_that_of_the_image_and_not_of_its_icon(syntax, has_pixels):
    dataset, icon = ct(), Dataset()
    icon.PixelData = b"icon"
    icon["PixelData"].VR = "OB"
    dataset.IconImageSequence = [icon]
    if not has_pixels:
        del dataset.PixelData
    whole = encoded(dataset, syntax)
    assert whole[read_header(whole, syntax).pixel_data] == (bytes(range(200)) if has_pixels else b"")


@pytest.mark.parametrize("junk", [b"\0", b"junk behind the end", bytes(8), b"\xff" * 64])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_trailing_bytes_are_malformed(junk, syntax):
    with pytest.raises(MalformedDataset):
        read_header(encoded(ct(), syntax) + junk, syntax)


@pytest.mark.parametrize("depth", [250, 5000])
def test_endless_nesting_is_malformed(depth):
    level = struct.pack("<HH2sHI", 0x0008, 0x1110, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    with pytest.raises(MalformedDataset, match="nested deeper"):
        read_header(level * depth, ExplicitVRLittleEndian)


def test_a_million_empty_items_are_refused():
    sequence = struct.pack("<HH2sHI", 0x0008, 0x1110, b"SQ", 0, 0xFFFFFFFF)
    with pytest.raises(MalformedDataset, match="elements"):
        read_header(sequence + struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 1_000_001, ExplicitVRLittleEndian)


def items(count: int) -> bytes:
    sequence = struct.pack("<HH2sHI", 0x0008, 0x1110, b"SQ", 0, 0xFFFFFFFF)
    return sequence + struct.pack("<HHI", 0xFFFE, 0xE000, 0) * count + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def test_a_slice_may_have_fewer_elements_than_an_image_of_many_frames():
    whole = items(MOST_ELEMENTS_OF_A_SLICE)
    assert read_header(whole, ExplicitVRLittleEndian).series_instance_uid == ""
    with pytest.raises(MalformedDataset, match="more than 50000 elements"):
        read_header(whole, ExplicitVRLittleEndian, is_multi_frame=False)


@pytest.mark.parametrize(("count", "pauses"), [(2000, 2), (500, 0)])
def test_the_walk_of_a_long_header_pauses(count, pauses):
    seen = []
    walk(items(count), implicit=False, pause=lambda: seen.append(1))
    assert len(seen) == pauses


def test_element_that_declares_four_gigabytes_is_malformed():
    with pytest.raises(MalformedDataset, match="4294967294 bytes"):
        read_header(struct.pack("<HH2sHI", 0x0008, 0x0016, b"OB", 0, 0xFFFFFFFE) + bytes(1000), ExplicitVRLittleEndian)


def test_unknown_sequence_of_undefined_length_is_implicit_inside():
    content = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + struct.pack("<HHI", 0x0008, 0x0050, 2) + b"AB"
    content += struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    unknown = struct.pack("<HH2sHI", 0x0009, 0x1010, b"UN", 0, 0xFFFFFFFF) + content
    uid = struct.pack("<HH2sH", 0x0020, 0x000D, b"UI", 4) + b"1.2\0"
    assert read_header(unknown + uid, ExplicitVRLittleEndian).study_instance_uid == "1.2"


@pytest.mark.parametrize(
    ("position", "orientation"),
    [
        ("0\\0\\1e308", "1\\0\\0\\0\\1\\0"),
        ("1\\2", "1\\0\\0\\0\\1\\0"),
        ("1\\2\\NaN", "1\\0\\0\\0\\1\\0"),
        ("1\\2\\x", "1\\0\\0\\0\\1\\0"),
        ("1\\2\\3", "1\\0\\0\\1\\0\\0"),
        ("1\\2\\3", "0\\0\\0\\0\\0\\0"),
        ("1\\2\\3", ""),
    ],
)
def test_no_position_without_a_valid_plane(position, orientation):
    def element(group_element, text):
        padded = text.encode() + b" " * (len(text) % 2)
        return struct.pack("<HHI", 0x0020, group_element, len(padded)) + padded

    header = read_header(element(0x0032, position) + element(0x0037, orientation), ImplicitVRLittleEndian)
    assert (header.position_mm, header.orientation) == (None, None)


@given(st.binary(max_size=300), st.sampled_from(SYNTAXES))
def test_any_bytes_are_a_header_or_malformed(junk, syntax):
    with suppress(MalformedDataset):
        read_header(junk, syntax)


@given(st.integers(0, 10_000), st.integers(0, 255), st.sampled_from(SYNTAXES))
@settings(max_examples=100)
def test_any_changed_byte_is_a_header_or_malformed(where, value, syntax):
    changed = bytearray(encoded(ct(undefined_lengths=True), syntax))
    changed[where % len(changed)] = value
    with suppress(MalformedDataset):
        read_header(bytes(changed), syntax)
