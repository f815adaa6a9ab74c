"""Files that are either complete or absent, and digests of their content."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dicom_node.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def replaced_file(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """A temporary file that is renamed to ``path`` when it is complete; folders are created.

    ``shared``: other processes may write it at the same time; a killed one then leaves its temporary file behind.

    Raises:
        ConfigurationError: it can't be written.
    """
    # keep the extension: libraries choose the format by it
    part = path.with_name(f".part-{os.getpid()}-{path.name}" if shared else f".part-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{path} can't be written: {error.strerror}") from error


def make_folder(path: Path) -> None:
    """Create a folder and its parents.

    Raises:
        ConfigurationError: it can't be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{path} can't be created: {error.strerror}") from error


def rename_first(folder: Path, name: Path) -> bool:
    """Rename ``folder``, which is not empty; False if another process has given its own that name before.

    Raises:
        ConfigurationError: it can't be renamed.
    """
    try:
        folder.rename(name)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            return False
        raise ConfigurationError(f"{name} can't be created: {error.strerror}") from error
    return True


def write_json(path: Path, value: Any, *, shared: bool = False) -> None:
    """Write one JSON document; ``shared`` as in :func:`replaced_file`.

    Raises:
        ConfigurationError: it can't be written.
    """
    with replaced_file(path, shared=shared) as part:
        part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def write_text(path: Path, text: str, *, shared: bool = False) -> None:
    """Write a text in UTF-8; ``shared`` as in :func:`replaced_file`.

    Raises:
        ConfigurationError: it can't be written.
    """
    with replaced_file(path, shared=shared) as part:
        part.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object written by an earlier run; None if there is none, or it can't be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def digest_of(value: Any) -> str:
    """SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
