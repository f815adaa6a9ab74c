"""Part 10 files in Explicit VR Little Endian as bytes: pydicom writes them, this module splits and joins them.

pydicom takes about 100 us per sequence item, which is 10 s for the frames of one SEG. An item that occurs thousands of
times is therefore written once by pydicom and repeated as bytes (PS3.5 section 7.1, explicit lengths throughout).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from io import BytesIO
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from pydicom import Dataset, dcmread, dcmwrite
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from dicom_node.errors import EncodingError
from dicom_node.standard.implementation import IMPLEMENTATION_CLASS_UID, VERSION_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import BinaryIO

PREAMBLE = bytes(128) + b"DICM"
"""As we write it (PS3.10 section 7.1)."""
PREAMBLE_LENGTH = len(PREAMBLE)
_GROUP_LENGTH = b"\x02\x00\x00\x00UL\x04\x00"
"""Header of File Meta Information Group Length (0002,0000), with which the File Meta Information begins."""
HEAD_LENGTH = PREAMBLE_LENGTH + len(_GROUP_LENGTH) + 4
"""The number of bytes needed to find the start of the data set."""
LONGEST_VALUE, _LONGEST_SHORT_VALUE = 2**32 - 2, 2**16 - 1
"""The largest value in bytes for a length of 32 or 16 bits; 2**32 - 1 means an undefined length."""
_UNDEFINED_LENGTH = 2**32 - 1

LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
"""VRs with a 32-bit length (PS3.5 table 7.1-1)."""
_ITEM = 0xFFFEE000
_SEQUENCE_DELIMITATION = 0xFFFEE0DD
_SHORT = struct.Struct("<HH2sH")
_LONG = struct.Struct("<HH2sHI")
_ITEM_HEADER = struct.Struct("<HHI")


class Element(NamedTuple):
    """One data element: where its header starts, its value, and header and value together."""

    tag: int
    start: int
    value: memoryview
    whole: memoryview


def file_of(dataset: Dataset) -> bytes:
    """``dataset`` as a Part 10 file.

    Raises:
        EncodingError: it cannot be written.
    """
    buffer = BytesIO()
    try:
        dcmwrite(buffer, dataset, enforce_file_format=True)
    except MemoryError:
        raise
    except Exception as error:
        raise EncodingError(f"{dataset.get('Modality')} object cannot be written: {type(error).__name__}") from error
    return buffer.getvalue()


def rewritten(file: memoryview, changes: dict[int, bytes]) -> bytes:
    """A Part 10 ``file`` with the elements in ``changes`` replaced or added."""
    parts = encoded_elements(file[PREAMBLE_LENGTH:]) | changes
    return bytes(file[:PREAMBLE_LENGTH]) + b"".join(parts[tag] for tag in sorted(parts))


def item_of(dataset: Dataset) -> bytes:
    """The elements of ``dataset``, which is one item of a sequence, without the item's own tag and length."""
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def elements(encoded: memoryview) -> Iterator[Element]:
    """The data elements of an item, or of a file after its preamble, in order.

    An undefined length is allowed only for encapsulated pixel data, which are the last element of our files.

    Raises:
        EncodingError: an element extends beyond the end.
    """
    for tag, start, first, end in _places(encoded):
        yield Element(tag, start, encoded[first:end], encoded[start:end])


def values(encoded: memoryview) -> dict[int, memoryview]:
    """The values of :func:`elements` by tag."""
    return {tag: encoded[first:end] for tag, _, first, end in _places(encoded)}


def encoded_elements(encoded: memoryview) -> dict[int, bytes]:
    """The :func:`elements`, each with its header, by tag."""
    return {tag: bytes(encoded[start:end]) for tag, start, _, end in _places(encoded)}


def items(value: memoryview) -> Iterator[memoryview]:
    """The items of a sequence, each without its tag and length.

    Raises:
        EncodingError: there is something other than an item, or a length is undefined or extends beyond the end.
    """
    start, end = 0, len(value)
    while start < end:
        group, number, length = _unpacked(_ITEM_HEADER, value, start)
        first = start + _ITEM_HEADER.size
        if group << 16 | number != _ITEM or first + length > end:
            raise EncodingError(f"({group:04X},{number:04X}) of {length} bytes where an item was expected")
        yield value[first : first + length]
        start = first + length


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    """One data element; ``value`` has an even length."""
    return element_header(tag, vr, len(value)) + value


def element_header(tag: int, vr: bytes, length: int) -> bytes:
    """Tag, VR and length of a data element.

    Raises:
        EncodingError: the length exceeds the maximum for the VR.
    """
    if length > (LONGEST_VALUE if vr in LONG_VRS else _LONGEST_SHORT_VALUE):
        raise EncodingError(f"element ({tag >> 16:04X},{tag & 0xFFFF:04X}) would have {length} bytes")
    if vr in LONG_VRS:
        return _LONG.pack(tag >> 16, tag & 0xFFFF, vr, 0, length)
    return _SHORT.pack(tag >> 16, tag & 0xFFFF, vr, length)


def text_element(tag: int, vr: bytes, text: str) -> bytes:
    """A data element of ASCII text, padded to an even length."""
    value = text.encode("ascii")
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    return element(tag, vr, value)


def sequence(tag: int, contents: Iterable[bytes]) -> bytes:
    """A sequence with these items."""
    return element(tag, b"SQ", b"".join(item(content) for content in contents))


def item(content: bytes) -> bytes:
    """An item with its tag and length."""
    return _ITEM_HEADER.pack(_ITEM >> 16, _ITEM & 0xFFFF, len(content)) + content


def encapsulated(tag: int, frames: list[bytes]) -> list[bytes]:
    """Pixel data of encoded ``frames``, one fragment each, after a Basic Offset Table (PS3.5 A.4).

    Raises:
        EncodingError: the start of a frame exceeds the range of the table.
    """
    starts = [0, *accumulate(_ITEM_HEADER.size + len(frame) for frame in frames[:-1])]
    if starts[-1] > LONGEST_VALUE:
        raise EncodingError(f"frames of {starts[-1]} bytes exceed the range of a Basic Offset Table")
    header = _LONG.pack(tag >> 16, tag & 0xFFFF, b"OB", 0, _UNDEFINED_LENGTH)
    table = struct.pack(f"<{len(starts)}I", *starts)
    end = _ITEM_HEADER.pack(_SEQUENCE_DELIMITATION >> 16, _SEQUENCE_DELIMITATION & 0xFFFF, 0)
    return [header, item(table), *map(item, frames), end]


def fragments(value: memoryview) -> list[memoryview]:
    """The frames of encapsulated pixel data, each of one fragment.

    Raises:
        EncodingError: the table does not match the frames, or the end is not where it must be.
    """
    end = len(value) - _ITEM_HEADER.size
    group, number, length = _unpacked(_ITEM_HEADER, value, end)
    if (group << 16 | number, length) != (_SEQUENCE_DELIMITATION, 0):
        raise EncodingError("the encapsulated pixel data have no end")
    table, *frames = items(value[:end])
    starts = [0, *accumulate(_ITEM_HEADER.size + len(frame) for frame in frames[:-1])]
    if bytes(table) != struct.pack(f"<{len(starts)}I", *starts):
        raise EncodingError(f"the Basic Offset Table does not fit the {len(frames)} frames")
    return frames


def only_item(parent: dict[int, bytes], tag: int) -> dict[int, bytes]:
    """The elements of the one item of the sequence ``tag`` of ``parent``."""
    (only,) = items(values(memoryview(parent[tag]))[tag])
    return encoded_elements(only)


def within(parent: dict[int, bytes], tag: int, changes: dict[int, bytes]) -> bytes:
    """The sequence ``tag`` of ``parent``, which has one item, with the elements in ``changes`` replaced or added."""
    return with_changes(tag, only_item(parent, tag), changes)


def with_changes(tag: int, only: dict[int, bytes], changes: dict[int, bytes]) -> bytes:
    """A sequence of one item: the elements ``only``, with those in ``changes`` replaced or added."""
    return sequence(tag, [b"".join((only | changes).values())])


def _places(encoded: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """For each element, its tag and the offsets of its header, its value and the next element."""
    start, size = 0, len(encoded)
    while start < size:
        try:
            group, number, vr, length = _SHORT.unpack_from(encoded, start)
            first = start + _SHORT.size
            if vr in LONG_VRS:
                *_, length = _LONG.unpack_from(encoded, start)
                first = start + _LONG.size
                if vr == b"OB" and length == _UNDEFINED_LENGTH:
                    length = size - first
        except struct.error:
            raise _cut_short(encoded, start) from None
        end = first + length
        if end > size:
            raise EncodingError(f"element ({group:04X},{number:04X}) of {length} bytes extends beyond the end")
        yield group << 16 | number, start, first, end
        start = end


def _unpacked(layout: struct.Struct, encoded: memoryview, start: int) -> tuple[Any, ...]:
    try:
        return layout.unpack_from(encoded, start)
    except struct.error:
        raise _cut_short(encoded, start) from None


def _cut_short(encoded: memoryview, start: int) -> EncodingError:
    return EncodingError(f"{len(encoded) - start} bytes where an element or item was expected")


@dataclass(frozen=True, slots=True)
class FileMeta:
    """The File Meta Information of a received instance (PS3.10 7.1)."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    source_ae: str = ""

    def encoded(self) -> bytes:
        """Preamble of zeros, prefix and group 0002 in Explicit VR Little Endian."""
        elements = b"".join(
            (
                element(0x00020001, b"OB", b"\x00\x01"),
                text_element(0x00020002, b"UI", self.sop_class_uid),
                text_element(0x00020003, b"UI", self.sop_instance_uid),
                text_element(0x00020010, b"UI", self.transfer_syntax_uid),
                text_element(0x00020012, b"UI", IMPLEMENTATION_CLASS_UID),
                text_element(0x00020013, b"SH", VERSION_NAME),
                text_element(0x00020016, b"AE", self.source_ae) if self.source_ae else b"",
            )
        )
        return PREAMBLE + _GROUP_LENGTH + struct.pack("<I", len(elements)) + elements


def data_set_start(head: bytes | memoryview) -> int:
    """The offset of the data set in a Part 10 file that starts with ``head`` (the first HEAD_LENGTH bytes suffice).

    Raises:
        ValueError: no preamble, or no File Meta Information that states its length.
    """
    prefix, group_length = bytes(head[128:PREAMBLE_LENGTH]), bytes(head[PREAMBLE_LENGTH:HEAD_LENGTH])
    if prefix != b"DICM" or len(group_length) != len(_GROUP_LENGTH) + 4 or not group_length.startswith(_GROUP_LENGTH):
        raise ValueError("no File Meta Information with its group length")
    return HEAD_LENGTH + int.from_bytes(group_length[-4:], "little")


def seek_data_set(stream: BinaryIO, *, as_implicit: bool) -> bytes:
    """Position ``stream`` at the rest of the encoded data set, and return the bytes that precede it.

    Without conversion, the stream is at the first byte of the data set, and nothing precedes it. With ``as_implicit``,
    for an explicit little endian file, the header is encoded again; native pixel data are the same bytes in both forms
    and are read from the file.

    Raises:
        Exception: pydicom may raise anything for an invalid file.
    """
    if as_implicit:
        return _implicit_head(stream)
    stream.seek(0)
    stream.seek(data_set_start(stream.read(HEAD_LENGTH)))
    return b""


def _implicit_head(stream: BinaryIO) -> bytes:
    """The data set in implicit form up to the pixel values; leaves ``stream`` there (at the end if there are none)."""
    header = dcmread(stream, stop_before_pixels=True)
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, True
    write_dataset(buffer, header)
    head = buffer.getvalue()
    pixel_data = stream.read(_LONG.size)
    if not pixel_data:
        return head
    group, number, _, _, length = _LONG.unpack(pixel_data)
    values_at = stream.tell()
    if stream.seek(0, 2) != values_at + length:
        raise ValueError("elements after the pixel data")
    stream.seek(values_at)
    return head + _ITEM_HEADER.pack(group, number, length)
