"""HTML pages without anything from elsewhere; they print, and need no script.

The functions that make parts return HTML; what they are given is plain text and is escaped.
"""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

STATEMENT = (
    "Made by research software. It is not a medical device and not cleared or approved for clinical use; nothing on "
    "this page may be used for the care of a patient."
)
"""On every page."""
_STYLE = (
    "body{font:15px/1.4 system-ui,sans-serif;margin:2em auto;max-width:82em;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:.5em 0 2em;font-size:13px}"
    "th,td{text-align:right;padding:.2em .6em;border-bottom:1px solid #ddd;vertical-align:top}"
    "th:first-child,td:first-child,.words th,.words td{text-align:left}th{background:#f4f4f4}.fault td{color:#a00000}"
    ".statement{border-left:4px solid #a00000;padding-left:.7em}figcaption{font-size:13px}"
    "figure{margin:1em 0;overflow-x:auto}figure svg,figure img{max-width:100%;height:auto}"
    "@media screen{table{display:block;overflow-x:auto}.numbers td{white-space:nowrap}"
    ".numbers td:first-child{white-space:normal;min-width:9em}}"
    "@media print{body{max-width:none;margin:0;font-size:10pt}table{font-size:8pt}tr,figure{break-inside:avoid}"
    "thead{display:table-header-group}@page{size:A4 landscape;margin:12mm}}"
)


def page(title: str, parts: Iterable[str]) -> str:
    """The whole document: the heading, the statement that this is research, and ``parts``."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
    )
    top = f'<h1>{escape(title)}</h1><p class="statement">{escape(STATEMENT)}</p>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{top}{"".join(parts)}</body></html>\n'


def paragraph(*sentences: str) -> str:
    """Sentences, one after the other."""
    return f"<p>{escape(' '.join(sentences))}</p>"


def heading(title: str) -> str:
    """Above several paragraphs, figures or tables."""
    return f"<h2>{escape(title)}</h2>"


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """A fact per line, with its title."""
    lines = "".join(f"<tr><th>{escape(title)}</th><td>{escape(value)}</td></tr>" for title, value in rows)
    return f'<table class="words">{lines}</table>'


def numbers(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of numbers; the first column has words."""
    return f"<h2>{escape(title)}</h2>{_table(columns, rows, 'numbers')}"


def words(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, are_faults: bool = False) -> str:
    """A table of words, or ``None.`` without a row. Without ``columns`` it has no header."""
    listed = list(rows)
    if not listed:
        return f"<h2>{escape(title)}</h2><p>None.</p>"
    return f"<h2>{escape(title)}</h2>{_table(columns, listed, 'words fault' if are_faults else 'words')}"


def figure(svg: str) -> str:
    """An SVG document as a figure."""
    # the XML declaration and document type don't belong into HTML
    return f"<figure>{svg[svg.index('<svg') :]}</figure>"


def picture(png: bytes, caption: str) -> str:
    """A PNG image as a figure with its caption."""
    content = base64.b64encode(png).decode("ascii")
    text = escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{content}"><figcaption>{text}</figcaption></figure>'


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], kind: str) -> str:
    header = "".join(f"<th>{escape(column)}</th>" for column in columns)
    head = f"<thead><tr>{header}</tr></thead>" if columns else ""
    lines = ("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="{kind}">{head}<tbody>{"".join(lines)}</tbody></table>'
