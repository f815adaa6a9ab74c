"""Text in one font file, so that drawings do not depend on the fonts and styles of a machine."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import matplotlib as mpl
from matplotlib.font_manager import FontProperties, get_font
from matplotlib.ft2font import FT2Font, LoadFlags

FONT, BOLD = (Path(mpl.get_data_path(), "fonts", "ttf", name) for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"))
_POINTS_PER_INCH = 72
_FIXED_POINT = 64
_LEAST = 0.75
"""Text may shrink by this factor before it is cut."""

# for the whole process and permanently: temporary settings would interfere with those of another thread
mpl.rcdefaults()
mpl.rcParams["text.hinting"] = "none"  # the width of text does not depend on the canvas
mpl.rcParams["pdf.fonttype"] = 42  # TrueType text can be searched and copied


@cache
def font(points: float, *, bold: bool = False) -> FontProperties:
    """The font in one size."""
    return FontProperties(fname=BOLD if bold else FONT, size=points)


@cache
def characters() -> frozenset[int]:
    """The characters in the font."""
    return frozenset(FT2Font(FONT).get_charmap())


def width_in(words: str, points: float, *, bold: bool = False) -> float:
    """The width of ``words`` in inches."""
    face = get_font(BOLD if bold else FONT)
    face.set_size(points, _POINTS_PER_INCH)
    face.set_text(words, 0, flags=LoadFlags.NO_HINTING)
    width: float = face.get_width_height()[0] / _FIXED_POINT / _POINTS_PER_INCH
    return width


def fitted(words: str, points: float, room_in: float, *, bold: bool = False) -> tuple[str, float]:
    """``words`` and their size, first reduced and then cut with an ellipsis to be no wider than ``room_in``."""
    width = width_in(words, points, bold=bold)
    if width <= room_in:
        return words, points
    points *= max(_LEAST, room_in / width)
    shown = words
    while shown and width_in(words if shown == words else f"{shown}…", points, bold=bold) > room_in:
        shown = shown[:-1].rstrip()
    return (words if shown == words else f"{shown}…"), points
