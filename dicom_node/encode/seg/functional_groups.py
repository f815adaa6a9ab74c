"""The Per-frame Functional Groups of a SEG (PS3.3 C.7.6.16), written as bytes from those of one frame."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from highdicom.spatial import get_volume_positions

from dicom_node.encode import tags
from dicom_node.encode.decimals import decimals
from dicom_node.standard.part10 import element, encoded_elements, item, item_of, only_item, text_element, with_changes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom import Dataset

    from dicom_node.encode.source.series import PreparedSource


def functional_groups(
    template: Dataset, planes: Sequence[int], source: PreparedSource, leading: tuple[int, ...] = ()
) -> dict[int, bytes]:
    """The encoded functional groups of a frame on each of ``planes``, in highdicom's order, which is descending.

    The Dimension Index Values of a frame are ``leading`` and the number of its plane.
    """
    group = encoded_elements(memoryview(item_of(template)))
    derivation = only_item(group, tags.DERIVATION_IMAGE)
    image = only_item(derivation, tags.SOURCE_IMAGE)
    content, place = only_item(group, tags.FRAME_CONTENT), only_item(group, tags.PLANE_POSITION)
    groups = {}
    for index, k in enumerate(reversed(planes), start=1):
        plane = source.planes[k]
        reference = {
            tags.REFERENCED_SOP_INSTANCE_UID: text_element(
                tags.REFERENCED_SOP_INSTANCE_UID, b"UI", plane.sop_instance_uid
            )
        }
        if plane.frame_number is not None:
            reference[tags.REFERENCED_FRAME_NUMBER] = text_element(
                tags.REFERENCED_FRAME_NUMBER, b"IS", str(plane.frame_number)
            )
        index_values = struct.pack(f"<{len(leading) + 1}I", *leading, index)
        position = "\\".join(str(value) for value in decimals(plane.position_lps_mm))
        source_image = {tags.SOURCE_IMAGE: with_changes(tags.SOURCE_IMAGE, image, reference)}
        numbered = {tags.DIMENSION_INDEX_VALUES: element(tags.DIMENSION_INDEX_VALUES, b"UL", index_values)}
        placed = {tags.IMAGE_POSITION_PATIENT: text_element(tags.IMAGE_POSITION_PATIENT, b"DS", position)}
        changes = {
            tags.DERIVATION_IMAGE: with_changes(tags.DERIVATION_IMAGE, derivation, source_image),
            tags.FRAME_CONTENT: with_changes(tags.FRAME_CONTENT, content, numbered),
            tags.PLANE_POSITION: with_changes(tags.PLANE_POSITION, place, placed),
        }
        groups[k] = item(b"".join((group | changes).values()))
    return groups


def is_regular(planes: Sequence[int], source: PreparedSource) -> bool:
    """Whether highdicom calls frames on these planes a volume (PS3.3 C.7.6.17, Dimension Organization Type 3D)."""
    if len(planes) == 1:
        return False
    spacing, _ = get_volume_positions(
        image_positions=[decimals(source.planes[k].position_lps_mm) for k in planes],
        image_orientation=decimals(source.orientation),
        sort=False,
    )
    return spacing is not None and spacing > 0
