"""What rules can test in a series: attributes by keyword, and facts derived from all headers.

Reading is tolerant: a missing, broken or contradictory value counts as missing, and a condition on it is never met.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword

from dicom_node.standard.attributes import items, texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pydicom import Dataset

    from dicom_node.types import Series

Value = str | float
InstanceValues = tuple[Value, ...]
"""The values of an attribute in one instance; empty if the instance lacks it."""

_MULTI_FRAME_SEQUENCES = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_PATIENT_GROUP = 0x0010
_IDENTIFYING_VRS = frozenset({"PN", "DA", "DT", "TM", "LT", "ST", "UT", "UC", "UR"})
_IDENTIFYING_KEYWORDS = frozenset({"AccessionNumber", "StudyID", "AdmissionID", "StudyDescription"})
_NOT_COMPARABLE_VRS = frozenset({"SQ", "OB", "OD", "OF", "OL", "OV", "OW", "UN", "AT"})
_LONGEST_COUNT = 12
"""Characters of an Integer String (PS3.5 table 6.2-1)."""
_SAME_ORIENTATION = 1e-3
_ALONG_AN_AXIS = math.cos(math.radians(32))
"""Gantries tilt by up to about 30 degrees, and a tilted head scan is still axial."""


def is_comparable(keyword: str) -> bool:
    """Whether ``keyword`` names a standard attribute whose value is text or a number."""
    tag = tag_for_keyword(keyword)
    return tag is not None and not _NOT_COMPARABLE_VRS & set(dictionary_VR(tag).split(" or "))


def is_identifying(keyword: str) -> bool:
    """Whether the value may identify the patient and thus must not be shown, stored or logged."""
    tag = tag_for_keyword(keyword)
    if tag is None or tag >> 16 == _PATIENT_GROUP or keyword in _IDENTIFYING_KEYWORDS:
        return True
    return dictionary_VR(tag) in _IDENTIFYING_VRS


def attribute_values(series: Series, keyword: str) -> tuple[InstanceValues, ...]:
    """The values of one attribute, one entry per instance; for multi-frame objects, per frame if the frames differ.

    Multi-frame objects are searched at the top level, then in the shared and then in the per-frame functional groups
    (Legacy Converted objects, for example, have the kernel in Unassigned Shared Converted Attributes, PS3.3
    C.7.6.16.2.20).
    """
    found: list[InstanceValues] = []
    for instance in series.instances:
        direct = _values(instance.header, keyword)
        if direct:
            found.append(direct)
            continue
        shared, per_frame = (_group_values(instance.header, name, keyword) for name in _MULTI_FRAME_SEQUENCES)
        if shared and any(shared):
            found.append(next(values for values in shared if values))
        else:
            found.extend(per_frame or [()])
    return tuple(found)


def fact_values(series: Series, name: str) -> tuple[InstanceValues, ...]:
    """The value of one derived fact of :data:`FACTS`, as one entry for the whole series."""
    value = FACTS[name](series)
    return ((value,),) if value is not None and value != "" else ((),)


def _values(header: Dataset, keyword: str) -> InstanceValues:
    found = texts(header, keyword)
    return found if any(found) else ()


def _group_values(header: Dataset, sequence: str, keyword: str) -> list[InstanceValues]:
    """The values in each functional group item; the attribute is in the items of its macros."""
    return [
        next((values for macro in _macros(group) if (values := _values(macro, keyword))), ())
        for group in items(header, sequence)
    ]


def _macros(group: Dataset) -> Iterator[Dataset]:
    for tag in group.keys():  # noqa: SIM118 - iterating the data set itself would convert every element
        yield from items(group, keyword_for_tag(tag))


def _planes(series: Series, keyword: str, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None:
    """``count`` finite numbers for every plane as an array ``[plane, number]``; None if any plane lacks them."""
    rows = attribute_values(series, keyword)
    try:
        numbers = np.array([[float(value) for value in values] for values in rows], dtype=np.float64)
    except ValueError:
        return None
    if numbers.ndim != 2 or numbers.shape[1] != count or not np.isfinite(numbers).all():  # noqa: PLR2004 - a table
        return None
    return numbers


def _slice_count(series: Series) -> float:
    """Planes: instances of classic images, frames of multi-frame objects."""
    count = 0
    for instance in series.instances:
        frames = _values(instance.header, "NumberOfFrames")
        text = str(frames[0]) if frames else ""
        count += int(text) if text.isdecimal() and len(text) <= _LONGEST_COUNT else 1
    return float(count)


def _normal(series: Series) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None:
    """Unit normal of the planes; None unless all have the same orientation."""
    cosines = _planes(series, "ImageOrientationPatient", 6)
    if cosines is None or np.abs(cosines - cosines[0]).max() > _SAME_ORIENTATION:
        return None
    normal = np.cross(cosines[0, :3], cosines[0, 3:])
    length = float(np.linalg.norm(normal))
    return normal / length if length > 0 else None


def _places(series: Series) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None:
    """Ascending positions of at least two planes along their normal, in mm."""
    normal, positions = _normal(series), _planes(series, "ImagePositionPatient", 3)
    if normal is None or positions is None or len(positions) < 2:  # noqa: PLR2004 - a gap needs two
        return None
    return np.sort(positions @ normal)


def _spacing_mm(series: Series) -> float | None:
    """Median distance between neighbouring planes along their normal."""
    places = _places(series)
    return None if places is None else round(float(np.median(np.diff(places))), 6)


def _extent_mm(series: Series) -> float | None:
    """Distance from the first to the last plane, plus one spacing for the thickness of the last."""
    places, spacing = _places(series), _spacing_mm(series)
    return None if places is None or spacing is None else round(float(places[-1] - places[0]) + spacing, 6)


def _pixel_spacing_mm(series: Series) -> float | None:
    """The coarsest of all pixel spacings."""
    spacings = _planes(series, "PixelSpacing", 2)
    return None if spacings is None or not spacings.size else float(spacings.max())


def _orientation(series: Series) -> str | None:
    normal = _normal(series)
    if normal is None:
        return None
    axis = int(np.abs(normal).argmax())
    return ("sagittal", "coronal", "axial")[axis] if abs(float(normal[axis])) >= _ALONG_AN_AXIS else "oblique"


FACTS: Mapping[str, Callable[[Series], Value | None]] = {
    "slice_count": _slice_count,
    "spacing_mm": _spacing_mm,
    "pixel_spacing_mm": _pixel_spacing_mm,
    "extent_mm": _extent_mm,
    "orientation": _orientation,
    "sending_ae": lambda series: series.sending_ae.strip(),
}
"""Facts about the whole series."""

FACT_ALIASES: Mapping[str, str] = {
    "kernel": "ConvolutionKernel",
    "body_part": "BodyPartExamined",
    "image_type": "ImageType",
}
"""Facts that are plainer names for an attribute."""
