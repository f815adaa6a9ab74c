"""Reads headers of untrusted files within limits that no CT image comes near.

pydicom keeps every value and every item of a file, so that one file with 200 MB in a private value, or a million items,
can take all memory or hours. Here, pydicom reads through a stream that counts the bytes requested, and long values are
skipped by their declared length.

===================== ========= ====================================================================================
per header            limit     the most that a CT image needs
===================== ========= ====================================================================================
one value             64 KiB    10 KiB, a text. Longer private and bulk values are left out, others refused
bytes, without those  64 MiB    10 MiB: an Enhanced CT of 3000 frames with 3 KiB each
elements and items    1,000,000 900,000: a Legacy Converted CT of 3000 frames with 300 attributes each
items                 100,000   36,000: 3000 frames with 12 functional groups each
===================== ========= ====================================================================================

All headers of a series together may have 256 MiB, 3,000,000 elements and 300,000 items: 3000 classic images of 85 KiB
with 1000 elements and 100 items each.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, cast

from pydicom import dcmread
from pydicom.datadict import dictionary_description, dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.valuerep import VR

from dicom_node.errors import LimitExceeded

if TYPE_CHECKING:
    from typing import BinaryIO

    from pydicom import DataElement, Dataset
    from pydicom.tag import BaseTag

LONGEST_VALUE = 64 * 1024
"""In bytes."""
_SHORT_VRS = frozenset(["AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UI"])
"""VRs of attributes that identify or describe; none of their values may be as long as that (PS3.5 table 6.2-1)."""
_MIB = 2**20
_HEAD = 128 * 1024
"""In these bytes the header of nearly every CT image ends."""
_ITEM_TAGS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
"""(FFFE,E000) in Little and in Big Endian."""
_PIXEL_DATA = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_PIXEL_DATA_GROUPS = (b"\xe0\x7f", b"\x7f\xe0")
_TAG_AND_LENGTH = 8
"""Bytes that pydicom reads in one go for every element and item; a value of this length is counted as one too."""


@dataclass(slots=True)
class Allowance:
    """What headers may have: one header as it is made, or all of a series."""

    bytes_left: int = 64 * _MIB
    elements_left: int = 1_000_000
    items_left: int = 100_000

    @classmethod
    def of_series(cls) -> Allowance:
        """For all headers of a series together."""
        return cls(256 * _MIB, 3_000_000, 300_000)

    def spend(self, size_bytes: int = 0, elements: int = 0, items: int = 0) -> None:
        """Count what was met, or is about to be read.

        Raises:
            LimitExceeded: it is more than there may be.
        """
        self.bytes_left -= size_bytes
        self.elements_left -= elements
        self.items_left -= items
        self.check()

    def check(self) -> None:
        """Whether something was spent that was not there.

        Raises:
            LimitExceeded: it was.
        """
        if self.bytes_left < 0:
            raise LimitExceeded("more bytes in headers than the limit of 64 MiB each and 256 MiB in a series")
        if self.elements_left < 0:
            raise LimitExceeded("more elements in headers than the limit of 1,000,000 each and 3,000,000 in a series")
        if self.items_left < 0:
            raise LimitExceeded("more sequence items in headers than the limit of 100,000 each and 300,000 in a series")


def read_header(stream: BinaryIO, series: Allowance | None = None) -> Dataset:
    """Everything before the pixel data, with ``file_meta``, without values of more than ``LONGEST_VALUE`` bytes.

    ``stream`` is a file that :func:`dicom_node.standard.opening.open_part10` has opened, which is not deflated.

    Only sequences may be longer, and hold longer values. A short text of the standard that is longer is refused.
    ``stream`` is left where the pixel data begins, or at its end where there is none.

    ``series`` is what the headers of its series may still have; this one is subtracted.

    Raises:
        LimitExceeded: the header has more than the table above allows.
        OSError: the file cannot be read.
        Exception: whatever pydicom raises on bytes that are no DICOM file.
    """
    allowances = (Allowance(), series or Allowance.of_series())
    try:
        return _read(stream, allowances)
    finally:  # pydicom makes other errors, or none, of what its stream raises
        for allowance in allowances:
            allowance.check()


def _read(file: BinaryIO, allowances: tuple[Allowance, ...]) -> Dataset:
    header = _read_in_head(file, allowances)
    if header is None:
        file.seek(0)
        stream = cast("BinaryIO", _Counted(file, allowances))
        header = dcmread(stream, stop_before_pixels=True, defer_size=LONGEST_VALUE)
        end = stream.tell()
        _settle_long_values(header, stream, allowances)
        file.seek(end)
    header.buffer = None  # it would keep the stream
    return header


def _read_in_head(file: BinaryIO, allowances: tuple[Allowance, ...]) -> Dataset | None:
    """The header if it ends within the first bytes, which cannot hold more than an allowance."""
    head = file.read(_HEAD)
    is_all = len(head) < _HEAD
    stream = BytesIO(head)
    try:
        header = dcmread(stream, stop_before_pixels=True)
    except Exception:
        if is_all:
            raise
        return None
    end = stream.tell()
    if not is_all and head[end : end + 2] not in _PIXEL_DATA_GROUPS:  # pydicom makes a whole header of a cut one
        return None
    items = sum(head.count(tag, 0, end) for tag in _ITEM_TAGS)
    for allowance in allowances:
        allowance.spend(end, len(header), items)
    _settle_long_values(header, stream, allowances)
    file.seek(end)
    return header


class _Counted:
    """A file as pydicom reads it: what it asks for is counted before it is read."""

    def __init__(self, file: BinaryIO, allowances: tuple[Allowance, ...]) -> None:
        self._file = file
        self._allowances = allowances
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes; a negative size is refused, because it has no limit."""
        for allowance in self._allowances:
            allowance.spend(size if size >= 0 else allowance.bytes_left + 1, size == _TAG_AND_LENGTH)
        content = self._file.read(size)
        if content.startswith(_ITEM_TAGS) and size == _TAG_AND_LENGTH:
            for allowance in self._allowances:
                allowance.spend(items=1)
        return content


def _settle_long_values(header: Dataset, stream: BinaryIO, allowances: tuple[Allowance, ...]) -> None:
    """Leave out the long values, but read the sequences among them."""
    elements = cast("dict[BaseTag, RawDataElement | DataElement]", header._dict)  # noqa: SLF001 - the public iterators decode
    for tag, element in list(elements.items()):
        if not isinstance(element, RawDataElement):
            continue
        is_deferred = element.value is None and element.length > 0
        if is_sequence(element) and is_deferred:
            stream.seek(element.value_tell)
            value = stream.read(element.length)
            items = sum(value.count(mark) for mark in _ITEM_TAGS)
            for allowance in allowances:
                allowance.spend(items=items)
            elements[tag] = element._replace(value=value)
        elif not is_sequence(element) and (is_deferred or len(element.value or b"") > LONGEST_VALUE):
            _refuse_unless_dispensable(element)
            del elements[tag]


def _refuse_unless_dispensable(element: RawDataElement) -> None:
    """Private and bulk values may be left out; without its identity or description a series would be another one."""
    tag = element.tag
    if dictionary_has_tag(tag) and dictionary_VR(tag) in _SHORT_VRS:
        raise LimitExceeded(
            f"{dictionary_description(tag)} {tag} has {element.length} bytes, more than the limit of {LONGEST_VALUE}"
        )


def is_sequence(element: RawDataElement) -> bool:
    """As pydicom will see it."""
    if element.VR == VR.SQ:
        return True
    return element.VR in (None, VR.UN) and dictionary_has_tag(element.tag) and dictionary_VR(element.tag) == VR.SQ
