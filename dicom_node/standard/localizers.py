"""A localizer among the images of a series: some scanners store the scout under the series that was planned on it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dicom_node.standard.attributes import texts

if TYPE_CHECKING:
    from pydicom import Dataset

    from dicom_node.types import Series

_FLAVOR = 2
"""Place of the value of Image Type that tells localizers (PS3.3 C.8.2.1.1.1)."""


def without_localizers(series: Series) -> Series:
    """``series`` without its localizers; unchanged where nothing else is in it."""
    images = tuple(instance for instance in series.instances if not is_localizer(instance.header))
    return replace(series, instances=images) if images else series


def is_localizer(header: Dataset) -> bool:
    """Whether Image Type says so."""
    return texts(header, "ImageType")[_FLAVOR : _FLAVOR + 1] == ("LOCALIZER",)
