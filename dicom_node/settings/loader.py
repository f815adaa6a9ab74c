"""The YAML dialect of all configuration files: a subset of YAML 1.2 that keeps the line of each value.

Only ``true`` and ``false`` are booleans, ``null`` and ``~`` are null, numbers are decimal without leading zeros, and
everything else is text, because DICOM values look like ``NO``, ``0815``, ``12:30`` and ``2020-01-01``. Keys are text,
and a key may appear only once in a mapping. An alias (``*name``) repeats the value of its anchor; tags and merge keys
(``<<``, YAML 1.1) are errors.

PyYAML parses the file into events; this module interprets them, because PyYAML's constructors follow YAML 1.1.
ruamel.yaml 0.19 supports 1.2, but reads ``2020-01-01`` as a date and ``0815`` as 815, obeys a ``%YAML 1.1`` directive
in the file, raises RecursionError on deep nesting, and quotes the file, which may contain a password, in its messages;
it would need just as much code around it. For the same reason, messages of PyYAML are never shown.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import yaml
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    DocumentStartEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from dicom_node.errors import ConfigurationError
from dicom_node.settings.places import Fault, Place, Tree, refusal, shown_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from yaml.events import Event

    from dicom_node.settings.places import Scalar

LARGEST_FILE_BYTES = 1024 * 1024
DEEPEST = 32
"""Levels of mappings and lists; the deepest setting has five."""
MOST_VALUES = 100_000
"""Counting each alias in full: aliases of aliases grow exponentially."""

_NULL = re.compile(r"~|null|")
_TRUTH = re.compile(r"true|false")
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)?\.[0-9]+([eE][-+]?[0-9]+)?")
_MOST_DIGITS = 300
"""No setting needs more, and Python refuses to parse more than 4300."""

_SYNTAX = {
    "found character '\\t'": "a tab character; indent with spaces",
    "found character": "a value begins with a reserved character; put text in quotes",
    "mapping values are not allowed": "a colon followed by a space in text (put it in quotes), or wrong indentation",
    "could not find expected ':'": "a line without 'key: value'; is a colon or a closing quote missing?",
    "found unexpected end of stream": "the file ends inside quotes",
    "expected <block end>": "the indentation does not match the lines above, or a bracket is not closed",
    "expected ',' or": "a bracket is not closed, or a comma is missing",
    "expected the node content": "a value is missing, or a bracket is in the wrong place",
    "expected '<document start>'": "unexpected content after the end of the configuration",
    "found unknown escape character": "an unknown escape in double quotes; use single quotes for a backslash",
}
"""Our messages by the beginning of PyYAML's."""


def read_file(file: Path) -> Tree:
    """Parse ``file`` (UTF-8, with or without byte order mark).

    Raises:
        ConfigurationError: it can't be read, is too large, or is not in the dialect; names the line.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(LARGEST_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"can't read {file}: {error.strerror}") from error
    if len(content) > LARGEST_FILE_BYTES:
        raise ConfigurationError(f"{file}: larger than {LARGEST_FILE_BYTES} bytes, the limit for a configuration")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{file}:{line}: not UTF-8") from None
    return parse(text, str(file))


def parse(text: str, source: str, *, has_lines: bool = True) -> Tree:
    """Parse one document; ``source`` names the file or variable in messages.

    Raises:
        ConfigurationError: it is not in the dialect. Names all duplicate keys, or else the first fault.
    """
    builder = _Builder(text, source, has_lines=has_lines)
    tree = builder.document()
    if builder.faults:
        raise refusal(builder.faults)
    return tree


class _Builder:
    """Turns the events of one document into a tree."""

    def __init__(self, text: str, source: str, *, has_lines: bool) -> None:
        self.faults: list[Fault] = []
        self._source = source
        self._has_lines = has_lines
        self._text = text
        self._anchors: dict[str, Tree] = {}
        self._values = 0
        self._events = self._parsed()

    def document(self) -> Tree:
        next(self._events)  # the start of the stream
        start = next(self._events)
        if isinstance(start, StreamEndEvent):
            raise ConfigurationError(f"{self._at(1)}: expected a value, found nothing")
        if isinstance(start, DocumentStartEvent) and start.version not in (None, (1, 2)):
            raise self._error(start, "unsupported %YAML directive; configurations use YAML 1.2")
        tree = self._value(next(self._events), ())
        next(self._events)  # the end of the document
        after = next(self._events)
        if not isinstance(after, StreamEndEvent):
            raise self._error(after, "a second document begins; expected only one")
        return tree

    def _parsed(self) -> Iterator[Event]:
        try:
            yield from yaml.parse(self._text, Loader=yaml.SafeLoader)
        except yaml.reader.ReaderError as error:
            line = self._text.count("\n", 0, error.position) + 1
            character = ord(self._text[error.position])
            raise ConfigurationError(f"{self._at(line)}: not YAML: U+{character:04X} is not allowed") from None
        except (ValueError, OverflowError):  # chr() of an escape such as \UFFFFFFFF
            raise ConfigurationError(f"{self._source}: not YAML: an escape sequence is out of range") from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            problem = error.problem or ""
            words = next(
                (words for start, words in _SYNTAX.items() if problem.startswith(start)), "the syntax is wrong"
            )
            raise ConfigurationError(f"{self._at(mark.line + 1 if mark else 1)}: not YAML: {words}") from None

    def _value(self, event: Event, path: tuple[str | int, ...]) -> Tree:
        if len(path) > DEEPEST:
            raise self._error(event, f"nested more than {DEEPEST} levels deep")
        if isinstance(event, AliasEvent):
            return self._repeated(event, path)
        assert isinstance(event, NodeEvent)
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            raise self._error(event, "tags (!) are not supported; put text in quotes", path)
        content: dict[str, Tree] | tuple[Tree, ...] | Scalar
        if isinstance(event, MappingStartEvent):
            content = self._mapping(path)
        elif isinstance(event, SequenceStartEvent):
            content = tuple(self._list(path))
        else:
            assert isinstance(event, ScalarEvent)
            content = self._scalar(event, path)
        tree = Tree(content, self._place(event))
        if event.anchor is not None:
            self._anchors[event.anchor] = tree
        self._values += 1
        return tree

    def _mapping(self, path: tuple[str | int, ...]) -> dict[str, Tree]:
        entries: dict[str, Tree] = {}
        while not isinstance(event := next(self._events), CollectionEndEvent):
            key = self._key(event, path)
            value = self._value(next(self._events), (*path, key))
            if key in entries:
                first = entries[key].place.line
                duplicate = "duplicate key" if first is None else f"duplicate key, first used on line {first}"
                self.faults.append(Fault(self._place(event), (*path, key), duplicate))
            entries[key] = replace(value, place=self._place(event))
        return entries

    def _list(self, path: tuple[str | int, ...]) -> Iterator[Tree]:
        number = 0
        while not isinstance(event := next(self._events), CollectionEndEvent):
            yield self._value(event, (*path, number))
            number += 1

    def _key(self, event: Event, path: tuple[str | int, ...]) -> str:
        if not isinstance(event, ScalarEvent) or event.tag not in (None, "!"):
            raise self._error(event, "a key must be text", path)
        key = self._scalar(event, path)
        if not isinstance(key, str):
            raise self._error(event, f"a key must be text; put {shown_key(event.value)} in quotes", path)
        if key == "<<" and event.implicit[0]:
            raise self._error(event, "merge keys (<<) are not supported; write the keys out", path)
        return key

    def _scalar(self, event: ScalarEvent, path: tuple[str | int, ...]) -> Scalar:
        text = event.value
        if not event.implicit[0]:  # in quotes
            return text
        if _NULL.fullmatch(text):
            return None
        if _TRUTH.fullmatch(text):
            return text == "true"
        if not (_WHOLE.fullmatch(text) or _DECIMAL.fullmatch(text)):
            return text
        if len(text) > _MOST_DIGITS:
            raise self._error(event, f"a number with {len(text)} characters, expected at most {_MOST_DIGITS}", path)
        return int(text) if _WHOLE.fullmatch(text) else float(text)

    def _repeated(self, event: AliasEvent, path: tuple[str | int, ...]) -> Tree:
        tree = self._anchors.get(event.anchor or "")
        if tree is None:
            raise self._error(event, "an alias (*) without an anchor (&) above it; put text in quotes", path)
        if len(path) + tree.depth() > DEEPEST:
            raise self._error(event, f"an alias nests more than {DEEPEST} levels deep", path)
        self._values += tree.size()
        if self._values > MOST_VALUES:
            raise self._error(event, f"more than {MOST_VALUES} values, counting each alias in full", path)
        return tree

    def _place(self, event: Event) -> Place:
        assert event.start_mark is not None
        return self._at(event.start_mark.line + 1)

    def _at(self, line: int) -> Place:
        return Place(self._source, line if self._has_lines else None)

    def _error(self, event: Event, text: str, path: tuple[str | int, ...] = ()) -> ConfigurationError:
        return ConfigurationError(str(Fault(self._place(event), path, text)))
