"""The attributes of created objects, in the modules of their IOD (PS3.3 annex A)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import TYPE_CHECKING
from zlib import crc32

from pydicom.datadict import dictionary_description, tag_for_keyword
from pydicom.tag import Tag

from dicom_node.conformance import iods
from dicom_node.conformance.observation import OUTSIDE, Part, Seen, findings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom import DataElement, Dataset

    from dicom_node.conformance.samples import Sample

CODE_MACRO = frozenset(
    ("CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "CodeMeaning", "LongCodeValue", "URNCodeValue")
)
"""The attributes of a coded concept (PS3.3 table 8.8-1), which is listed as one value."""
OUTSIDE_THE_IOD = "outside the IOD"
_TREES = frozenset(("ContentSequence",))
"""Listed as a tree of content items instead."""
_BULK = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "UN"))
_LENGTHS = {"EncapsulatedDocumentLength": "EncapsulatedDocument"}
"""These depend on the document itself, even if two documents happen to have the same length."""
_TYPES = ("1", "1C", "2", "2C", "3")
_WORDS = {"of": "of", "sop": "SOP", "sr": "SR", "rt": "RT", "roi": "ROI", "sc": "SC", "voi": "VOI", "lut": "LUT"}


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of one type of object.

    ``path`` has the keywords of the enclosing sequences and its own; ``type`` is that of the standard, empty if the
    tables have none; for ``presence``, ``source``, ``follows_from`` and ``value`` see
    :class:`dicom_node.conformance.observation.Finding`.
    """

    module: str
    path: tuple[str, ...]
    tag: str
    name: str
    vr: str
    type: str
    presence: str
    source: str
    follows_from: tuple[str, ...]
    value: str


def attributes(samples: Sequence[Sample]) -> tuple[Attribute, ...]:
    """The attributes of ``samples``, all of one type of object, by module."""
    sop_class = str(samples[0].dataset.SOPClassUID)
    seen = [
        Seen(
            sample.condition,
            _parts(sample),
            _values(sample.source),
            str(sample.dataset.StationName),
        )
        for sample in samples
    ]
    found = []
    for finding in findings(seen):
        keyword = finding.path[-1]
        module = _module(sop_class, finding.path[0])
        tag = Tag(tag_for_keyword(keyword) or int(keyword, 16))
        found.append(
            Attribute(
                module=_title(module),
                path=finding.path,
                tag=f"({tag.group:04X},{tag.element:04X})",
                name="private" if tag.is_private else dictionary_description(tag),
                vr=finding.vr,
                type=_type(module, finding.path),
                presence=finding.presence,
                source=finding.source,
                follows_from=finding.follows_from,
                value=finding.value,
            )
        )
    order = [name for name, _ in modules(sop_class)]
    return tuple(sorted(found, key=lambda each: order.index(each.module) if each.module in order else len(order)))


def modules(sop_class: str) -> list[tuple[str, str]]:
    """The modules of the IOD of ``sop_class`` with their usage (M, C or U), in the order of PS3.3."""
    return [(_title(module.key), module.usage) for module in iods.modules(sop_class)]


def _title(key: str) -> str:
    """``"sop-common"`` as a title."""
    if not key:
        return OUTSIDE_THE_IOD
    return " ".join(_WORDS.get(word, word.capitalize()) for word in key.split("-"))


def value_of(element: DataElement) -> str:
    """The value of an element other than a sequence as text; empty if it has none, a placeholder for binary data."""
    if element.VR in _BULK:
        # for bytes, all that matters is whether they are the same in all objects
        return f"{len(element.value or b'')} bytes with CRC-32 {crc32(element.value or b''):08X}"
    if element.VR == "AT":
        return f"({element.value.group:04X},{element.value.element:04X})"
    value = element.value
    if value is None or value == "":
        return ""
    if element.VM > 1:
        return "\\".join(str(each) for each in value)
    return str(value)


def is_code(item: Dataset) -> bool:
    """Whether ``item`` is a coded concept."""
    return "CodeValue" in item and "CodingSchemeDesignator" in item


def code_of(item: Dataset) -> str:
    """A coded concept in the notation of PS3.16."""
    return f'({item.CodeValue}, {item.CodingSchemeDesignator}, "{item.CodeMeaning}")'


def _codes(items: Sequence[Dataset]) -> str:
    return ", ".join(code_of(item) for item in items if is_code(item))


def _values(source: Dataset) -> dict[str, str]:
    return {element.keyword: str(element) if element.VR == "SQ" else value_of(element) for element in source}


def _parts(sample: Sample) -> tuple[Part, ...]:
    """Every attribute; a sequence copied from the source counts as one value, and so does a coded concept."""
    parts: list[Part] = []
    numbers = count()

    def take(item: Dataset, path: tuple[str, ...], parent: int) -> None:
        for element in item:
            keyword = element.keyword or f"{element.tag:08X}"
            if is_code(item) and keyword in CODE_MACRO:
                continue
            own = (*path, keyword)
            if element.VR != "SQ":
                stated = item[_LENGTHS.get(keyword, keyword)]
                parts.append(Part(own, parent, element.VR, value_of(stated)))
            elif element == sample.source.get_item(element.tag):
                parts.append(Part(own, parent, element.VR, str(element)))
            elif keyword in _TREES:
                parts.append(Part(own, parent, element.VR, "", (next(numbers),)))
            else:
                items = tuple(next(numbers) for _ in element.value)
                parts.append(Part(own, parent, element.VR, _codes(element.value), items))
                for number, child in zip(items, element.value, strict=True):
                    take(child, own, number)

    take(sample.dataset, (), OUTSIDE)
    return tuple(parts)


def _type(module: str, path: tuple[str, ...]) -> str:
    return iods.attribute_types(module).get(path, "") if module else ""


@cache
def _module(sop_class: str, keyword: str) -> str:
    """The module to list an attribute under: a mandatory one if possible, then the one with the strictest type."""
    candidates = [
        (module.usage != "M", _TYPES.index(type_), place, module.key)
        for place, module in enumerate(iods.modules(sop_class))
        if (type_ := iods.attribute_types(module.key).get((keyword,))) is not None
    ]
    return min(candidates)[-1] if candidates else ""
