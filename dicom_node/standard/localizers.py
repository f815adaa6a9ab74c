"""A localizer among the images of a series: some scanners store the scout under the series that was planned on it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dicom_node.standard.attributes import items, texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom import Dataset

    from dicom_node.types import Series

_FLAVOR = 2
"""Place of the value of Image Type and Frame Type that tells localizers (PS3.3 C.8.2.1.1.1 and C.8.16.1)."""


def without_localizers(series: Series) -> Series:
    """``series`` without its localizers; unchanged where nothing else is in it."""
    images = tuple(instance for instance in series.instances if not is_localizer(instance.header))
    return replace(series, instances=images) if images else series


def is_localizer(header: Dataset) -> bool:
    """Whether Image Type says so, or the Frame Type of every frame: Image Type may be MIXED, or of one kind only."""
    types = frame_types(header)
    return _says_so(texts(header, "ImageType")) or (bool(types) and all(map(_says_so, types)))


def frame_types(header: Dataset) -> tuple[tuple[str, ...], ...]:
    """The Frame Type of every frame of a multi-frame object, its own or the shared one; empty where none is stated."""
    shared = _frame_type(items(header, "SharedFunctionalGroupsSequence"))
    return tuple(_frame_type([frame]) or shared for frame in items(header, "PerFrameFunctionalGroupsSequence"))


def _frame_type(groups: Sequence[Dataset]) -> tuple[str, ...]:
    stated = (item for group in groups for item in items(group, "CTImageFrameTypeSequence"))
    return next((texts(item, "FrameType") for item in stated), ())


def _says_so(image_type: tuple[str, ...]) -> bool:
    return image_type[_FLAVOR : _FLAVOR + 1] == ("LOCALIZER",)
