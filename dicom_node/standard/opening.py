"""Opens files without preamble, deflated files and files with a wrong transfer syntax as Part 10 files.

A file is read according to its actual data set, and a wrong statement in its File Meta Information is reported. A file
that needs no change is opened directly; any other is rewritten to a temporary file without a name, which is removed
with the stream.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import VR

from dicom_node.errors import FileUnreadable
from dicom_node.standard.part10 import HEAD_LENGTH, PREAMBLE, PREAMBLE_LENGTH, FileMeta, data_set_start
from dicom_node.standard.transfer_syntaxes import NATIVE

if TYPE_CHECKING:
    from pathlib import Path

EMPTY = "empty file"
_LARGEST_INFLATED_BYTES = 256 << 20
"""512 slices of 512 x 512 in one file. 1.5 MB of zeros inflate to 1.5 GB, of which nothing was stated."""
_CHUNK_BYTES = 1 << 20
_FIRST_ELEMENT = struct.Struct("<HH2s")
_TRANSFER_SYNTAX = b"\x02\x00\x10\x00UI"
_VRS = frozenset(vr.value.encode() for vr in VR if len(vr.value) == 2)  # noqa: PLR2004 - two letters, none of "OB or OW"
_EARLIEST_GROUP, _META_GROUP = 0x0008, 0x0002


@dataclass(frozen=True, slots=True)
class Opened:
    """``stream`` begins with a preamble, and ``remark`` says where the file contradicts its data set (else empty).

    ``is_as_stored``: it is the file itself, not a rewritten one.
    """

    stream: BinaryIO
    remark: str = ""
    is_as_stored: bool = True


def open_part10(path: Path) -> Opened:
    """The file at ``path`` as a Part 10 file whose File Meta Information is true of its data set.

    Raises:
        FileUnreadable: no DICOM, inflating beyond every bound, or a compressed data set that is not in explicit form.
        OSError: the file is missing or the disk fails.
    """
    file = path.open("rb")
    try:
        return _opened(file)
    except BaseException:
        file.close()
        raise


def _opened(file: BinaryIO) -> Opened:
    head = file.read(HEAD_LENGTH)
    if head[128:PREAMBLE_LENGTH] != b"DICM":
        with file:
            return Opened(_with_preamble(file, head), is_as_stored=False)
    try:
        start = data_set_start(head)
    except ValueError:  # no group length: left to pydicom
        file.seek(0)
        return Opened(file)
    stated = stated_syntax(file.read(start - HEAD_LENGTH))
    if stated == DeflatedExplicitVRLittleEndian:
        with file:
            return Opened(_inflated(file), is_as_stored=False)
    actual = _syntax_of(file.read(_FIRST_ELEMENT.size), stated)
    if actual == stated:
        file.seek(0)
        return Opened(file)
    if stated not in NATIVE:
        raise FileUnreadable(f"the data set is in {actual.name}, but the file states {stated.name}", is_dicom=True)
    file.seek(start)
    remark = f"transfer syntax stated as {stated.name}, read as {actual.name}"
    with file:
        return Opened(_copied(_meta(actual), file), remark, is_as_stored=False)


def stated_syntax(meta: bytes) -> UID:
    """Of File Meta Information in Explicit VR Little Endian, as it always is; empty where it is absent."""
    where = meta.find(_TRANSFER_SYNTAX)
    if where < 0:
        return UID("")
    start = where + len(_TRANSFER_SYNTAX) + 2
    length = int.from_bytes(meta[start - 2 : start], "little")
    return UID(meta[start : start + length].decode("ascii", "replace").rstrip("\0 "))


def _syntax_of(first_element: bytes, stated: UID) -> UID:
    """What the form of the first element makes of the stated transfer syntax: an implicit one has a length for a VR."""
    if len(first_element) < _FIRST_ELEMENT.size or stated in ("", ExplicitVRBigEndian):
        return stated
    *_, vr = _FIRST_ELEMENT.unpack(first_element)
    is_implicit = vr not in _VRS
    if is_implicit == (stated == ImplicitVRLittleEndian):
        return stated
    return ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian


def _with_preamble(file: BinaryIO, head: bytes) -> BinaryIO:
    """A bare data set, or one with File Meta Information alone, in a file of its own."""
    if len(head) < _FIRST_ELEMENT.size + 2:
        raise FileUnreadable(EMPTY if not head else f"{len(head)} bytes, no DICOM file", is_dicom=False)
    group, _, vr = _FIRST_ELEMENT.unpack_from(head)
    file.seek(0)
    if group == _META_GROUP and vr in _VRS:
        return _copied(PREAMBLE, file)
    if group != _EARLIEST_GROUP:
        raise FileUnreadable("no DICOM file", is_dicom=False)
    return _copied(_meta(ExplicitVRLittleEndian if vr in _VRS else ImplicitVRLittleEndian), file)


def _meta(syntax: UID) -> bytes:
    return FileMeta("", "", syntax).encoded()


def _copied(head: bytes, file: BinaryIO) -> BinaryIO:
    """``head`` and the rest of ``file``."""
    stream = tempfile.TemporaryFile()  # noqa: SIM115 - the caller's
    stream.write(head)
    shutil.copyfileobj(file, stream, _CHUNK_BYTES)
    stream.seek(0)
    return stream


def _inflated(file: BinaryIO) -> BinaryIO:
    """The deflated data set (PS3.5 A.5) that begins where ``file`` is, inflated up to a bound."""
    stream = tempfile.TemporaryFile()  # noqa: SIM115 - the caller's
    try:
        stream.write(_meta(ExplicitVRLittleEndian))
        _inflate(file, stream)
    except BaseException:
        stream.close()
        raise
    stream.seek(0)
    return stream


def _inflate(file: BinaryIO, stream: BinaryIO) -> None:
    inflating, inflated_bytes = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while not inflating.eof:
        chunk = inflating.unconsumed_tail or file.read(_CHUNK_BYTES)
        try:
            inflated = inflating.decompress(chunk, _CHUNK_BYTES)
        except zlib.error as error:
            raise FileUnreadable("the deflated data set is damaged", is_dicom=True) from error
        if not (inflated or chunk):
            raise FileUnreadable("the deflated data set is cut", is_dicom=True)
        inflated_bytes += stream.write(inflated)
        if inflated_bytes > _LARGEST_INFLATED_BYTES:
            raise FileUnreadable(f"the data set inflates to more than {_LARGEST_INFLATED_BYTES} bytes", is_dicom=True)
