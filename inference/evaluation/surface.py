"""The surfaces of all structures of a label map, found in one pass: surface elements with position and area.

There is a surface element wherever the eight voxels around a grid corner are neither all inside nor all outside a
structure; outside the grid is outside every structure. The pattern of inside voxels determines the area, through the
triangles of marching cubes (Lorensen and Cline, 1987). This is how Nikolov et al. (arXiv 1809.04430) define surface
Dice, and their package ``surface-distance`` 0.1 gives the same elements, for one structure at a time in its whole box.
Here the corners where labels change are found for all structures together, which is why this is our own code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_CORNERS_PER_SLAB = 4_000_000
_CORNER_CODES = 256
_HALF_OF_THE_VOXELS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """The surface elements of one structure.

    ``corners`` are flat indices into the grid of corners, which has one more than there are voxels along
    each axis: corner ``[k, j, i]`` lies between the voxels ``[k - 1, j - 1, i - 1]`` and ``[k, j, i]``. ``codes`` say
    which of the eight voxels around the corner are inside, the first as the highest bit, in the order z, y, x.
    """

    corners: NDArray[np.int64]
    codes: NDArray[np.uint8]
    grid_shape_zyx: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.corners)

    @property
    def corners_zyx(self) -> NDArray[np.int64]:
        """The corners as indices, [3, n]."""
        return np.array(np.unravel_index(self.corners, self.grid_shape_zyx))


def surfaces(labels_zyx: NDArray[np.uint8]) -> dict[int, Surface]:
    """The surface of every label except 0 in ``labels_zyx``, by label."""
    grid_shape_zyx = (labels_zyx.shape[0] + 1, labels_zyx.shape[1] + 1, labels_zyx.shape[2] + 1)
    found = list(_slabs(labels_zyx))
    corners, codes, labels = (np.concatenate([each[part] for each in found]) for part in range(3))
    order = np.argsort(labels, kind="stable")
    corners, codes = corners[order], codes[order]
    ends = np.cumsum(np.bincount(labels, minlength=_CORNER_CODES))
    result = {}
    for label in range(1, _CORNER_CODES):
        part = slice(ends[label - 1], ends[label])
        if part.start < part.stop:
            result[label] = Surface(corners[part], codes[part], grid_shape_zyx)
    return result


def _slabs(labels_zyx: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint8]]]:
    """Corners, codes and labels of all surface elements, a few planes at a time to save memory.

    The planes are copied with an empty row and an empty column before each, so that the eight voxels around corner
    ``n`` of the flat array always have the same offsets from it; the last column is followed by the empty column of
    the next row.
    """
    planes, rows, columns = labels_zyx.shape
    row = columns + 1
    plane = row * (rows + 1)
    step = max(1, _CORNERS_PER_SLAB // plane)
    for first in range(0, planes + 1, step):
        last = min(first + step, planes + 1)  # corner planes first to last - 1 lie between voxel planes first - 1, last
        padded = np.zeros((last - first + 1) * plane + row + 1, np.uint8)
        box = padded[: (last - first + 1) * plane].reshape(-1, rows + 1, columns + 1)
        low, high = max(first - 1, 0), min(last, planes)
        box[low - first + 1 : high - first + 1, 1:, 1:] = labels_zyx[low:high]
        changes = _changes(padded, plane, row)
        around = [padded[changes + z * plane + y * row + x] for z in (0, 1) for y in (0, 1) for x in (0, 1)]
        yield _elements(changes + first * plane, np.array(around))


def _changes(padded: NDArray[np.uint8], plane: int, row: int) -> NDArray[np.int64]:
    """Where the eight voxels do not all have the same label."""
    lowest, highest = padded, padded
    for step in (1, row, plane):
        lowest = np.minimum(lowest[:-step], lowest[step:])
        highest = np.maximum(highest[:-step], highest[step:])
    return np.flatnonzero(lowest != highest)


def _elements(
    corners: NDArray[np.int64], around: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint8]]:
    """One element per corner and label: ``around`` has the labels of the eight voxels, [8, n]."""
    parts: tuple[list[NDArray[np.int64]], list[NDArray[np.uint8]], list[NDArray[np.uint8]]] = ([], [], [])
    for number, labels in enumerate(around):
        is_new = labels != 0
        for earlier in around[:number]:
            is_new &= labels != earlier
        chosen = np.flatnonzero(is_new)
        label = labels[chosen]
        parts[0].append(corners[chosen])
        parts[1].append(np.packbits(around[:, chosen] == label, axis=0)[0])
        parts[2].append(label)
    return np.concatenate(parts[0]), np.concatenate(parts[1]), np.concatenate(parts[2])


def area_by_code(spacing_zyx_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    """Area in mm2 of a surface element by its code, [256]; 0 for the codes 0 and 255, which are not surface."""
    z, y, x = spacing_zyx_mm
    scale = np.array([y * x, z * x, z * y])
    areas = [sum(float(np.linalg.norm(normal * scale)) for normal in normals) for normals in _normals_by_code()]
    return np.array(areas, dtype=np.float64)


@cache
def _normals_by_code() -> tuple[NDArray[np.float64], ...]:
    """Normals of the triangles of each code; their length is the area on a grid of 1 mm.

    Where more than half of the voxels are inside, the triangles are those of the complement. The tables of marching
    cubes differ there, because they join diagonal voxels of one of the two; surface Dice treats inside and outside
    alike.
    """
    from skimage.measure import marching_cubes  # noqa: PLC0415 - slow to import

    result = [np.zeros((0, 3))]
    for code in range(1, _CORNER_CODES - 1):
        inside = np.unpackbits(np.array([code], np.uint8))
        if inside.sum() > _HALF_OF_THE_VOXELS:
            inside = 1 - inside
        vertices, faces, _, _ = marching_cubes(inside.reshape(2, 2, 2).astype(np.float32), 0.5, method="lorensen")
        corners = vertices.astype(np.float64)[faces]
        result.append(0.5 * np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    return (*result, np.zeros((0, 3)))
