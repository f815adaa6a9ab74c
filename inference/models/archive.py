"""Unpacks an untrusted zip file: only the files of a model, and only below one folder.

Names that leave the folder, links, encrypted members, duplicate names and zip bombs are refused. Sizes are checked
twice: as declared, before anything is written, and as unpacked, while it is written.
"""

from __future__ import annotations

import io
import re
import shutil
import stat
import struct
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from inference.errors import ModelPackageError
from inference.models.checks import WEIGHTS_LIMIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MEMBER_LIMIT = 5000
TOTAL_LIMIT_BYTES = 16 * 1024**3
RATIO_LIMIT = 200
"""A checkpoint compresses to nine tenths of its size, JSON to one tenth."""
ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(NotImplementedError, RuntimeError, ValueError, OverflowError),
)
"""What Python's zipfile raises for damaged or forged files."""
_LONGEST_READ_BYTES = 4 * 1024**2
_SMALL_BYTES = 1024**2
_CHUNK_BYTES = 1024**2
_ENCRYPTED = 0x1
_WANTED = re.compile(r"(.*/)?(plans\.json|dataset\.json|fold_[A-Za-z0-9]+/checkpoint_final\.pth)")


class _ShortReads(io.FileIO):
    """Limits reads, since zipfile reads the whole table of members at its declared size, one object per entry."""

    def read(self, size: int | None = -1, /) -> bytes:
        rest = size is None or size < 0  # how zipfile reads the end of a file
        content = super().read(_LONGEST_READ_BYTES + 1 if rest else min(size or 0, _LONGEST_READ_BYTES + 1)) or b""
        if len(content) > _LONGEST_READ_BYTES:
            raise zipfile.BadZipFile(f"its table of members has more than {_LONGEST_READ_BYTES} bytes")
        return content


@contextmanager
def opened_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open the zip file at ``path``; raises one of ``ZIP_ERRORS``, also if its table of members is too large."""
    with _ShortReads(path) as file, zipfile.ZipFile(file) as archive:
        yield archive


def unpack_model(archive: Path, folder: Path) -> None:
    """Unpack the plans, dataset descriptions and checkpoints in ``archive`` below the empty ``folder``.

    Raises:
        ModelPackageError: the zip is damaged or hostile, or contains no model.
    """
    try:
        with opened_zip(archive) as opened:
            members = opened.infolist()
            _check(archive, members)
            wanted = [member for member in members if not member.is_dir() and _WANTED.fullmatch(member.filename)]
            if not wanted:
                raise ModelPackageError(f"{archive.name} has no nnU-Net model (plans.json, dataset.json, checkpoint)")
            for member in wanted:
                _unpack(opened, member, folder)
    except OSError as error:
        raise ModelPackageError(f"cannot unpack {archive.name}: {error.strerror or error}") from error
    except ZIP_ERRORS as error:
        raise ModelPackageError(f"{archive.name} is not a valid zip file: {str(error)[:200]}") from error


def _check(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MEMBER_LIMIT:
        raise ModelPackageError(f"{archive.name} has {len(members)} members; at most {MEMBER_LIMIT} are allowed")
    for member in members:
        _check_member(archive, member)
    names = [member.filename.rstrip("/").casefold() for member in members]
    if len(set(names)) < len(names):
        raise ModelPackageError(f"{archive.name} has two members with the same name")
    total = sum(member.file_size for member in members)
    if total > TOTAL_LIMIT_BYTES:
        raise ModelPackageError(f"{archive.name} unpacks to {total} bytes; at most {TOTAL_LIMIT_BYTES} are allowed")


def _check_member(archive: Path, member: zipfile.ZipInfo) -> None:
    name = member.filename
    said = f"{archive.name}: member {name[:200]!r}"
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not name.isprintable():
        raise ModelPackageError(f"{said} would be written outside its folder")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ModelPackageError(f"{said} is a link or a device, not a file")
    if member.flag_bits & _ENCRYPTED:
        raise ModelPackageError(f"{said} is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ModelPackageError(f"{said} uses compression method {member.compress_type}; only deflate is supported")
    if member.file_size > WEIGHTS_LIMIT_BYTES:
        raise ModelPackageError(f"{said} has {member.file_size} bytes; at most {WEIGHTS_LIMIT_BYTES} are allowed")
    if member.file_size > max(_SMALL_BYTES, RATIO_LIMIT * member.compress_size):
        raise ModelPackageError(
            f"{said} would expand from {member.compress_size} to {member.file_size} bytes: a zip bomb"
        )


def _unpack(opened: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
    target = folder / member.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < member.file_size:
        raise ModelPackageError(f"{member.filename} needs {member.file_size} bytes; the disk has less free space")
    written = 0
    with opened.open(member) as packed, target.open("xb") as file:
        while chunk := packed.read(_CHUNK_BYTES):
            written += len(chunk)
            if written > member.file_size:
                raise ModelPackageError(
                    f"{member.filename} unpacks to more than the {member.file_size} bytes it declares"
                )
            file.write(chunk)
    if written != member.file_size:
        raise ModelPackageError(f"{member.filename} unpacks to {written} bytes; it declares {member.file_size}")
