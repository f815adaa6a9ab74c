"""What there is to segment: series of DICOM files and NIfTI files, found first and read one by one.

Finding looks at headers and keeps only names of files, so that an archive of any size can be walked. What stands in a
header never becomes a part of a path but the Series Instance UID, and that only if it is one.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dicom_node.errors import ConfigurationError, NotEligible, StoreUnavailable
from dicom_node.nifti import read_volume
from dicom_node.reading.reader import ImageReader
from dicom_node.reading.repeated import compared
from dicom_node.standard.files import (
    COPY,
    PassedOver,
    notes_on_missing,
    passed_over_beside,
    read_file,
    read_headers,
)
from dicom_node.standard.part10 import HEAD_LENGTH, data_set_start
from dicom_node.standard.uids import is_well_formed_uid
from dicom_node.types import Series

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dicom_node.nifti import FileGrid
    from dicom_node.types import SourceInstance
    from inference.types import Volume

_NIFTI_SUFFIXES = (".nii", ".nii.gz")


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """An input whose pixel data may still be on disk; ``grid`` is that of the file where it has one of its own."""

    images: Series | Volume
    grid: FileGrid | None = None


@dataclass(frozen=True, slots=True)
class DicomSeries:
    """The files of one series, one per SOP Instance UID. ``name`` names its folder of results.

    ``passed_over`` are the files of its folders that gave no instance of any series.
    """

    series_instance_uid: str
    paths: tuple[Path, ...]
    passed_over: tuple[PassedOver, ...] = ()

    @property
    def name(self) -> str:
        """The UID, or a digest of what stands in its place."""
        uid = self.series_instance_uid
        return uid if is_well_formed_uid(uid) else f"series-{hashlib.sha256(uid.encode()).hexdigest()[:16]}"

    @property
    def facts(self) -> dict[str, object]:
        """What a summary says about it."""
        return {
            "kind": "dicom",
            "series_instance_uid": self.series_instance_uid,
            "files": len(self.paths),
            "bytes": _size(self.paths),
            "passed_over": dict(sorted(Counter(each.reason for each in self.passed_over).items())),
        }

    @property
    def missing(self) -> int:
        """How many of the files that were passed over may have been images of this series."""
        return sum(each.is_dicom for each in self.passed_over)

    def read(self) -> Opened:
        """The headers.

        Raises:
            SeriesRejected: a file holds no instance that can be read.
            StoreUnavailable: a file is missing or the disk fails.
        """
        return self.opened(read_headers(self.paths))

    def opened(self, instances: tuple[SourceInstance, ...]) -> Opened:
        """The series of ``instances``, the headers of its files."""
        study_instance_uid = str(instances[0].header.get("StudyInstanceUID", ""))
        notes = notes_on_missing(self.passed_over)
        return Opened(Series(self.series_instance_uid, study_instance_uid, instances, notes=notes))

    def content_digest(self) -> str:
        """That of the ledger for the same instances: this command and a node derive the same UIDs.

        Raises:
            StoreUnavailable: a file is missing or the disk fails.
        """
        return _content_digest(self.paths)


@dataclass(frozen=True, slots=True)
class NiftiFile:
    """One NIfTI file; ``name`` is its path below the folder that was given, without the ending."""

    path: Path
    name: str
    passed_over: tuple[PassedOver, ...] = ()
    missing = 0

    @property
    def facts(self) -> dict[str, object]:
        """What a summary says about it; not its name, which people choose and which may be a patient's."""
        return {"kind": "nifti", "files": 1, "bytes": _size((self.path,))}

    def read(self) -> Opened:
        """The volume.

        Raises:
            SeriesRejected: see :func:`dicom_node.nifti.read_volume`.
            StoreUnavailable: it can't be read.
        """
        return Opened(*read_volume(self.path))

    def content_digest(self) -> str:
        """Of the bytes of the file.

        Raises:
            StoreUnavailable: it can't be read.
        """
        return _content_digest((self.path,))


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Something that was named by a person and is no CT; read at its turn, so that it stands among the refusals."""

    path: Path
    reason: str
    passed_over: tuple[PassedOver, ...] = ()
    missing = 0

    @property
    def name(self) -> str:
        """As it was given."""
        return self.path.name

    @property
    def facts(self) -> dict[str, object]:
        """What a summary says about it."""
        return {"kind": "unknown", "files": 1, "bytes": _size((self.path,))}

    def read(self) -> Opened:
        """Always refuses.

        Raises:
            NotEligible: with the reason.
        """
        raise NotEligible(self.reason)

    def content_digest(self) -> str:
        """Of the bytes of the file."""
        return _content_digest((self.path,))


Input = DicomSeries | NiftiFile | Unreadable


def find_inputs(
    given: Sequence[Path], *, recursive: bool, series_instance_uid: str | None, without: Path | None
) -> tuple[Input, ...]:
    """Everything to segment in the files and folders ``given``: series by UID, then NIfTI files by name.

    Files of one series belong together wherever they lie; of copies, and of images with one SOP Instance UID, the first
    counts, and files in several transfer syntaxes are decoded to tell which they are. Folders inside a folder are
    looked into with ``recursive`` only, and never ``without``, where results go, if they go into a folder at all. What
    is passed over in the folders of a series is named with it; a file that was given alone, and a folder of DICOM files
    none of which can be read, are refused.

    Raises:
        ConfigurationError: nothing is there, or not the series that was asked for, or results would go among images.
    """
    if without is not None and without.resolve() in {path.resolve() for path in given}:
        raise ConfigurationError(f"{without} is an input; results go into a folder of their own")
    nifti: dict[Path, NiftiFile] = {}
    unreadable: list[Unreadable] = []
    with ImageReader() as reader:
        found = _Found(reader)
        for path, root in _files(given, recursive=recursive, without=without):
            if path.name.lower().endswith(_NIFTI_SUFFIXES):
                nifti.setdefault(path, NiftiFile(path, _nifti_name(path, root)))
                continue
            passed_over = found.take(path)
            if passed_over is not None and path == root:
                unreadable.append(Unreadable(path, _refusal(passed_over)))
    series = found.series()
    if series_instance_uid is not None:
        chosen = [one for one in series if one.series_instance_uid == series_instance_uid]
        if not chosen:
            raise ConfigurationError(f"series {series_instance_uid} was not found; series found: {len(series)}")
        return tuple(chosen)
    if not (series or nifti or unreadable):
        unreadable.extend(_unreadable_folders(given, found.passed_over))
    if not (series or nifti or unreadable):
        below = "" if recursive else " (--recursive looks into the folders below)"
        raise ConfigurationError(f"no DICOM series and no NIfTI file in {', '.join(map(str, given))}{below}")
    return (*series, *nifti.values(), *unreadable)


@dataclass(slots=True)
class _Found:
    """What files of folders turned out to be; ``reader`` compares those with one SOP Instance UID."""

    reader: ImageReader
    members: dict[str, dict[str, Path]] = field(default_factory=dict)
    passed_over: list[PassedOver] = field(default_factory=list)

    def take(self, path: Path) -> PassedOver | None:
        """Add the instance in ``path`` to its series; returns why there is none."""
        instance = read_file(path)
        if not isinstance(instance, PassedOver):
            members = self.members.setdefault(str(instance.header.SeriesInstanceUID), {})
            known = members.setdefault(str(instance.header.SOPInstanceUID), path)
            if known == path:
                return None
            of_known = read_file(known)
            instance = of_known if isinstance(of_known, PassedOver) else compared(of_known, instance, self.reader)
        self.passed_over.append(instance)
        return instance if instance.reason != COPY else None

    def series(self) -> list[DicomSeries]:
        """Every series, with what was passed over in its folders."""
        each = ((uid, tuple(members.values())) for uid, members in sorted(self.members.items()))
        return [DicomSeries(uid, paths, passed_over_beside(paths, self.passed_over)) for uid, paths in each]


def _unreadable_folders(given: Sequence[Path], passed_over: Sequence[PassedOver]) -> Iterator[Unreadable]:
    """The folders with DICOM files that cannot be read; one of them named with its fault, the others counted."""
    for root in given:
        damaged = [each for each in passed_over if each.is_dicom and each.path.is_relative_to(root)]
        if damaged:
            more = f", and {len(damaged) - 1} more files" if len(damaged) > 1 else ""
            yield Unreadable(root, f"no DICOM file can be read: {_refusal(damaged[0])}{more}", tuple(damaged))


def _refusal(passed_over: PassedOver) -> str:
    if not passed_over.is_dicom:
        return f"{passed_over.path.name} is neither a DICOM instance nor a NIfTI file"
    detail = f" ({passed_over.detail})" if passed_over.detail else ""
    return f"{passed_over.path.name}: {passed_over.reason}{detail}"


def _files(given: Sequence[Path], *, recursive: bool, without: Path | None) -> Iterator[tuple[Path, Path]]:
    """Every file with the path it was found by; symbolic links to folders are not followed."""
    left_out = None if without is None else without.resolve()
    for root in given:
        if root.is_file():
            yield root, root
            continue
        for folder, below, names in os.walk(root):
            below[:] = sorted(name for name in below if recursive and Path(folder, name).resolve() != left_out)
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_file():
                    yield path, root


def _nifti_name(path: Path, root: Path) -> str:
    relative = path.name if path == root else path.relative_to(root).as_posix()
    suffix = next(suffix for suffix in reversed(_NIFTI_SUFFIXES) if relative.lower().endswith(suffix))
    folder, slash, last = relative.rpartition("/")
    stem = last[: -len(suffix)]
    # a file called "...nii" must not send its results to the folder above
    return folder + slash + ("nifti" if stem in ("", ".", "..") else stem)


def _size(paths: Sequence[Path]) -> int:
    """Of all files that are still there, in bytes."""
    return sum(path.stat().st_size for path in paths if path.exists())


def _content_digest(paths: Sequence[Path]) -> str:
    """SHA-256 over the sorted SHA-256 of the data sets, without File Meta Information, as the ledger has it."""
    return hashlib.sha256("\n".join(sorted(map(_data_set_sha256, paths))).encode()).hexdigest()


def _data_set_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(_data_set_start(file.read(HEAD_LENGTH)))
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StoreUnavailable(f"a file can't be read: {error.strerror}") from error


def _data_set_start(head: bytes) -> int:
    """Of a file that is no Part 10 file, all of it counts."""
    try:
        return data_set_start(head)
    except ValueError:
        return 0
