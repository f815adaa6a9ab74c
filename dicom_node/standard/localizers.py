"""A localizer among the images of a series: some scanners store the scout under the series that was planned on it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dicom_node.standard.attributes import items, texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom import Dataset

    from dicom_node.types import Series


def without_localizers(series: Series) -> Series:
    """``series`` without its localizers; unchanged where nothing else is in it."""
    images = tuple(instance for instance in series.instances if not is_localizer(instance.header))
    return replace(series, instances=images) if images else series


def is_localizer(header: Dataset) -> bool:
    """Whether Image Type says so, or the Frame Type of every frame: Image Type may be MIXED, or of one kind only."""
    types = frame_types(header)
    return localizer_value(texts(header, "ImageType")) > 0 or (bool(types) and all(map(localizer_value, types)))


def localizer_value(image_type: Sequence[str]) -> int:
    """Which value of an Image Type or Frame Type, counted from 1, is LOCALIZER; 0 where none is.

    It belongs in value 3 (PS3.3 C.8.2.1.1.1 and C.8.16.1), and in upper case as any code string; some writers put it
    behind AXIAL, or write it otherwise.
    """
    return next((place for place, value in enumerate(image_type, start=1) if value.upper() == "LOCALIZER"), 0)


def frame_types(header: Dataset) -> tuple[tuple[str, ...], ...]:
    """The Frame Type of every frame of a multi-frame object, its own or the shared one; empty where none is stated."""
    shared = _frame_type(items(header, "SharedFunctionalGroupsSequence"))
    return tuple(_frame_type([frame]) or shared for frame in items(header, "PerFrameFunctionalGroupsSequence"))


def _frame_type(groups: Sequence[Dataset]) -> tuple[str, ...]:
    stated = (item for group in groups for item in items(group, "CTImageFrameTypeSequence"))
    return next((texts(item, "FrameType") for item in stated), ())
