"""DICOM files of any origin, read as headers and series; what is no sound DICOM is named, never trusted."""

from __future__ import annotations

import errno
import hashlib
import mmap
import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydicom import dcmread
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, MediaStorageDirectoryStorage

from dicom_node.errors import FileUnreadable, LimitExceeded, MalformedDataset, PixelDataInvalid, StoreUnavailable
from dicom_node.standard.attributes import text
from dicom_node.standard.headers import Allowance, read_header
from dicom_node.standard.opening import EMPTY, open_part10, stated_syntax
from dicom_node.standard.part10 import HEAD_LENGTH, data_set_start
from dicom_node.standard.uids import CT_SOP_CLASSES
from dicom_node.standard.walk import walk
from dicom_node.types import Series, SourceInstance

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from pydicom import Dataset

_CHUNK_BYTES = 1 << 20
_SAME_PLACE = 1e-3
"""In mm and in cosines."""


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A file that gives no instance of a series.

    ``reason`` is one of a few, so that files can be counted by it; ``detail`` says what was seen, without values.
    ``is_dicom``: it is, or was meant as, a DICOM instance, so that an image may be missing.
    """

    path: Path
    reason: str
    detail: str = ""
    is_dicom: bool = True


NO_DICOM, DAMAGED = "no DICOM file", "damaged, or not readable as DICOM"
UID_MISSING = "SOP Instance UID or Series Instance UID is missing"
UID_REUSED = "another image of the series has its SOP Instance UID"
COPY = "copy of an instance that was read"
RECODED = "has the SOP Instance UID of an instance that was read in another transfer syntax"
NOT_COMPARED = "has the SOP Instance UID of an instance that was read, and their pixels can't be compared"
DIRECTORY = "directory of a medium (DICOMDIR)"


def read_headers(paths: Iterable[Path]) -> tuple[SourceInstance, ...]:
    """The headers (all but pixel data) of instances, in the order given.

    Raises:
        PixelDataInvalid: a file is not readable as DICOM.
        LimitExceeded: the headers have more than any CT; see :mod:`dicom_node.standard.headers`.
        StoreUnavailable: a file is missing or the disk fails.
    """
    allowance = Allowance.of_series()
    return tuple(_instance(path, allowance) for path in paths)


def read_file(path: Path) -> SourceInstance | PassedOver:
    """The instance in the file at ``path``, or why there is none.

    Other objects than images need a series alone; a CT image must be whole to the end of its pixel data.
    """
    try:
        instance = _read(path)
    except FileUnreadable as error:
        reason = EMPTY if str(error) == EMPTY else DAMAGED if error.is_dicom else NO_DICOM
        return PassedOver(path, reason, str(error) if reason == DAMAGED else "", is_dicom=error.is_dicom)
    except LimitExceeded as error:
        return PassedOver(path, DAMAGED, str(error))
    except OSError as error:
        return PassedOver(path, "can't be read", error.strerror or type(error).__name__)
    except Exception as error:  # noqa: BLE001 - pydicom answers hostile bytes with whatever they lead to
        return PassedOver(path, DAMAGED, _fault(path) or type(error).__name__)
    return _why_none(instance) or instance


def _why_none(instance: SourceInstance) -> PassedOver | None:
    path, header = instance.path, instance.header
    if text(header.file_meta, "MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        return PassedOver(path, DIRECTORY, is_dicom=False)
    is_named = bool(text(header, "SeriesInstanceUID") and text(header, "SOPInstanceUID"))
    if is_named and text(header, "SOPClassUID") not in CT_SOP_CLASSES:
        return None
    fault = _fault(path)
    if fault:
        return PassedOver(path, DAMAGED, fault)
    return None if is_named else PassedOver(path, UID_MISSING)


def read_repeated(known: SourceInstance, other: SourceInstance) -> PassedOver:
    """What becomes of ``other``, whose SOP Instance UID is that of the ``known`` instance: a copy, or another image.

    It is another image where it lies elsewhere or, in one transfer syntax, has other pixels. Nothing is decoded here:
    what a file in another syntax shows is not known, and its reason is ``RECODED``; see
    :func:`dicom_node.reading.repeated.compared`.

    Raises:
        OSError: a file is missing or the disk fails.
    """
    if _lies_elsewhere(known.header, other.header):
        return PassedOver(other.path, UID_REUSED, "at another position")
    recoded = known.header.file_meta.get("TransferSyntaxUID") != other.header.file_meta.get("TransferSyntaxUID")
    if recoded:
        return PassedOver(other.path, RECODED, is_dicom=False)
    if _pixels_sha256(known.path) != _pixels_sha256(other.path):
        return PassedOver(other.path, UID_REUSED, "with other pixels")
    return PassedOver(other.path, COPY, is_dicom=False)


def read_series_folder(folder: Path) -> tuple[Series, ...]:
    """Every series under ``folder`` (recursively), ordered by Series Instance UID; one instance per SOP Instance UID.

    The notes of a series count the files in its folders that may have been images of it and were passed over.
    """
    found: dict[str, dict[str, SourceInstance]] = {}
    passed_over: list[PassedOver] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        instance = read_file(path)
        if isinstance(instance, PassedOver):
            passed_over.append(instance)
            continue
        members = found.setdefault(str(instance.header.SeriesInstanceUID), {})
        known = members.setdefault(str(instance.header.SOPInstanceUID), instance)
        if known is not instance:
            passed_over.append(read_repeated(known, instance))
    return tuple(
        Series(
            series_instance_uid=uid,
            study_instance_uid=str(next(iter(members.values())).header.get("StudyInstanceUID", "")),
            instances=tuple(members.values()),
            notes=notes_on_missing(passed_over_beside([each.path for each in members.values()], passed_over)),
        )
        for uid, members in sorted(found.items())
    )


def passed_over_beside(paths: Sequence[Path], passed_over: Iterable[PassedOver]) -> tuple[PassedOver, ...]:
    """Those of ``passed_over`` that lie in a folder of ``paths``, the files of one series.

    An empty file, or one without DICOM, counts as an image if it is called like the files of the series.
    """
    folders, looks = {path.parent for path in paths}, {_look(path) for path in paths}
    return tuple(
        replace(each, is_dicom=True) if each.reason in (NO_DICOM, EMPTY) and _look(each.path) in looks else each
        for each in passed_over
        if each.path.parent in folders
    )


def notes_on_missing(passed_over: Iterable[PassedOver]) -> tuple[str, ...]:
    """What a reader of results should know of files that may have been images: how many, for each reason."""
    missing = Counter(each.reason for each in passed_over if each.is_dicom)
    return tuple(f"files left out: {count} ({reason})" for reason, count in sorted(missing.items()))


def _look(path: Path) -> str:
    """The name without its numbers, which the images of a series have in common."""
    return re.sub(r"[0-9]+", "#", path.name)


def _instance(path: Path, allowance: Allowance) -> SourceInstance:
    try:
        return _read(path, allowance)
    except LimitExceeded:
        raise
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise StoreUnavailable(f"file {path.name} is missing") from error
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        raise StoreUnavailable(f"file {path.name} can't be read: {name}") from error
    except Exception as error:
        reason = str(error) if isinstance(error, FileUnreadable) else type(error).__name__
        raise PixelDataInvalid(f"file {path.name} is not readable as DICOM: {reason}") from error


def _read(path: Path, allowance: Allowance | None = None) -> SourceInstance:
    opened = open_part10(path)
    with opened.stream as stream:
        try:
            header = read_header(stream, allowance)
            offset = stream.tell() if opened.is_as_stored else None
            return SourceInstance(path, header, opened.remark, offset)
        except OSError as error:
            if error.errno is None:  # not of the disk: pydicom raises it where a sequence ends within a tag
                raise FileUnreadable("a sequence is cut", is_dicom=True) from error
            raise


def _fault(path: Path) -> str:
    """Where the data set is damaged or cut, if a walk over its elements finds that; empty where it finds nothing."""
    try:
        with (
            open_part10(path).stream as stream,
            mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as mapped,
            memoryview(mapped) as whole,
        ):
            return _fault_in(whole)
    except Exception:  # noqa: BLE001 - no Part 10 file to walk over
        return ""


def _fault_in(whole: memoryview) -> str:
    start = data_set_start(whole)
    syntax = stated_syntax(bytes(whole[HEAD_LENGTH:start]))
    if syntax == ExplicitVRBigEndian:
        return ""
    try:
        with whole[start:] as data_set:
            walked = walk(data_set, implicit=syntax == ImplicitVRLittleEndian, is_filled_up=True)
    except MalformedDataset as error:
        return str(error)
    return "" if walked.pixel_data.stop else "no Pixel Data"


def _lies_elsewhere(known: Dataset, other: Dataset) -> bool:
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient"):
        places = [_numbers(header, keyword) for header in (known, other)]
        if all(places) and any(abs(a - b) > _SAME_PLACE for a, b in zip(*places, strict=False)):
            return True
    return False


def _numbers(header: Dataset, keyword: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in header.get(keyword) or ())
    except Exception:  # noqa: BLE001 - a position that is none says nothing about the place
        return ()


def _pixels_sha256(path: Path) -> str:
    """Over everything from Pixel Data on."""
    with open_part10(path).stream as stream:
        dcmread(stream, specific_tags=["Rows"], stop_before_pixels=True)
        return _digest(stream)


def _digest(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
