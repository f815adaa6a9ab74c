"""The types of object that the node creates, as its encoder makes them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from pydicom.uid import UID

from dicom_node.conformance.attributes import OUTSIDE_THE_IOD, Attribute, attributes, is_code, modules
from dicom_node.conformance.content import ContentItem, content_items
from dicom_node.conformance.samples import BASE, OVERLAY, PAGE, samples
from dicom_node.types import LABEL_MAP_SEGMENTATION_STORAGE, ResultKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydicom import Dataset

    from dicom_node.conformance.samples import Sample

_TITLES = {
    (ResultKind.SEGMENTATION, ""): "Segmentation, BINARY",
    (ResultKind.LABELMAP, ""): "Segmentation, label map",
    (ResultKind.REPORT, ""): "Measurement report",
    (ResultKind.CONTOURS, ""): "RT structure set",
    (ResultKind.CAPTURE, PAGE): "Secondary capture, report page",
    (ResultKind.CAPTURE, OVERLAY): "Secondary capture, overlay image",
    (ResultKind.DOCUMENT, ""): "Encapsulated PDF",
    (ResultKind.NOTICE, ""): "Notice that a series was not processed",
}
_SERIES_OF_A_RUN = 100
"""The last two digits of a series number give the kind of object."""


@dataclass(frozen=True, slots=True)
class CreatedObject:
    """One type of object. ``series_numbers`` are the last two digits of its Series Number, ``unused_modules`` the IOD
    modules without listed attributes, with their usage, ``codes`` the coded concepts (scheme, value, meaning).
    """

    title: str
    kind: ResultKind
    sop_class_uid: str
    transfer_syntax_uid: str
    modality: str
    series_numbers: tuple[int, ...]
    unused_modules: tuple[tuple[str, str], ...]
    attributes: tuple[Attribute, ...]
    content: tuple[ContentItem, ...]
    codes: frozenset[tuple[str, str, str]]

    @property
    def attributes_outside_the_iod(self) -> tuple[Attribute, ...]:
        """The attributes that make it a Standard Extended SOP Class (PS3.4 B.4.1)."""
        return tuple(each for each in self.attributes if each.module == OUTSIDE_THE_IOD and len(each.path) == 1)


@cache
def created_objects() -> tuple[CreatedObject, ...]:
    """Every type of object, in the order of the kinds."""
    by_sort: dict[tuple[ResultKind, str], list[Sample]] = {sort: [] for sort in _TITLES}
    for sample in samples():
        by_sort[sample.kind, sample.part].append(sample)
    return tuple(_created(_TITLES[sort], found) for sort, found in by_sort.items())


def sop_class_name(uid: str) -> str:
    """The name of a SOP Class, including that of label maps, which pydicom 3.0 does not have."""
    return "Label Map Segmentation Storage" if uid == LABEL_MAP_SEGMENTATION_STORAGE else UID(uid).name


def _created(title: str, found: Sequence[Sample]) -> CreatedObject:
    first = found[0].dataset
    sop_class = str(first.SOPClassUID)
    stated = attributes(found)
    used = {attribute.module for attribute in stated}
    of_base = [sample.dataset for sample in found if sample.condition == BASE]
    return CreatedObject(
        title=title,
        kind=found[0].kind,
        sop_class_uid=sop_class,
        transfer_syntax_uid=str(first.file_meta.TransferSyntaxUID),
        modality=str(first.Modality),
        series_numbers=tuple(sorted({int(dataset.SeriesNumber) % _SERIES_OF_A_RUN for dataset in of_base})),
        unused_modules=tuple((name, usage) for name, usage in modules(sop_class) if name not in used),
        attributes=stated,
        content=content_items(found),
        codes=frozenset(code for sample in found for code in _codes(sample.dataset)),
    )


def _codes(dataset: Dataset) -> Iterator[tuple[str, str, str]]:
    """Every coded concept in ``dataset``: scheme, value, meaning."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                if is_code(item):
                    yield str(item.CodingSchemeDesignator), str(item.CodeValue), str(item.CodeMeaning)
                yield from _codes(item)
