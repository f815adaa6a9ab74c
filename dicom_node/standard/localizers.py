"""A localizer among the images of a series: some scanners store the scout under the series that was planned on it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

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
    try:
        image_type = header.get("ImageType") or ()
        return not isinstance(image_type, str) and len(image_type) > _FLAVOR and image_type[_FLAVOR] == "LOCALIZER"
    except Exception:  # noqa: BLE001 - pydicom converts lazily and any converter may fail on hostile bytes
        return False
