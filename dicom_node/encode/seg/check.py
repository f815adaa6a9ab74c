"""Read segmentations back from their bytes: every voxel, name and position must be what was encoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dicom_node.encode import tags
from dicom_node.encode.reread import SourceFrames, text_of
from dicom_node.encode.seg.rle import decoded_runs
from dicom_node.errors import EncodingError
from dicom_node.standard.part10 import PREAMBLE_LENGTH, fragments, items, values

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from dicom_node.encode.segments import Segment
    from dicom_node.encode.source.series import PreparedSource

_POSITION_TOLERANCE_MM = 1e-3
_DECIMAL_TOLERANCE = 1e-6
"""More than a decimal string of 16 characters rounds spacings and cosines."""
_PIXEL_VALUES = 256


def refuse_other_labels(
    content: memoryview, labels_zyx: NDArray[np.uint8], segments: tuple[Segment, ...], source: PreparedSource
) -> None:
    """Require the SEG to contain ``segments`` of ``labels_zyx`` with their names, voxel for voxel.

    Each frame must lie at the position of the source frame that it refers to, and nothing may follow the last one.

    Raises:
        EncodingError: it differs; the message says in what, or counts the voxels.
    """
    label_of = {segment.number: segment.label for segment in segments}
    size = labels_zyx[0].size
    parts = values(content[PREAMBLE_LENGTH:])
    packed = np.frombuffer(parts[tags.PIXEL_DATA], dtype=np.uint8)
    seen: set[tuple[int, int]] = set()
    voxels = common = 0
    _refuse_other_segments(parts, segments)
    for index, (k, number) in enumerate(_frames(parts, source)):
        if (k, number) in seen:
            raise EncodingError(f"there are two frames of segment {number} on plane {k}")
        seen.add((k, number))
        begin, bits = _set_range(packed, index * size, size)
        truth = labels_zyx[k].reshape(-1)[begin : begin + bits.size] == label_of[number]
        voxels += int(np.count_nonzero(bits))
        common += int(np.count_nonzero(bits & truth))
    _refuse_other_grid(parts, len(seen), source)
    _refuse_other_end(packed, len(seen) * size)
    # no pair of plane and segment came twice, so that every voxel was counted at most once
    _refuse_different_voxels(voxels, common, segments, labels_zyx.size)


def refuse_other_labelmap(
    content: memoryview, labels_zyx: NDArray[np.uint8], segments: tuple[Segment, ...], source: PreparedSource
) -> None:
    """As :func:`refuse_other_labels`, for a label map.

    Raises:
        EncodingError: it differs; the message says in what, or counts the voxels.
    """
    parts = values(content[PREAMBLE_LENGTH:])
    source_frames = SourceFrames(source)
    _refuse_other_segments(parts, segments)
    planes = [_plane(values(group), source_frames, source) for group in items(parts[tags.PER_FRAME_FUNCTIONAL_GROUPS])]
    _refuse_other_grid(parts, len(planes), source)
    frames = fragments(parts[tags.PIXEL_DATA])
    if len(planes) != len(frames) or len(set(planes)) != len(frames):
        raise EncodingError(f"{len(frames)} frames and {len(planes)} functional groups on {len(set(planes))} planes")
    label_of = np.zeros(_PIXEL_VALUES, dtype=np.uint8)
    label_of[[segment.number for segment in segments]] = [segment.label for segment in segments]
    voxels = common = 0
    for k, frame in zip(planes, frames, strict=True):
        numbers, repeats = decoded_runs(frame)
        found, truth = np.repeat(label_of[numbers], repeats), labels_zyx[k].reshape(-1)
        if found.size != truth.size or numbers.max() > len(segments):
            raise EncodingError(
                f"a frame of {found.size} pixels up to {numbers.max()}, expected {truth.size} up to {len(segments)}"
            )
        voxels += int(repeats[numbers != 0].sum())
        common += int(np.count_nonzero((found == truth) & (found != 0)))
    _refuse_different_voxels(voxels, common, segments, labels_zyx.size)


def _refuse_different_voxels(voxels: int, common: int, segments: tuple[Segment, ...], size: int) -> None:
    """``voxels`` of the SEG are set, ``common`` of them as in the label map, which has ``size`` voxels."""
    different = max(voxels, sum(segment.measurement.voxel_count for segment in segments)) - common
    if different:
        raise EncodingError(f"at least {different} of {size} voxels of the SEG differ from the label map")


def _refuse_other_segments(parts: dict[int, memoryview], segments: tuple[Segment, ...]) -> None:
    """Require each number to describe its segment: swapped names would swap left and right."""
    described = []
    for item in items(parts[tags.SEGMENT]):
        segment = values(item)
        if tags.TRACKING_UID in segment:  # a background has none
            number = int.from_bytes(segment[tags.SEGMENT_NUMBER], "little")
            described.append((number, text_of(segment[tags.SEGMENT_LABEL]), text_of(segment[tags.TRACKING_UID])))
    expected = [(segment.number, segment.structure.name, segment.tracking_uid) for segment in segments]
    if described != expected:
        raise EncodingError(
            f"the {len(described)} segments that the SEG describes differ from the {len(expected)} encoded"
        )


def _refuse_other_grid(parts: dict[int, memoryview], frames: int, source: PreparedSource) -> None:
    """Require size, spacing and orientation of the ``frames`` to be those of the source images."""
    size = (
        int(text_of(parts[tags.NUMBER_OF_FRAMES])),
        *(int.from_bytes(parts[tag], "little") for tag in (tags.ROWS, tags.COLUMNS)),
    )
    expected = (frames, source.rows, source.columns)
    if size != expected:
        raise EncodingError(f"the SEG states {size} frames, rows, columns, expected {expected}")
    (shared,) = items(parts[tags.SHARED_FUNCTIONAL_GROUPS])
    groups = values(shared)
    spacing = _decimals_of_group(groups, tags.PIXEL_MEASURES, tags.PIXEL_SPACING)
    orientation = _decimals_of_group(groups, tags.PLANE_ORIENTATION, tags.IMAGE_ORIENTATION_PATIENT)
    if _largest_difference(spacing, (source.row_spacing_mm, source.column_spacing_mm)) > _DECIMAL_TOLERANCE:
        raise EncodingError(f"the SEG has a pixel spacing of {spacing} mm, not that of the source images")
    if _largest_difference(orientation, source.orientation) > _DECIMAL_TOLERANCE:
        raise EncodingError(f"the SEG has an orientation of {orientation}, not that of the source images")


def _refuse_other_end(packed: NDArray[np.uint8], size: int) -> None:
    """After the last of ``size`` bits there must be zeros, up to an even number of bytes (PS3.5 section 8.1.1)."""
    length = -(-size // 16) * 2
    if len(packed) != length:
        raise EncodingError(f"{len(packed)} bytes of pixel data, expected {length}")
    if any(packed[-(-size // 8) :]) or (size % 8 and packed[size // 8] >> size % 8):
        raise EncodingError("there are pixels after the last frame")


def _decimals_of_group(groups: dict[int, memoryview], group: int, tag: int) -> tuple[float, ...]:
    (only,) = items(groups[group])
    return tuple(float(value) for value in text_of(values(only)[tag]).split("\\"))


def _largest_difference(found: tuple[float, ...], expected: tuple[float, ...]) -> float:
    return max(abs(a - b) for a, b in zip(found, expected, strict=True))


def _set_range(packed: NDArray[np.uint8], start: int, size: int) -> tuple[int, NDArray[np.bool_]]:
    """The pixels of a frame of ``size`` bits from bit ``start``, cropped to the bytes that are not zero.

    Returns the offset within the frame at which they begin, and the pixels. Frames follow each other bit by bit, lowest
    bit first (PS3.5 8.1.1), so the first and last byte may contain bits of other frames.
    """
    first_byte, offset = divmod(start, 8)
    octets = packed[first_byte : (start + size + 7) // 8]
    occupied = (octets != 0).tobytes()
    low, high = occupied.find(1), occupied.rfind(1) + 1
    if high == 0:
        return 0, np.zeros(0, dtype=np.bool_)
    bits = np.unpackbits(octets[low:high], bitorder="little").view(np.bool_)
    begin = 8 * low - offset
    return max(begin, 0), bits[max(-begin, 0) : size - begin]


def _frames(parts: dict[int, memoryview], source: PreparedSource) -> Iterator[tuple[int, int]]:
    """Plane and segment number of each frame; bytes that thousands of frames share are parsed once."""
    frames = SourceFrames(source)
    (shared,) = items(parts[tags.SHARED_FUNCTIONAL_GROUPS])
    identification = values(shared).get(tags.SEGMENT_IDENTIFICATION, memoryview(b""))
    planes: dict[bytes, int] = {}
    numbers: dict[bytes, int] = {}
    for group in items(parts[tags.PER_FRAME_FUNCTIONAL_GROUPS]):
        functional = values(group)
        place = bytes(functional[tags.PLANE_POSITION]) + bytes(functional[tags.DERIVATION_IMAGE])
        if place not in planes:
            planes[place] = _plane(functional, frames, source)
        identified = bytes(functional.get(tags.SEGMENT_IDENTIFICATION, identification))
        if identified not in numbers:
            (item,) = items(memoryview(identified))
            numbers[identified] = int.from_bytes(values(item)[tags.REFERENCED_SEGMENT_NUMBER], "little")
        yield planes[place], numbers[identified]


def _plane(functional: dict[int, memoryview], frames: SourceFrames, source: PreparedSource) -> int:
    """The plane that the functional groups of a frame refer to, and whose position they must state."""
    (derivation,) = items(functional[tags.DERIVATION_IMAGE])
    (image,) = items(values(derivation)[tags.SOURCE_IMAGE])
    k = frames.plane(image, "a frame")
    (place,) = items(functional[tags.PLANE_POSITION])
    position = tuple(float(value) for value in text_of(values(place)[tags.IMAGE_POSITION_PATIENT]).split("\\"))
    distance = _largest_difference(position, source.planes[k].position_lps_mm)
    if distance > _POSITION_TOLERANCE_MM:
        raise EncodingError(f"a frame of plane {k} lies {distance:.4f} mm from its source frame")
    return k
