"""Files that survive a power failure: written and synced under a temporary name, renamed, and their folder synced."""

from __future__ import annotations

import hashlib
import os
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FILE_MODE = 0o600
PART = ".part"
"""The suffix of temporary names; what a killed process leaves under one may be removed."""


def write_new(part: Path, content: bytes | memoryview) -> str:
    """Write the file ``part``, which must not exist, and return the SHA-256 of what is read back from it.

    Raises:
        OSError: it exists, or can't be written.
    """
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    with os.fdopen(descriptor, "w+b") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_file(file: Path, content: bytes | memoryview) -> None:
    """Write ``content`` to ``file``, in place of what it has; it is there whole or not at all.

    Raises:
        OSError: it can't be written.
    """
    part = file.with_name(f"{file.name}.{uuid.uuid4().hex}{PART}")
    try:
        write_new(part, content)
        part.rename(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable.

    Raises:
        OSError: the disk fails.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
