"""Find, check and decode the pixel data of one instance; what is cut, lying or lossy never becomes a volume.

Everything that can be known without decoding is checked first: the length of native pixel data against the stated
dimensions, the structure of encapsulated pixel data down to its Sequence Delimitation Item (pydicom returns what is
left of a cut stream without an error), and the dimensions inside every compressed frame before a decoder sees it.

The bits of a pixel above Bits Stored may hold anything (PS3.5 8.1.1): an old overlay, or zeros where the sign belongs.
They are dropped here for every transfer syntax. In JPEG-LS and JPEG 2000 pydicom 3.0.2 goes by the precision of the
codestream instead, so its own corrections are switched off.
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
from dicom_node.standard import transfer_syntaxes
from dicom_node.standard.attributes import text, whole_number
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
    """As Pixel Representation says, which is what counts; a codestream may say otherwise, see :class:`StoredFrame`."""
    padding: tuple[int, int] | None = None
    """Pixel Padding Value and Pixel Padding Range Limit (the value again where there is none), as they are stated."""

    @property
    def stored_dtype(self) -> np.dtype[np.integer]:
        """Type of one stored value, in the byte order of the transfer syntax."""
        order = ">" if self.transfer_syntax == ExplicitVRBigEndian else "<"
        return np.dtype(f"{order}{'i' if self.signed else 'u'}{self.bits_allocated // 8}")

    @property
    def frame_bytes(self) -> int:
        """Length of one decoded frame."""
        return self.rows * self.columns * (self.bits_allocated // 8)

    def stored_padding(self, signed: bool | None = None) -> tuple[int, int] | None:
        """The stated padding as :class:`StoredFrame` has its pixels: without unused bits, in the sign of the pixels.

        ``signed``: where it is not that of the header.
        """
        if self.padding is None:
            return None
        signed = self.signed if signed is None else signed
        bits = np.array([value & 0xFFFF for value in self.padding], dtype=np.uint16)
        bits = bits.view(np.int16 if signed else np.uint16)
        value, limit = _without_unused_bits(bits, self.bits_stored).tolist()
        return value, limit


@dataclass(frozen=True, slots=True)
class StoredFrame:
    """The pixels of one frame, ``[row, column]``, in the native byte order, without their unused bits.

    ``bits`` is how many low bits of a pixel hold its value, ``values`` those bits as Pixel Representation reads them.
    ``codestream_signed`` is what a compressed frame says itself about the sign: None where it says nothing (only JPEG
    2000 does) or the same as the header.
    """

    values: NDArray[np.integer]
    bits: int
    codestream_signed: bool | None = None

    @property
    def values_as_codestream(self) -> NDArray[np.integer]:
        """The values as the codestream reads them, where it differs from the header."""
        if self.codestream_signed is None:
            return self.values
        kind = "i" if self.codestream_signed else "u"
        return _without_unused_bits(self.values.astype(f"{kind}{self.values.itemsize}"), self.bits)


@dataclass(frozen=True, slots=True)
class PixelSource:
    """Checked pixel data of one instance: ``length`` bytes of the file at ``path`` from ``offset``.

    ``as_stored``: of the file itself, not of what :func:`dicom_node.standard.opening.open_part10` makes of it.
    """

    path: Path
    where: str
    description: PixelDescription
    offset: int
    length: int
    as_stored: bool


def find_pixel_data(instance: SourceInstance, frames: int) -> PixelSource:
    """Check the description and the extent of the pixel data of ``instance``; nothing is decoded or allocated.

    Raises:
        PixelDataInvalid: no, truncated or contradictory pixel data, or not stored losslessly.
    """
    where = f"instance {text(instance.header, 'SOPInstanceUID')}"
    description = _description(instance.header, frames, where)
    as_stored = instance.pixel_data_offset is not None
    with _opened(instance.path, where, as_stored=as_stored) as file:
        _seek_pixel_data(file, instance, where)
        stated = _element_length(file, description.transfer_syntax, where)
        offset = file.tell()
        available = file.seek(0, os.SEEK_END) - offset
        file.seek(offset)
        if description.transfer_syntax in transfer_syntaxes.NATIVE:
            length = _native_length(file, description, stated, available, where)
        else:
            length = _encapsulated_length(file, stated, available, where)
    return PixelSource(instance.path, where, description, offset, length, as_stored)


def stored_frames(source: PixelSource) -> Iterator[StoredFrame]:
    """Every frame in turn.

    Raises:
        PixelDataInvalid: a frame is missing, of another size than stated, or not decodable.
    """
    with _opened(source.path, source.where, as_stored=source.as_stored) as file:
        file.seek(source.offset)
        if source.description.transfer_syntax in transfer_syntaxes.NATIVE:
            yield from _native_frames(file, source)
        else:
            yield from _compressed_frames(file, source)


def _opened(path: Path, where: str, *, as_stored: bool) -> BinaryIO:
    if as_stored:
        return path.open("rb")
    try:
        return open_part10(path).stream
    except FileUnreadable as error:
        raise PixelDataInvalid(f"{where}: the stored file cannot be read ({error})") from error


def _seek_pixel_data(file: BinaryIO, instance: SourceInstance, where: str) -> None:
    if instance.pixel_data_offset is not None:
        file.seek(instance.pixel_data_offset)
        return
    try:
        dcmread(file, stop_before_pixels=True, specific_tags=["Rows"])
    except Exception as error:
        raise PixelDataInvalid(f"{where}: the stored file cannot be read ({type(error).__name__})") from error


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
    return PixelDescription(
        syntax, rows, columns, frames, allocated, stored, signed=representation == 1, padding=_stated_padding(header)
    )


def _stated_padding(header: Dataset) -> tuple[int, int] | None:
    """Their VR is US or SS after Pixel Representation (PS3.3 C.7.5.1.1.2), but files have either, and unknown ones."""
    value = _integer(header, "PixelPaddingValue")
    if value is None:
        return None
    limit = _integer(header, "PixelPaddingRangeLimit")
    return value, value if limit is None else limit


def _integer(header: Dataset, keyword: str) -> int | None:
    try:
        value = header.get(keyword)
        if isinstance(value, bytes):
            return int.from_bytes(value[:2], "little") if len(value) >= 2 else None  # noqa: PLR2004 - a 16-bit number
        return None if value is None or value == "" else int(value)
    except Exception:  # noqa: BLE001 - see attributes.text; a padding value that cannot be read is none
        return None


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


def _native_length(file: BinaryIO, description: PixelDescription, stated: int, available: int, where: str) -> int:
    """The length of the pixels; what follows them in the element must be padding."""
    expected = description.frame_bytes * description.frames
    excess = stated - expected
    if excess < 0 or excess > description.frame_bytes or _holds_more(file, expected, excess):
        raise PixelDataInvalid(
            f"{where}: {description.columns} x {description.rows} pixels in {description.frames} frames need "
            f"{expected} bytes, Pixel Data states {stated}"
        )
    if available < expected:
        raise PixelDataInvalid(f"{where}: Pixel Data is truncated, {available} of {expected} bytes are there")
    return expected


def _holds_more(file: BinaryIO, length: int, excess: int) -> bool:
    """Whether the ``excess`` bytes after ``length`` bytes are anything but zeros: pixels that nobody counted.

    Some writers round Pixel Data up to whole blocks, and PS3.5 8.1.1 asks for a padding byte after an odd length.
    """
    start = file.tell()
    file.seek(start + length)
    holds_more = excess > 1 and any(file.read(excess))
    file.seek(start)
    return holds_more


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


def _native_frames(file: BinaryIO, source: PixelSource) -> Iterator[StoredFrame]:
    description = source.description
    for _ in range(description.frames):
        pixels = np.fromfile(file, description.stored_dtype, description.rows * description.columns)
        if pixels.nbytes != description.frame_bytes:
            raise PixelDataInvalid(f"{source.where}: the stored file has become shorter")
        pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
        pixels = pixels.reshape(description.rows, description.columns)
        yield StoredFrame(_without_unused_bits(pixels, description.bits_stored), description.bits_stored)


def _without_unused_bits(pixels: NDArray[np.integer], bits: int) -> NDArray[np.integer]:
    """The value in the low ``bits`` of each pixel, its sign carried into the others; in place."""
    unused = 8 * pixels.itemsize - bits
    if unused:
        pixels <<= unused
        pixels >>= unused
    return pixels


def _compressed_frames(file: BinaryIO, source: PixelSource) -> Iterator[StoredFrame]:
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


def _decoded(frame: bytes, source: PixelSource) -> StoredFrame:
    description = source.description
    codestream = _refuse_lying_frame(frame, source)
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
        "apply_j2k_sign_correction": False,
        "apply_jls_sign_correction": False,
        "correct_unused_bits": False,
    }
    if codestream is not None and codestream.precision <= 8:  # noqa: PLR2004 - then the decoders give bytes
        options["bits_allocated"] = 8
        options["bits_stored"] = min(8, description.bits_stored)
    try:
        decoder = get_decoder(description.transfer_syntax)
        decoded, _ = decoder.as_array(encapsulate([frame], has_bot=False), raw=True, **options)
    except Exception as error:
        raise PixelDataInvalid(f"{source.where}: Pixel Data cannot be decoded ({type(error).__name__})") from error
    if decoded.shape != (description.rows, description.columns):
        raise PixelDataInvalid(f"{source.where}: decoded frame of {decoded.shape} pixels, expected rows x columns")
    return _stored_frame(decoded, codestream, description)


def _stored_frame(
    decoded: NDArray[np.integer], codestream: _Codestream | None, description: PixelDescription
) -> StoredFrame:
    """A codestream may have fewer bits than the header says: then its highest one is the sign."""
    if codestream is None:
        return StoredFrame(_without_unused_bits(decoded, description.bits_stored), description.bits_stored)
    bits = min(codestream.precision, description.bits_stored)
    # an unsigned codestream of more bits than are stored is a mere container of bits, and says nothing about their sign
    says_sign = codestream.signed or (codestream.signed is False and codestream.precision <= description.bits_stored)
    disagrees = says_sign and codestream.signed != description.signed
    values = _without_unused_bits(decoded, bits).astype(description.stored_dtype.newbyteorder("="), copy=False)
    return StoredFrame(values, bits, codestream.signed if disagrees else None)


@dataclass(frozen=True, slots=True)
class _Codestream:
    """What a compressed frame says about itself; ``signed`` None: its format does not tell."""

    rows: int
    columns: int
    components: int
    precision: int
    signed: bool | None = None


def _refuse_lying_frame(frame: bytes, source: PixelSource) -> _Codestream | None:
    """Compare the size inside a compressed frame with the header's before memory is asked for; RLE states none."""
    description = source.description
    if description.transfer_syntax == RLELossless:
        # A literal run of 128 bytes costs 129 (PS3.5 G.3.1), so honest RLE cannot be longer; longer RLE is a bomb.
        if len(frame) > description.frame_bytes * 2 + 64:
            raise PixelDataInvalid(f"{source.where}: {len(frame)} bytes of RLE for {description.frame_bytes} of pixels")
        return None
    is_jpeg_2000 = description.transfer_syntax in transfer_syntaxes.JPEG_2000
    codestream = _jpeg_2000_codestream(frame) if is_jpeg_2000 else _jpeg_codestream(frame)
    found = codestream and (codestream.rows, codestream.columns, codestream.components)
    if codestream is None or found != (description.rows, description.columns, 1):
        raise PixelDataInvalid(
            f"{source.where}: the compressed frame states (rows, columns, components) {found}, the header "
            f"{(description.rows, description.columns, 1)}"
        )
    if not 1 <= codestream.precision <= description.bits_allocated:
        raise PixelDataInvalid(
            f"{source.where}: the compressed frame has {codestream.precision} bits per pixel, Bits Allocated is "
            f"{description.bits_allocated}"
        )
    return codestream


def _jpeg_codestream(frame: bytes) -> _Codestream | None:
    """Of a JPEG or JPEG-LS frame, from its Start Of Frame segment."""
    position = 2
    while position + 10 <= len(frame) and frame[position] == 0xFF:  # noqa: PLR2004 - the marker prefix
        marker = frame[position + 1]
        if marker == 0xFF:  # noqa: PLR2004 - fill bytes may precede a marker
            position += 1
        elif marker in _FRAME_MARKERS:
            precision, rows, columns, components = struct.unpack_from(">BHHB", frame, position + 4)
            return _Codestream(rows, columns, components, precision)
        else:
            position += 2 + struct.unpack_from(">H", frame, position + 2)[0]
    return None


def _jpeg_2000_codestream(frame: bytes) -> _Codestream | None:
    """Of a JPEG 2000 frame, from its SIZ segment (ISO 15444-1 A.5.1): Ssiz holds the sign and the precision - 1."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)  # some writers wrap the codestream into a JP2 file
    if start < 0 or len(frame) < start + 43:
        return None
    width, height, left, top = struct.unpack_from(">4L", frame, start + 8)
    components, depth = struct.unpack_from(">HB", frame, start + 40)
    return _Codestream(height - top, width - left, components, (depth & 0x7F) + 1, signed=bool(depth & 0x80))
