"""References to all instances of a series, as bytes: a result holds hundreds of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dicom_node.standard.part10 import encoded_elements, items, only_item, sequence, text_element, values, with_changes

if TYPE_CHECKING:
    from dicom_node.encode.source.series import PreparedSource

_REFERENCED_SERIES = 0x00081115
_REFERENCED_SOP = 0x00081199
_SERIES_INSTANCE_UID = 0x0020000E
_EVIDENCE = 0x0040A375
_REFERENCED_SOP_CLASS_UID = 0x00081150
_REFERENCED_SOP_INSTANCE_UID = 0x00081155


def with_all_evidence(report: memoryview, source: PreparedSource) -> dict[int, bytes]:
    """The Current Requested Procedure Evidence Sequence of ``report``, which names one instance of ``source``, with all
    of them, as a change to its elements.
    """
    study = only_item(encoded_elements(report), _EVIDENCE)
    series = []
    for each in items(values(memoryview(study[_REFERENCED_SERIES]))[_REFERENCED_SERIES]):
        parts = encoded_elements(each)
        if values(each)[_SERIES_INSTANCE_UID].tobytes().rstrip(b"\0") == source.series_instance_uid.encode():
            parts[_REFERENCED_SOP] = references(_REFERENCED_SOP, source)
        series.append(b"".join(parts.values()))
    return {_EVIDENCE: with_changes(_EVIDENCE, study, {_REFERENCED_SERIES: sequence(_REFERENCED_SERIES, series)})}


def references(tag: int, source: PreparedSource) -> bytes:
    """The sequence ``tag`` with an item of the SOP Instance Reference Macro (PS3.3 table 10-11) for each instance."""
    return sequence(
        tag,
        (
            text_element(_REFERENCED_SOP_CLASS_UID, b"UI", plane.sop_class_uid)
            + text_element(_REFERENCED_SOP_INSTANCE_UID, b"UI", plane.sop_instance_uid)
            for plane in source.instances
        ),
    )
