"""References to all instances of a series, written as bytes, because a result contains hundreds of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dicom_node.encode import tags
from dicom_node.standard.part10 import encoded_elements, items, only_item, sequence, text_element, values, with_changes

if TYPE_CHECKING:
    from dicom_node.encode.source.series import PreparedSource


def with_all_evidence(report: memoryview, source: PreparedSource) -> dict[int, bytes]:
    """A replacement for the Current Requested Procedure Evidence Sequence of ``report``, which names one instance of
    ``source``: it names all of them.
    """
    study = only_item(encoded_elements(report), tags.CURRENT_REQUESTED_PROCEDURE_EVIDENCE)
    series = []
    for each in items(values(memoryview(study[tags.REFERENCED_SERIES]))[tags.REFERENCED_SERIES]):
        parts = encoded_elements(each)
        if values(each)[tags.SERIES_INSTANCE_UID].tobytes().rstrip(b"\0") == source.series_instance_uid.encode():
            parts[tags.REFERENCED_SOP] = references(tags.REFERENCED_SOP, source)
        series.append(b"".join(parts.values()))
    return {
        tags.CURRENT_REQUESTED_PROCEDURE_EVIDENCE: with_changes(
            tags.CURRENT_REQUESTED_PROCEDURE_EVIDENCE,
            study,
            {tags.REFERENCED_SERIES: sequence(tags.REFERENCED_SERIES, series)},
        )
    }


def references(tag: int, source: PreparedSource) -> bytes:
    """The sequence ``tag`` with one SOP Instance Reference Macro item (PS3.3 table 10-11) per instance."""
    return sequence(
        tag,
        (
            text_element(tags.REFERENCED_SOP_CLASS_UID, b"UI", plane.sop_class_uid)
            + text_element(tags.REFERENCED_SOP_INSTANCE_UID, b"UI", plane.sop_instance_uid)
            for plane in source.instances
        ),
    )
