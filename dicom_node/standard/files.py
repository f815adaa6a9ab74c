"""DICOM files of any origin, read as headers and series; what is no sound DICOM is left out or named, never trusted."""

from __future__ import annotations

import errno
import zlib
from typing import TYPE_CHECKING

import structlog
from pydicom.errors import BytesLengthException, InvalidDicomError

from dicom_node.errors import LimitExceeded, PixelDataInvalid, StoreUnavailable
from dicom_node.standard.headers import Allowance, read_header
from dicom_node.types import Series, SourceInstance

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pydicom import Dataset

_UNWANTED_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RecursionError,
    MemoryError,
    BytesLengthException,
    zlib.error,
)
"""What pydicom raises, besides its own errors, on files that are not sound DICOM."""


def read_headers(paths: Iterable[Path]) -> tuple[SourceInstance, ...]:
    """The headers (all but pixel data) of instances, in the order given.

    Raises:
        PixelDataInvalid: a file is not readable as DICOM.
        LimitExceeded: the headers have more than any CT; see :mod:`dicom_node.standard.headers`.
        StoreUnavailable: a file is missing or the disk fails.
    """
    allowance = Allowance.of_series()
    return tuple(SourceInstance(path, _read_header(path, allowance)) for path in paths)


def read_series_folder(folder: Path) -> tuple[Series, ...]:
    """Every series under ``folder`` (recursively), ordered by Series Instance UID; one instance per SOP Instance UID.

    Files that are no DICOM instance of a series (other formats, DICOMDIR, damaged) and repeated SOP
    Instance UIDs are left out; how many of each goes to the log.
    """
    found: dict[str, dict[str, SourceInstance]] = {}
    skipped = repeated = 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        instance = try_instance(path)
        if instance is None:
            skipped += 1
            continue
        members = found.setdefault(str(instance.header.SeriesInstanceUID), {})
        repeated += str(instance.header.SOPInstanceUID) in members
        members.setdefault(str(instance.header.SOPInstanceUID), instance)
    structlog.get_logger().info("folder.read", series=len(found), skipped=skipped, repeated=repeated)
    return tuple(
        Series(
            series_instance_uid=uid,
            study_instance_uid=str(next(iter(members.values())).header.get("StudyInstanceUID", "")),
            instances=tuple(members.values()),
        )
        for uid, members in sorted(found.items())
    )


def try_instance(path: Path) -> SourceInstance | None:
    """The instance of a series in the file at ``path``; None if it has none or a damaged one."""
    try:
        header = read_header(path)
        return SourceInstance(path, header) if header.SeriesInstanceUID and header.SOPInstanceUID else None
    except (LimitExceeded, InvalidDicomError, NotImplementedError, *_UNWANTED_ERRORS):
        return None


def _read_header(path: Path, allowance: Allowance) -> Dataset:
    try:
        return read_header(path, allowance)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise StoreUnavailable(f"file {path.name} is missing") from error
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        raise StoreUnavailable(f"file {path.name} can't be read: {name}") from error
    except (InvalidDicomError, NotImplementedError, *_UNWANTED_ERRORS) as error:
        raise PixelDataInvalid(f"file {path.name} is not readable as DICOM: {type(error).__name__}") from error
