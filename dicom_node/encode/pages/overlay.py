"""CT images in a soft tissue window with structures painted over them in their colours, as 8-bit RGB."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from dicom_node.encode.pages.lettering import fitted, font, width_in
from dicom_node.encode.pages.planes import edges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dicom_node.encode.segments import Segment

    HounsfieldUnits = NDArray[np.int16] | NDArray[np.float32]
    Rgb = NDArray[np.uint8]

_LABELS = 256
WINDOW_HU = (-160, 240)
_LEVELS = WINDOW_HU[1] - WINDOW_HU[0] + 1
_FILL, _EDGE = 0.4, 0.9
"""Opacity of a colour inside a structure and at its edge."""
_VISIBLE_COSINE = 0.26
"""A direction whose cosine is smaller (15 degrees to the others) is not named."""
_PIXELS_PER_INCH = 72
"""A point is a pixel."""
_SMALLEST_WITH_WORDS = 64
_LETTER_PX, _WORDS_PX, _LINE_PX, _SWATCH_PX, _MARGIN_PX = 17, 12, 17, 10, 6
"""Below about this size, the stems of letters (an L) disappear in their outline."""
_LEGEND_FROM_PX = 120
_LARGE_ENOUGH_PX, _HIGH_ENOUGH_PX, _TOO_LARGE_PX, _LARGEST_ENLARGEMENT = 384, 96, 1200, 4
_AND_OTHERS = "and others"


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
        # taking four bytes at once is four times as fast as taking three
        padded = np.zeros((2 * _LABELS * _LEVELS, 4), dtype=np.uint8)
        padded[:, :3] = np.rint(mixed).reshape(-1, 3)
        self._colours = padded.view(np.uint32).ravel()

    def paint(self, hu: HounsfieldUnits, labels: NDArray[np.uint8]) -> Rgb:
        """One image, ``(rows, columns, 3)``."""
        shown = self._shown[labels]
        index = np.clip(hu, *WINDOW_HU).astype(np.int32, order="C")
        index -= WINDOW_HU[0]
        index += shown * np.int32(_LEVELS)
        index += edges(shown) * np.int32(_LABELS * _LEVELS)
        four = self._colours[index].view(np.uint8).reshape(*index.shape, 4)
        painted = np.empty((*index.shape, 3), dtype=np.uint8)
        for channel in range(3):  # five times as fast as the whole array at once
            painted[..., channel] = four[..., channel]
        return painted


def isotropic(
    hu: HounsfieldUnits, labels: NDArray[np.uint8], row_mm: float, column_mm: float
) -> tuple[HounsfieldUnits, NDArray[np.uint8], tuple[float, float]]:
    """An image with rows ``row_mm`` and columns ``column_mm`` apart, resampled to (nearly) square pixels; their size.

    The extent stays the same. HU are interpolated linearly, labels are those of the nearest pixel.
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
    """The patient direction of ``direction`` (LPS), as in Patient Orientation (PS3.3 C.7.6.1.1.1): ``"L"``, ``"PL"``.

    ``letters`` name the ends of the three axes.
    """
    order = sorted(range(3), key=lambda axis: -abs(direction[axis]))
    named = [axis for axis in order if abs(direction[axis]) >= _VISIBLE_COSINE]
    return "".join(letters[2 * axis + int(direction[axis] < 0)] for axis in named)


def enlargement(shape: tuple[int, ...]) -> int:
    """The factor by which an image of ``shape`` is enlarged to make room for text; 1 for CT images of usual size."""
    small, large = min(shape[:2]), max(shape[:2])
    factor = 1
    while factor < _LARGEST_ENLARGEMENT and (
        large * factor < _LARGE_ENOUGH_PX
        or (small * factor < _HIGH_ENOUGH_PX and large * (factor + 1) <= _TOO_LARGE_PX)
    ):
        factor += 1
    return factor


def enlarged(image: Rgb, factor: int) -> Rgb:
    """``image`` with each pixel as ``factor`` x ``factor`` pixels."""
    return image if factor == 1 else image.repeat(factor, axis=0).repeat(factor, axis=1)


def marks(shape: tuple[int, int], sides: tuple[str, str, str, str], words: Sequence[str]) -> Rgb:
    """The text to burn into images of ``shape``, as RGBA: the letters of ``sides`` at left, right, top and bottom, and
    ``words``, one per line, at the upper left.

    Images that text would cover get none.
    """
    rows, columns = shape
    if min(shape) < _SMALLEST_WITH_WORDS:
        return np.zeros((*shape, 4), dtype=np.uint8)
    figure = _figure(rows, columns)
    places = ((0, 0.5, "left", "center"), (1, 0.5, "right", "center"), (0.5, 1, "center", "top"))
    for (x, y, across, along), letters in zip((*places, (0.5, 0, "center", "bottom")), sides, strict=True):
        _write(
            figure,
            (_MARGIN_PX + x * (columns - 2 * _MARGIN_PX), _MARGIN_PX / 2 + y * (rows - _MARGIN_PX)),
            letters,
            _LETTER_PX,
            across=across,
            along=along,
            bold=True,
        )
    for number, line in enumerate(words):
        # clear of the letter at the left and below that at the top, which a long line would overlap
        shown, size = fitted(line, _WORDS_PX, (columns - _LETTER_PX - 3 * _MARGIN_PX) / _PIXELS_PER_INCH)
        _write(
            figure,
            (_LETTER_PX + 2 * _MARGIN_PX, rows - _LETTER_PX - _MARGIN_PX - (number + 0.5) * _LINE_PX),
            shown,
            size,
        )
    return _drawn(figure)


class Legend:
    """Names and colours of the structures in an image, as a strip to its right."""

    def __init__(self, segments: Sequence[Segment], rows: int) -> None:
        names = [*(segment.structure.title for segment in segments), _AND_OTHERS]
        words_at = _MARGIN_PX + _SWATCH_PX + _MARGIN_PX
        words_px = max(width_in(name, _WORDS_PX) for name in names) * _PIXELS_PER_INCH
        self.width = 0 if rows < _LEGEND_FROM_PX else words_at + int(words_px) + 1 + _MARGIN_PX
        """In pixels; 0 for images that are too small for a legend."""
        self._rows = rows
        self._labels = np.array([segment.label for segment in segments])
        if not self.width:
            return
        height = len(names) * _LINE_PX
        figure = _figure(height, self.width)
        for number, name in enumerate(names):
            _write(figure, (words_at, height - (number + 0.5) * _LINE_PX), name, _WORDS_PX, outlined=False)
        self._entries = _drawn(figure)[..., 3:].repeat(3, axis=2).reshape(len(names), _LINE_PX, self.width, 3)
        above = (_LINE_PX - _SWATCH_PX) // 2
        for entry, segment in zip(self._entries, segments, strict=False):
            entry[above : above + _SWATCH_PX, _MARGIN_PX : _MARGIN_PX + _SWATCH_PX] = segment.structure.rgb

    def beside(self, image: Rgb, labels: NDArray[np.uint8]) -> Rgb:
        """``image``, which shows ``labels``, with its legend; if not all structures fit, it names the largest."""
        if not self.width:
            return image
        counts = np.bincount(labels.ravel(), minlength=_LABELS)[self._labels]
        shown = np.flatnonzero(counts)
        room = (self._rows - _MARGIN_PX) // _LINE_PX
        if len(shown) > room:
            largest = np.argsort(-counts[shown], kind="stable")[: room - 1]
            shown = np.append(np.sort(shown[largest]), len(self._labels))
        both = np.zeros((self._rows, image.shape[1] + self.width, 3), dtype=np.uint8)
        both[:, : image.shape[1]] = image
        if len(shown):
            both[_MARGIN_PX // 2 :][: len(shown) * _LINE_PX, image.shape[1] :] = np.concatenate(self._entries[shown])
        return both


def _figure(rows: int, columns: int) -> Figure:
    return Figure(figsize=(columns / _PIXELS_PER_INCH, rows / _PIXELS_PER_INCH), dpi=_PIXELS_PER_INCH, facecolor="none")


def _write(
    figure: Figure,
    at_px: tuple[float, float],
    words: str,
    size_px: float,
    *,
    across: str = "left",
    along: str = "center_baseline",
    bold: bool = False,
    outlined: bool = True,
) -> None:
    width, height = figure.get_size_inches() * _PIXELS_PER_INCH
    figure.text(
        at_px[0] / width,
        at_px[1] / height,
        words,
        ha=across,
        va=along,
        color="white",
        parse_math=False,
        fontproperties=font(size_px, bold=bold),
        path_effects=[withStroke(linewidth=2.5, foreground="black")] if outlined else None,
    )


def _drawn(figure: Figure) -> Rgb:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    columns, rows = (figure.get_size_inches() * _PIXELS_PER_INCH).round().astype(int)
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
