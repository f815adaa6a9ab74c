"""Reads the few attributes of an encoded data set that the listener needs, without trusting any of its bytes."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from pydicom.uid import ImplicitVRLittleEndian

from dicom_node.standard.walk import MOST_ELEMENTS, walk

if TYPE_CHECKING:
    from collections.abc import Mapping

_SOP_CLASS_UID, _SOP_INSTANCE_UID = 0x00080016, 0x00080018
_STUDY_UID, _SERIES_UID = 0x0020000D, 0x0020000E
_INSTANCE_NUMBER, _POSITION, _ORIENTATION, _FRAMES = 0x00200013, 0x00200032, 0x00200037, 0x00280008
_WANTED = frozenset(
    {
        _SOP_CLASS_UID,
        _SOP_INSTANCE_UID,
        _STUDY_UID,
        _SERIES_UID,
        _INSTANCE_NUMBER,
        _POSITION,
        _ORIENTATION,
        _FRAMES,
    }
)
MOST_ELEMENTS_OF_A_SLICE = 50_000
"""A slice has a few hundred elements, with the private ones of some scanners a few thousand."""
_PAUSE_S = 0.002
_LONG_HEADERS = threading.Lock()
_UNIT_TOLERANCE = 1e-2
_FARTHEST_MM = 1e7
"""No scanner table is 10 km long; the limit keeps differences of positions finite, as some databases require."""


@dataclass(frozen=True, slots=True)
class InstanceHeader:
    """The attributes of a data set; UIDs are without padding, not validated, and empty if absent.

    ``position_mm`` is the Image Position (Patient) along the slice normal, ``orientation`` the six direction cosines;
    both None unless both attributes are valid. ``pixel_data`` is the position of the value of Pixel Data in the data
    set; empty if there is none.
    """

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    position_mm: float | None
    orientation: tuple[float, ...] | None
    instance_number: int | None
    number_of_frames: int | None
    pixel_data: slice


def read_header(
    dataset: memoryview | bytes, transfer_syntax_uid: str, *, is_multi_frame: bool = True
) -> InstanceHeader:
    """Walk the whole encoded ``dataset`` once. Other threads go on receiving, however many elements it has.

    Raises:
        MalformedDataset: see :func:`dicom_node.standard.walk.walk`.
    """
    walked = walk(
        dataset,
        _WANTED,
        implicit=transfer_syntax_uid == ImplicitVRLittleEndian,
        most_elements=MOST_ELEMENTS if is_multi_frame else MOST_ELEMENTS_OF_A_SLICE,
        pause=_let_others_receive,
    )
    values = walked.values
    orientation = _numbers(values.get(_ORIENTATION), 6)
    position = _numbers(values.get(_POSITION), 3)
    along_normal = _along_normal(position, orientation)
    return InstanceHeader(
        sop_class_uid=_text(values, _SOP_CLASS_UID),
        sop_instance_uid=_text(values, _SOP_INSTANCE_UID),
        study_instance_uid=_text(values, _STUDY_UID),
        series_instance_uid=_text(values, _SERIES_UID),
        position_mm=along_normal,
        orientation=orientation if along_normal is not None else None,
        instance_number=_integer(values, _INSTANCE_NUMBER),
        number_of_frames=_integer(values, _FRAMES),
        pixel_data=walked.pixel_data,
    )


def _let_others_receive() -> None:
    """Long headers take turns, and together no more than a part of the time: a thread that computes holds up all."""
    with _LONG_HEADERS:
        time.sleep(_PAUSE_S)


def _text(values: Mapping[int, bytes], tag: int) -> str:
    return values.get(tag, b"").decode("ascii", "backslashreplace").strip(" \0")


def _integer(values: Mapping[int, bytes], tag: int) -> int | None:
    text = _text(values, tag)
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,12}", text) else None


def _numbers(value: bytes | None, count: int) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        numbers = tuple(float(part) for part in value.strip(b" \0").split(b"\\"))
    except ValueError:
        return None
    return numbers if len(numbers) == count and all(isfinite(number) for number in numbers) else None


def _along_normal(position: tuple[float, ...] | None, orientation: tuple[float, ...] | None) -> float | None:
    """The position in mm along row x column (PS3.3 C.7.6.2.1.1); None without a valid plane."""
    if position is None or orientation is None:
        return None
    (a, b, c), (d, e, f) = orientation[:3], orientation[3:]
    normal = (b * f - c * e, c * d - a * f, a * e - b * d)
    if abs(sum(n * n for n in normal) - 1.0) > _UNIT_TOLERANCE:
        return None
    along = sum(p * n for p, n in zip(position, normal, strict=True))
    return along if abs(along) <= _FARTHEST_MM else None
