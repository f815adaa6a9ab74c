"""The values of a configuration with their places: every value keeps its line.

A fault can thus name the place (``config/node.yaml:12``, or the environment variable), the key and what is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dicom_node.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Scalar = str | int | float | bool | None
_LONGEST_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a value: a line (from 1) of a file, or a source without lines such as a variable."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True, slots=True)
class Tree:
    """A value with its place; for an entry of a mapping, the place of its key."""

    content: Mapping[str, Tree] | tuple[Tree, ...] | Scalar
    place: Place

    def plain(self) -> Any:
        """The value without places, as dict, list, str, int, float, bool or None."""
        if isinstance(self.content, tuple):
            return [entry.plain() for entry in self.content]
        if isinstance(self.content, Scalar):
            return self.content
        return {key: entry.plain() for key, entry in self.content.items()}

    def size(self) -> int:
        """The number of values, counting each alias in full."""
        return 1 + sum(entry.size() for entry in self._entries())

    def depth(self) -> int:
        """Levels of mappings and lists; a single value has none."""
        return (
            0 if isinstance(self.content, Scalar) else 1 + max((entry.depth() for entry in self._entries()), default=0)
        )

    def find(self, path: Sequence[str | int]) -> tuple[Tree, tuple[str | int, ...]]:
        """The innermost existing value on ``path``, and the steps to it; steps that don't exist are skipped.

        (Pydantic's locations also contain the chosen kind of a union.)
        """
        tree, steps = self, list[str | int]()
        for step in path:
            entry = tree.entry(step)
            if entry is not None:
                tree = entry
                steps.append(step)
        return tree, tuple(steps)

    def entry(self, step: str | int) -> Tree | None:
        """One entry of a mapping or list; None if it does not exist."""
        if isinstance(self.content, tuple):
            return self.content[step] if isinstance(step, int) and step < len(self.content) else None
        if isinstance(self.content, Scalar) or not isinstance(step, str):
            return None
        return self.content.get(step)

    def with_entry(self, steps: Sequence[str], entry: Tree) -> Tree:
        """This mapping with ``entry`` at ``steps``, merged with an existing entry if both are mappings.

        Raises:
            ConfigurationError: a value on the path is not a mapping.
        """
        if not isinstance(self.content, dict):
            raise ConfigurationError(
                f"{entry.place}: {self.place} is not a mapping; it can only be overridden as a whole"
            )
        first, rest = self._written(steps[0]), steps[1:]
        present = self.content.get(first)
        if rest:
            entry = (present or Tree({}, entry.place)).with_entry(rest, entry)
        elif present is not None and isinstance(entry.content, dict):
            for key, inner in entry.content.items():
                present = present.with_entry([key], inner)
            entry = present
        return replace(self, content={**self.content, first: entry})

    def _written(self, key: str) -> str:
        """``key`` as written in this mapping: variables are case-insensitive."""
        assert isinstance(self.content, dict)
        return next((present for present in self.content if present.lower() == key.lower()), key)

    def _entries(self) -> Iterable[Tree]:
        if isinstance(self.content, tuple):
            return self.content
        return () if isinstance(self.content, Scalar) else self.content.values()


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with the value at ``path``, and what is expected."""

    place: Place
    path: tuple[str | int, ...]
    text: str

    def __str__(self) -> str:
        key = "".join(f"[{step}]" if isinstance(step, int) else f".{shown_key(step)}" for step in self.path)
        return ": ".join(part for part in (str(self.place), key.removeprefix("."), self.text) if part)


def refusal(faults: Iterable[Fault]) -> ConfigurationError:
    """An error with all ``faults``, one per line, in the order of the file."""
    ordered = sorted(dict.fromkeys(faults), key=lambda fault: (fault.place.source, fault.place.line or 0))
    return ConfigurationError("\n".join(str(fault) for fault in ordered))


def shown_key(key: str) -> str:
    """``key`` for a message; hidden if it may be an address with a password whose key was forgotten."""
    return key if key.isprintable() and len(key) <= _LONGEST_SHOWN and not _may_be_secret(key) else "(not shown)"


def shown(value: Any) -> str:
    """A value for a message: short and on one line; hidden if it may be an address with a password."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case str() if _may_be_secret(value):
            return "text"
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _may_be_secret(text: str) -> bool:
    return "://" in text or "@" in text
