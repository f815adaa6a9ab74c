"""What every result says about where it comes from: who made it, when, from what, and what it must not be used for."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from highdicom import AlgorithmIdentificationSequence
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.uid import UID

from dicom_node import __version__
from dicom_node.encode.codes import ACQUISITION_EQUIPMENT, PROCESSING_EQUIPMENT, algorithm_family
from dicom_node.encode.identity import RunIdentity, algorithm_device_uid
from dicom_node.encode.source.elements import keep_bytes, raw
from dicom_node.standard.implementation import IMPLEMENTATION_CLASS_UID, VERSION_NAME
from dicom_node.types import ResultKind

if TYPE_CHECKING:
    from pydicom.sr.coding import Code as DicomCode

    from dicom_node.encode.source.series import PreparedSource
    from dicom_node.types import EarlierResult, ResultContext
    from inference.types import ModelIdentity

MANUFACTURER = "dicom-node project"
MODEL_NAME = "dicom-node"
NODE_SOFTWARE = f"{MODEL_NAME} {__version__}"

_LO, _SH, _CS = 64, 16, 16
"""Longest values of these VRs in characters (PS3.5 table 6.2-1)."""
_MODELS, _KINDS = 1000, 100
_LARGEST_SERIES_NUMBER = (2**31 - 1) // (_MODELS * _KINDS) - 1
_UNNUMBERED_SERIES = 90
_FIRST_OF_KIND = {
    ResultKind.SEGMENTATION: 1,
    ResultKind.LABELMAP: 11,
    ResultKind.REPORT: 21,
    ResultKind.CONTOURS: 31,
    ResultKind.CAPTURE: 41,
    ResultKind.DOCUMENT: 51,
    ResultKind.NOTICE: 61,
}
_LONGEST_USE = 40
_UNSPECIFIED_USE = "Unspecified use"


@dataclass(frozen=True, slots=True)
class Provenance:
    """One run, as its results state it. ``statements`` are whole sentences for people.

    ``part`` says which part of the run's structures an object holds, e.g. ``"of organ"``; empty for all. ``replaced``
    are the results of an earlier revision in whose place an object stands.
    """

    identity: RunIdentity
    context: ResultContext
    source: PreparedSource
    statements: tuple[str, ...]
    part: str = ""
    replaced: tuple[EarlierResult, ...] = ()

    @property
    def model(self) -> ModelIdentity:
        """The model that ran."""
        return self.identity.model

    @property
    def started_at(self) -> datetime:
        """Start of the analysis in the time zone of the study, or of this node where the study states none."""
        return in_time_zone(self.context.started_at, self.source.timezone_offset)


def statements(context: ResultContext, model: ModelIdentity, planes: int, notes: tuple[str, ...]) -> tuple[str, ...]:
    """What a reader of any result of this run must know, the intended use first."""
    said = [
        f"{model.intended_use.rstrip('.')}.",
        f"Made by {model.name} version {model.version} (SHA-256 {model.digest}); not verified by a person.",
        f"{MODEL_NAME} {__version__} is research software, not a medical device.",
        f"Revision {context.revision} of the source series, {planes} images.",
    ]
    if context.completion_reason:
        said.append(f"The series was taken as complete because: {context.completion_reason.rstrip('.')}.")
    if context.missing_instances:
        said.append(f"Incomplete: the sender counts {context.missing_instances} instances more than were received.")
    said.extend(f"{note[:1].upper()}{note[1:]}." for note in notes)
    return tuple(plain(sentence, 1024) for sentence in said)


def replacing(provenance: Provenance, replaced: tuple[EarlierResult, ...]) -> Provenance:
    """``provenance`` of an object that stands in the place of ``replaced``, which it names.

    Only reports have an attribute for it (:mod:`dicom_node.encode.sr.report`); all objects say it in words.
    """
    if not replaced:
        return provenance
    said = plain(replacement(replaced), 1024)
    return replace(provenance, statements=(*provenance.statements, said), replaced=replaced)


def replacement(replaced: tuple[EarlierResult, ...]) -> str:
    """In words that ``replaced`` are replaced."""
    series: dict[int, dict[str, None]] = {}
    for each in replaced:
        series.setdefault(each.revision, {})[each.series_instance_uid] = None
    gave = (f"revision {revision} gave in series {', '.join(uids)}" for revision, uids in sorted(series.items()))
    return f"Replaces what {' and '.join(gave)}."


def plain(text: str, limit: int) -> str:
    """``text`` as at most ``limit`` printable ASCII characters without backslash: valid in every character set."""
    folded = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    return re.sub(r"[^ -\[\]-~]+", " ", folded).strip()[:limit].strip()


def model_name(model: ModelIdentity, limit: int = _LO) -> str:
    """The model's name as :func:`plain` text, never empty."""
    return plain(model.name, limit) or "unnamed"


def model_version(model: ModelIdentity) -> str:
    """The model's version as :func:`plain` text, never empty."""
    return plain(model.version, _LO) or "unknown"


def intended_use(model: ModelIdentity, limit: int = _LONGEST_USE) -> str:
    """The model's intended use where it has at most ``limit`` characters, else its first clause: a "not for clinical
    use" that is cut in the middle would say something else.
    """
    use = plain(model.intended_use, 1024) or _UNSPECIFIED_USE
    return use if len(use) <= limit else use.split(" - ", maxsplit=1)[0][:_LONGEST_USE].strip()


def series_description(model: ModelIdentity, what: str) -> str:
    """At most 64 characters that always hold what the result is and, at least in short, its intended use."""
    use = intended_use(model, _LO - len(f"{model_name(model)} {what} - "))
    tail = f"{what} - {use}"
    return f"{model_name(model, _LO - 1 - len(tail))} {tail}"


def content_label(model: ModelIdentity) -> str:
    """The intended use in the 16 capital letters of a Content Label (VR CS), cut between words."""
    words = (
        re.sub(r"[^A-Z0-9]+", " ", plain(model.intended_use, _LO).upper()).split() or _UNSPECIFIED_USE.upper().split()
    )
    label = words[0][:_CS]
    for word in words[1:]:
        if len(label) + 1 + len(word) > _CS:
            break
        label += f" {word}"
    return label


def content_description(provenance: Provenance) -> str:
    """At most 64 characters: revision, missing images, supersession, why the series was taken as complete."""
    context = provenance.context
    parts = [f"Revision {context.revision}"]
    if context.missing_instances:
        parts.append("INCOMPLETE series")
    if provenance.replaced:
        parts.append("replaces earlier results")
    parts.append(f"{len(provenance.source.planes)} images")
    if context.completion_reason:
        parts.append(context.completion_reason)
    return plain(", ".join(parts), _LO)


def content_creator_name(model: ModelIdentity) -> str:
    """The model as a Person Name of one component: the creator of the content is the algorithm."""
    return (re.sub(r"[\^=]", " ", model_name(model, _LO - 1)).strip() or "unnamed") + "^"


def series_number(provenance: Provenance, kind: ResultKind, index: int = 0) -> int:
    """A number that sorts by source series, model, kind and ``index`` (below 10) within the kind.

    Series 5 gives 5mmm01 for the segmentation, 5mmm21 for the report and so on; mmm is drawn from the model's name, so
    that the results of two models on one series stay apart and a rerun gets the same number.
    """
    return series_number_of(provenance.source.series_number, provenance.model.name, kind, index)


def series_number_of(source_number: int, model: str, kind: ResultKind, index: int = 0) -> int:
    """As :func:`series_number`, of a run of ``model`` on the series ``source_number``."""
    number = source_number if 0 < source_number <= _LARGEST_SERIES_NUMBER else _UNNUMBERED_SERIES
    drawn = int.from_bytes(hashlib.sha256(model.encode()).digest()[:8]) % _MODELS
    return (number * _MODELS + drawn) * _KINDS + _FIRST_OF_KIND[kind] + index


def software_versions(model: ModelIdentity) -> list[str]:
    """Of the node and of the model."""
    return [plain(f"{MODEL_NAME} {__version__}", _LO), plain(f"{model_name(model)} {model_version(model)}", _LO)]


def algorithm_identification(model: ModelIdentity) -> AlgorithmIdentificationSequence:
    """PS3.3 table 10-19: family, name, version, and the digest of the model's files as parameter."""
    return AlgorithmIdentificationSequence(
        name=model_name(model),
        family=algorithm_family(model.family),
        version=model_version(model),
        source=plain(model.family, _LO),
        parameters={"sha256": model.digest},
    )


def contributing_equipment(provenance: Provenance) -> list[Dataset]:
    """PS3.3 C.12.1.1.5, IHE AIR: the scanner, this node, and the algorithm as a device of its own."""
    context, model = provenance.context, provenance.model
    items = equipment_without_algorithm(provenance.source.acquisition_equipment, context)
    algorithm = _equipment(
        name=model_name(model),
        versions=model_version(model),
        device_uid=algorithm_device_uid(context.device_uid, model),
        station_name=context.station_name,
        description=plain(f"Segmentation; {model.intended_use}; model SHA-256 {model.digest}", 1024),
    )
    algorithm.ContributionDateTime = f"{provenance.started_at:%Y%m%d%H%M%S.%f%z}"
    items.append(algorithm)
    return items


def equipment_without_algorithm(acquisition: Dataset, context: ResultContext) -> list[Dataset]:
    """The scanner, where it is known, and this node."""
    items = []
    if "Manufacturer" in acquisition:
        scanner = Dataset()
        scanner.PurposeOfReferenceCodeSequence = [_concept(ACQUISITION_EQUIPMENT)]
        for tag in acquisition.keys():  # noqa: SIM118 - iterating over the data set itself would decode its elements
            scanner[tag] = acquisition.get_item(tag)
        scanner.ContributionDescription = "Acquisition of the source images"
        keep_bytes(scanner)
        items.append(scanner)
    items.append(
        _equipment(
            name=MODEL_NAME,
            versions=plain(f"{MODEL_NAME} {__version__}", _LO),
            device_uid=context.device_uid,
            station_name=context.station_name,
            description="Reconstruction, measurement and encoding",
        )
    )
    return items


def _equipment(name: str, versions: str, device_uid: str, station_name: str, description: str) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [_concept(PROCESSING_EQUIPMENT)]
    item.Manufacturer = MANUFACTURER
    item.ManufacturerModelName = name
    item.SoftwareVersions = versions
    item.DeviceUID = device_uid
    item.StationName = plain(station_name, _SH)
    item.ContributionDescription = description
    return item


def _concept(code: DicomCode) -> CodedConcept:
    return CodedConcept(code.value, code.scheme_designator, code.meaning)


# ---- the attributes that all results share


def stamp(dataset: Dataset, provenance: Provenance, what: str) -> None:
    """Put patient, study, series, equipment and time of ``provenance`` on a result; ``what`` it is, for people.

    Identity replaces whatever the library took from the source, and the elements go out as the bytes that came in.
    """
    model = provenance.model
    dataset.SeriesDescription = series_description(model, _described(provenance, what))
    dataset.SoftwareVersions = software_versions(model)
    dataset.ContributingEquipmentSequence = contributing_equipment(provenance)
    if "ContentCreatorName" in dataset:
        # pydicom 3 fails on an empty component in a character set that has no ASCII of its own
        dataset["ContentCreatorName"] = raw("ContentCreatorName", content_creator_name(model).encode("ascii"))
    stamp_identity(dataset, provenance.source.identity, provenance.context, provenance.started_at)


def stamp_identity(dataset: Dataset, identity: Dataset, context: ResultContext, started_at: datetime) -> None:
    """Put patient and study of ``identity``, this node and the time on a result."""
    if "SpecificCharacterSet" not in identity and "SpecificCharacterSet" in dataset:
        del dataset.SpecificCharacterSet
    for tag in identity.keys():  # noqa: SIM118 - iterating over the data set itself would decode its elements
        dataset[tag] = identity.get_item(tag)
    dataset.ContentDate = dataset.SeriesDate = f"{started_at:%Y%m%d}"
    dataset.ContentTime = dataset.SeriesTime = f"{started_at:%H%M%S.%f}"
    # the run as such has one time; a rerun of the same input must give the same bytes but for that
    dataset.pop("InstanceCreationDate", None)
    dataset.pop("InstanceCreationTime", None)
    dataset.Manufacturer = MANUFACTURER
    dataset.ManufacturerModelName = MODEL_NAME
    dataset.DeviceSerialNumber = context.device_uid
    dataset.StationName = plain(context.station_name, _SH)
    dataset.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    dataset.file_meta.ImplementationVersionName = VERSION_NAME
    keep_bytes(dataset)


def _described(provenance: Provenance, what: str) -> str:
    context = provenance.context
    return " ".join(
        filter(
            None,
            (
                "INCOMPLETE" if context.missing_instances else "",
                what,
                provenance.part,
                f"rev {context.revision}" if context.revision > 1 else "",
            ),
        )
    )


def in_time_zone(moment: datetime, offset: str) -> datetime:
    """``moment`` in the time zone of Timezone Offset From UTC, ``+0100``, of this machine where that is empty."""
    return moment.astimezone(datetime.strptime(offset, "%z").tzinfo if offset else None)
