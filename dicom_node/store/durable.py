"""Files that survive a power failure: written and synced under a temporary name, renamed, and their folder synced.

:class:`Disk` has every operation on which that depends. A simulation that loses what was not synced replaces it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import uuid
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FILE_MODE = 0o600
FOLDER_MODE = 0o700
PART = ".part"
"""The suffix of temporary names; what a killed process leaves under one may be removed."""
_PIECE = 1024 * 1024


class Disk:
    """What changes files and folders, and what makes changes durable; every operation raises OSError if it fails.

    A file's content is durable once the file is synced, its name once its folder is.
    """

    def create(self, file: Path) -> int:
        """Open a new file to write and read; returns its descriptor, which locks the file until it is closed."""
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        with suppress(OSError):  # a file system without locks: a writer is known by the age of its file only
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor

    def has_writer(self, file: Path) -> bool:
        """Whether a living process still has the file open that it created, however long it has been held up."""
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return isinstance(error, BlockingIOError)
        finally:
            os.close(descriptor)
        return False

    def write(self, descriptor: int, content: bytes | memoryview) -> int:
        """Append some of ``content``; returns how many bytes."""
        return os.write(descriptor, content)

    def sync_file(self, descriptor: int) -> None:
        """Make the content of a file durable."""
        os.fsync(descriptor)

    def sync_found(self, file: Path) -> None:
        """Make the content of a file durable that another process wrote."""
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def sync_folder(self, folder: Path) -> None:
        """Make the names in ``folder`` durable."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, file: Path, to: Path) -> None:
        """Give a file another name, in place of the file that has it."""
        file.rename(to)

    def unlink(self, file: Path) -> None:
        """Remove a file, if it exists."""
        file.unlink(missing_ok=True)

    def make_folder(self, folder: Path) -> None:
        """Create a folder, if it does not exist."""
        folder.mkdir(mode=FOLDER_MODE, exist_ok=True)

    def touch(self, file: Path) -> None:
        """Make an empty file, if it does not exist."""
        file.touch(FILE_MODE)

    def freshen(self, file: Path) -> None:
        """Say that a file was written just now."""
        os.utime(file)

    def threads(self, count: int, name: str) -> Executor:
        """Threads that wait for the disk side by side."""
        return ThreadPoolExecutor(count, name)


DISK = Disk()


def digest_of_part(descriptor: int, part: slice) -> str:
    """SHA-256 of the bytes from ``part.start`` to ``part.stop`` of a file.

    They are read, not mapped: mapped pages of an image of 1 GB would count as memory of the process.

    Raises:
        OSError: they can't be read.
    """
    digest = hashlib.sha256()
    for start in range(part.start, part.stop, _PIECE):
        digest.update(os.pread(descriptor, min(_PIECE, part.stop - start), start))
    return digest.hexdigest()


def write_new(part: Path, content: bytes | memoryview, disk: Disk = DISK) -> str:
    """Write the file ``part``, which must not exist, and return the SHA-256 of what is read back from it.

    Raises:
        OSError: it exists, or can't be written.
    """
    descriptor = disk.create(part)
    try:
        return write_synced(descriptor, content, disk)
    finally:
        os.close(descriptor)


def write_synced(descriptor: int, content: bytes | memoryview, disk: Disk = DISK) -> str:
    """Write all of a new file, make it durable, and return the SHA-256 of what is read back from it.

    Raises:
        OSError: it can't be written.
    """
    write_all(descriptor, content, disk)
    disk.sync_file(descriptor)
    return digest_of_part(descriptor, slice(0, len(content)))


def write_all(descriptor: int, content: bytes | memoryview, disk: Disk = DISK) -> None:
    """Append all of ``content``.

    Raises:
        OSError: it can't be written.
    """
    with memoryview(content) as view:
        written = 0
        while written < len(view):
            written += disk.write(descriptor, view[written:])


def replace_file(file: Path, content: bytes | memoryview, disk: Disk = DISK) -> None:
    """Write ``content`` to ``file``, in place of what it has; it is there whole or not at all.

    Raises:
        OSError: it can't be written.
    """
    part = file.with_name(f"{file.name}.{uuid.uuid4().hex}{PART}")
    try:
        write_new(part, content, disk)
        disk.rename(part, file)
    except BaseException:
        disk.unlink(part)
        raise
    disk.sync_folder(file.parent)
