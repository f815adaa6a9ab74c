"""The result as pages for a radiologist: patient, three planes with overlay, and the measurements of every structure.

They are drawn as pixels for secondary captures (light on dark, for a reading room) or as vectors for a document (dark
on white, for paper).
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import PdfPages

from dicom_node.encode.pages.sheet import (
    FOOTER_CHARACTERS,
    FOOTER_LINE_IN,
    HEADER_IN,
    HEIGHT_IN,
    LINE_IN,
    MARGIN_IN,
    PAPER,
    ROOM_IN,
    SCREEN,
    TITLE,
    Sheet,
    Theme,
)
from dicom_node.encode.pages.table import Block, blocks, sheets
from dicom_node.encode.pages.views import GAP_IN, View, height_needed_in, views
from dicom_node.encode.provenance import MODEL_NAME, plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from dicom_node.encode.pages.planes import Upright
    from dicom_node.encode.provenance import Provenance
    from dicom_node.encode.segments import Segment

_FEWEST_LINES = 4
_SMALLEST_IMAGES_IN, _LARGEST_IMAGES_IN = 3.3, 5.4


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """What the pages show; ``upright`` holds image and labels, ``not_found`` the names of absent structures.

    ``on_percentiles``: what a reader must know of the percentiles, or why there are none; empty if none are asked for.
    """

    upright: Upright
    segments: tuple[Segment, ...]
    not_found: tuple[str, ...]
    provenance: Provenance
    on_percentiles: str = ""


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
    with PdfPages(buffer, metadata=facts) as document:
        for figure in _figures(page, PAPER):
            document.savefig(figure, facecolor=figure.get_facecolor())
    return buffer.getvalue()


def _figures(page: Page, theme: Theme) -> Iterator[Figure]:
    footer = _footer(page)
    top_in = HEIGHT_IN - MARGIN_IN - HEADER_IN
    room_in = top_in - MARGIN_IN - FOOTER_LINE_IN * len(footer) - GAP_IN
    shown = views(page.upright, page.segments)
    images_in, laid = _laid_out(blocks(page.segments, page.not_found, page.on_percentiles), shown, room_in)
    for number, of_page in enumerate(laid, start=1):
        sheet = Sheet(theme)
        sheet.header(page.provenance, f"Page {number} of {len(laid)}")
        if number == 1:
            sheet.views(shown, top_in, images_in)
        sheet.table(of_page, top_in - (images_in + GAP_IN if number == 1 else 0))
        sheet.footer(footer)
        yield sheet.figure


def _laid_out(said: list[Block], shown: tuple[View, View, View], room_in: float) -> tuple[float, list[list[Block]]]:
    """The largest height of the images that does not add a page, and the blocks of each page."""

    def laid(images_in: float) -> list[list[Block]]:
        below = int((room_in - images_in - GAP_IN) / LINE_IN)
        return sheets(said, below, max(_FEWEST_LINES, int(room_in / LINE_IN)))

    heights = np.arange(_LARGEST_IMAGES_IN, _SMALLEST_IMAGES_IN, -LINE_IN).tolist()
    fewest = len(laid(_SMALLEST_IMAGES_IN))
    images_in = next((height for height in heights if len(laid(height)) == fewest), _SMALLEST_IMAGES_IN)
    images_in = height_needed_in(shown, ROOM_IN, images_in)
    return images_in, laid(images_in)


def _footer(page: Page) -> list[str]:
    provenance = page.provenance
    made = f"{provenance.started_at:%Y-%m-%d %H:%M:%S %z}".strip()
    station = plain(provenance.context.station_name, 16)
    said = " ".join((*provenance.statements, f"Analysis started {made} on station {station}."))
    return textwrap.wrap(said, FOOTER_CHARACTERS)
