"""The items of the Segment Sequence, which describe the segments of a SEG (PS3.3 C.8.20.2)."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING

from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription

from dicom_node.encode import tags
from dicom_node.encode.codes import concept
from dicom_node.encode.provenance import algorithm_identification, plain
from dicom_node.standard.part10 import element, encoded_elements, item_of, text_element
from inference.structures import structure

if TYPE_CHECKING:
    from dicom_node.encode.segments import Segment
    from inference.structures import Structure
    from inference.types import ModelIdentity


def segment_description(segment: Segment, model: ModelIdentity) -> SegmentDescription:
    """The item of the Segment Sequence (PS3.3 C.8.20.2) for ``segment``."""
    return _description(segment.structure, model, segment.number, segment.tracking_uid)


def encoded_description(segment: Segment, model: ModelIdentity) -> bytes:
    """The bytes of :func:`segment_description`, most of which are cached from run to run."""
    own = {
        tags.SEGMENT_NUMBER: element(tags.SEGMENT_NUMBER, b"US", struct.pack("<H", segment.number)),
        tags.TRACKING_UID: text_element(tags.TRACKING_UID, b"UI", segment.tracking_uid),
    }
    return b"".join((_description_elements(segment.structure.name, model) | own).values())


@lru_cache(maxsize=2048)
def _description_elements(structure_name: str, model: ModelIdentity) -> dict[int, bytes]:
    description = _description(structure(structure_name), model, number=1, tracking_uid="1.2")
    return encoded_elements(memoryview(item_of(description)))


def _description(structure: Structure, model: ModelIdentity, number: int, tracking_uid: str) -> SegmentDescription:
    description = SegmentDescription(
        segment_number=number,
        segment_label=plain(structure.name, 64),
        segmented_property_category=concept(structure.category),
        segmented_property_type=concept(structure.type),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm_identification(model),
        tracking_uid=tracking_uid,
        tracking_id=plain(structure.name, 64),
        anatomic_regions=None if structure.region is None else [concept(structure.region)],
        display_color=CIELabColor.from_rgb(*structure.rgb),
    )
    description.SegmentDescription = plain(structure.title, 1024)
    if structure.type_modifier is not None:
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            concept(structure.type_modifier)
        ]
    if structure.region_modifier is not None and structure.region is not None:
        description.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [concept(structure.region_modifier)]
    return description
