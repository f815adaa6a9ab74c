"""What there is to segment: series of DICOM files and NIfTI files, found first and read one by one.

Finding looks at headers and keeps only names of files, so that an archive of any size can be walked. What stands in a
header never becomes a part of a path but the Series Instance UID, and that only if it is one.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dicom_node.errors import ConfigurationError, NotEligible, StoreUnavailable
from dicom_node.reconstruct import labels_on_source, reconstruct
from dicom_node.segment.nifti import grid_of, read_volume
from dicom_node.standard.files import read_headers, try_instance
from dicom_node.standard.part10 import HEAD_LENGTH, data_set_start
from dicom_node.standard.uids import is_valid_uid
from dicom_node.types import Series

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dicom_node.segment.nifti import FileGrid
    from dicom_node.types import Reconstruction
    from inference.types import Volume

_NIFTI_SUFFIXES = (".nii", ".nii.gz")


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """A CT in memory: ``volume`` for the segmenter, ``source`` on the grid that results lie on.

    ``content_digest`` is that of the ledger for the same instances, so that a run of this command and one of a node
    derive the same UIDs; ``reconstruction`` is None for NIfTI, which no DICOM object could refer to.
    """

    volume: Volume
    source: Volume
    grid: FileGrid
    content_digest: str
    reconstruction: Reconstruction | None = None

    def on_source(self, labels_zyx: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Labels of ``volume`` on the grid of ``source``."""
        if self.reconstruction is None:
            return labels_zyx
        return labels_on_source(self.reconstruction, labels_zyx)


@dataclass(frozen=True, slots=True)
class DicomSeries:
    """The files of one series, one per SOP Instance UID. ``name`` names its folder of results."""

    series_instance_uid: str
    paths: tuple[Path, ...]

    @property
    def name(self) -> str:
        """The UID, or a digest of what stands in its place."""
        uid = self.series_instance_uid
        return uid if is_valid_uid(uid) else f"series-{hashlib.sha256(uid.encode()).hexdigest()[:16]}"

    @property
    def facts(self) -> dict[str, object]:
        """What a summary says about it."""
        return {
            "kind": "dicom",
            "series_instance_uid": self.series_instance_uid,
            "files": len(self.paths),
            "bytes": _size(self.paths),
        }

    def read(self) -> Scan:
        """Headers, then voxels, while another thread hashes the files.

        Raises:
            SeriesRejected: not one regular CT volume, see :func:`dicom_node.reconstruct.reconstruct`.
            StoreUnavailable: a file is missing or the disk fails.
        """
        with ThreadPoolExecutor(1) as thread:
            digest = thread.submit(_content_digest, self.paths)
            instances = read_headers(self.paths)
            study = str(instances[0].header.get("StudyInstanceUID", ""))
            reconstruction = reconstruct(Series(self.series_instance_uid, study, instances))
            return Scan(
                volume=reconstruction.volume,
                source=reconstruction.source,
                grid=grid_of(reconstruction.source.geometry),
                content_digest=digest.result(),
                reconstruction=reconstruction,
            )


@dataclass(frozen=True, slots=True)
class NiftiFile:
    """One NIfTI file; ``name`` is its path below the folder that was given, without the ending."""

    path: Path
    name: str

    @property
    def facts(self) -> dict[str, object]:
        """What a summary says about it; not its name, which people choose and which may be a patient's."""
        return {"kind": "nifti", "files": 1, "bytes": _size((self.path,))}

    def read(self) -> Scan:
        """Read the volume.

        Raises:
            SeriesRejected: see :func:`dicom_node.segment.nifti.read_volume`.
            StoreUnavailable: it can't be read.
        """
        with ThreadPoolExecutor(1) as thread:
            digest = thread.submit(_content_digest, (self.path,))
            volume, grid = read_volume(self.path)
            return Scan(volume, volume, grid, digest.result())


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Something that was named by a person and is no CT; read at its turn, so that it stands among the refusals."""

    path: Path
    reason: str

    @property
    def name(self) -> str:
        """As it was given."""
        return self.path.name

    @property
    def facts(self) -> dict[str, object]:
        """What a summary says about it."""
        return {"kind": "unknown", "files": 1, "bytes": _size((self.path,))}

    def read(self) -> Scan:
        """Always refuses.

        Raises:
            NotEligible: with the reason.
        """
        raise NotEligible(self.reason)


Input = DicomSeries | NiftiFile | Unreadable


def find_inputs(
    given: Sequence[Path], *, recursive: bool, series_instance_uid: str | None, without: Path
) -> tuple[Input, ...]:
    """Everything to segment in the files and folders ``given``: series by UID, then NIfTI files by name.

    Files of one series belong together wherever they lie; a repeated SOP Instance UID counts once. Folders inside a
    folder are looked into with ``recursive`` only, and never ``without``, where the results go. In a folder, files
    that are neither are passed over; named alone they are refused.

    Raises:
        ConfigurationError: nothing is there, or not the series that was asked for, or results would go among images.
    """
    if without.resolve() in {path.resolve() for path in given}:
        raise ConfigurationError(f"{without} is an input; results go into a folder of their own")
    series: dict[str, dict[str, Path]] = {}
    nifti: dict[Path, NiftiFile] = {}
    unreadable: list[Unreadable] = []
    for path, root in _files(given, recursive=recursive, without=without):
        if path.name.lower().endswith(_NIFTI_SUFFIXES):
            nifti.setdefault(path, NiftiFile(path, _nifti_name(path, root)))
        elif (instance := try_instance(path)) is not None:
            members = series.setdefault(str(instance.header.SeriesInstanceUID), {})
            members.setdefault(str(instance.header.SOPInstanceUID), path)
        elif path == root:
            unreadable.append(Unreadable(path, f"{path.name} is neither a DICOM instance nor a NIfTI file"))
    found = [DicomSeries(uid, tuple(members.values())) for uid, members in sorted(series.items())]
    if series_instance_uid is not None:
        chosen = [one for one in found if one.series_instance_uid == series_instance_uid]
        if not chosen:
            raise ConfigurationError(f"series {series_instance_uid} is not among the {len(found)} that were found")
        return tuple(chosen)
    if not (found or nifti or unreadable):
        below = "" if recursive else " (--recursive looks into the folders below)"
        raise ConfigurationError(f"no DICOM series and no NIfTI file in {', '.join(map(str, given))}{below}")
    return (*found, *nifti.values(), *unreadable)


def _files(given: Sequence[Path], *, recursive: bool, without: Path) -> Iterator[tuple[Path, Path]]:
    """Every file with the path it was found by; symbolic links to folders are not followed."""
    left_out = without.resolve()
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
