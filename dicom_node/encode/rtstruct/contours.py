"""Outlines of structures on the planes of a label map, as planar contours (PS3.3 C.8.8.6.3).

Lines run halfway between the centres of pixels inside and outside (marching squares at 0.5, by contourpy), so that a
reader that tests every pixel centre gets the label map back exactly. All vertices therefore lie on a grid of half
pixels, and are kept as integers in half pixels, (column, row).

A region with holes is one outline, the keyhole of the standard: from the outer line along a bridge of zero width to the
hole, around it in the opposite direction, and back. Nested ``CLOSED_PLANAR`` contours mean a hole to some readers
(rt-utils, platipy, later dcmrtstruct2nii) but not to others (plastimatch by default and earlier dcmrtstruct2nii fill
the union), and readers that are older than ``CLOSEDPLANAR_XOR`` skip it. A keyhole is the same region to all of them,
by the even-odd and by the winding rule.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, cast

import numpy as np
from contourpy import FillType, LineType, SerialContourGenerator, ZInterp

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INSIDE, _ABOVE_ALL = 0.5, 2.0


def outlines(region: NDArray[np.bool_], longest: int) -> list[NDArray[np.int32]]:
    """Closed outlines of ``region``, ``(vertices, 2)`` each, the last vertex joined to the first.

    They don't overlap, and vertices are corners only. A region whose outline has more than ``longest`` (at least 4)
    vertices is cut in two between pixels.
    """
    found = _corners([_keyhole(*polygon) for polygon in _polygons(region)])
    if all(len(outline) <= longest for outline in found):
        return found
    axis = 0 if region.shape[0] >= region.shape[1] else 1
    middle = region.shape[axis] // 2
    first, second = np.split(region, [middle], axis)
    shift = np.array((0, 2 * middle) if axis == 0 else (2 * middle, 0), dtype=np.int32)
    return outlines(first, longest) + [outline + shift for outline in outlines(second, longest)]


def _polygons(region: NDArray[np.bool_]) -> list[tuple[NDArray[np.int32], NDArray[np.int64]]]:
    """Vertices, and where the rings among them start: the outer one first, then the holes in the opposite sense."""
    rows, columns = region.shape
    framed = np.zeros((rows + 2, columns + 2))
    framed[1:-1, 1:-1] = region
    # in half pixels, so that every vertex is an integer
    x, y = np.meshgrid(np.arange(-2.0, 2 * columns + 1, 2), np.arange(-2.0, 2 * rows + 1, 2))
    # contour_generator() would look for missing values, which takes longer than the contours
    generator = SerialContourGenerator(
        x,
        y,
        framed,
        np.zeros((), dtype=np.bool_),  # without axes: no mask
        corner_mask=False,
        line_type=LineType.Separate,
        fill_type=FillType.OuterOffset,
        quad_as_tri=False,
        z_interp=ZInterp.Linear,
    )
    polygons, offsets = cast(
        "tuple[list[NDArray[np.float64]], list[NDArray[np.uint32]]]", generator.filled(_INSIDE, _ABOVE_ALL)
    )
    found = []
    for points, ends in zip(polygons, offsets, strict=True):
        # the last vertex of a ring repeats its first
        vertices = np.delete(points, ends[1:].astype(np.int64) - 1, axis=0)
        starts = ends.astype(np.int64) - np.arange(len(ends))
        found.append((vertices.astype(np.int32), starts))
    return found


def _keyhole(vertices: NDArray[np.int32], starts: NDArray[np.int64]) -> NDArray[np.int32]:
    """One outline of a ring and its holes.

    The bridge goes from the leftmost vertex of a hole along its row of pixel centres, through pixels of the region, to
    where these begin: that is a vertex of the outer ring, or of a hole further left.
    """
    if len(starts) == 2:  # noqa: PLR2004 - start and end of the only ring
        return vertices
    leftmost, targets = _bridges(vertices, starts)
    walks: list[list[tuple[int, NDArray[np.int64]]]] = [[] for _ in leftmost]
    ring_of = np.searchsorted(starts, targets, side="right") - 1
    # from the right, so that the walk around a hole is complete before it becomes part of one further left
    for ring in np.argsort(-vertices[leftmost, 0], kind="stable").tolist():
        if ring == 0:
            continue
        first, start, end = int(leftmost[ring]), int(starts[ring]), int(starts[ring + 1])
        around = np.concatenate((np.arange(first, end), np.arange(start, first + 1)))
        walks[int(ring_of[ring])].append((int(targets[ring]), _with_walks(around, walks[ring])))
    return vertices[_with_walks(np.arange(starts[1]), walks[0])]


def _bridges(vertices: NDArray[np.int32], starts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The leftmost vertex of each ring, and the vertex to its left where the bridge ends (undefined for ring 0)."""
    column, row = vertices.astype(np.int64).T
    size = 2 + int(vertices.max())
    place = (column + 1) * size + row
    leftmost = np.flatnonzero(place == np.repeat(np.minimum.reduceat(place, starts[:-1]), np.diff(starts)))
    # vertices between two pixels of one row have odd columns; sorted by row, that before a hole's begins its pixels
    in_rows = np.flatnonzero(column % 2)
    in_rows = in_rows[np.argsort((row * size + column)[in_rows])]
    rank = np.zeros(len(vertices), dtype=np.int64)
    rank[in_rows] = np.arange(len(in_rows))
    return leftmost, in_rows[rank[leftmost] - 1]


def _with_walks(around: NDArray[np.int64], walks: list[tuple[int, NDArray[np.int64]]]) -> NDArray[np.int64]:
    """``around`` a ring, with a walk to a hole and back at each vertex where a bridge ends."""
    if not walks:
        return around
    length = int(around.max()) - int(around.min()) + 1
    stops = sorted(((target - int(around[0])) % length, index) for index, (target, _) in enumerate(walks))
    pieces, last = [], 0
    for stop, index in stops:
        pieces += [around[last : stop + 1], walks[index][1]]
        last = stop
    return np.concatenate((*pieces, around[last:]))


def _corners(rings: list[NDArray[np.int32]]) -> list[NDArray[np.int32]]:
    """``rings`` without vertices on straight lines, which change nothing and are half of the bytes."""
    if not rings:
        return []
    vertices = np.concatenate(rings)
    ends = np.cumsum([len(ring) for ring in rings])
    starts = np.concatenate(([0], ends[:-1]))
    before, after = np.arange(-1, len(vertices) - 1), np.arange(1, len(vertices) + 1)
    before[starts], after[ends - 1] = ends - 1, starts
    come = vertices - vertices[before]
    go = come[after]
    turns = (come[:, 0] * go[:, 1] != come[:, 1] * go[:, 0]) | ((come * go).sum(axis=1) < 0)
    kept = vertices[turns]
    limits = np.concatenate(([0], np.cumsum(np.add.reduceat(turns, starts, dtype=np.int64)))).tolist()
    return [kept[start:end] for start, end in pairwise(limits)]
