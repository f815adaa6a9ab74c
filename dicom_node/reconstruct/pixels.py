"""Find, check and decode the pixel data of one instance; what is cut, lying or lossy never becomes a volume.

Everything that can be known without decoding is checked first: the length of native pixel data against the stated
dimensions, the structure of encapsulated pixel data down to its Sequence Delimitation Item (pydicom returns what is
left of a cut stream without an error), and the dimensions inside every compressed frame before a decoder sees it.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from dicom_node.errors import FileUnreadable, PixelDataInvalid
from dicom_node.reconstruct.attributes import text, whole_number
from dicom_node.standard import transfer_syntaxes
from dicom_node.standard.opening import open_part10

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any, BinaryIO

    from numpy.typing import NDArray
    from pydicom import Dataset

    from dicom_node.types import SourceInstance

_PIXEL_DATA = (0x7FE0, 0x0010)
_UNDEFINED_LENGTH = 0xFFFFFFFF
_ITEM, _SEQUENCE_DELIMITATION = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
_FRAME_MARKERS = frozenset({*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7})
"""Start Of Frame of JPEG (ISO 10918-1 table B.1) and of JPEG-LS (ISO 14495-1 C.1.1)."""


@dataclass(frozen=True, slots=True)
class PixelDescription:
    """How the pixels of one instance are stored (PS3.3 C.7.6.3, PS3.5 section 8), checked."""

    transfer_syntax: UID
    rows: int
    columns: int
    frames: int
    bits_allocated: int
    bits_stored: int
    signed: bool

    @property
    def stored_dtype(self) -> np.dtype[np.integer]:
        """Type of one stored value, in the byte order of the transfer syntax."""
        order = ">" if self.transfer_syntax == ExplicitVRBigEndian else "<"
        return np.dtype(f"{order}{'i' if self.signed else 'u'}{self.bits_allocated // 8}")

    @property
    def frame_bytes(self) -> int:
        """Length of one decoded frame."""
        return self.rows * self.columns * (self.bits_allocated // 8)


@dataclass(frozen=True, slots=True)
class PixelSource:
    """Checked pixel data of one instance: ``length`` bytes of the file at ``path`` from ``offset``."""

    path: Path
    where: str
    description: PixelDescription
    offset: int
    length: int


def find_pixel_data(instance: SourceInstance, frames: int) -> PixelSource:
    """Check the description and the extent of the pixel data of ``instance``; nothing is decoded or allocated.

    Raises:
        PixelDataInvalid: no, truncated or contradictory pixel data, or not stored losslessly.
    """
    where = f"instance {text(instance.header, 'SOPInstanceUID')}"
    description = _description(instance.header, frames, where)
    with _opened(instance.path, where) as file:
        try:
            dcmread(file, stop_before_pixels=True, specific_tags=["Rows"])
        except Exception as error:
            raise PixelDataInvalid(f"{where}: the stored file cannot be read ({type(error).__name__})") from error
        stated = _element_length(file, description.transfer_syntax, where)
        offset = file.tell()
        available = file.seek(0, os.SEEK_END) - offset
        file.seek(offset)
        if description.transfer_syntax in transfer_syntaxes.NATIVE:
            length = _native_length(description, stated, available, where)
        else:
            length = _encapsulated_length(file, stated, available, where)
    return PixelSource(instance.path, where, description, offset, length)


def stored_frames(source: PixelSource) -> Iterator[NDArray[np.integer]]:
    """Every frame in turn as stored integers ``[row, column]``, sign-extended from Bits Stored.

    Raises:
        PixelDataInvalid: a frame is missing, of another size than stated, or not decodable.
    """
    with _opened(source.path, source.where) as file:
        file.seek(source.offset)
        if source.description.transfer_syntax in transfer_syntaxes.NATIVE:
            yield from _native_frames(file, source)
        else:
            yield from _compressed_frames(file, source)


def _opened(path: Path, where: str) -> BinaryIO:
    try:
        return open_part10(path).stream
    except FileUnreadable as error:
        raise PixelDataInvalid(f"{where}: the stored file cannot be read ({error})") from error


def _description(header: Dataset, frames: int, where: str) -> PixelDescription:
    syntax = UID(text(header.file_meta, "TransferSyntaxUID")) if hasattr(header, "file_meta") else UID("")
    if syntax not in transfer_syntaxes.LOSSLESS:
        raise PixelDataInvalid(f"{where}: transfer syntax {syntax.name or 'missing'} is not an accepted lossless one")
    rows, columns, allocated, stored, representation = (
        whole_number(header, keyword, PixelDataInvalid, where)
        for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation")
    )
    if allocated not in (8, 16) or not 1 <= stored <= allocated:
        raise PixelDataInvalid(f"{where}: Bits Stored {stored} of Bits Allocated {allocated}; CT has up to 16 of 16")
    if representation not in (0, 1):
        raise PixelDataInvalid(f"{where}: Pixel Representation is {representation}, expected 0 or 1")
    if text(header, "HighBit") and whole_number(header, "HighBit", PixelDataInvalid, where) != stored - 1:
        raise PixelDataInvalid(f"{where}: High Bit is not Bits Stored - 1 = {stored - 1}")
    return PixelDescription(syntax, rows, columns, frames, allocated, stored, signed=representation == 1)


def _element_length(file: BinaryIO, syntax: UID, where: str) -> int:
    """Read tag, VR and length at the position of ``file``, which is then at the value (PS3.5 section 7.1)."""
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    layout = f"{order}HHL" if syntax == ImplicitVRLittleEndian else f"{order}HH4xL"
    head = file.read(struct.calcsize(layout))
    if len(head) < struct.calcsize(layout):
        raise PixelDataInvalid(f"{where}: no Pixel Data; the file ends before it")
    group, element, length = struct.unpack(layout, head)
    if (group, element) != _PIXEL_DATA:
        raise PixelDataInvalid(f"{where}: no Pixel Data, but ({group:04X},{element:04X}) in its place")
    return int(length)


def _native_length(description: PixelDescription, stated: int, available: int, where: str) -> int:
    expected = description.frame_bytes * description.frames
    if stated != expected + expected % 2:
        raise PixelDataInvalid(
            f"{where}: {description.columns} x {description.rows} pixels in {description.frames} frames need "
            f"{expected} bytes, Pixel Data states {stated}"
        )
    if available < expected:
        raise PixelDataInvalid(f"{where}: Pixel Data is truncated, {available} of {expected} bytes are there")
    return expected


def _encapsulated_length(file: BinaryIO, stated: int, available: int, where: str) -> int:
    """Walk the fragments (PS3.5 A.4) without reading them; the length up to the Sequence Delimitation Item."""
    if stated != _UNDEFINED_LENGTH:
        raise PixelDataInvalid(f"{where}: compressed Pixel Data must be encapsulated with undefined length")
    start, walked = file.tell(), 0
    while True:
        head = file.read(8)
        if len(head) < 8:  # noqa: PLR2004 - tag and length of an item
            raise PixelDataInvalid(f"{where}: Pixel Data is truncated, the file ends after {available} bytes of it")
        group, element, length = struct.unpack("<HHL", head)
        walked += 8
        if (group, element) == _SEQUENCE_DELIMITATION:
            file.seek(start)
            return walked
        if (group, element) != _ITEM or length == _UNDEFINED_LENGTH:
            raise PixelDataInvalid(f"{where}: ({group:04X},{element:04X}) among the fragments of Pixel Data")
        walked += length
        if walked > available:
            raise PixelDataInvalid(f"{where}: Pixel Data is truncated in a fragment ({available} bytes are there)")
        file.seek(start + walked)


def _native_frames(file: BinaryIO, source: PixelSource) -> Iterator[NDArray[np.integer]]:
    description = source.description
    for _ in range(description.frames):
        content = file.read(description.frame_bytes)
        if len(content) != description.frame_bytes:
            raise PixelDataInvalid(f"{source.where}: the stored file has become shorter")
        stored = np.frombuffer(content, dtype=description.stored_dtype).reshape(description.rows, description.columns)
        yield _sign_extended(stored.astype(stored.dtype.newbyteorder("=")), description)


def _sign_extended(stored: NDArray[np.integer], description: PixelDescription) -> NDArray[np.integer]:
    """Drop the unused high bits, which may hold anything (PS3.5 section 8.1.1), and carry the sign into them."""
    unused = description.bits_allocated - description.bits_stored
    if unused:
        stored <<= unused
        stored >>= unused
    return stored


def _compressed_frames(file: BinaryIO, source: PixelSource) -> Iterator[NDArray[np.integer]]:
    description = source.description
    count = 0
    frames = generate_frames(file, number_of_frames=description.frames)
    while True:
        try:
            frame = next(frames)
        except StopIteration:
            break
        except Exception as error:
            raise PixelDataInvalid(f"{source.where}: fragments do not form frames ({type(error).__name__})") from error
        count += 1
        yield _decoded(frame, source)
    if count != description.frames:
        raise PixelDataInvalid(f"{source.where}: {count} compressed frames, Number of Frames is {description.frames}")


def _decoded(frame: bytes, source: PixelSource) -> NDArray[np.integer]:
    description = source.description
    _refuse_lying_frame(frame, source)
    options: dict[str, Any] = {
        "rows": description.rows,
        "columns": description.columns,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "bits_allocated": description.bits_allocated,
        "bits_stored": description.bits_stored,
        "pixel_representation": int(description.signed),
        "photometric_interpretation": "MONOCHROME2",
        "pixel_keyword": "PixelData",
    }
    try:
        decoder = get_decoder(description.transfer_syntax)
        decoded, _ = decoder.as_array(encapsulate([frame], has_bot=False), raw=True, **options)
    except Exception as error:
        raise PixelDataInvalid(f"{source.where}: Pixel Data cannot be decoded ({type(error).__name__})") from error
    if decoded.shape != (description.rows, description.columns):
        raise PixelDataInvalid(f"{source.where}: decoded frame of {decoded.shape} pixels, expected rows x columns")
    return decoded


def _refuse_lying_frame(frame: bytes, source: PixelSource) -> None:
    """Compare the size inside a compressed frame with the header's before memory is asked for."""
    description = source.description
    if description.transfer_syntax == RLELossless:
        # A literal run of 128 bytes costs 129 (PS3.5 G.3.1), so honest RLE cannot be longer; longer RLE is a bomb.
        if len(frame) > description.frame_bytes * 2 + 64:
            raise PixelDataInvalid(f"{source.where}: {len(frame)} bytes of RLE for {description.frame_bytes} of pixels")
        return
    found = _jpeg_2000_size(frame) if description.transfer_syntax in transfer_syntaxes.JPEG_2000 else _jpeg_size(frame)
    if found != (description.rows, description.columns, 1):
        raise PixelDataInvalid(
            f"{source.where}: the compressed frame states (rows, columns, components) {found}, the header "
            f"{(description.rows, description.columns, 1)}"
        )


def _jpeg_size(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and components of a JPEG or JPEG-LS frame, from its Start Of Frame segment."""
    position = 2
    while position + 10 <= len(frame) and frame[position] == 0xFF:  # noqa: PLR2004 - the marker prefix
        marker = frame[position + 1]
        if marker == 0xFF:  # noqa: PLR2004 - fill bytes may precede a marker
            position += 1
        elif marker in _FRAME_MARKERS:
            rows, columns, components = struct.unpack_from(">HHB", frame, position + 5)
            return rows, columns, components
        else:
            position += 2 + struct.unpack_from(">H", frame, position + 2)[0]
    return None


def _jpeg_2000_size(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and components of a JPEG 2000 codestream, from its SIZ segment (ISO 15444-1 A.5.1)."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)  # some writers wrap the codestream into a JP2 file
    if start < 0 or len(frame) < start + 42:
        return None
    width, height, left, top = struct.unpack_from(">4L", frame, start + 8)
    (components,) = struct.unpack_from(">H", frame, start + 40)
    return height - top, width - left, components
