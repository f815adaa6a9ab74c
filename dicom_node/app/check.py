"""``dicom-node check``: check the configuration and everything it depends on, before or while the node runs."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dicom_node.app.stores import open_store
from dicom_node.deliver.abilities import Abilities
from dicom_node.deliver.scu import echo
from dicom_node.errors import DicomNodeError
from dicom_node.percentiles import read_percentiles
from dicom_node.route.rules_file import load_rules
from dicom_node.settings import DestinationSettings, Settings, load_settings
from dicom_node.store.disk import DiskWatermark
from dicom_node.types import SegmentationForm
from dicom_node.work.models import describe_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dicom_node.route.rules import Rule
    from dicom_node.settings import NnunetModelSettings, TissueModelSettings, WorkSettings

_LABEL_MAPS_IN_ORTHANC = 'Orthanc needs "UnknownSopClassAccepted": true for them'


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    name: str
    ok: bool
    detail: str


def run_checks(config_file: Path, accepted: Callable[[Path], str]) -> tuple[Finding, ...]:
    """Run every check; those that can't run because an earlier one failed are left out.

    ``accepted`` says what the constancy baseline in a folder is of, and raises ConfigurationError where it is missing
    or damaged.
    """
    try:
        settings = load_settings(config_file)
    except DicomNodeError as error:
        return (Finding("configuration", ok=False, detail=str(error)),)
    return (Finding("configuration", ok=True, detail=str(config_file)), *_findings(settings, accepted))


def _findings(settings: Settings, accepted: Callable[[Path], str]) -> Iterator[Finding]:
    rules = _try("rules", lambda: f"{len(load_rules(settings.rules_file, settings).rules)} loaded")
    yield rules
    yield _try("ledger", lambda: _ledger(settings))
    yield _disk(settings)
    yield _port(settings)
    yield Finding(
        "sources",
        ok=bool(settings.sources),
        detail=", ".join(source.ae_title for source in settings.sources)
        or "none configured: no peer may send to this node",
    )
    for name, model in settings.models.items():
        yield _try(f"model {name}", lambda model=model, name=name: _identity(name, model, settings.work))  # type: ignore[misc]
    for name in settings.constancy.models:
        yield _try(f"constancy of {name}", partial(accepted, settings.constancy_folder / name))
    if rules.ok:
        yield from _percentiles(settings)
    for name, destination in settings.destinations.items():
        reached = _echo(f"destination {name}", destination, settings)
        yield reached
        if rules.ok and reached.ok and destination.viewer == "ohif_on_orthanc":
            yield from _shown_by_ohif(name, destination, settings)
    for source in settings.sources:
        if source.count_host is not None:
            peer = DestinationSettings(
                host=source.count_host, port=source.count_port, ae_title=source.count_ae_title or source.ae_title
            )
            yield _echo(f"count at source {source.ae_title}", peer, settings)


def _try(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, ok=True, detail=look())
    except DicomNodeError as error:
        return Finding(name, ok=False, detail=str(error))
    except OSError as error:
        return Finding(name, ok=False, detail=f"{type(error).__name__}: {error}")


def _ledger(settings: Settings) -> str:
    _, ledger = open_store(settings)
    try:
        counts = ledger.overview.counts()
    finally:
        ledger.close()
    return f"schema up to date; current instances: {counts.instances['current']}"


def _disk(settings: Settings) -> Finding:
    folder = settings.node.data_folder
    full = DiskWatermark(folder if folder.exists() else folder.parent, settings.operate).look()
    limit = settings.operate.disk_stop_percent
    return Finding("disk", ok=not full, detail=f"{folder}: usage is {'above' if full else 'below'} {limit:g} %")


def _port(settings: Settings) -> Finding:
    """Whether the port can be bound, or something already listens on it, as this node does while it runs."""
    node = settings.node
    place = f"{node.bind_address}:{node.port}"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((node.bind_address, node.port))
        except OSError as error:
            with socket.socket() as client:
                client.settimeout(2)
                listening = client.connect_ex((node.bind_address, node.port)) == 0
            if listening:
                return Finding("port", ok=True, detail=f"{place} is in use (by this node, if it is running)")
            return Finding("port", ok=False, detail=f"{place}: {error.strerror}")
    return Finding("port", ok=True, detail=f"{place} is free")


def _identity(name: str, model: TissueModelSettings | NnunetModelSettings, work: WorkSettings) -> str:
    identity = describe_model(name, model, work)
    return f"{identity.name} {identity.version}, sha256 {identity.digest}"


def _percentiles(settings: Settings) -> Iterator[Finding]:
    """Whether the percentiles that each rule names are those of its model."""
    for rule in load_rules(settings.rules_file, settings).rules:
        files = {request.percentiles for request in rule.requests.values() if request.percentiles}
        for file in sorted(files):
            yield _try(f"percentiles of rule {rule.name}", partial(_sample, file, rule, settings))


def _sample(file: str, rule: Rule, settings: Settings) -> str:
    assert rule.model is not None, "a rule that refuses sends nothing but notices"
    identity = describe_model(rule.model, settings.models[rule.model], settings.work)
    references = read_percentiles(Path(file), identity.digest)
    return (
        f"{file}: cohort {references.sample.cohort}, {len(references.curves)} curves, version "
        f"{references.schema_version}, sha256 {references.digest()}; research only"
    )


def _echo(name: str, peer: DestinationSettings, settings: Settings) -> Finding:
    ok, reason = echo(peer, settings.node.ae_title)
    return Finding(name, ok=ok, detail=f"{peer.ae_title} at {peer.host}:{peer.port}: {reason}")


def _shown_by_ohif(name: str, destination: DestinationSettings, settings: Settings) -> Iterator[Finding]:
    """Whether OHIF on Orthanc shows the segmentations that the rules send there."""
    forms = {
        rule.name: rule.requests[name].segmentation
        for rule in load_rules(settings.rules_file, settings).rules
        if name in rule.requests
    }
    binary = [rule for rule, form in forms.items() if form is SegmentationForm.BINARY]
    if binary:
        yield Finding(
            f"BINARY SEG in {name}",
            ok=True,
            detail=f"OHIF on Orthanc shows it only where Columns is a multiple of 8, auto at any size: "
            f"rules {', '.join(binary)}",
        )
    labelmap = [rule for rule, form in forms.items() if form not in (SegmentationForm.BINARY, SegmentationForm.NONE)]
    if labelmap:
        accepts = Abilities(settings.node.ae_title).accepts_labelmap(destination)
        detail = "accepted, and shown at any size" if accepts else f"not accepted; {_LABEL_MAPS_IN_ORTHANC}"
        yield Finding(f"label maps in {name}", ok=accepts, detail=f"{detail}: rules {', '.join(labelmap)}")
