"""Derives from samples of one type of object whether each part is always present and where its value comes from.

A part is an attribute or a content item; its ``path`` names the enclosing parts, from the outside inwards, and itself.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from dicom_node.conformance.samples import BASE, CONDITIONS, altered

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from dicom_node.conformance.samples import Condition

ALWAYS, ANAP, VNAP, EMPTY = "ALWAYS", "ANAP", "VNAP", "EMPTY"
COPY, FIXED, CONFIG, AUTO, COPY_OR_AUTO, COPY_AND_FIXED = (
    "COPY",
    "FIXED",
    "CONFIG",
    "AUTO",
    "COPY or AUTO",
    "COPY, FIXED",
)
OUTSIDE = -1
"""The parent of a part at the top level."""
_MOST_VALUES, _LONGEST_VALUE = 6, 64
_NUMBERS = frozenset(("DS", "FD", "FL", "IS", "NUM", "SL", "SS", "UL", "US"))
"""Several numbers are not a choice of fixed values."""


class Part(NamedTuple):
    """One part of one object.

    ``parent`` is the enclosing item, ``items`` are its own items, None if it can have none; the items of an object are
    numbered. ``value`` is empty if there is none.
    """

    path: tuple[str, ...]
    parent: int
    vr: str
    value: str
    items: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """The parts of one object, the attribute values of its source, and the station name of its installation."""

    condition: Condition
    parts: tuple[Part, ...]
    source: Mapping[str, str]
    station_name: str


@dataclass(frozen=True, slots=True)
class Finding:
    """``presence`` and ``source`` are terms of this module; ``source`` is empty for a part that has only items.

    ``follows_from`` names :data:`CONDITIONS`; ``value`` is that of a fixed part if it is short.
    """

    path: tuple[str, ...]
    vr: str
    presence: str
    source: str
    follows_from: tuple[str, ...] = ()
    value: str = ""


class _Place(NamedTuple):
    """The parts of one path in one object, and the items that may contain such a part."""

    seen: Seen
    parts: tuple[Part, ...]
    parents: frozenset[int]

    @property
    def values(self) -> tuple[str, ...]:
        return tuple(part.value for part in self.parts)


def findings(seen: Sequence[Seen]) -> Iterator[Finding]:
    """A finding for each part that occurs in any of ``seen``, outer parts before inner ones."""
    by_path = [_by_path(each.parts) for each in seen]
    for path in _in_order(dict.fromkeys(path for parts in by_path for path in parts)):
        yield _finding(
            path,
            [
                _Place(each, tuple(parts.get(path, ())), _items(parts.get(path[:-1], ())) if path[1:] else _NOWHERE)
                for each, parts in zip(seen, by_path, strict=True)
            ],
        )


_NOWHERE = frozenset((OUTSIDE,))


def _by_path(parts: Iterable[Part]) -> dict[tuple[str, ...], list[Part]]:
    found: dict[tuple[str, ...], list[Part]] = defaultdict(list)
    for part in parts:
        found[part.path].append(part)
    return dict(found)


def _items(parts: Iterable[Part]) -> frozenset[int]:
    return frozenset(item for part in parts for item in part.items or ())


def _in_order(paths: Iterable[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Depth first, each level in the order of its first occurrence."""
    children: dict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
    for path in paths:
        children[path[:-1]].append(path)

    def below(parent: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for path in children[parent]:
            yield path
            yield from below(path)

    return below(())


def _finding(path: tuple[str, ...], places: list[_Place]) -> Finding:
    finding = Finding(path, next(part.vr for place in places for part in place.parts), _presence(places), FIXED)
    occupied = [place for place in places if place.parts]
    values = sorted({value for place in occupied for value in place.values if value})
    if not values:
        is_sequence = any(part.items for place in occupied for part in place.parts)
        return replace(finding, source="" if is_sequence else FIXED)
    copied = _copied(path[-1], occupied)
    if copied is not None:
        return replace(finding, source=copied)
    changed = _changed(places)
    is_seen_twice = len({place.seen.condition for place in occupied}) > 1
    is_countable = finding.vr in _NUMBERS and len(values) > 1
    if not changed and is_seen_twice and not is_countable and len(values) <= _MOST_VALUES:
        is_short = all(len(value) <= _LONGEST_VALUE for value in values)
        return replace(finding, value=" or ".join(values) if is_short else "")
    if changed == ("installation",) and all(set(place.values) <= {place.seen.station_name} for place in occupied):
        return replace(finding, source=CONFIG)
    return replace(finding, source=AUTO, follows_from=changed)


def _presence(places: list[_Place]) -> str:
    parts = [part for place in places for part in place.parts]
    if not any(part.value or part.items for part in parts):
        return EMPTY
    if any({part.parent for part in place.parts} != place.parents for place in places):
        return ANAP
    return ALWAYS if all(part.value or part.items for part in parts) else VNAP


def _changed(places: list[_Place]) -> tuple[str, ...]:
    """The conditions that the values depend on; for a part that the base does not have, those that introduce it.

    How often a value occurs does not matter, because the number of items depends on other conditions than their values.
    """

    def of(condition: Condition) -> set[str]:
        return {value for place in places if place.seen.condition == condition for value in place.values}

    base = of(BASE)
    found = {name for name in CONDITIONS if (other := of(altered(name))) and other != base}
    for place in places:
        if set(place.values) - base - {""}:
            found |= {"source"} if place.seen.condition.is_other_source else set()
            found |= {"labels"} if place.seen.condition.nothing_found else set()
    return tuple(name for name in CONDITIONS if name in found)


def _copied(keyword: str, occupied: list[_Place]) -> str | None:
    """Whether the values are those of the source under the same name."""
    named = [place for place in occupied if place.seen.source.get(keyword)]
    if not named:
        return None
    others = {tuple(value for value in place.values if value != place.seen.source[keyword]) for place in named}
    if any(place.seen.source[keyword] not in place.values for place in named):
        return None
    if others == {()}:
        # values in the functional groups of a multi-frame source are not found under their names
        alone = [place for place in occupied if place not in named and not place.seen.condition.multi_frame]
        return COPY_OR_AUTO if any(any(place.values) for place in alone) else COPY
    return COPY_AND_FIXED if len(others) == 1 else None
