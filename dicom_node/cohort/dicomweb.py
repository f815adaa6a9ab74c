"""A DICOMweb archive: QIDO-RS finds series (PS3.18 10.6), WADO-RS retrieves their instances as stored (PS3.18 10.4)."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from email.message import Message
from netrc import NetrcParseError
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx
from pydicom import Dataset
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser

from dicom_node.cohort.sources import selected_of
from dicom_node.errors import ConfigurationError, ConnectionLost, FileUnreadable, NetworkError
from dicom_node.standard.attributes import text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import BinaryIO

    from dicom_node.cohort.definition import Definition
    from dicom_node.cohort.definition import WebArchive as WebSettings
    from dicom_node.cohort.sources import Pulled, Taking, Wanted
    from dicom_node.store.cohorts import Selected

_PAGE = 200
_CALLING_AE = "DICOMWEB"
_NO_CONTENT, _SERVER_FAULTS = 204, 500
_AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'


class WebArchive:
    """An archive with QIDO-RS and WADO-RS.

    Raises:
        ConfigurationError: ``~/.netrc`` can't be read.
    """

    def __init__(self, definition: Definition, archive: WebSettings, wanted: Wanted) -> None:
        self._definition = definition
        self._url = archive.url
        self._wanted = wanted
        self._http = httpx.Client(
            timeout=archive.timeout_s, follow_redirects=True, auth=_credentials(Path.home() / ".netrc")
        )

    def select(self) -> Iterator[Selected]:
        """See :class:`~dicom_node.cohort.sources.Source`."""
        yield from selected_of(self._definition, self._wanted.modality, self._find)

    def pull(self, series: Selected) -> Pulled:
        """See Source; each instance is written to a file first, because a part of a response has no length."""
        place = f"/studies/{series.study_instance_uid}/series/{series.series_instance_uid}"
        with (
            self._wanted.open(_CALLING_AE, httpx.URL(self._url).host) as taking,
            tempfile.TemporaryDirectory(prefix="dicom-node-wado-") as folder,
            _translated("WADO-RS"),
            self._http.stream("GET", self._url + place, headers={"Accept": _AS_STORED}) as response,
        ):
            response.raise_for_status()
            _take_parts(response, _Part(Path(folder, "instance.dcm"), taking, self._wanted))
        return taking.pulled(series.series_instance_uid)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _find(self, level: str, keys: Mapping[str, str]) -> list[Dataset]:
        """All answers, page by page."""
        place = "/studies" if level == "STUDY" else f"/studies/{keys['StudyInstanceUID']}/series"
        matching = {key: value for key, value in keys.items() if value and not (level == "SERIES" and key == _STUDY)}
        asked = [*matching.items(), *(("includefield", key) for key, value in keys.items() if not value)]
        unique = f"{level.title()}InstanceUID"
        found: dict[str, Dataset] = {}
        received = 0
        while True:
            # an archive may give fewer than asked for, by a limit of its own (PS3.18 8.3.4.4), so a short page is not
            # the last one; an archive that knows no offset gives the same answers again
            page = self._page(place, [*asked, ("limit", str(_PAGE)), ("offset", str(received))])
            received += len(page)
            answers = {text(answer, unique): answer for answer in page}
            if answers.keys() <= found.keys():
                return list(found.values())
            found |= answers

    def _page(self, place: str, parameters: list[tuple[str, str]]) -> list[Dataset]:
        with _translated("QIDO-RS"):
            response = self._http.get(
                self._url + place, params=tuple(parameters), headers={"Accept": "application/dicom+json"}
            )
            response.raise_for_status()
            if response.status_code == _NO_CONTENT or not response.content:
                return []
            return [_dataset(answer) for answer in response.json()]


_STUDY = "StudyInstanceUID"


def _credentials(file: Path) -> httpx.Auth | None:
    """User and password by host, from a netrc ``file`` if there is one.

    Raises:
        ConfigurationError: it can't be read.
    """
    if not file.is_file():
        return None
    try:
        return httpx.NetRCAuth(str(file))
    except NetrcParseError as error:
        raise ConfigurationError(f"{file} can't be read: line {error.lineno} is no entry of a netrc file") from error
    except OSError as error:
        raise ConfigurationError(f"{file} can't be read: {error.strerror}") from error


def _dataset(answer: Mapping[str, Any]) -> Dataset:
    return Dataset.from_json(dict(answer))


def _take_parts(response: httpx.Response, parts: _Part) -> None:
    """Pass on each part of a multipart response (RFC 2387) when it is complete."""
    content_type = Message()
    content_type["Content-Type"] = response.headers.get("Content-Type", "")
    boundary = content_type.get_param("boundary")
    if content_type.get_content_type() != "multipart/related" or not isinstance(boundary, str):
        raise NetworkError(f"WADO-RS answered with {content_type.get_content_type()}, expected multipart/related")
    with parts as part:
        callbacks: Any = {"on_part_begin": part.begin, "on_part_data": part.write, "on_part_end": part.end}
        parser = MultipartParser(boundary.encode(), callbacks)
        for chunk in response.iter_bytes():
            parser.write(chunk)
        parser.finalize()
        if part.is_open:
            raise ConnectionLost("WADO-RS: the response was truncated")


class _Part:
    """The parts one after another, each a Part 10 file; a context manager that closes the file of the last one."""

    def __init__(self, file: Path, taking: Taking, wanted: Wanted) -> None:
        self._file = file
        self._taking = taking
        self._wanted = wanted
        self._written_bytes = 0
        self._stream: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()

    @property
    def is_open(self) -> bool:
        """Whether a part has begun but not ended."""
        return self._stream is not None

    def begin(self) -> None:
        """Begin a part."""
        self._written_bytes = 0
        self._stream = self._file.open("wb")

    def write(self, data: bytes, start: int, end: int) -> None:
        """Write the next bytes of the part.

        Raises:
            NetworkError: the part is larger than an instance may be.
        """
        assert self._stream is not None
        self._written_bytes += end - start
        self._wanted.refuse_larger(self._written_bytes)
        self._stream.write(memoryview(data)[start:end])

    def end(self) -> None:
        """End the part, which is complete."""
        assert self._stream is not None
        self._stream.close()
        self._stream = None
        self._taking.take_file(self._file)


@contextmanager
def _translated(service: str) -> Iterator[None]:
    """Translate exceptions of httpx and the readers of its responses; without URLs, which may contain a query."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        answered = f"{service} answered with HTTP status {error.response.status_code}"
        if error.response.status_code >= _SERVER_FAULTS:
            raise ConnectionLost(answered) from error
        raise NetworkError(answered) from error
    except httpx.HTTPError as error:
        raise ConnectionLost(f"{service}: the archive can't be reached ({type(error).__name__})") from error
    except (ValueError, KeyError, TypeError, FileUnreadable, MultipartParseError) as error:
        raise NetworkError(f"{service}: unexpected response ({type(error).__name__})") from error
