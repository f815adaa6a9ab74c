"""The content tree of created SR documents (PS3.3 C.17.3), as the samples show it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from pydicom.uid import UID

from dicom_node.conformance.attributes import code_of
from dicom_node.conformance.observation import OUTSIDE, Part, Seen, findings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom import Dataset

    from dicom_node.conformance.samples import Sample


@dataclass(frozen=True, slots=True)
class ContentItem:
    """One line of the tree; ``level`` is 0 at the root, ``unit`` that of a number, ``template`` the TID of a container.

    For the rest see :class:`dicom_node.conformance.attributes.Attribute`.
    """

    level: int
    relationship: str
    value_type: str
    concept: str
    unit: str
    template: str
    presence: str
    source: str
    follows_from: tuple[str, ...]
    value: str


def content_items(samples: Sequence[Sample]) -> tuple[ContentItem, ...]:
    """The tree of ``samples``, all of one type of object; empty unless they are SR documents."""
    if "ValueType" not in samples[0].dataset:
        return ()
    seen = [Seen(sample.condition, _parts(sample.dataset), {}, str(sample.dataset.StationName)) for sample in samples]
    items = []
    for finding in findings(seen):
        relationship, value_type, concept, unit, template = finding.path[-1].split("|")
        items.append(
            ContentItem(
                level=len(finding.path) - 1,
                relationship=relationship,
                value_type=value_type,
                concept=concept,
                unit=unit,
                template=template,
                presence=finding.presence,
                source=finding.source,
                follows_from=finding.follows_from,
                value=finding.value,
            )
        )
    return tuple(items)


def _parts(report: Dataset) -> tuple[Part, ...]:
    parts: list[Part] = []
    numbers = count()

    def take(item: Dataset, path: tuple[str, ...], parent: int) -> None:
        own, number = (*path, _label(item)), next(numbers)
        parts.append(Part(own, parent, str(item.ValueType), _value(item), (number,)))
        for child in item.get("ContentSequence", ()):
            take(child, own, number)

    take(report, (), OUTSIDE)
    return tuple(parts)


def _label(item: Dataset) -> str:
    """What distinguishes a content item from its siblings."""
    concept = code_of(item.ConceptNameCodeSequence[0]) if "ConceptNameCodeSequence" in item else ""
    unit = template = ""
    if item.ValueType == "NUM":
        unit = code_of(item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0])
    if "ContentTemplateSequence" in item:
        template = f"TID {item.ContentTemplateSequence[0].TemplateIdentifier}"
    return "|".join((str(item.get("RelationshipType", "")), str(item.ValueType), concept, unit, template))


def _value(item: Dataset) -> str:
    match item.ValueType:
        case "CODE":
            return code_of(item.ConceptCodeSequence[0])
        case "NUM":
            return str(item.MeasuredValueSequence[0].NumericValue)
        case "TEXT":
            return str(item.TextValue)
        case "UIDREF":
            return str(item.UID)
        case "IMAGE" | "COMPOSITE":
            return UID(item.ReferencedSOPSequence[0].ReferencedSOPClassUID).name
    return ""
