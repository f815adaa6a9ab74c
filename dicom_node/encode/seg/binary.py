"""BINARY Segmentation (PS3.3 A.51) on the frames of the source series.

highdicom makes the object from source headers that we build ourselves (:mod:`dicom_node.encode.seg.source_images`), one
per plane or one multi-frame header, *in plane order*, so that plane k of the label map meets frame k and its own Image
Position. No volume is built, so the plane orders of libraries don't matter: for slices at z = 0, 2 and 4 mm, SimpleITK
orders the planes 0, 2, 4 and highdicom 0.28.2 (``get_volume_from_series``) 4, 2, 0; labels of one with the affine of
the other would mirror the patient.

For a whole SEG highdicom takes 1 ms per frame and several copies of the pixels. It is therefore given one pixel of one
plane and makes all attributes and the functional groups of one frame. The functional groups of all frames and the
packed pixels are written as bytes, equal to those that highdicom makes of the whole map.
"""

from __future__ import annotations

import mmap
import struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dicom_node.encode import tags
from dicom_node.encode.seg.attributes import attributes, one_plane
from dicom_node.encode.seg.functional_groups import functional_groups, is_regular
from dicom_node.errors import EncodingError
from dicom_node.standard.part10 import LONGEST_VALUE, element_header
from dicom_node.types import ResultKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dicom_node.encode.provenance import Provenance
    from dicom_node.encode.segments import Segment


_DIMENSION_INDEX_VALUES = element_header(tags.DIMENSION_INDEX_VALUES, b"UL", 8)
_REFERENCED_SEGMENT_NUMBER = element_header(tags.REFERENCED_SEGMENT_NUMBER, b"US", 2)


class _Frame(NamedTuple):
    segment: Segment
    plane: int


def segmentation_file(
    labels_zyx: NDArray[np.uint8], segments: tuple[Segment, ...], provenance: Provenance, index: int = 0
) -> memoryview:
    """A BINARY SEG with one segment per item of ``segments``, empty frames omitted, as a Part 10 file.

    ``labels_zyx[k]`` lies on ``provenance.source.planes[k]``. ``segments``, numbered from 1, must not be empty: a SEG
    needs a segment. ``index`` counts the SEG series of one run for one destination.

    Raises:
        EncodingError: Pixel Data would be too long; no memory was allocated for it yet.
    """
    source = provenance.source
    planes = sorted(frozenset[int]().union(*(segment.planes for segment in segments)))
    # with a second segment, the segment number moves from the shared groups to those of each frame
    dataset = one_plane(ResultKind.SEGMENTATION, segments[:2], provenance, planes[0], index)
    groups_by_plane = functional_groups(dataset.PerFrameFunctionalGroupsSequence[0], planes, source, (1,))
    frames = [_Frame(segment, k) for segment in segments for k in groups_by_plane if k in segment.planes]
    is_volume = len(segments) == 1 and is_regular(planes, source)
    groups = b"".join(_functional_groups(frames, groups_by_plane))
    length = (len(frames) * source.rows * source.columns + 7) // 8
    length += length % 2
    if length > LONGEST_VALUE:
        raise EncodingError(
            f"{len(frames)} frames of {source.rows} x {source.columns} pixels need {length} bytes; a BINARY SEG holds "
            f"at most {LONGEST_VALUE}: request a label map, fewer structures or a split by group"
        )
    head = b"".join(
        (
            attributes(dataset, len(frames), segments, provenance, is_volume=is_volume),
            element_header(tags.PER_FRAME_FUNCTIONAL_GROUPS, b"SQ", len(groups)),
            groups,
            element_header(tags.PIXEL_DATA, b"OB", length),
        )
    )
    # fresh pages are zero and take no memory until they are written to, and most pixels are zero
    pages = mmap.mmap(-1, len(head) + length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    content = np.frombuffer(pages, dtype=np.uint8)
    content[: len(head)] = np.frombuffer(head, dtype=np.uint8)
    _pack(labels_zyx, frames, content[len(head) :])
    return content.data.toreadonly()


def _functional_groups(frames: list[_Frame], groups_by_plane: dict[int, bytes]) -> list[bytes]:
    """The items of the Per-frame Functional Groups Sequence: the groups of each plane with the segment number."""
    templates = {k: bytearray(group) for k, group in groups_by_plane.items()}
    indices = {k: _value_offset(group, _DIMENSION_INDEX_VALUES) for k, group in groups_by_plane.items()}
    several = len(frames) > 0 and _REFERENCED_SEGMENT_NUMBER in groups_by_plane[frames[0].plane]
    numbers = {k: _value_offset(group, _REFERENCED_SEGMENT_NUMBER) for k, group in groups_by_plane.items() if several}
    groups = []
    for segment, k in frames:
        group = templates[k]
        struct.pack_into("<I", group, indices[k], segment.number)
        if several:
            struct.pack_into("<H", group, numbers[k], segment.number)
        groups.append(bytes(group))
    return groups


def _value_offset(group: bytes, header: bytes) -> int:
    if group.count(header) != 1:
        raise EncodingError(f"a functional group has {group.count(header)} elements {header.hex()}, expected 1")
    return group.index(header) + len(header)


def _pack(labels_zyx: NDArray[np.uint8], frames: list[_Frame], pixels: NDArray[np.uint8]) -> None:
    """Write the set pixels into ``pixels``, which are zero.

    Frames, none of them empty, follow each other bit by bit, lowest bit first (PS3.5 8.1.1, 8.2).
    """
    size = labels_zyx[0].size
    extents = {k: _extents(labels_zyx[k].reshape(-1)) for k in {frame.plane for frame in frames}}
    bits = np.empty(size + 7, dtype=np.bool_)
    for index, (segment, k) in enumerate(frames):
        low, high = (int(end[segment.label]) for end in extents[k])
        byte, before = divmod(index * size + low, 8)
        count = before + high - low
        bits[:before] = False
        np.equal(labels_zyx[k].reshape(-1)[low:high], segment.label, out=bits[before:count])
        packed = np.packbits(bits[:count], bitorder="little")
        # the first byte may contain the end of the previous frame
        pixels[byte : byte + len(packed)] |= packed


def _extents(labels: NDArray[np.uint8]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where the pixels of each label 0..255 begin and end in ``labels``; undefined for a label without pixels."""
    starts = np.concatenate(([0], np.flatnonzero(labels[1:] != labels[:-1]) + 1))
    of_run = labels[starts]
    first, last = np.zeros((2, 256), dtype=np.intp)
    # the last of several values for a label remains
    first[of_run[::-1]] = starts[::-1]
    last[of_run] = np.append(starts[1:], labels.size)
    return first, last
