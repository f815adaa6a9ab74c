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


def refuse_other_measurements(content: memoryview, expected: tuple[Finding, ...]) -> None:
    """Require one Measurement Group per finding in the SR, with its Tracking UID, reference to the SEG, and volume.

    Raises:
        EncodingError: it does not.
    """
    containers = _children(content[PREAMBLE_LENGTH:], (_IMAGING_MEASUREMENTS,))[_IMAGING_MEASUREMENTS]
    found = [_measured(group) for container in containers for group in items(container[tags.CONTENT])]
    if found != [_stated(finding) for finding in expected]:
        raise EncodingError(f"the {len(found)} measurement groups of the SR differ from the {len(expected)} encoded")


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
    (measured,) = items(volume[tags.MEASURED_VALUE])
    (volume_ml,) = struct.unpack("<d", values(measured)[tags.FLOATING_POINT_VALUE])
    uid = number = None
    for reference in children[_REFERENCED_SEGMENT]:
        (sop,) = items(reference[tags.REFERENCED_SOP])
        referenced = values(sop)
        uid = text_of(referenced[tags.REFERENCED_SOP_INSTANCE_UID])
        number = int.from_bytes(referenced[tags.REFERENCED_SEGMENT_NUMBER], "little")
    return _Stated(text_of(tracking[tags.UID]), uid, number, volume_ml)


def _children(content_item: memoryview, codes: tuple[bytes, ...]) -> dict[bytes, list[dict[int, memoryview]]]:
    """The child Content Items (PS3.3 C.17.3.2) whose Concept Name has one of these codes."""
    found: dict[bytes, list[dict[int, memoryview]]] = {code: [] for code in codes}
    for child in items(values(content_item).get(tags.CONTENT, memoryview(b""))):
        parts = values(child)
        (name,) = items(parts[tags.CONCEPT_NAME_CODE])
        code = next(elements(name))
        if code.tag == tags.CODE_VALUE and (known := found.get(bytes(code.value).rstrip(b" "))) is not None:
            known.append(parts)
    return found
