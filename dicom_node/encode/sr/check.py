"""Read reports back from their bytes: each structure must have the measurements that were encoded."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from dicom_node.encode import tags
from dicom_node.encode.reread import text_of
from dicom_node.errors import EncodingError
from dicom_node.standard.part10 import PREAMBLE_LENGTH, elements, items, values

if TYPE_CHECKING:
    from dicom_node.encode.segments import Finding


_IMAGING_MEASUREMENTS = b"126010"
_TRACKING_UID = b"112040"
_REFERENCED_SEGMENT = b"121191"
_VOLUME = b"118565006"
_ATTENUATION = b"112031"
_PERCENTILE_RANKING = b"121415"
_Parts = dict[int, memoryview]
"""The values of a Content Item by tag."""


def refuse_other_measurements(content: memoryview, expected: tuple[Finding, ...]) -> None:
    """Require one Measurement Group per finding in the SR: Tracking UID, reference to the SEG, volume, percentiles.

    Raises:
        EncodingError: it does not.
    """
    containers = _children(values(content[PREAMBLE_LENGTH:]), (_IMAGING_MEASUREMENTS,))[_IMAGING_MEASUREMENTS]
    found = [_measured(group) for container in containers for group in items(container[tags.CONTENT])]
    if found != [_stated(finding) for finding in expected]:
        raise EncodingError(f"the {len(found)} measurement groups of the SR differ from the {len(expected)} encoded")


class _Stated(NamedTuple):
    tracking_uid: str
    segmentation_uid: str | None
    segment_number: int | None
    volume_ml: float
    percentiles: tuple[float | None, float | None]
    """Of volume and mean attenuation."""


def _stated(finding: Finding) -> _Stated:
    segment, reference = finding.segment, finding.reference
    uid, number = (None, None) if reference is None else (reference.sop_instance_uid, segment.number)
    ranks = (segment.volume_rank, segment.mean_hu_rank)
    volume, mean_hu = (None if rank is None else rank.number for rank in ranks)
    return _Stated(segment.tracking_uid, uid, number, segment.measurement.volume_ml, (volume, mean_hu))


def _measured(group: memoryview) -> _Stated:
    """What a Measurement Group states."""
    children = _children(values(group), (_TRACKING_UID, _VOLUME, _ATTENUATION, _REFERENCED_SEGMENT))
    # the mean is the first of the attenuation statistics
    (tracking,), (volume,), (mean_hu, *_) = (children[code] for code in (_TRACKING_UID, _VOLUME, _ATTENUATION))
    uid = number = None
    for reference in children[_REFERENCED_SEGMENT]:
        (sop,) = items(reference[tags.REFERENCED_SOP])
        referenced = values(sop)
        uid = text_of(referenced[tags.REFERENCED_SOP_INSTANCE_UID])
        number = int.from_bytes(referenced[tags.REFERENCED_SEGMENT_NUMBER], "little")
    percentiles = _percentile(volume), _percentile(mean_hu)
    return _Stated(text_of(tracking[tags.UID]), uid, number, _number(volume), percentiles)


def _percentile(measurement: _Parts) -> float | None:
    stated = _children(measurement, (_PERCENTILE_RANKING,))[_PERCENTILE_RANKING]
    return _number(stated[0]) if stated else None


def _number(measurement: _Parts) -> float:
    (measured,) = items(measurement[tags.MEASURED_VALUE])
    (number,) = struct.unpack("<d", values(measured)[tags.FLOATING_POINT_VALUE])
    return float(number)


def _children(content_item: _Parts, codes: tuple[bytes, ...]) -> dict[bytes, list[_Parts]]:
    """The child Content Items (PS3.3 C.17.3.2) whose Concept Name has one of these codes."""
    found: dict[bytes, list[_Parts]] = {code: [] for code in codes}
    for child in items(content_item.get(tags.CONTENT, memoryview(b""))):
        parts = values(child)
        (name,) = items(parts[tags.CONCEPT_NAME_CODE])
        code = next(elements(name))
        if code.tag == tags.CODE_VALUE and (known := found.get(bytes(code.value).rstrip(b" "))) is not None:
            known.append(parts)
    return found
