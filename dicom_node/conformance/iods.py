"""The modules of IODs and their attributes (PS3.3 annexes A and C), from the table that ships with the node.

``iods.json`` is made by ``tools/make_iod_table.py`` from highdicom's tables.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True, slots=True)
class Module:
    """One module of an IOD: ``key`` as in ``"sop-common"``, usage M, C or U, and its information entity."""

    key: str
    usage: str
    entity: str


@cache
def modules(sop_class_uid: str) -> tuple[Module, ...]:
    """The modules of the IOD of a SOP Class, in the order of PS3.3.

    Raises:
        KeyError: the table does not have the SOP Class.
    """
    return tuple(Module(*line.split(" ", 2)) for line in _table()["modules"][sop_class_uid])


@cache
def attribute_types(module: str) -> dict[tuple[str, ...], str]:
    """Type (1, 1C, 2, 2C, 3) of every attribute of a module by its path: the keywords of its sequences and its own."""
    types: dict[tuple[str, ...], str] = {}
    path: tuple[str, ...] = ()
    for line in _table()["attributes"][module]:
        keyword, type_ = line.lstrip(">").split(" ")
        level = len(line) - len(line.lstrip(">"))
        path = (*path[:level], keyword)
        types[path] = type_
    return types


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads((files(__package__) / "iods.json").read_text(encoding="utf-8"))
    return table
