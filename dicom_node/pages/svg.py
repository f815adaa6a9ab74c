"""Figures of matplotlib as SVG, so that they stay sharp in print and can be part of a page."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def as_svg(figure: Figure) -> str:
    """The same figure gives the same text: no date, and ids that follow from the content."""
    content = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "dicom-node", "svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(content, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
    return content.getvalue()
