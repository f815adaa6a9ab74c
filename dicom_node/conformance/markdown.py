"""The parts of Markdown that the statement needs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; vertical bars in cells are escaped."""
    lines = [_line(headings), f"|{'---|' * len(headings)}", *(_line(row) for row in rows)]
    return "\n".join(lines)


def document(title: str, before: str, sections: Sequence[tuple[str, str]], contents_heading: str) -> str:
    """``sections`` (numbered heading and text) with a table of contents at ``contents_heading``."""
    contents = "\n".join(f"{'  ' * _depth(heading)}- [{heading}](#{_anchor(heading)})" for heading, _ in sections)
    parts = [f"# {title}", before]
    for heading, text in sections:
        parts.append(f"{'#' * (2 + _depth(heading))} {heading}")
        parts.append(contents if heading == contents_heading else text)
    return re.sub(r"\n{3,}", "\n\n", "\n\n".join(part.strip("\n") for part in parts if part)) + "\n"


def _line(cells: Sequence[object]) -> str:
    texts = [str(cell).replace("|", r"\|").replace("\n", " ") for cell in cells]
    return "".join(("|", *(f" {text} |" if text else " |" for text in texts)))


def _depth(heading: str) -> int:
    return heading.split(" ", maxsplit=1)[0].count(".")


def _anchor(heading: str) -> str:
    """The anchor that GitHub derives from a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
