"""A small CT series written byte by byte, element by element, for faults that no library would write."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.uid import CTImageStorage

from dicom_node.standard.files import read_headers
from dicom_node.types import Series

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PLANES, ROWS, COLUMNS = 4, 6, 7
ROOT = "1.2.826.0.1.3680043.8.498"
SURNAME = "Zweifelhaft"
"""These values must appear nowhere except in results."""
PATIENT_ID = "P-90210"

Elements = dict[int, tuple[bytes, bytes]]
"""VR and value by tag."""

_LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_COMMON = {
    "SpecificCharacterSet": "ISO_IR 100",
    "ImageType": "ORIGINAL\\PRIMARY\\AXIAL",
    "SOPClassUID": CTImageStorage,
    "StudyDate": "20260304",
    "StudyTime": "040506",
    "AccessionNumber": "A-1",
    "Modality": "CT",
    "Manufacturer": "Acme",
    "ReferringPhysicianName": f"{SURNAME}^Arzt",
    "StudyDescription": "Thorax nativ",
    "PatientName": f"{SURNAME}^Anna",
    "PatientID": PATIENT_ID,
    "IssuerOfPatientID": "Haus",
    "PatientBirthDate": "19500203",
    "PatientSex": "F",
    "PatientAge": "076Y",
    "PatientSize": "1.71",
    "PatientWeight": "70",
    "BodyPartExamined": "CHEST",
    "SliceThickness": "3",
    "StudyInstanceUID": f"{ROOT}.1",
    "SeriesInstanceUID": f"{ROOT}.2",
    "StudyID": "S1",
    "SeriesNumber": "5",
    "ImageOrientationPatient": "1\\0\\0\\0\\1\\0",
    "FrameOfReferenceUID": f"{ROOT}.3",
    "PositionReferenceIndicator": "",
    "PhotometricInterpretation": "MONOCHROME2",
    "PixelSpacing": "0.7\\0.8",
    "RescaleIntercept": "-1024",
    "RescaleSlope": "1",
}
_NUMBERS = {
    "SamplesPerPixel": 1,
    "Rows": ROWS,
    "Columns": COLUMNS,
    "BitsAllocated": 16,
    "BitsStored": 16,
    "HighBit": 15,
    "PixelRepresentation": 0,
}


def tag_of(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return tag


def plane_elements(k: int) -> Elements:
    """A valid header and its pixels."""
    texts = _COMMON | {"SOPInstanceUID": f"{ROOT}.2.{k + 1}", "ImagePositionPatient": f"-3\\-4\\{2.5 * k}"}
    texts["InstanceNumber"] = str(PLANES - k)
    found: Elements = {}
    for keyword, text in texts.items():
        tag = tag_of(keyword)
        found[tag] = dictionary_VR(tag).encode(), text.encode()
    for keyword, number in _NUMBERS.items():
        found[tag_of(keyword)] = b"US", struct.pack("<H", number)
    stored = np.random.default_rng(k).integers(1000, 1100, (ROWS, COLUMNS), dtype=np.uint16)
    found[tag_of("PixelData")] = b"OW", stored.tobytes()
    return found


def encoded(elements: Mapping[int, tuple[bytes, bytes]], *, implicit_vr: bool = False) -> bytes:
    """The elements in order of their tags."""
    return b"".join(_element(tag, *elements[tag], implicit_vr=implicit_vr) for tag in sorted(elements))


def _element(tag: int, vr: bytes, value: bytes, *, implicit_vr: bool) -> bytes:
    value = padded(value, vr)
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if implicit_vr:
        return head + struct.pack("<I", len(value)) + value
    if vr in _LONG_VRS:
        return head + vr + struct.pack("<HI", 0, len(value)) + value
    return head + vr + struct.pack("<H", len(value)) + value


def padded(value: bytes, vr: bytes) -> bytes:
    """``value`` with the padding for its VR (PS3.5 6.2)."""
    return value + (b"\0" if vr in (b"UI", b"OB", b"UN", b"OW") else b" ") * (len(value) % 2)


def sequence(*items: bytes) -> bytes:
    """The value of a sequence with these encoded items."""
    return b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items)


def part10(elements: Elements, *, implicit_vr: bool = False) -> bytes:
    """A file, in Explicit VR Little Endian or in Implicit VR."""
    syntax = b"1.2.840.10008.1.2" if implicit_vr else b"1.2.840.10008.1.2.1"
    meta = encoded(
        {
            0x00020002: (b"UI", str(CTImageStorage).encode()),
            0x00020003: (b"UI", elements.get(tag_of("SOPInstanceUID"), (b"UI", b"1.2"))[1].strip(b" \0")),
            0x00020010: (b"UI", syntax),
            0x00020012: (b"UI", b"1.2.3"),
        }
    )
    length = encoded({0x00020000: (b"UL", struct.pack("<I", len(meta)))})
    return bytes(128) + b"DICM" + length + meta + encoded(elements, implicit_vr=implicit_vr)


Change = tuple[bytes, bytes] | bytes | None
"""VR and value, a value of the VR in the dictionary, or None for an absent element."""


def changed(elements: Elements, changes: Mapping[str | int, Change]) -> Elements:
    """``elements`` with ``changes`` applied by keyword or tag."""
    result = dict(elements)
    for key, change in changes.items():
        tag = key if isinstance(key, int) else tag_of(key)
        if change is None:
            result.pop(tag, None)
        else:
            result[tag] = change if isinstance(change, tuple) else (dictionary_VR(tag).encode(), change)
    return result


def write(folder: Path, changes: Mapping[str | int, Change], *, implicit_vr: bool = False) -> list[Path]:
    """Write the series with ``changes`` in each of its files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in range(PLANES):
        path = folder / f"{k}.dcm"
        path.write_bytes(part10(changed(plane_elements(k), changes), implicit_vr=implicit_vr))
        paths.append(path)
    return paths


def read(paths: list[Path]) -> Series:
    """Read the series like the node reads received files."""
    return Series(f"{ROOT}.2", f"{ROOT}.1", read_headers(paths))
