"""The three planes of a report page: what they show, and how they are arranged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dicom_node.encode.pages.overlay import WINDOW_HU, Palette, isotropic
from dicom_node.encode.pages.planes import Upright, telling_planes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dicom_node.encode.segments import Segment

GAP_IN = 0.16
_BODY_HU = -300
_BODY_MARGIN_MM = 6.0
_WIDEST, _NARROWEST = 4.5, 0.3
"""An image that is wider or narrower has a frame of this shape, to make room for its text."""
_BARS_MM = (200, 100, 50, 20, 10, 5, 2, 1)
_LONGEST_BAR = 0.4


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One plane with square pixels of ``pixel_mm``; ``sides`` are the letters at left, right, top and bottom."""

    caption: str
    image: NDArray[np.uint8]
    pixel_mm: float
    sides: tuple[str, str, str, str]

    @property
    def aspect(self) -> float:
        """Width over height."""
        rows, columns = self.image.shape[:2]
        return float(columns / rows)

    @property
    def bar_mm(self) -> int:
        """The length of a suitable scale bar."""
        return next(
            (bar for bar in _BARS_MM if bar <= _LONGEST_BAR * self.image.shape[1] * self.pixel_mm), _BARS_MM[-1]
        )


class Box(NamedTuple):
    """A rectangle in inches, from the lower left."""

    x: float
    y: float
    width: float
    height: float


def views(upright: Upright, segments: tuple[Segment, ...]) -> tuple[View, View, View]:
    """The axial, coronal and sagittal planes that show most of ``segments``, cropped to the body."""
    palette = Palette(segments)
    k, j, i = telling_planes(upright.labels_zyx, tuple(segment.label for segment in segments))
    dz, dy, dx = upright.spacing_zyx_mm
    down, whole = slice(None, None, -1), slice(None)
    middle = (*(n // 2 for n in upright.labels_zyx.shape[:0:-1]), k, 1)
    low, high = WINDOW_HU
    axial = f"Axial, z {(upright.affine_lps @ middle)[2]:.1f} mm    W {high - low} L {(low + high) // 2}"

    def view(caption: str, cut: tuple[slice | int, ...], sizes: tuple[float, float], sides: str) -> View:
        hu, labels, (size, _) = isotropic(upright.hu_zyx[cut], upright.labels_zyx[cut], *sizes)
        image = palette.paint(*_cropped(hu, labels, round(_BODY_MARGIN_MM / size)))
        return View(caption, image, size, (sides[0], sides[1], sides[2], sides[3]))

    return (
        view(axial, (k, whole, whole), (dy, dx), "RLAP"),
        view("Coronal", (down, j, whole), (dz, dx), "RLHF"),
        view("Sagittal", (down, whole, i), (dz, dy), "APHF"),
    )


def _cropped(
    hu: NDArray[np.int16] | NDArray[np.float32], labels: NDArray[np.uint8], margin: int
) -> tuple[NDArray[np.int16] | NDArray[np.float32], NDArray[np.uint8]]:
    """Without the air around the body."""
    inside = (hu > _BODY_HU) | (labels > 0)
    cut = []
    for axis, size in enumerate(inside.shape):
        occupied = np.flatnonzero(inside.any(axis=1 - axis))
        if not occupied.size:
            return hu, labels
        cut.append(slice(max(0, int(occupied[0]) - margin), min(size, int(occupied[-1]) + 1 + margin)))
    return hu[cut[0], cut[1]], labels[cut[0], cut[1]]


def arranged(of: tuple[View, View, View], width_in: float, height_in: float) -> tuple[Box, Box, Box]:
    """The frames of the axial, coronal and sagittal view within this size: side by side, or the axial one beside the
    two others, whichever is larger.
    """
    shapes = [min(max(view.aspect, _NARROWEST), _WIDEST) for view in of]
    return max(_in_a_row(shapes, width_in, height_in), _stacked(shapes, width_in, height_in), key=_area)


def height_needed_in(of: tuple[View, View, View], width_in: float, height_in: float) -> float:
    """The part of ``height_in`` that the frames occupy."""
    return height_in - min(box.y for box in arranged(of, width_in, height_in))


def _in_a_row(shapes: list[float], width: float, height: float) -> tuple[Box, Box, Box]:
    high = min(height, (width - 2 * GAP_IN) / sum(shapes))
    axial, coronal, sagittal = (high * shape for shape in shapes)
    x = (width - axial - coronal - sagittal - 2 * GAP_IN) / 2
    y = height - high
    return (
        Box(x, y, axial, high),
        Box(x + axial + GAP_IN, y, coronal, high),
        Box(x + axial + coronal + 2 * GAP_IN, y, sagittal, high),
    )


def _stacked(shapes: list[float], width: float, height: float) -> tuple[Box, Box, Box]:
    axial, coronal, sagittal = shapes
    # as high as possible, then as wide: the axial frame and the two beside it have the same height
    heights = 1 / coronal + 1 / sagittal
    high = min(height, (width - GAP_IN + GAP_IN / heights) / (axial + 1 / heights))
    beside = (high - GAP_IN) / heights
    x = (width - high * axial - GAP_IN - beside) / 2
    y = height - high
    right = x + high * axial + GAP_IN
    return (
        Box(x, y, high * axial, high),
        Box(right, y + beside / sagittal + GAP_IN, beside, beside / coronal),
        Box(right, y, beside, beside / sagittal),
    )


def _area(boxes: tuple[Box, ...]) -> float:
    return sum(box.width * box.height for box in boxes)
