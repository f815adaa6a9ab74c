"""Read contours back from their bytes: they must enclose the label map voxel for voxel."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dicom_node.encode import tags
from dicom_node.encode.reread import SourceFrames, text_of
from dicom_node.encode.rtstruct.structure_set import places_lps_mm
from dicom_node.errors import EncodingError
from dicom_node.standard.part10 import PREAMBLE_LENGTH, items, values

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dicom_node.encode.segments import Segment
    from dicom_node.encode.source.series import PreparedSource

_POSITION_TOLERANCE_MM = 1e-3
_COORDINATES = 3


class _Contours(NamedTuple):
    """The contours of an ROI: plane and number of vertices of each, and the vertices of all."""

    planes: NDArray[np.int64]
    counts: NDArray[np.int64]
    places_lps_mm: NDArray[np.float64]


def refuse_other_contours(
    content: memoryview, labels_zyx: NDArray[np.uint8], segments: tuple[Segment, ...], source: PreparedSource
) -> None:
    """Require the structure set to enclose ``segments`` of ``labels_zyx``, each contour on the frame it refers to.

    Raises:
        EncodingError: it differs; the message says how, or counts the voxels.
    """
    frames = SourceFrames(source)
    rois = [values(roi) for roi in items(values(content[PREAMBLE_LENGTH:])[tags.ROI_CONTOUR])]
    numbers = [int(text_of(roi[tags.REFERENCED_ROI_NUMBER])) for roi in rois]
    if numbers != [segment.number for segment in segments]:
        raise EncodingError(f"the structure set has contours of ROIs {numbers} for {len(segments)} structures")
    different = 0
    for roi, segment in zip(rois, segments, strict=True):
        contours = _contours(roi[tags.CONTOUR], frames)
        voxels, common = _enclosed(contours, labels_zyx, segment.label, source)
        different += max(voxels, segment.measurement.voxel_count) - common
    if different:
        raise EncodingError(f"at least {different} of {labels_zyx.size} voxels lie on the wrong side of the contours")


def _contours(value: memoryview, frames: SourceFrames) -> _Contours:
    planes, counts, texts = [], [], []
    for contour in items(value):
        parts = values(contour)
        (image,) = items(parts[tags.CONTOUR_IMAGE])
        planes.append(frames.plane(image, "a contour"))
        counts.append(int(text_of(parts[tags.NUMBER_OF_CONTOUR_POINTS])))
        texts.append(text_of(parts[tags.CONTOUR_DATA]))
        coordinates = texts[-1].count("\\") + 1
        if coordinates != _COORDINATES * counts[-1]:
            raise EncodingError(f"a contour of {counts[-1]} points has {coordinates} coordinates")
    places = np.fromstring("\\".join(texts), sep="\\").reshape(-1, _COORDINATES)
    return _Contours(np.array(planes, dtype=np.int64), np.array(counts, dtype=np.int64), places)


def _enclosed(
    contours: _Contours, labels_zyx: NDArray[np.uint8], label: int, source: PreparedSource
) -> tuple[int, int]:
    """How many voxels the contours enclose, by the even-odd rule, and how many of these have ``label``."""
    vertices = _vertices(contours, source)
    plane, row, column = _crossings(vertices, contours)
    voxels = common = 0
    starts = np.flatnonzero(np.diff(plane, prepend=-1)).tolist()
    for start, end in zip(starts, [*starts[1:], len(plane)], strict=True):
        inside, rows, columns = _filled(row[start:end], column[start:end])
        voxels += int(np.count_nonzero(inside))
        common += int(np.count_nonzero(inside & (labels_zyx[plane[start], rows, columns] == label)))
    return voxels, common


def _vertices(contours: _Contours, source: PreparedSource) -> NDArray[np.int64]:
    """The vertices in half pixels, (column, row), on which they must lie."""
    planes = np.repeat(contours.planes, contours.counts)
    no_pixels = np.zeros((len(planes), 2))
    from_origin = contours.places_lps_mm - places_lps_mm(no_pixels, planes, source)
    axes = np.array(source.orientation).reshape(2, 3).T * (source.column_spacing_mm, source.row_spacing_mm)
    vertices: NDArray[np.int64] = np.rint(2 * from_origin @ np.linalg.pinv(axes).T).astype(np.int64)
    distance = float(np.abs(places_lps_mm(vertices / 2, planes, source) - contours.places_lps_mm).max())
    if distance > _POSITION_TOLERANCE_MM:
        raise EncodingError(f"a contour lies {distance:.4f} mm from its source frame, or from the edges of its pixels")
    if vertices.min() < -1 or (vertices.max(axis=0) > (2 * source.columns - 1, 2 * source.rows - 1)).any():
        raise EncodingError("a contour leaves its source frame")
    return vertices


def _crossings(
    vertices: NDArray[np.int64], contours: _Contours
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Where the contours cross rows of pixel centres, by plane: plane, row, and the first pixel to the right."""
    ends = np.cumsum(contours.counts)
    following = np.arange(1, len(vertices) + 1)
    following[ends - 1] = ends - contours.counts
    x, y = vertices.T
    rise = y[following] - y
    # two edges that meet on a row, one from above and one to below, cross it once
    first = (np.minimum(y, y[following]) + 1) // 2
    crossed = (np.maximum(y, y[following]) + 1) // 2 - first
    edge = np.repeat(np.arange(len(vertices)), crossed)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(crossed) - crossed, crossed)
    column = (x[edge] + (2 * row - y[edge]) * (x[following] - x)[edge] // rise[edge]) // 2 + 1
    plane = np.repeat(contours.planes, contours.counts)[edge]
    order = np.argsort(plane, kind="stable")
    return plane[order], row[order], column[order]


def _filled(row: NDArray[np.int64], column: NDArray[np.int64]) -> tuple[NDArray[np.bool_], slice, slice]:
    """The pixels of one plane right of an odd number of crossings, and the rows and columns they are cropped to."""
    top, left = int(row.min()), int(column.min())
    height, width = int(row.max()) + 1 - top, int(column.max()) + 1 - left
    crossings = np.bincount((row - top) * width + column - left, minlength=height * width)
    odd = (crossings % 2).astype(np.bool_).reshape(height, width)
    # the last crossing of a row leads out: nothing to its right is inside
    inside = np.logical_xor.accumulate(odd, axis=1)[:, :-1]
    return inside, slice(top, top + height), slice(left, left + width - 1)
