"""Is a stack of planes one acquisition? Regular positions don't say so.

A series may hold two passes, kernels or tube voltages whose planes alternate at one regular spacing. Read as one
volume, every second plane shows another contrast or sharpness, and nothing in the geometry says so. Ranges that lie one
above the other, each of one acquisition, are accepted with a note.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from pydicom.valuerep import DT, TM

from dicom_node.errors import NotEligible
from dicom_node.reconstruct.select import converted_attributes, is_multi_frame
from dicom_node.standard.attributes import items, text, texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pydicom import Dataset

    from dicom_node.reconstruct.planes import Plane
    from dicom_node.types import Series

_MOST_PASSES = 8
_LEAST_PAUSE_SECONDS = 1.0
"""From one pass to the next; the planes of one rotation may have times that differ by less, in any order."""
_TIMES_CLOSER = 4.0
"""How many times closer the planes of one pass are in time than neighbouring planes, which are of different passes."""
_MOST_SHOWN = 4

_REMEDY = "; send the planes that belong together as a series of their own"


def notes_on_acquisitions(series: Series, planes: Sequence[Plane], order: Sequence[int]) -> tuple[str, ...]:
    """A note for each attribute that splits the stack into ranges; ``order`` are the planes from one end to the other.

    Raises:
        NotEligible: the values of an attribute alternate along the stack: its planes are not one volume.
    """
    headers = [series.instances[planes[index].instance].header for index in order]
    frames = [planes[index].frame_index for index in order]
    notes = []
    for name, read, is_shown in _ATTRIBUTES:
        values = [read(header, frame) for header, frame in zip(headers, frames, strict=True)]
        found = Counter(values)
        ranges = sum(1 for _ in groupby(values))
        if ranges > len(found):
            raise NotEligible(
                f"not one volume: {len(found)} values of {name} alternate along the {len(values)} planes"
                + _shown(found, is_shown=is_shown)
                + _REMEDY
            )
        if 1 < len(found) < len(values):
            notes.append(f"{name} differs between {len(found)} ranges of planes{_shown(found, is_shown=is_shown)}")
    if _times_alternate([_time(header, frame) for header, frame in zip(headers, frames, strict=True)]):
        raise NotEligible(f"not one volume: Acquisition Time alternates along the {len(order)} planes{_REMEDY}")
    return tuple(notes)


def _times_alternate(times: Sequence[str]) -> bool:
    """Whether planes are closer in time to a plane farther on than to their neighbours, as where passes interleave.

    The times of one acquisition ascend or descend along the stack, whether planes share them or each has its own.
    """
    seconds = np.array([_seconds(value) for value in times])

    def apart(planes: int) -> float:
        return float(np.abs(seconds[planes:] - seconds[:-planes]).mean())

    most = min(_MOST_PASSES, len(times) // 2)
    neighbours = apart(1)
    return neighbours >= _LEAST_PAUSE_SECONDS and any(
        _TIMES_CLOSER * apart(passes) < neighbours for passes in range(2, most + 1)
    )


def _seconds(value: str) -> float:
    """Of a time, or a date and time; NaN, with which no comparison is true, where it is neither."""
    if not value:
        return math.nan
    try:
        parsed = DT(value) if len(value.partition(".")[0]) > len("HHMMSS") else TM(value)
    except ValueError:
        return math.nan
    days = parsed.toordinal() if isinstance(parsed, DT) else 0
    return ((days * 24 + parsed.hour) * 60 + parsed.minute) * 60 + parsed.second + parsed.microsecond / 1e6


def _shown(found: Counter[str], *, is_shown: bool) -> str:
    """The values and how many planes each has; free text is only counted."""
    named = [f"{value or 'none'} ({count})" for value, count in found.most_common(_MOST_SHOWN)]
    return f": {', '.join(named)}{', ...' if len(found) > _MOST_SHOWN else ''}" if is_shown else ""


def _in_groups(keyword: str, sequence: str, in_frame: str) -> Callable[[Dataset, int], str]:
    """Reads ``keyword`` of a classic image, or ``in_frame`` of the functional group macro ``sequence`` of a frame.

    A frame of a Legacy Converted object may state ``keyword`` itself.
    """

    def read(header: Dataset, frame: int) -> str:
        if not is_multi_frame(header):
            return "\\".join(texts(header, keyword))
        for group in _groups(header, frame):
            for item in items(group, sequence):
                if text(item, in_frame):
                    return "\\".join(texts(item, in_frame))
            for item in converted_attributes(group):
                if text(item, keyword):
                    return "\\".join(texts(item, keyword))
        return "\\".join(texts(header, keyword))

    return read


def _groups(header: Dataset, frame: int) -> Iterator[Dataset]:
    per_frame = items(header, "PerFrameFunctionalGroupsSequence")
    if frame < len(per_frame):
        yield per_frame[frame]
    yield from items(header, "SharedFunctionalGroupsSequence")


_time = _in_groups("AcquisitionTime", "FrameContentSequence", "FrameAcquisitionDateTime")
_ATTRIBUTES = (
    ("Acquisition Number", _in_groups("AcquisitionNumber", "FrameContentSequence", "FrameAcquisitionNumber"), True),
    ("KVP", _in_groups("KVP", "CTXRayDetailsSequence", "KVP"), True),
    ("Convolution Kernel", _in_groups("ConvolutionKernel", "CTReconstructionSequence", "ConvolutionKernel"), True),
    (
        "Contrast/Bolus Agent",
        _in_groups("ContrastBolusAgent", "ContrastBolusUsageSequence", "ContrastBolusAgentNumber"),
        False,
    ),
)
"""Name, how to read it, and whether its values may be shown."""
