"""Reports read back from their bytes: every structure has the measurements that were put in."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from dicom_node.encode.reread import text_of
from dicom_node.errors import EncodingError
from dicom_node.standard.part10 import PREAMBLE_LENGTH, elements, items, values

if TYPE_CHECKING:
    from dicom_node.encode.segments import Finding

_CODE_VALUE = 0x00080100
_REFERENCED_SOP_INSTANCE_UID = 0x00081155
_REFERENCED_SOP = 0x00081199
_CONCEPT_NAME = 0x0040A043
_UID = 0x0040A124
_FLOATING_POINT_VALUE = 0x0040A161
_MEASURED_VALUE = 0x0040A300
_CONTENT = 0x0040A730
_REFERENCED_SEGMENT_NUMBER = 0x0062000B

_IMAGING_MEASUREMENTS = b"126010"
_TRACKING_UID = b"112040"
_REFERENCED_SEGMENT = b"121191"
_VOLUME = b"118565006"


def refuse_other_measurements(content: memoryview, expected: tuple[Finding, ...]) -> None:
    """The SR must have one Measurement Group per finding, with its tracking UID, its SEG and its volume.

    Raises:
        EncodingError: it does not.
    """
    containers = _children(content[PREAMBLE_LENGTH:], (_IMAGING_MEASUREMENTS,))[_IMAGING_MEASUREMENTS]
    found = [_measured(group) for container in containers for group in items(container[_CONTENT])]
    if found != [_stated(finding) for finding in expected]:
        raise EncodingError(f"the SR holds {len(found)} measurement groups that are not the {len(expected)} put in")


class _Stated(NamedTuple):
    tracking_uid: str
    segmentation_uid: str | None
    segment_number: int | None
    volume_ml: float


def _stated(finding: Finding) -> _Stated:
    segment, reference = finding.segment, finding.reference
    if reference is None:
        return _Stated(segment.tracking_uid, None, None, segment.measurement.volume_ml)
    return _Stated(segment.tracking_uid, reference.sop_instance_uid, segment.number, segment.measurement.volume_ml)


def _measured(group: memoryview) -> _Stated:
    """What a Measurement Group states."""
    children = _children(group, (_TRACKING_UID, _VOLUME, _REFERENCED_SEGMENT))
    (tracking,), (volume,) = children[_TRACKING_UID], children[_VOLUME]
    (measured,) = items(volume[_MEASURED_VALUE])
    (volume_ml,) = struct.unpack("<d", values(measured)[_FLOATING_POINT_VALUE])
    uid = number = None
    for reference in children[_REFERENCED_SEGMENT]:
        (sop,) = items(reference[_REFERENCED_SOP])
        referenced = values(sop)
        uid = text_of(referenced[_REFERENCED_SOP_INSTANCE_UID])
        number = int.from_bytes(referenced[_REFERENCED_SEGMENT_NUMBER], "little")
    return _Stated(text_of(tracking[_UID]), uid, number, volume_ml)


def _children(content_item: memoryview, codes: tuple[bytes, ...]) -> dict[bytes, list[dict[int, memoryview]]]:
    """The Content Items below one (PS3.3 C.17.3.2) whose Concept Name has one of these codes."""
    found: dict[bytes, list[dict[int, memoryview]]] = {code: [] for code in codes}
    for child in items(values(content_item).get(_CONTENT, memoryview(b""))):
        parts = values(child)
        (name,) = items(parts[_CONCEPT_NAME])
        code = next(elements(name))
        if code.tag == _CODE_VALUE and (known := found.get(bytes(code.value).rstrip(b" "))) is not None:
            known.append(parts)
    return found
