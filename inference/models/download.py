"""Downloads one large file over https and never fetches the same bytes twice.

An interrupted download resumes where it stopped (HTTP Range, RFC 9110 section 14), in this process or a later one, as
long as the server's ETag shows that the file is unchanged.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Any

from inference.errors import ModelPackageError
from inference.models.package import file_digest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZE_LIMIT_BYTES = 16 * 1024**3
_CHUNK_BYTES = 256 * 1024
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_PARTIAL_CONTENT = 206
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})")
_LENGTH = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class _Arrived:
    """Kept next to the partial file: which file it is the beginning of."""

    url: str
    etag: str
    size: int


class _Cut(Exception):
    """The connection ended before the file did."""


def check_url(url: str) -> None:
    """Raise ModelPackageError unless ``url`` is https, or http to this machine."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise ModelPackageError(f"{url} is not a valid URL: {error}") from error
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)):
        raise ModelPackageError(f"{url} is not an https URL")
    if parts.username or parts.password:
        raise ModelPackageError("remove the password from the URL: the URL is recorded in the package")


def download(
    url: str, target: Path, on_progress: Callable[[int, int], None], *, timeout_s: float = 30.0, attempts: int = 5
) -> str:
    """Download ``url`` to ``target`` and return its SHA-256; uses the proxies of the environment.

    ``on_progress(bytes, all bytes)`` reports progress. ``attempts`` limits successive connections without data.

    Raises:
        ModelPackageError: the server can't be reached, drops the connection too often or refuses, or the file is too
        large.
    """
    check_url(url)
    partial, left = target.with_name(target.name + ".part"), attempts
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            _fetch(url, partial, on_progress, timeout_s)
            break
        except urllib.error.HTTPError as error:
            raise ModelPackageError(f"{url}: the server answered {error.code} {error.reason}") from error
        except (_Cut, OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            left = attempts if partial.exists() and partial.stat().st_size > before else left - 1
            if left <= 0:
                raise ModelPackageError(f"cannot download {url}: {getattr(error, 'reason', None) or error}") from error
    digest = file_digest(partial)
    partial.replace(target)
    _record(partial).unlink(missing_ok=True)
    return digest


def _record(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        check_url(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(url: str, partial: Path, on_progress: Callable[[int, int], None], timeout_s: float) -> None:
    arrived = _read_record(url, partial)
    if arrived is not None and partial.stat().st_size == arrived.size:
        return
    request = urllib.request.Request(url, headers={"User-Agent": "dicom-node", "Accept-Encoding": "identity"})  # noqa: S310
    if arrived is not None:
        request.add_header("Range", f"bytes={partial.stat().st_size}-")
        request.add_header("If-Range", arrived.etag)
    with urllib.request.build_opener(_SafeRedirects).open(request, timeout=timeout_s) as response:
        begin, size = _extent(response)
        if begin and (arrived is None or size != arrived.size or begin != partial.stat().st_size):
            partial.unlink()
            raise _Cut("the server sent a different part of the file than requested")
        if size > SIZE_LIMIT_BYTES:
            raise ModelPackageError(f"{url} has {size} bytes; at most {SIZE_LIMIT_BYTES} are allowed")
        free = shutil.disk_usage(partial.parent).free
        if free < size - begin:
            raise ModelPackageError(f"{url} needs {size - begin} more bytes; the disk has {free} bytes free")
        etag = response.headers.get("ETag") or ""
        _record(partial).write_text(json.dumps(asdict(_Arrived(url, etag, size))), encoding="utf-8")
        with partial.open("r+b" if begin else "wb") as file:
            file.seek(begin)
            _copy(response, file, begin, size, on_progress)


def _read_record(url: str, partial: Path) -> _Arrived | None:
    """The record of a partial file that can be resumed; otherwise deletes the partial file and returns None."""
    try:
        arrived = _Arrived(**json.loads(_record(partial).read_text(encoding="utf-8")))
        usable = arrived.url == url and partial.stat().st_size <= arrived.size
        # a weak ETag does not promise equal bytes (RFC 9110 section 13.1.5)
        if usable and arrived.etag.startswith('"') and partial.stat().st_size > 0:
            return arrived
    except (OSError, ValueError, TypeError, AttributeError):
        pass
    partial.unlink(missing_ok=True)
    return None


def _extent(response: Any) -> tuple[int, int]:
    """Position of the first byte of the response, and the size of the whole file."""
    if response.status == _PARTIAL_CONTENT:
        told = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if told is None:
            raise _Cut("the server sent a part of the file without saying which")
        return int(told[1]), int(told[2])
    length = response.headers.get("Content-Length", "")
    if not _LENGTH.fullmatch(length):
        raise ModelPackageError(f"{response.url}: the server does not give the size of the file")
    return 0, int(length)


def _copy(response: IO[bytes], file: IO[bytes], begin: int, size: int, on_progress: Callable[[int, int], None]) -> None:
    done = begin
    try:
        while done < size and (chunk := response.read(min(_CHUNK_BYTES, size - done))):
            file.write(chunk)
            done += len(chunk)
            on_progress(done, size)
    finally:
        file.flush()
        os.fsync(file.fileno())
    if done < size:
        raise _Cut(f"the connection ended after {done} of {size} bytes")
