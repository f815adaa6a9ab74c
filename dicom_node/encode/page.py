"""The result as pages that a radiologist reads: whose it is, three planes with overlay, every structure in numbers.

Drawn once as pixels for a secondary capture (light on dark, for a reading room) and as vectors for a document (dark on
white, for paper). No text is ever interpreted (``parse_math``), and no font or style of the machine has a say.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from dicom_node.encode.banner import banner
from dicom_node.encode.overlay import BOLD, FONT, Palette, isotropic
from dicom_node.encode.planes import Upright, telling_planes
from dicom_node.encode.provenance import MODEL_NAME, model_name, model_version, plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from dicom_node.encode.provenance import Provenance
    from dicom_node.encode.segments import Segment

TITLE = "Automatic CT segmentation report"

_WIDTH_IN, _HEIGHT_IN = 11.69, 8.27
"""A4, landscape."""
_DPI = 144
_MARGIN_IN, _HEADER_IN, _GAP_IN = 0.3, 0.86, 0.16
_LINE_IN, _FOOTER_LINE_IN, _FOOTER_CHARACTERS = 0.148, 0.125, 225
_IMAGES_IN = 3.55
_WIDEST, _NARROWEST = 2.2, 0.45
_COLUMNS, _COLUMN_GAP_IN, _TEXT_CHARACTERS = 3, 0.25, 62
_LARGE, _MEDIUM, _SMALL, _TINY = 13.0, 8.5, 7.2, 6.2
_BODY_HU = -300
_BODY_MARGIN_MM = 6.0
_TWO_DIGITS = 100
_NAME_IN, _NUMBERS_IN, _FLAG_IN = 0.14, (2.0, 2.68, 3.08), 3.15
"""Where in a column the name begins, the numbers end, and a flag begins."""


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of a page."""

    background: str
    text: str
    faint: str
    warning: str


SCREEN = Theme("#0b0e13", "#e6e9ef", "#98a1b3", "#ffb454")
PAPER = Theme("#ffffff", "#14181f", "#5b6472", "#a84a00")


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """What the pages show; ``upright`` holds image and labels, ``not_found`` what was looked for in vain."""

    upright: Upright
    segments: tuple[Segment, ...]
    not_found: tuple[str, ...]
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class _Heading:
    text: str


@dataclass(frozen=True, slots=True)
class _Remark:
    text: str
    warns: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """One plane as it is shown, with square pixels; ``sides`` are the letters at left, right, top and bottom."""

    name: str
    image: NDArray[np.uint8]
    sides: tuple[str, str, str, str]


def pages_as_images(page: Page) -> list[NDArray[np.uint8]]:
    """Each page as 8-bit RGB, ``(rows, columns, 3)``."""
    images = []
    for figure in _figures(page, SCREEN):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # type: ignore[no-untyped-call]
        pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        images.append(np.ascontiguousarray(pixels[..., :3]))
    return images


def pages_as_pdf(page: Page) -> bytes:
    """All pages as one PDF; the same page gives the same bytes."""
    buffer = BytesIO()
    facts = {
        "Title": TITLE,
        "Creator": MODEL_NAME,
        "Producer": MODEL_NAME,
        "CreationDate": page.provenance.started_at,
    }
    # as TrueType (42) text can be searched and copied
    with mpl.rc_context({"pdf.fonttype": 42}), PdfPages(buffer, metadata=facts) as document:
        for figure in _figures(page, PAPER):
            document.savefig(figure, facecolor=figure.get_facecolor())
    return buffer.getvalue()


def _figures(page: Page, theme: Theme) -> Iterator[Figure]:
    footer = _footer(page)
    bottom_in = _MARGIN_IN + _FOOTER_LINE_IN * len(footer) + _GAP_IN
    top_in = _HEIGHT_IN - _MARGIN_IN - _HEADER_IN
    rows = int((top_in - bottom_in) / _LINE_IN) - 1
    rows_below_images = int((top_in - _IMAGES_IN - _GAP_IN - bottom_in) / _LINE_IN) - 1
    sheets = list(_sheets(_lines(page), rows_below_images, rows))
    for number, columns in enumerate(sheets, start=1):
        sheet = _Sheet(theme)
        sheet.header(page, f"Page {number} of {len(sheets)}")
        if number == 1:
            sheet.views(_views(page), top_in)
        sheet.table(columns, top_in - (_IMAGES_IN + _GAP_IN if number == 1 else 0))
        sheet.footer(footer)
        yield sheet.figure


# ---- what is said


def _lines(page: Page) -> list[_Heading | _Remark | Segment]:
    lines: list[_Heading | _Remark | Segment] = []
    groups = dict.fromkeys(segment.structure.group for segment in page.segments)
    for group in groups:
        lines.append(_Heading(group))
        lines.extend(segment for segment in page.segments if segment.structure.group == group)
    if not page.segments:
        lines.append(_Remark("Analysed; none of the structures that were looked for was found.", warns=True))
    if any(segment.measurement.truncated for segment in page.segments):
        lines.append(_Heading("truncated"))
        said = "Reaches the border of the imaged region: its volume is a lower bound (\u2265)."
        lines.extend(_Remark(line, warns=True) for line in textwrap.wrap(said, _TEXT_CHARACTERS))
    if page.not_found:
        lines.append(_Heading("looked for and not found"))
        names = ", ".join(name.replace("_", " ") for name in page.not_found)
        lines.extend(_Remark(line) for line in textwrap.wrap(names, _TEXT_CHARACTERS))
    return lines


def _sheets(
    lines: list[_Heading | _Remark | Segment], first_rows: int, rows: int
) -> Iterator[list[list[_Heading | _Remark | Segment]]]:
    """Lines in columns of pages; a heading that would stand alone at the foot of a column goes to the next one."""
    columns: list[list[_Heading | _Remark | Segment]] = [[]]
    height = first_rows
    for line in lines:
        full = len(columns[-1]) >= height - int(isinstance(line, _Heading))
        if full and len(columns) == _COLUMNS:
            yield columns
            columns, height = [[line]], rows
        elif full:
            columns.append([line])
        else:
            columns[-1].append(line)
    yield columns


def _footer(page: Page) -> list[str]:
    provenance = page.provenance
    made = f"{provenance.started_at:%Y-%m-%d %H:%M:%S %z}".strip()
    station = plain(provenance.context.station_name, 16)
    said = " ".join((*provenance.statements, f"Analysis started {made} on station {station}."))
    return textwrap.wrap(said, _FOOTER_CHARACTERS)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= _TWO_DIGITS else f"{value:.1f}"


# ---- what is shown


def _views(page: Page) -> tuple[_View, _View, _View]:
    upright, palette = page.upright, Palette(page.segments)
    k, j, i = telling_planes(upright.labels_zyx, tuple(segment.label for segment in page.segments))
    dz, dy, dx = upright.spacing_zyx_mm
    hu, labels = upright.hu_zyx, upright.labels_zyx

    def view(name: str, cut: tuple[slice | int, ...], sizes: tuple[float, float], sides: str) -> _View:
        flat_hu, flat_labels, (size, _) = isotropic(hu[cut], labels[cut], *sizes)
        image = palette.paint(*_cropped(flat_hu, flat_labels, round(_BODY_MARGIN_MM / size)))
        return _View(name, image, (sides[0], sides[1], sides[2], sides[3]))

    down, whole = slice(None, None, -1), slice(None)
    return (
        view("Axial", (k, whole, whole), (dy, dx), "RLAP"),
        view("Coronal", (down, j, whole), (dz, dx), "RLSI"),
        view("Sagittal", (down, whole, i), (dz, dy), "APSI"),
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


class _Sheet:
    """One page; places are in inches from its lower left corner."""

    def __init__(self, theme: Theme) -> None:
        self._theme = theme
        self.figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), dpi=_DPI, facecolor=theme.background)

    def header(self, page: Page, number: str) -> None:
        theme, model = self._theme, page.provenance.model
        who = banner(page.provenance.source.identity)
        y = _HEIGHT_IN - _MARGIN_IN - 0.12
        right = _WIDTH_IN - _MARGIN_IN
        self._text(_MARGIN_IN, y, who.patient_name, _LARGE, bold=True)
        self._text(right, y, plain(model.intended_use, 64), _MEDIUM, theme.warning, "right", bold=True)
        patient = f"ID {who.patient_id}    Born {who.birth_date}    Sex {who.sex}"
        self._text(_MARGIN_IN, y - 0.26, patient, _MEDIUM)
        by = f"{model_name(model)} version {model_version(model)}"
        self._text(right, y - 0.26, f"{TITLE} by {by[:80]}", _SMALL, theme.faint, "right")
        series = page.provenance.source.series_number
        study = (
            f"Study {who.study_date}    Accession {who.accession_number}    {who.study_description}"
            f"    Series {series or 'without number'}, {len(page.provenance.source.planes)} images"
        )
        self._text(_MARGIN_IN, y - 0.46, study, _SMALL, theme.faint)
        self._text(right, y - 0.46, number, _SMALL, theme.faint, "right")
        self._box(_MARGIN_IN, y - 0.62, right - _MARGIN_IN, 0.008, theme.faint)

    def views(self, views: tuple[_View, ...], top_in: float) -> None:
        """Side by side, at one height where their shapes allow it."""
        shapes = [float(np.clip(view.image.shape[1] / view.image.shape[0], _NARROWEST, _WIDEST)) for view in views]
        room = _WIDTH_IN - 2 * _MARGIN_IN - _GAP_IN * (len(views) - 1)
        height = min(_IMAGES_IN, room / sum(shapes))
        x = _MARGIN_IN + (room - height * sum(shapes)) / 2
        for view, shape in zip(views, shapes, strict=True):
            self._view(view, x, top_in - height, height * shape, height)
            x += height * shape + _GAP_IN

    def _view(self, view: _View, x: float, y: float, width: float, height: float) -> None:
        scale = min(width / view.image.shape[1], height / view.image.shape[0])
        wide, high = (size * scale for size in (view.image.shape[1], view.image.shape[0]))
        self._box(x, y, width, height, SCREEN.background)
        left, bottom = x + (width - wide) / 2, y + (height - high) / 2
        axes = self.figure.add_axes((left / _WIDTH_IN, bottom / _HEIGHT_IN, wide / _WIDTH_IN, high / _HEIGHT_IN))
        axes.imshow(view.image, aspect="auto", interpolation="bilinear")
        axes.set_axis_off()
        middle, centre = x + width / 2, y + height / 2
        inset = 0.09
        for at, words in zip(
            ((x + inset, centre), (x + width - inset, centre), (middle, y + height - inset), (middle, y + inset)),
            view.sides,
            strict=True,
        ):
            self._text(*at, words, _MEDIUM, SCREEN.text, "center", bold=True, outlined=True)
        self._text(x + 0.06, y + height - inset, view.name, _TINY, SCREEN.text)

    def table(self, columns: list[list[_Heading | _Remark | Segment]], top_in: float) -> None:
        room = _WIDTH_IN - 2 * _MARGIN_IN - _COLUMN_GAP_IN * (_COLUMNS - 1)
        for index, lines in enumerate(columns):
            x = _MARGIN_IN + index * (room / _COLUMNS + _COLUMN_GAP_IN)
            y = top_in - _LINE_IN / 2
            if any(not isinstance(line, (_Heading, _Remark)) for line in lines):
                for at, words in zip(_NUMBERS_IN, ("ml", "HU mean \u00b1 SD", "median"), strict=True):
                    self._text(x + at, y, words, _TINY, self._theme.faint, "right")
            for number, line in enumerate(lines, start=1):
                self._line(line, x, y - number * _LINE_IN)

    def _line(self, line: _Heading | _Remark | Segment, x: float, y: float) -> None:
        theme = self._theme
        if isinstance(line, _Heading):
            self._text(x, y, line.text.upper(), _TINY, theme.faint, bold=True)
            return
        if isinstance(line, _Remark):
            self._text(x, y, line.text, _SMALL, theme.warning if line.warns else theme.text)
            return
        measured = line.measurement
        self._box(x, y - 0.045, 0.09, 0.09, tuple(part / 255 for part in line.structure.rgb))
        self._text(x + _NAME_IN, y, line.structure.title, _SMALL)
        volume = f"\u2265 {_number(measured.volume_ml)}" if measured.truncated else _number(measured.volume_ml)
        colour = theme.warning if measured.truncated else theme.text
        self._text(x + _NUMBERS_IN[0], y, volume, _SMALL, colour, "right")
        hounsfield = (f"{measured.mean_hu:.0f} \u00b1 {measured.sd_hu:.0f}", f"{measured.median_hu:.0f}")
        for at, words in zip(_NUMBERS_IN[1:], hounsfield, strict=True):
            self._text(x + at, y, words, _SMALL, theme.text, "right")
        if measured.truncated:
            self._text(x + _FLAG_IN, y, "truncated", _TINY, theme.warning)

    def footer(self, lines: list[str]) -> None:
        for number, line in enumerate(reversed(lines)):
            self._text(_MARGIN_IN, _MARGIN_IN + number * _FOOTER_LINE_IN, line, _TINY, self._theme.faint)

    def _text(
        self,
        x: float,
        y: float,
        words: str,
        size: float,
        colour: str | None = None,
        across: str = "left",
        *,
        bold: bool = False,
        outlined: bool = False,
    ) -> None:
        self.figure.text(
            x / _WIDTH_IN,
            y / _HEIGHT_IN,
            words,
            color=colour or self._theme.text,
            ha=across,
            va="center_baseline",
            parse_math=False,
            fontproperties=_font(size, bold=bold),
            path_effects=[withStroke(linewidth=2, foreground="black")] if outlined else None,
        )

    def _box(self, x: float, y: float, width: float, height: float, colour: str | tuple[float, ...]) -> None:
        box = Rectangle(
            (x / _WIDTH_IN, y / _HEIGHT_IN),
            width / _WIDTH_IN,
            height / _HEIGHT_IN,
            facecolor=colour,
            linewidth=0,
            transform=self.figure.transFigure,
            zorder=-1,  # below the images
        )
        self.figure.add_artist(box)


@cache
def _font(size: float, *, bold: bool) -> FontProperties:
    return FontProperties(fname=BOLD if bold else FONT, size=size)
