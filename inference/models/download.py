"""One large file over https, in as many pieces as the network allows: what has arrived is never fetched twice.

A download that was cut is continued where it stopped (HTTP Range, RFC 9110 section 14), in this process or a later one,
as long as the server says by its ETag that the file is still the same.
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
    """Beside the partial file: whose beginning it is."""

    url: str
    etag: str
    size: int


class _Cut(Exception):
    """The connection ended before the file did."""


def check_url(url: str) -> None:
    """Raises ModelPackageError unless ``url`` is https, or http to this machine."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise ModelPackageError(f"{url} is not an address: {error}") from error
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)):
        raise ModelPackageError(f"{url} is not an https address")
    if parts.username or parts.password:
        raise ModelPackageError("an address with a password in it would be recorded in the package; leave it out")


def download(
    url: str, target: Path, on_progress: Callable[[int, int], None], *, timeout_s: float = 30.0, attempts: int = 5
) -> str:
    """Fetch ``url`` into ``target`` and return its SHA-256; proxies are those of the environment.

    ``on_progress(bytes, all bytes)``. ``attempts`` counts connections in a row that brought nothing.

    Raises:
        ModelPackageError: not reachable, cut too often, refused by the server, or too large.
    """
    check_url(url)
    partial, left = target.with_name(target.name + ".part"), attempts
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            _fetch(url, partial, on_progress, timeout_s)
            break
        except urllib.error.HTTPError as error:
            raise ModelPackageError(f"{url}: the server answers {error.code} {error.reason}") from error
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
            raise _Cut("the server sent another part of the file than was asked for")
        if size > SIZE_LIMIT_BYTES:
            raise ModelPackageError(f"{url} has {size} bytes; at most {SIZE_LIMIT_BYTES} are fetched")
        free = shutil.disk_usage(partial.parent).free
        if free < size - begin:
            raise ModelPackageError(f"{url} needs {size - begin} bytes more; the disk has {free}")
        etag = response.headers.get("ETag") or ""
        _record(partial).write_text(json.dumps(asdict(_Arrived(url, etag, size))), encoding="utf-8")
        with partial.open("r+b" if begin else "wb") as file:
            file.seek(begin)
            _copy(response, file, begin, size, on_progress)


def _read_record(url: str, partial: Path) -> _Arrived | None:
    """What a partial file is the beginning of, where that can be continued; else it is not there any more."""
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
    """The first byte of the answer and the size of the whole file."""
    if response.status == _PARTIAL_CONTENT:
        told = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if told is None:
            raise _Cut("the server sent a part of the file without saying which")
        return int(told[1]), int(told[2])
    length = response.headers.get("Content-Length", "")
    if not _LENGTH.fullmatch(length):
        raise ModelPackageError(f"{response.url}: the server does not say how large the file is")
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
