"""The closed settings of a node: YAML plus environment, read once, frozen, an unknown key is an error.

``DICOM_NODE__NODE__PORT=11112`` in the environment overrides ``node.port`` of the file (two underscores between
levels). Every key stands, commented, in ``config/node.yaml``; ``tests/test_docs.py`` keeps the two equal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from dicom_node.errors import ConfigurationError

AeTitle = Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[ !-\[\]-~]+$")]
"""PS3.5 table 6.2-1, VR AE: 1 to 16 characters of the default repertoire without backslash and control characters."""
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=0)]


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NodeSettings(_Closed):
    """Who we are and where we listen."""

    ae_title: AeTitle = "DICOMNODE"
    bind_address: str = "127.0.0.1"
    port: Port = 11112
    station_name: str = Field(default="dicom-node", max_length=16)
    data_folder: Path = Path("/var/lib/dicom-node")
    """Spool, ledger (unless a URL is given) and work files; must be on one local file system."""


class ReceiveSettings(_Closed):
    """Limits of the listener: without them one peer can exhaust its memory, threads or disk."""

    maximum_associations: int = Field(default=64, ge=1)
    maximum_pdu_bytes: int = Field(default=131072, ge=4096)
    network_timeout_s: Seconds = 60
    dimse_timeout_s: Seconds = 60
    maximum_instance_bytes: int = Field(default=4 * 1024**3, ge=1024)
    minimum_free_disk_bytes: int = Field(default=1024**3, ge=0)
    """Below this much free space every C-STORE is answered 0xA700 (Out of Resources)."""


class SourceSettings(_Closed):
    """A peer that may send to us. No source configured means that nobody may."""

    ae_title: AeTitle
    addresses: tuple[str, ...] = ()
    """IP addresses or networks it may come from; empty: any."""
    services: tuple[Literal["echo", "store"], ...] = ("echo", "store")
    count_host: str | None = None
    """Where to ask, by C-FIND, how many instances a series has (Study Root, SERIES level); None: don't ask."""
    count_port: Port = 104
    count_ae_title: AeTitle | None = None


class DestinationSettings(_Closed):
    """A peer that results go to."""

    host: str
    port: Port
    ae_title: AeTitle
    maximum_pdu_bytes: int = Field(default=131072, ge=4096)
    connect_timeout_s: Seconds = 10
    response_timeout_s: Seconds = 60
    give_up_after_s: Seconds = 7 * 86400


class CompletionSettings(_Closed):
    """When a series counts as whole (see dicom_node/receive/completion.py)."""

    count_reached_quiet_s: Seconds = 0
    regular_quiet_s: Seconds = 5
    otherwise_quiet_s: Seconds = 60
    hard_limit_s: Seconds = 7200


class TissueModelSettings(_Closed):
    """The rule-based commissioning model: HU classes, no training, no weights."""

    kind: Literal["tissue"]


class NnunetModelSettings(_Closed):
    """An nnU-Net v2 model, installed by ``dicom-node models install``."""

    kind: Literal["nnunet"]
    package: Path
    """Its folder in the library of models."""
    digest: str | None = None
    """As ``dicom-node models list`` prints it; a model that differs is not loaded."""
    answer: Literal["best", "parity"] = "best"
    """``parity``: voxel by voxel what TotalSegmentator answers; ``best``: faster, and labels with smooth surfaces."""
    body_crop: bool = True
    """Leave out the air around the patient (never for ``parity``)."""


ModelSettings = Annotated[TissueModelSettings | NnunetModelSettings, Field(discriminator="kind")]


class WorkSettings(_Closed):
    """The worker processes that keep the models warm."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    backend: Literal["auto", "openvino", "torch"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the convolutions; auto: float16 on CUDA, bfloat16 on a CPU that has it, else float32."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of a worker; 0: all cores."""
    cache_folder: Path | None = None
    """Compiled networks; None: ``cache`` in the data folder."""
    preload: tuple[str, ...] = ()
    """Models that are loaded at the start, so that the first series finds them warm."""
    resident_memory_percent: float = Field(default=60, gt=0, le=100)
    """Of the machine's memory, and of the accelerator's: what the models may hold together. The one that was not used
    for the longest time is closed first; one alone may hold more.
    """
    jobs_at_once: int = Field(default=3, ge=1)
    """Volumes in memory: one is read and prepared, one inferred, one encoded; 1: strictly one after another."""
    attempts: int = Field(default=3, ge=1)
    job_limit_s: Seconds = 3600
    heartbeat_limit_s: Seconds = 120


class DeliverySettings(_Closed):
    """Back-off of deliveries: first, then doubled up to the longest, with jitter."""

    first_retry_s: Seconds = 30
    longest_retry_s: Seconds = 900
    refused_attempts: int = Field(default=3, ge=1)
    """How often an object that the peer refuses for good is offered before it is FAILED."""


class OperateSettings(_Closed):
    """Sweeps and retention."""

    sweep_s: Seconds = 1.0
    retention_days: float = Field(default=7, ge=0)
    """Spool files of a series are deleted this long after its last job ended; never before results are delivered."""
    disk_stop_percent: float = Field(default=85, gt=0, le=100)
    disk_resume_percent: float = Field(default=80, gt=0, le=100)

    @model_validator(mode="after")
    def _watermarks_in_order(self) -> Self:
        if self.disk_resume_percent > self.disk_stop_percent:
            raise ValueError("operate.disk_resume_percent must not be above operate.disk_stop_percent")
        return self


class Settings(BaseSettings):
    """Everything that can be set. Each room gets its own part."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="DICOM_NODE__",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )

    node: NodeSettings = NodeSettings()
    ledger_url: str | None = None
    """SQLAlchemy URL, e.g. postgresql+psycopg://...; None: SQLite in the data folder."""
    receive: ReceiveSettings = ReceiveSettings()
    sources: tuple[SourceSettings, ...] = ()
    destinations: dict[str, DestinationSettings] = {}
    completion: CompletionSettings = CompletionSettings()
    models: dict[str, ModelSettings] = {}
    models_folder: Path = Path("models")
    """The library that ``dicom-node models`` installs into, lists and verifies."""
    work: WorkSettings = WorkSettings()
    delivery: DeliverySettings = DeliverySettings()
    operate: OperateSettings = OperateSettings()
    rules_file: Path = Path("rules.yaml")
    """Relative paths are relative to the folder of node.yaml."""

    @field_validator("sources")
    @classmethod
    def _one_entry_per_ae(cls, sources: tuple[SourceSettings, ...]) -> tuple[SourceSettings, ...]:
        titles = [source.ae_title.strip() for source in sources]
        twice = sorted({title for title in titles if titles.count(title) > 1})
        if twice:
            raise ValueError(f"sources: AE titles listed more than once: {', '.join(twice)}")
        return sources

    @model_validator(mode="after")
    def _preloaded_models_exist(self) -> Self:
        unknown = sorted(set(self.work.preload) - set(self.models))
        if unknown:
            raise ValueError(f"work.preload: no model is called {', '.join(unknown)}")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file."""
        return (env_settings, init_settings)

    @property
    def spool_folder(self) -> Path:
        """Root of the spool."""
        return self.node.data_folder / "spool"

    @property
    def effective_ledger_url(self) -> str:
        """The URL of the ledger, SQLite in the data folder by default."""
        return self.ledger_url or f"sqlite:///{self.ledger_file}"

    @property
    def ledger_file(self) -> Path:
        """The ledger where no URL is given."""
        return self.node.data_folder / "ledger.sqlite3"


def load_settings(file: Path) -> Settings:
    """Read and check ``file``; relative paths in it are taken from its folder.

    Raises:
        ConfigurationError: file missing, not YAML, an unknown key or a value out of range, each named.
    """
    try:
        content: Any = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigurationError(f"cannot read {file}: {error.strerror}") from error
    except yaml.YAMLError as error:
        # never the library's own text: it quotes the line, and a password may stand there
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        what = getattr(error, "problem", None) or type(error).__name__
        raise ConfigurationError(f"{file} is not YAML: {where}{what}") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"{file} must hold a mapping of settings, not a {type(content).__name__}")
    try:
        settings = Settings(**content)
    except ValidationError as error:
        lines = [f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors(include_input=False)]
        raise ConfigurationError(f"{file}: " + "; ".join(lines)) from error
    return _with_absolute_paths(settings, file.resolve().parent)


def _with_absolute_paths(settings: Settings, folder: Path) -> Settings:
    models = {
        name: model.model_copy(update={"package": folder / model.package})
        if isinstance(model, NnunetModelSettings)
        else model
        for name, model in settings.models.items()
    }
    node = settings.node.model_copy(update={"data_folder": folder / settings.node.data_folder})
    work = settings.work.model_copy(
        update={"cache_folder": folder / (settings.work.cache_folder or node.data_folder / "cache")}
    )
    return settings.model_copy(
        update={
            "models": models,
            "models_folder": folder / settings.models_folder,
            "node": node,
            "work": work,
            "rules_file": folder / settings.rules_file,
        }
    )
