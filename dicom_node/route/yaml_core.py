"""YAML without the surprises of version 1.1, which PyYAML speaks.

In YAML 1.1 ``NO`` and ``yes`` are truth values, ``012`` is ten, ``12:30`` is 750 and ``2020-01-01`` a date; DICOM
values look like all of these. Here, as in the core schema of YAML 1.2, only ``true`` and ``false`` are truth values,
numbers are decimal, everything else is text; and a key that stands twice is an error instead of the last one winning.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Hashable

    from yaml.nodes import MappingNode


def load_yaml(text: str) -> Any:
    """Parse one document.

    Raises:
        yaml.YAMLError: not YAML, or a key stands twice in a mapping.
    """
    return yaml.load(text, Loader=_CoreLoader)  # noqa: S506 - a SafeLoader with fewer types


class _CoreLoader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as the base class has it

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {twice[0]!r} stands more than once", node.start_mark
            )
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|", "~n"),
    ("bool", r"true|false", "tf"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(0|[1-9][0-9]*)?(\.[0-9]+)([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    _CoreLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), [*_first, ""] if _tag == "null" else list(_first)
    )
