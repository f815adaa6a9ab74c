"""Label Map Segmentation (PS3.3 A.51, Segmentation Type LABELMAP): each pixel is the number of its segment.

It has 8 bits, RLE Lossless, and one frame for every plane from the first to the last with a structure, so that the
frames are a regular volume; planes outside have none, as in BINARY. Pixel value 0 is the background: Pixel Padding
Value names it (A.51.4), and the last segment describes it, because every encoded value must be described
(C.8.20.2.3.3). Segments are numbered without gaps in the order of their items, because OHIF 3.13 finds names by number
and colours by position (cornerstone3D#2882).

highdicom makes the attributes from one pixel; functional groups and pixels are written as bytes, as in
:mod:`dicom_node.encode.seg.binary`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydicom.uid import RLELossless

from dicom_node.encode import tags
from dicom_node.encode.seg.attributes import attributes, one_plane
from dicom_node.encode.seg.functional_groups import functional_groups, is_regular
from dicom_node.encode.seg.rle import encoded_frames
from dicom_node.standard.part10 import element_header, encapsulated, item, item_of
from dicom_node.types import ResultKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dicom_node.encode.provenance import Provenance
    from dicom_node.encode.segments import Segment


def labelmap_file(
    labels_zyx: NDArray[np.uint8],
    segments: tuple[Segment, ...],
    provenance: Provenance,
    index: int = 0,
    *,
    background: bool = True,
) -> memoryview:
    """A label map of ``segments``, numbered from 1, as a Part 10 file.

    ``labels_zyx[k]`` lies on ``provenance.source.planes[k]``. ``segments`` must not be empty: a SEG needs a segment.
    ``index`` counts the label maps of one run for one destination. Without ``background``, only Pixel Padding
    Value names value 0.
    """
    source = provenance.source
    held = frozenset[int]().union(*(segment.planes for segment in segments))
    planes = range(min(held), max(held) + 1)
    dataset = one_plane(ResultKind.LABELMAP, segments[:1], provenance, planes[0], index)
    groups = functional_groups(dataset.PerFrameFunctionalGroupsSequence[0], planes, source)
    described = item(item_of(dataset.SegmentSequence[0])) if background else b""
    dataset.file_meta.TransferSyntaxUID = RLELossless
    numbers = np.zeros(256, dtype=np.uint8)
    numbers[[segment.label for segment in segments]] = [segment.number for segment in segments]
    frames = list(encoded_frames(labels_zyx[planes[0] : planes[-1] + 1], numbers))
    encoded_groups = b"".join(groups.values())
    return memoryview(
        b"".join(
            (
                attributes(
                    dataset,
                    len(planes),
                    segments,
                    provenance,
                    is_volume=is_regular(planes, source),
                    background=described,
                ),
                element_header(tags.PER_FRAME_FUNCTIONAL_GROUPS, b"SQ", len(encoded_groups)),
                encoded_groups,
                *encapsulated(tags.PIXEL_DATA, frames[::-1]),
            )
        )
    )
