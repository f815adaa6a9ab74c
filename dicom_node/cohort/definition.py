"""The file that defines a cohort: which series, from which source, which model, how fast, and to which data set.

docs/users/cohort.md explains every key. Relative paths are relative to the folder of the file.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from datetime import datetime, time
from typing import TYPE_CHECKING, Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator
from pydicom.datadict import tag_for_keyword

from dicom_node.cohort.subject import Dates
from dicom_node.errors import ConfigurationError
from dicom_node.route.requests import DestinationRequest  # noqa: TC001 - pydantic reads it
from dicom_node.settings.loader import read_file
from dicom_node.settings.models import (  # read by pydantic
    AeTitle,  # noqa: TC001
    Host,  # noqa: TC001
    Number,  # noqa: TC001
    PathS,  # noqa: TC001
    Port,  # noqa: TC001
    Seconds,  # noqa: TC001
    Truth,  # noqa: TC001
    Whole,  # noqa: TC001
)
from dicom_node.settings.validation import Closed, checked, configured
from dicom_node.store.routing import Order

if TYPE_CHECKING:
    from pathlib import Path

    from dicom_node.settings import Settings

LOW_PRIORITY = -1000
"""Below the default priority of rules."""
_GIB = 2**30


def _keyword(name: str) -> str:
    if tag_for_keyword(name) is None:
        raise ValueError(f"{name!r} is not the keyword of a DICOM attribute (such as StudyDate or Modality)")
    return name


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.username or parts.query:
        raise ValueError("expected an address such as https://pacs.example/dicom-web, without user and password")
    return text.rstrip("/")


def _hours(text: str) -> str:
    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d", text):
        raise ValueError(f"expected hours such as 19:00-06:30, not {text!r}")
    return text


class Archive(Closed):
    """Where the series are, and how they are queried and pulled.

    ``retrieve``: c-move needs the node's listener, and an archive that knows the node's AE title.
    """

    retrieve: Literal["c-get", "c-move"] = "c-get"
    host: Host
    port: Port = 104
    ae_title: AeTitle
    our_ae_title: AeTitle | None = None
    """None: the node's AE title."""
    connect_timeout_s: Seconds = 10
    response_timeout_s: Seconds = 600


class WebArchive(Closed):
    """A DICOMweb archive (PS3.18): QIDO-RS and WADO-RS."""

    url: Annotated[str, AfterValidator(_url)]
    """For example ``https://pacs.example/dicom-web``. User and password come from ``~/.netrc``."""
    timeout_s: Seconds = 600


class Limits(Closed):
    """Limits on the load of the archive and the node."""

    at_once: Whole = Field(default=1, ge=1, le=16)
    """Number of series pulled at the same time."""
    series_per_hour: Number | None = Field(default=None, gt=0)
    hours: Annotated[str, AfterValidator(_hours)] | None = None
    """Local time of day during which series are pulled."""
    free_disk_gib: Number = Field(default=10.0, ge=0)
    """Nothing is pulled with less free space on the spool's disk."""
    in_queue: Whole = Field(default=10, ge=1)
    """Number of pulled series that may be unfinished."""
    attempts: Whole = Field(default=3, ge=1)
    """How often a series is pulled that does not arrive completely."""

    @property
    def free_disk_bytes(self) -> int:
        """The minimum free space."""
        return int(self.free_disk_gib * _GIB)

    def is_open_at(self, moment: datetime) -> bool:
        """Whether series may be pulled at this local time; hours may span midnight."""
        if self.hours is None:
            return True
        begin, end = (time.fromisoformat(each) for each in self.hours.split("-"))
        now = moment.time()
        return begin <= now < end if begin <= end else now >= begin or now < end


class Definition(Closed):
    """A cohort. Exactly one of ``query``, ``series_list`` and ``folder`` selects its series."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    data_set: PathS
    key_file: PathS
    dates: Dates = Dates.SHIFTED
    archive: Archive | None = None
    web_archive: WebArchive | None = None
    query: dict[Annotated[str, AfterValidator(_keyword)], str] | None = None
    series_list: PathS | None = None
    folder: PathS | None = None
    model: Annotated[str, AfterValidator(configured("model"))] | None = None
    """None: the node's rules decide."""
    destinations: tuple[DestinationRequest, ...] = ()
    stored_reports: Truth = False
    """Read the reports stored in the archive instead of images."""
    priority: Whole = LOW_PRIORITY
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        given = [name for name in ("query", "series_list", "folder") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of query, series_list and folder, not {given or 'none'}")
        archives = sum(each is not None for each in (self.archive, self.web_archive))
        if archives != (self.folder is None):
            raise ValueError("archive or web_archive is needed; a folder needs neither")
        if self.stored_reports and (self.model or (self.archive and self.archive.retrieve == "c-move")):
            raise ValueError("stored_reports needs no model, and can't be pulled by c-move: the listener takes CT only")
        if self.destinations and self.model is None:
            raise ValueError("destinations need a model; without one, the rules of the node name both")
        if self.destinations and not any(_measures_all(each) for each in self.destinations):
            raise ValueError("one destination must get a report of all structures: the table is read from it")
        return self

    @property
    def order(self) -> Order:
        """The order for the queue."""
        requests = {each.to: each.request() for each in self.destinations}
        return Order(self.name, self.model, requests, self.priority)

    def retrieves_as(self, node_ae: str) -> str:
        """The AE title that asks for the series."""
        return (self.archive.our_ae_title if self.archive else None) or node_ae

    def digest(self) -> str:
        """SHA-256 of what decides which series are selected, what is made of them, and where it is written."""
        listed = None if self.series_list is None else hashlib.sha256(_content(self.series_list)).hexdigest()
        decisive = {
            "query": self.query,
            "list": listed,
            "folder": None if self.folder is None else str(self.folder),
            "order": asdict(self.order),
            "stored_reports": self.stored_reports,
            "data_set": str(self.data_set),
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()


def load_definition(file: Path, settings: Settings) -> Definition:
    """Read and check ``file`` against the models and destinations of ``settings``.

    Raises:
        ConfigurationError: the file is missing or wrong; one line for each fault, with its location.
    """
    folder = file.resolve().parent
    context = {"model": settings.models.keys(), "destination": settings.destinations.keys(), "folder": folder}
    found = checked(read_file(file), Definition, context)
    paths = {name: getattr(found, name) for name in ("data_set", "key_file", "series_list", "folder")}
    return found.model_copy(update={name: folder / path for name, path in paths.items() if path is not None})


def _measures_all(destination: DestinationRequest) -> bool:
    return destination.report and not destination.structures


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"the list of series {file} can't be read: {error.strerror}") from error
