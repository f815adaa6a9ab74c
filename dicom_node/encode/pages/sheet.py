"""Draw one page of the report: header, three views, table of measurements and footer.

Text is never interpreted (``parse_math``), and fonts and styles of the machine have no influence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from dicom_node.encode.pages.banner import NOT_STATED, banner
from dicom_node.encode.pages.lettering import fitted, font, width_in
from dicom_node.encode.pages.table import LEFT, NOT_ASKED, RIGHT, Block, Ranks, Section
from dicom_node.encode.pages.views import GAP_IN, Box, View, arranged
from dicom_node.encode.provenance import intended_use, model_name, model_version

if TYPE_CHECKING:
    from dicom_node.encode.provenance import Provenance
    from dicom_node.encode.segments import Rank, Segment

TITLE = "Automated CT segmentation report"
_WIDTH_IN, HEIGHT_IN = 11.69, 8.27
"""A4, landscape."""
_DPI = 144
MARGIN_IN, HEADER_IN = 0.3, 0.86
ROOM_IN = _WIDTH_IN - 2 * MARGIN_IN
LINE_IN, FOOTER_LINE_IN, FOOTER_CHARACTERS = 0.148, 0.125, 235
_LARGE, _MEDIUM, _SMALL, _TINY = 13.0, 8.5, 7.2, 6.2
_LEFT_HALF = 0.6
"""Of the header, for patient and study; title and model are on the right."""
_COLUMN_GAP_IN = 0.28
_SWATCH_IN, _NAME_IN = 0.09, 0.14
_BAR_IN, _BAR_EDGE_IN = 0.025, 0.012
_INSET_IN = 0.09
_MM_PER_CM = 10
_TWO_DIGITS, _LEAST_SHOWN = 100, 0.1
_STRIPE = 0.05
"""Opacity of the stripe behind every second line, which guides the eye."""


class _Layout(NamedTuple):
    """A column of a section: room for the title, left edges (of both sides), right edges of the numbers from there."""

    title_in: float
    starts_in: tuple[float, ...]
    ends_in: tuple[float, ...]
    headings: tuple[str, ...]


_MEASURED = ("ml", "HU mean ± SD", "median")
_SINGLE = _Layout(1.7, (0.0,), (2.05, 2.78, 3.25), _MEASURED)
_PAIRS = _Layout(1.37, (1.42, 3.45), (0.74, 1.46, 1.9), _MEASURED)
_RANKS = _Layout(1.6, (0.0,), (2.0, 2.45, 3.0, 3.45), ("volume", "n", "mean HU", "n"))


def _layout(block: Block) -> _Layout:
    return _RANKS if isinstance(block, Ranks) else _PAIRS if block.is_of_pairs else _SINGLE


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of a page."""

    background: str
    text: str
    faint: str
    warning: str


SCREEN = Theme("#0b0e13", "#e6e9ef", "#98a1b3", "#ffb454")
PAPER = Theme("#ffffff", "#14181f", "#5b6472", "#a84a00")


class Sheet:
    """One page; positions are in inches from its lower left corner."""

    def __init__(self, theme: Theme) -> None:
        self._theme = theme
        self.figure = Figure(figsize=(_WIDTH_IN, HEIGHT_IN), dpi=_DPI, facecolor=theme.background)

    def header(self, provenance: Provenance, number: str) -> None:
        """Patient and study on the left; intended use, ``number`` of the page and model on the right."""
        theme, model = self._theme, provenance.model
        who = banner(provenance.source.identity)
        y = HEIGHT_IN - MARGIN_IN - 0.12
        half = _LEFT_HALF * ROOM_IN
        other = ROOM_IN - half - GAP_IN
        name = f"Name {NOT_STATED}" if who.patient_name == NOT_STATED else who.patient_name
        self._text(MARGIN_IN, y, name, _LARGE, bold=True, room=half)
        patient = f"ID {who.patient_id}    Born {who.birth_date}    Sex {who.sex}"
        title = f"{TITLE}    {number}"
        # an ID of any valid length must not be cut while there is room
        room = ROOM_IN - width_in(title, _SMALL) - GAP_IN
        self._text(MARGIN_IN, y - 0.26, patient, _MEDIUM, room=room)
        series = provenance.source.series_number
        study = (
            f"Study {who.study_date}",
            f"Accession {who.accession_number}",
            f"Series {series or 'number not stated'}, {len(provenance.source.planes)} images",
            "" if who.study_description == NOT_STATED else who.study_description,
        )
        self._text(MARGIN_IN, y - 0.46, "    ".join(filter(None, study)), _SMALL, theme.faint, room=half)
        x = _WIDTH_IN - MARGIN_IN
        self._text(x, y, intended_use(model), _MEDIUM, theme.warning, "right", bold=True, room=other)
        self._text(x, y - 0.26, title, _SMALL, theme.text, "right")
        by = f"{model_name(model)} version {model_version(model)}"
        self._text(x, y - 0.46, by, _SMALL, theme.faint, "right", room=other)
        self._box(Box(MARGIN_IN, y - 0.62, ROOM_IN, 0.008), theme.faint)

    def views(self, shown: tuple[View, View, View], top_in: float, height_in: float) -> None:
        """The three views below ``top_in``."""
        for view, box in zip(shown, arranged(shown, ROOM_IN, height_in), strict=True):
            self._view(view, box._replace(x=box.x + MARGIN_IN, y=box.y + top_in - height_in))

    def _view(self, view: View, box: Box) -> None:
        rows, columns = view.image.shape[:2]
        scale = min(box.width / columns, box.height / rows)
        wide, high = columns * scale, rows * scale
        left, bottom = box.x + (box.width - wide) / 2, box.y + (box.height - high) / 2
        self._box(box, SCREEN.background)
        axes = self.figure.add_axes((left / _WIDTH_IN, bottom / HEIGHT_IN, wide / _WIDTH_IN, high / HEIGHT_IN))
        axes.imshow(view.image, aspect="auto", interpolation="bilinear")
        axes.set_axis_off()
        x, y = left + wide / 2, bottom + high / 2
        # at the edges of the image, or just outside if its frame is larger
        sides = (
            (max(box.x, left - 2 * _INSET_IN) + _INSET_IN, y),
            (min(box.x + box.width, left + wide + 2 * _INSET_IN) - _INSET_IN, y),
            (x, min(box.y + box.height, bottom + high + 2 * _INSET_IN) - _INSET_IN),
            (x, max(box.y, bottom - 2 * _INSET_IN) + _INSET_IN),
        )
        for at, letter in zip(sides, view.sides, strict=True):
            self._text(*at, letter, _MEDIUM, SCREEN.text, "center", bold=True, outlined=True)
        caption = Box(box.x + 0.06, box.y + box.height - _INSET_IN, x - box.x - 3 * _INSET_IN, 0)
        self._text(caption.x, caption.y, view.caption, _TINY, SCREEN.text, outlined=True, room=caption.width)
        bar = Box(box.x + 0.06, box.y + 0.06, view.bar_mm / view.pixel_mm * scale, _BAR_IN)
        for width, colour in ((_BAR_EDGE_IN, SCREEN.background), (0, SCREEN.text)):
            outline = Box(bar.x - width, bar.y - width, bar.width + 2 * width, bar.height + 2 * width)
            self._box(outline, colour, above=True)
        length = f"{view.bar_mm // _MM_PER_CM} cm" if view.bar_mm >= _MM_PER_CM else f"{view.bar_mm} mm"
        self._text(bar.x, bar.y + 0.09, length, _TINY, SCREEN.text, outlined=True)

    def table(self, of_page: list[Block], top_in: float) -> None:
        """The blocks below ``top_in``."""
        y = top_in
        for block in of_page:
            y -= 2 * LINE_IN
            title = y + 0.45 * LINE_IN
            room = _layout(block).title_in
            self._text(MARGIN_IN, title, block.title.upper(), _TINY, self._theme.faint, bold=True, room=room)
            if isinstance(block, Section):
                self._section(block, y, title)
            else:
                colour = self._theme.warning if block.warns else self._theme.text
                for number, line in enumerate(block.text):
                    self._text(MARGIN_IN, y - (number + 0.5) * LINE_IN, line, _SMALL, colour, room=ROOM_IN)
            y -= block.lines * LINE_IN

    def _section(self, section: Section, y: float, title: float) -> None:
        width = (ROOM_IN - _COLUMN_GAP_IN * (section.columns - 1)) / section.columns
        _, starts, ends, headings = _layout(section)
        for column in range(min(section.columns, -(-len(section.rows) // section.lines))):
            x = MARGIN_IN + column * (width + _COLUMN_GAP_IN)
            for side, start in zip((RIGHT, LEFT), starts, strict=False):
                if section.is_of_pairs:
                    self._text(x + start, title, side.upper(), _TINY, self._theme.text, bold=True)
                for end, words in zip(ends, headings, strict=True):
                    self._text(x + start + end, title, words, _TINY, self._theme.faint, "right")
            for line, row in enumerate(section.rows[column * section.lines : (column + 1) * section.lines]):
                middle = y - (line + 0.5) * LINE_IN
                if line % 2 == 0:
                    stripe = Box(x - 0.04, middle - LINE_IN / 2, width + 0.08, LINE_IN)
                    self._box(stripe, self._theme.text, opacity=_STRIPE)
                name_at = 0.0 if section.is_of_pairs else _NAME_IN
                room = (starts[0] if section.is_of_pairs else ends[0] - 0.5) - name_at - 0.05
                self._text(x + name_at, middle, row.title, _SMALL, room=room)
                for cell, start in zip(row.cells, starts, strict=True):
                    draw = self._ranks if isinstance(section, Ranks) else self._cell
                    draw(cell, x + start, middle, ends)

    def _cell(self, cell: Segment | str, x: float, y: float, ends: tuple[float, ...]) -> None:
        theme = self._theme
        if isinstance(cell, str):
            colour = theme.faint if cell == NOT_ASKED else theme.warning
            self._text(x + ends[0], y, cell, _SMALL, colour, "right")
            return
        measured = cell.measurement
        self._swatch(cell, x, y)
        # of a structure of which almost nothing is visible, no lower bound above 0 can be stated
        volume = rounded(measured.volume_ml)
        if measured.truncated:
            volume = f"\N{GREATER-THAN OR EQUAL TO} {0 if volume[0] == '<' else volume}"
        values = (volume, f"{measured.mean_hu:.0f} ± {measured.sd_hu:.0f}", f"{measured.median_hu:.0f}")
        for end, words in zip(ends, values, strict=True):
            self._text(x + end, y, words, _SMALL, theme.warning if measured.truncated else theme.text, "right")

    def _ranks(self, cell: Segment | str, x: float, y: float, ends: tuple[float, ...]) -> None:
        """Percentile and number of patients, of volume and of mean attenuation."""
        assert not isinstance(cell, str)
        self._swatch(cell, x, y)
        for number, rank in enumerate((cell.volume_rank, cell.mean_hu_rank)):
            if rank is not None:
                self._text(x + ends[2 * number], y, _placed(rank), _SMALL, across="right")
                self._text(x + ends[2 * number + 1], y, f"{rank.patients:,}", _SMALL, self._theme.faint, "right")

    def _swatch(self, segment: Segment, x: float, y: float) -> None:
        swatch = Box(x, y - _SWATCH_IN / 2, _SWATCH_IN, _SWATCH_IN)
        self._box(swatch, tuple(part / 255 for part in segment.structure.rgb))

    def footer(self, lines: list[str]) -> None:
        """Sentences at the bottom of the page."""
        for number, line in enumerate(reversed(lines)):
            y = MARGIN_IN + number * FOOTER_LINE_IN
            self._text(MARGIN_IN, y, line, _TINY, self._theme.faint, room=ROOM_IN)

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
        room: float | None = None,
    ) -> None:
        if room is not None:
            words, size = fitted(words, size, room, bold=bold)
        if not words:
            return
        self.figure.text(
            x / _WIDTH_IN,
            y / HEIGHT_IN,
            words,
            color=colour or self._theme.text,
            ha=across,
            va="center_baseline",
            parse_math=False,
            fontproperties=font(size, bold=bold),
            path_effects=[withStroke(linewidth=2, foreground="black")] if outlined else None,
        )

    def _box(self, box: Box, colour: str | tuple[float, ...], *, opacity: float = 1.0, above: bool = False) -> None:
        self.figure.add_artist(
            Rectangle(
                (box.x / _WIDTH_IN, box.y / HEIGHT_IN),
                box.width / _WIDTH_IN,
                box.height / HEIGHT_IN,
                facecolor=colour,
                alpha=opacity,
                linewidth=0,
                transform=self.figure.transFigure,
                zorder=2 if above else -1,  # images are drawn at 0
            )
        )


def rounded(value: float) -> str:
    """A volume or an attenuation with a meaningful number of digits."""
    if 0 < value < _LEAST_SHOWN / 2:
        return f"< {_LEAST_SHOWN}"  # 0.0 would mean that nothing was found
    return f"{value:,.0f}" if abs(value) >= _TWO_DIGITS else f"{value:.1f}"


def _placed(rank: Rank) -> str:
    return str(rank.percentile) if rank.number is None else f"{rank.number:.0f}"
