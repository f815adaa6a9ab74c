"""CT images in a soft tissue window with structures painted over them in their colours, as 8-bit RGB."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patheffects import withStroke

from dicom_node.encode.planes import edges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dicom_node.encode.segments import Segment

    HounsfieldUnits = NDArray[np.int16] | NDArray[np.float32]
    Rgb = NDArray[np.uint8]

_LABELS = 256
_LOWEST_HU, _HIGHEST_HU = -160, 240
_LEVELS = _HIGHEST_HU - _LOWEST_HU + 1
_FILL, _EDGE = 0.4, 0.9
"""How much of a pixel is colour, inside of a structure and at its edge."""
_VISIBLE_COSINE = 0.26
"""Below it (an angle of 15 degrees to the others) a direction is not named."""
_FONTS = Path(mpl.get_data_path(), "fonts", "ttf")
FONT, BOLD = _FONTS / "DejaVuSans.ttf", _FONTS / "DejaVuSans-Bold.ttf"
"""Fonts by file: what is drawn does not hang on the fonts of a machine."""
_PIXELS_PER_INCH = 100
_SMALLEST_WITH_WORDS = 64
_SMALLEST_TEXT, _LINES_PER_IMAGE = 8, 38


class Palette:
    """The colours of ``segments``; labels of other structures stay grey."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._shown = np.zeros(_LABELS, dtype=np.uint8)
        colours = np.zeros((_LABELS, 3))
        for segment in segments:
            self._shown[segment.label] = segment.label
            colours[segment.label] = segment.structure.rgb
        opacity = np.zeros((2, _LABELS, 1, 1))
        opacity[:, self._shown > 0] = np.array([_FILL, _EDGE])[:, np.newaxis, np.newaxis, np.newaxis]
        grey = np.linspace(0, 255, _LEVELS)[:, np.newaxis]
        mixed = opacity * colours[:, np.newaxis] + (1 - opacity) * grey
        # four bytes are taken at once four times as fast as three
        padded = np.zeros((2 * _LABELS * _LEVELS, 4), dtype=np.uint8)
        padded[:, :3] = np.rint(mixed).reshape(-1, 3)
        self._colours = padded.view(np.uint32).ravel()

    def paint(self, hu: HounsfieldUnits, labels: NDArray[np.uint8]) -> Rgb:
        """One image, ``(rows, columns, 3)``."""
        shown = self._shown[labels]
        index = np.clip(hu, _LOWEST_HU, _HIGHEST_HU).astype(np.int32, order="C")
        index -= _LOWEST_HU
        index += shown * np.int32(_LEVELS)
        index += edges(shown) * np.int32(_LABELS * _LEVELS)
        painted: Rgb = self._colours[index].view(np.uint8).reshape(*index.shape, 4)[..., :3]
        return painted


def isotropic(
    hu: HounsfieldUnits, labels: NDArray[np.uint8], row_mm: float, column_mm: float
) -> tuple[HounsfieldUnits, NDArray[np.uint8], tuple[float, float]]:
    """An image whose rows are ``row_mm`` and columns ``column_mm`` apart, of the same extent with (nearly) square
    pixels, and their sizes. HU are interpolated linearly, labels taken from the nearest pixel.
    """
    size = min(row_mm, column_mm)
    rows, columns = (max(1, round(n * mm / size)) for n, mm in zip(hu.shape, (row_mm, column_mm), strict=True))
    sizes = (hu.shape[0] * row_mm / rows, hu.shape[1] * column_mm / columns)
    hu, labels = _with_rows(hu, labels, rows)
    turned_hu, turned_labels = _with_rows(hu.T, labels.T, columns)
    return turned_hu.T, turned_labels.T, sizes


def _with_rows(hu: HounsfieldUnits, labels: NDArray[np.uint8], count: int) -> tuple[HounsfieldUnits, NDArray[np.uint8]]:
    """The image stretched to ``count`` rows."""
    if count == len(hu):
        return hu, labels
    places = np.clip((np.arange(count) + 0.5) * len(hu) / count - 0.5, 0, len(hu) - 1)
    low = places.astype(np.intp)
    high = np.minimum(low + 1, len(hu) - 1)
    share = (places - low).astype(np.float32)[:, np.newaxis]
    return hu[low] * (1 - share) + hu[high] * share, labels[np.rint(places).astype(np.intp)]


def toward(direction: NDArray[np.float64], letters: str = "LRPAHF") -> str:
    """Where in the patient ``direction`` (LPS) leads, as in Patient Orientation (PS3.3 C.7.6.1.1.1): ``"L"``, ``"PL"``.

    ``letters`` name the ends of the three axes.
    """
    order = sorted(range(3), key=lambda axis: -abs(direction[axis]))
    named = [axis for axis in order if abs(direction[axis]) >= _VISIBLE_COSINE]
    return "".join(letters[2 * axis + int(direction[axis] < 0)] for axis in named)


def marks(shape: tuple[int, int], sides: tuple[str, str, str, str], top: str, bottom: str) -> Rgb:
    """Words to burn into images of ``shape``, as RGBA: ``sides`` are those at left, right, top and bottom.

    Nothing on images so small that words would cover them.
    """
    rows, columns = shape
    if min(shape) < _SMALLEST_WITH_WORDS:
        return np.zeros((*shape, 4), dtype=np.uint8)
    figure = Figure(
        figsize=(columns / _PIXELS_PER_INCH, rows / _PIXELS_PER_INCH), dpi=_PIXELS_PER_INCH, facecolor="none"
    )
    canvas = FigureCanvasAgg(figure)
    pixels = max(_SMALLEST_TEXT, min(shape) / _LINES_PER_IMAGE)
    places = ((0, 0.5, "left", "center"), (1, 0.5, "right", "center"), (0.5, 1, "center", "top"))
    words = [*zip((*places, (0.5, 0, "center", "bottom")), sides, strict=True)]
    words += [((0, 1, "left", "top"), top), ((0, 0, "left", "bottom"), bottom)]
    for (x, y, across, along), text in words:
        figure.text(
            0.01 + 0.98 * x,
            0.01 + 0.98 * y,
            text,
            ha=across,
            va=along,
            color="white",
            parse_math=False,
            fontproperties=FontProperties(fname=FONT, size=pixels * 72 / _PIXELS_PER_INCH),
            path_effects=[withStroke(linewidth=pixels / 6, foreground="black")],
        )
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.array(canvas.buffer_rgba())[:rows, :columns]  # type: ignore[no-untyped-call]


class Burner:
    """Burns :func:`marks` into images of their size."""

    def __init__(self, marks: Rgb) -> None:
        self._where = np.flatnonzero(marks[..., 3])
        self._shape = marks.shape[:2]
        chosen = marks.reshape(-1, 4)[self._where].astype(np.float32)
        self._opacity = chosen[:, 3:] / 255
        self._ink = chosen[:, :3] * self._opacity

    def __call__(self, image: Rgb) -> Rgb:
        """``image`` with the marks on it."""
        burnt = np.ascontiguousarray(image)
        pixels = burnt.reshape(-1, 3)
        pixels[self._where] = self._ink + (1 - self._opacity) * pixels[self._where]
        return burnt
