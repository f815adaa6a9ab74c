"""The settings of a node: closed (an unknown key is an error) and frozen.

``config/node.yaml`` explains every key; ``tests/test_docs.py`` keeps both in step. Numbers and booleans are strict:
``"104"`` in quotes is text, not a number.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, Strict, field_validator, model_validator

from dicom_node.settings.places import shown
from dicom_node.settings.validation import Closed, misplaced, no_such

if TYPE_CHECKING:
    from pydantic import ValidationInfo


def _ae_title(value: str) -> str:
    if not re.fullmatch(r"[ !-\[\]-~]+", value) or not value.strip():
        raise ValueError(
            f"an AE title must be printable ASCII without backslash and not blank (PS3.5 6.2), not {shown(value)}"
        )
    return value


def _short_string(value: str) -> str:
    if not value.isprintable() or "\\" in value or not value.strip():
        raise ValueError("must be printable, without backslash and not blank (PS3.5 6.2, VR SH)")
    return value


def _network(value: str) -> str:
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        examples = "10.1.2.3, 10.1.0.0/16, 2001:db8::/32"
        raise ValueError(f"{shown(value)} is not an IP address or network (examples: {examples})") from None
    return value


def _ip_address(value: str) -> str:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        raise ValueError(
            f"{shown(value)} is not an IP address; use 0.0.0.0 or :: to listen on every interface"
        ) from None
    return value


def _host(value: str) -> str:
    """A host name (RFC 1123, and ``_``, which container networks use) or an IP address."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        if not re.fullmatch(r"(?!.*\.\.)[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})", value) or re.fullmatch(r"[0-9.]+", value):
            raise ValueError("expected a host name or IP address, without port or scheme") from None
    return value


def _path(value: Any) -> Any:
    if isinstance(value, str) and (not value.strip() or not value.isprintable()):
        raise ValueError("a path must be printable and not empty")
    if isinstance(value, str) and value.startswith("~"):
        raise ValueError("~ is not expanded; write the full path")
    return value


def _database_url(value: str) -> str:
    if not re.match(r"[a-z0-9]+(\+[a-z0-9]+)?://", value):  # never quoted: a password may be in it
        raise ValueError("expected an SQLAlchemy URL, such as postgresql+psycopg://user@host/database")
    return value


def _http_url(value: str) -> str:
    parts = urlsplit(value)  # never quoted: a token may be in it
    try:
        is_usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable or parts.username is not None or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("expected a URL such as https://host/path, without a user name")
    return value


def _mail_address(value: str) -> str:
    if not re.fullmatch(r"[!-?A-~]+@[A-Za-z0-9][A-Za-z0-9.-]*", value) or re.search(r"[\s,;<>()\"]", value):
        raise ValueError(f"expected an address such as node@hospital.example, not {shown(value)}")
    return value


def _time_of_day(value: str) -> str:
    if value != "off" and not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", value):
        raise ValueError(f"expected a time of day from 00:00 to 23:59, or off, not {shown(value)}")
    return value


def _digest(value: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise ValueError(f"expected 64 hexadecimal digits, not {len(value)} characters")
    return value


Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Truth = Annotated[bool, Strict()]
AeTitle = Annotated[str, Field(min_length=1, max_length=16), AfterValidator(_ae_title)]
"""PS3.5 table 6.2-1, VR AE: 1 to 16 characters of the default repertoire without backslash and control characters."""
ShortString = Annotated[str, Field(min_length=1, max_length=16), AfterValidator(_short_string)]
"""PS3.5 table 6.2-1, VR SH."""
ListeningPort = Annotated[Whole, Field(ge=0, le=65535)]
"""0: the operating system chooses."""
Port = Annotated[Whole, Field(ge=1, le=65535)]
Host = Annotated[str, AfterValidator(_host)]
Name = Annotated[str, Field(min_length=1, max_length=255)]
"""As long as the ledger's column for it."""
Seconds = Annotated[Number, Field(ge=0)]
PathS = Annotated[Path, BeforeValidator(_path)]
"""Relative paths are relative to the folder of node.yaml."""
LargestPdu = Annotated[Whole, Field(ge=4096, le=2**32 - 1)]
"""PS3.8 D.1: 32 bits."""


class NodeSettings(Closed):
    """The identity of the node, and where it listens."""

    ae_title: AeTitle = "DICOMNODE"
    bind_address: Annotated[str, AfterValidator(_ip_address)] = "127.0.0.1"
    port: ListeningPort = 11112
    station_name: ShortString = "dicom-node"
    data_folder: PathS = Path("/var/lib/dicom-node")
    """Spool, ledger (unless a URL is given) and work files; must be on one local file system."""


class ReceiveSettings(Closed):
    """Limits of the listener; without them, a peer could exhaust its memory, threads or disk."""

    maximum_associations: Whole = Field(default=64, ge=1)
    maximum_associations_per_ae: Whole = Field(default=16, ge=1)
    maximum_associations_per_address: Whole = Field(default=32, ge=1)
    maximum_pdu_bytes: LargestPdu = 131072
    network_timeout_s: Seconds = 60
    dimse_timeout_s: Seconds = 60
    maximum_instance_bytes: Whole = Field(default=4 * 1024**3, ge=1024)
    minimum_free_disk_bytes: Whole = Field(default=1024**3, ge=0)
    """Below this much free space, every C-STORE is answered with 0xA700 (Out of Resources)."""


class SourceSettings(Closed):
    """A peer that may send to the node. If no source is configured, no peer may."""

    ae_title: AeTitle
    addresses: tuple[Annotated[str, AfterValidator(_network)], ...] = ()
    """IP addresses or networks it may come from; empty: any."""
    services: tuple[Literal["echo", "store"], ...] = ("echo", "store")
    count_host: Host | None = None
    """Where to query the number of instances of a series by C-FIND (Study Root, SERIES level); None: don't query."""
    count_port: Port = 104
    count_ae_title: AeTitle | None = None


class DestinationSettings(Closed):
    """A peer that results are sent to."""

    host: Host
    port: Port
    ae_title: AeTitle
    maximum_pdu_bytes: LargestPdu = 131072
    connect_timeout_s: Seconds = 10
    response_timeout_s: Seconds = 60
    give_up_after_s: Seconds = 7 * 86400
    viewer: Literal["other", "ohif_on_orthanc"] = "other"
    """What shows the results. ``ohif_on_orthanc`` shows a BINARY SEG only where Columns is a multiple of 8."""


class CompletionSettings(Closed):
    """When a series is considered complete (see dicom_node/receive/completion.py)."""

    count_reached_quiet_s: Seconds = 0
    regular_quiet_s: Seconds = 5
    otherwise_quiet_s: Seconds = 60
    hard_limit_s: Seconds = 7200


class TissueModelSettings(Closed):
    """The rule-based commissioning model: HU classes, no training, no weights."""

    kind: Literal["tissue"]


class NnunetModelSettings(Closed):
    """An nnU-Net v2 model, installed by ``dicom-node models install``."""

    kind: Literal["nnunet"]
    package: PathS
    """Its folder in the model library."""
    digest: Annotated[str, AfterValidator(_digest)] | None = None
    """As ``dicom-node models list`` prints it; a model that differs is not loaded."""
    answer: Literal["best", "parity"] = "best"
    """``parity``: the same labels as TotalSegmentator, voxel by voxel; ``best``: faster, with smooth surfaces."""
    body_crop: Truth = True
    """Leave out the air around the patient (never for ``parity``)."""
    mirroring: Truth = False
    """Average over mirrored windows, as nnU-Net does by default; up to eight times as slow."""


ModelSettings = Annotated[TissueModelSettings | NnunetModelSettings, Field(discriminator="kind")]


class WorkSettings(Closed):
    """The worker processes that keep the models warm."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    backend: Literal["auto", "openvino", "torch"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the convolutions; auto: float16 on CUDA, bfloat16 on a CPU that supports it, otherwise float32."""
    threads: Whole = Field(default=0, ge=0)
    """CPU threads of a worker; 0: all cores."""
    cache_folder: PathS | None = None
    """Compiled networks; None: ``cache`` in the data folder."""
    preload: tuple[str, ...] = ()
    """Models to load at startup, so that they are ready for the first series."""
    resident_memory_percent: Number = Field(default=60, gt=0, le=100)
    """How much of the machine's memory, and of the accelerator's, all loaded models may use together. The least
    recently used model is unloaded first; a single model may use more.
    """
    jobs_at_once: Whole = Field(default=3, ge=1)
    """Volumes in memory: one is read and prepared, one inferred, one encoded; 1: strictly sequential."""
    attempts: Whole = Field(default=3, ge=1)
    job_limit_s: Seconds = 3600
    heartbeat_limit_s: Seconds = 120


class DeliverySettings(Closed):
    """Back-off of deliveries: the pause doubles from the first to the longest, with jitter."""

    first_retry_s: Seconds = 30
    longest_retry_s: Seconds = 900
    refused_attempts: Whole = Field(default=3, ge=1)
    """How often an object that the peer refuses is offered before it is FAILED."""


class OperateSettings(Closed):
    """Sweeps and retention."""

    sweep_s: Seconds = 1.0
    retention_days: Number = Field(default=7, ge=0)
    """Spool files of a series are deleted this long (elapsed time) after its last job ended, never before delivery."""
    disk_stop_percent: Number = Field(default=85, gt=0, le=100)
    disk_resume_percent: Number = Field(default=80, gt=0, le=100)
    ledger_check: Annotated[str, AfterValidator(_time_of_day)] = "02:30"
    """When ``work`` checks every day that nothing is lost, in local time; ``off``: never."""

    @model_validator(mode="after")
    def _watermarks_in_order(self) -> Self:
        if self.disk_resume_percent > self.disk_stop_percent:
            text = (
                f"must not be above disk_stop_percent ({self.disk_stop_percent:g}), but is {self.disk_resume_percent:g}"
            )
            raise misplaced([(("disk_resume_percent",), text)])
        return self


class AlarmSettings(Closed):
    """When a person must know that something is wrong, and how."""

    disk_percent: Number = Field(default=80, gt=0, le=100)
    """Used space of the spool's disk."""
    queue_age_s: Seconds = 3600
    """How long a job may wait for its turn; jobs of cohorts do not count."""
    undelivered_s: Seconds = 900
    """How long a result may wait after it was first offered."""
    crashes: Whole = Field(default=3, ge=1)
    """Unexpected ends of one process within an hour."""
    failed_jobs: Whole = Field(default=1, ge=1)
    """Within a day."""
    webhook_url: Annotated[str, AfterValidator(_http_url)] | None = Field(
        default=None, json_schema_extra={"writeOnly": True}
    )
    """Gets a POST with JSON; may have a token in it, so it is never quoted."""
    smtp_host: Host | None = None
    """A mail relay that takes messages from this machine without a login."""
    smtp_port: Port = 25
    mail_from: Annotated[str, AfterValidator(_mail_address)] | None = None
    mail_to: tuple[Annotated[str, AfterValidator(_mail_address)], ...] = ()

    @model_validator(mode="after")
    def _mail_is_whole(self) -> Self:
        if self.smtp_host is not None:
            missing = [name for name, given in (("mail_from", self.mail_from), ("mail_to", self.mail_to)) if not given]
            if missing:
                raise misplaced([(("smtp_host",), f"needs {' and '.join(missing)} too")])
        return self


class ConstancySettings(Closed):
    """Checks that the accepted models still give the answer that they gave at acceptance."""

    models: tuple[str, ...] = ()
    """Which models are checked by ``work`` itself, at low priority."""
    every_days: Number = Field(default=7, gt=0)
    folder: PathS | None = None
    """A folder per model, made by ``dicom-node constancy MODEL --accept``; None: ``constancy`` in the data folder."""


class Settings(Closed):
    """All settings. Each package gets only its own part."""

    node: NodeSettings = NodeSettings()
    ledger_url: Annotated[str, AfterValidator(_database_url)] | None = Field(
        default=None, json_schema_extra={"writeOnly": True}
    )
    """SQLAlchemy URL, e.g. postgresql+psycopg://...; None: SQLite in the data folder."""
    receive: ReceiveSettings = ReceiveSettings()
    sources: tuple[SourceSettings, ...] = ()
    destinations: dict[Name, DestinationSettings] = Field(default={})
    completion: CompletionSettings = CompletionSettings()
    models: dict[Name, ModelSettings] = Field(default={})
    models_folder: PathS = Path("models")
    """The model library, which ``dicom-node models`` manages."""
    work: WorkSettings = WorkSettings()
    delivery: DeliverySettings = DeliverySettings()
    operate: OperateSettings = OperateSettings()
    alarms: AlarmSettings = AlarmSettings()
    constancy: ConstancySettings = ConstancySettings()
    rules_file: PathS = Path("rules.yaml")
    """Relative paths are relative to the folder of node.yaml."""

    @field_validator("sources")
    @classmethod
    def _one_entry_per_ae(cls, sources: tuple[SourceSettings, ...]) -> tuple[SourceSettings, ...]:
        titles = [source.ae_title.strip() for source in sources]
        twice = [number for number, title in enumerate(titles) if title in titles[:number]]
        if twice:
            raise misplaced(((number, "ae_title"), "another source has this AE title") for number in twice)
        return sources

    @field_validator("work")
    @classmethod
    def _preloaded_models_exist(cls, work: WorkSettings, others: ValidationInfo) -> WorkSettings:
        models = others.data.get("models", work.preload)  # invalid models are reported already
        unknown = [(number, name) for number, name in enumerate(work.preload) if name not in models]
        if unknown:
            raise misplaced((("preload", number), no_such("model", name, models)) for number, name in unknown)
        return work

    @field_validator("constancy")
    @classmethod
    def _checked_models_exist(cls, constancy: ConstancySettings, others: ValidationInfo) -> ConstancySettings:
        models = others.data.get("models", constancy.models)  # invalid models are reported already
        unknown = [(number, name) for number, name in enumerate(constancy.models) if name not in models]
        if unknown:
            raise misplaced((("models", number), no_such("model", name, models)) for number, name in unknown)
        return constancy

    @property
    def constancy_folder(self) -> Path:
        """The accepted answers, a folder per model."""
        return self.constancy.folder or self.node.data_folder / "constancy"

    @property
    def spool_folder(self) -> Path:
        """The root folder of the spool."""
        return self.node.data_folder / "spool"

    @property
    def effective_ledger_url(self) -> str:
        """The URL of the ledger; default: SQLite in the data folder."""
        return self.ledger_url or f"sqlite:///{quote(str(self.ledger_file))}"

    @property
    def ledger_file(self) -> Path:
        """The SQLite file of the ledger if no URL is given."""
        return self.node.data_folder / "ledger.sqlite3"
