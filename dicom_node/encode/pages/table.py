"""The structures of a report as rows, by group, with both sides of a pair in one row, distributed over pages."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dicom_node.encode.segments import NOTHING_FOUND
from inference.structures import STRUCTURES

if TYPE_CHECKING:
    from dicom_node.encode.segments import Segment

RIGHT, LEFT = "right", "left"
NOT_FOUND, NOT_ASKED = "not found", "\u2013"
_SIDE = re.compile(rf"(?:^|_)({RIGHT}|{LEFT})(?=_|$)")
_NAMES = frozenset(structure.name for structure in STRUCTURES)
_COLUMNS, _COLUMNS_OF_PAIRS = 3, 2
_TITLE_LINES = 2
_LINES_WORTH_A_TITLE = 2
_NOTE_CHARACTERS = 190
_TRUNCATED = (
    "\u2265  Truncated by the field of view: the volume is a lower bound; HU values are those of the visible part."
)


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One structure, or the right and left one of a pair; text replaces a side that was not measured."""

    title: str
    cells: tuple[Segment | str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """Rows under one title, in ``columns`` from top to bottom."""

    title: str
    rows: tuple[Row, ...]
    columns: int

    @property
    def is_of_pairs(self) -> bool:
        """Whether each row contains two sides."""
        return self.columns == _COLUMNS_OF_PAIRS

    @property
    def lines(self) -> int:
        """The number of lines of text below its title."""
        return -(-len(self.rows) // self.columns)

    def split(self, lines: int) -> tuple[Section, Section]:
        """The part that fits into ``lines``, and the rest."""
        count = lines * self.columns
        title = f"{self.title.removesuffix(' (continued)')} (continued)"
        return replace(self, rows=self.rows[:count]), replace(self, title=title, rows=self.rows[count:])


@dataclass(frozen=True, slots=True, eq=False)
class Ranks(Section):
    """The percentiles of the structures that have any: rows of one segment each."""


@dataclass(frozen=True, slots=True)
class Note:
    """Sentences across the full width."""

    title: str
    text: tuple[str, ...]
    warns: bool = False
    is_of_pairs = False

    @property
    def lines(self) -> int:
        """The number of lines of text below its title."""
        return len(self.text)

    def split(self, lines: int) -> tuple[Note, Note]:
        """The part that fits into ``lines``, and the rest."""
        return replace(self, text=self.text[:lines]), replace(self, text=self.text[lines:])


Block = Section | Note


def blocks(segments: tuple[Segment, ...], not_found: tuple[str, ...], on_percentiles: str = "") -> list[Block]:
    """The contents of the page on ``segments``, the structures that were ``not_found``, and the percentiles."""
    found: list[Block] = []
    for group in dict.fromkeys(segment.structure.group for segment in segments):
        members = {segment.structure.name: segment for segment in segments if segment.structure.group == group}
        single = tuple(Row(member.structure.title, (member,)) for name, member in members.items() if not _pair(name))
        pairs = tuple(
            Row(title, tuple(_cell(name, members, not_found) for name in names))
            for title, names in dict.fromkeys(filter(None, map(_pair, members)))
        )
        if single:
            found.append(Section(f"{group}s", single, _COLUMNS))
        if pairs:
            found.append(Section(f"paired {group}s", pairs, _COLUMNS_OF_PAIRS))
    if not segments:
        found.append(Note("", (NOTHING_FOUND,), warns=True))
    if any(segment.measurement.truncated for segment in segments):
        found.append(Note("truncated", (_TRUNCATED,), warns=True))
    if not_found:
        names = ", ".join(name.replace("_", " ") for name in not_found)
        found.append(Note("searched for but not found", _wrapped(names)))
    ranked = tuple(segment for segment in segments if segment.volume_rank or segment.mean_hu_rank)
    if ranked:
        rows = tuple(Row(each.structure.title, (each,)) for each in ranked)
        found.append(Ranks("research percentiles", rows, _COLUMNS))
    if on_percentiles:
        found.append(Note("about the percentiles", _wrapped(on_percentiles)))
    return found


def _wrapped(text: str) -> tuple[str, ...]:
    return tuple(textwrap.wrap(text, _NOTE_CHARACTERS))


def sheets(of: list[Block], first_lines: int, lines: int) -> list[list[Block]]:
    """``of`` distributed over pages of ``lines``, the first of which has room for ``first_lines``."""
    pages: list[list[Block]] = [[]]
    room = first_lines
    for block in of:
        rest: Block | None = block
        while rest is not None:
            fit = room - _TITLE_LINES
            if rest.lines <= fit:
                pages[-1].append(rest)
                room, rest = fit - rest.lines, None
                continue
            if fit >= _LINES_WORTH_A_TITLE or (not pages[-1] and room == lines):
                part, rest = rest.split(max(1, fit))
                pages[-1].append(part)
            pages.append([])
            room = lines
    return pages


def _pair(name: str) -> tuple[str, tuple[str, str]] | None:
    """The title of a pair and the names of its right and left structure; None for one without a counterpart."""
    side = _SIDE.search(name)
    if side is None:
        return None
    start, end = side.span(1)
    right, left = (name[:start] + word + name[end:] for word in (RIGHT, LEFT))
    if not {right, left} <= _NAMES:
        return None
    words = _SIDE.sub("", name).strip("_").replace("_", " ")
    return words[0].upper() + words[1:], (right, left)


def _cell(name: str, members: dict[str, Segment], not_found: tuple[str, ...]) -> Segment | str:
    return members.get(name) or (NOT_FOUND if name in not_found else NOT_ASKED)
