"""What stands at one place of the rules file, checked; every message names the place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dicom_node.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection


def known(value: Any, place: str, kind: str, names: Collection[str]) -> str:
    """``value``, one of the configured ``names`` of this ``kind``.

    Raises:
        ConfigurationError: it is none of them.
    """
    name = text(value, place)
    if name not in names:
        listed = ", ".join(sorted(names)) or "none"
        raise ConfigurationError(f"{place}: unknown {kind} {name!r}; configured: {listed}")
    return name


def text(value: Any, place: str) -> str:
    """``value``, a text that is not empty.

    Raises:
        ConfigurationError: it is something else.
    """
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError(f"{place} must be text, not {value!r}")
    return value


def truth(value: Any, place: str) -> bool:
    """``value``, true or false.

    Raises:
        ConfigurationError: it is something else.
    """
    if not isinstance(value, bool):
        raise ConfigurationError(f"{place} must be true or false, not {value!r}")
    return value


def entries(value: Any, place: str) -> list[Any]:
    """``value``, a list.

    Raises:
        ConfigurationError: it is something else.
    """
    if not isinstance(value, list):
        raise ConfigurationError(f"{place} must be a list, not {value!r}")
    return value


def mapping(value: Any, place: str, required: set[str], optional: set[str]) -> dict[str, Any]:
    """``value``, a mapping with all ``required`` keys and no key but these and the ``optional`` ones.

    Raises:
        ConfigurationError: it is something else.
    """
    if not isinstance(value, dict):
        raise ConfigurationError(f"{place} must be a mapping with {', '.join(sorted(required | optional))}")
    unknown = [str(key) for key in value if key not in required | optional]
    if unknown:
        raise ConfigurationError(
            f"{place}: unknown key {', '.join(unknown)}; known: {', '.join(sorted(required | optional))}"
        )
    missing = required - value.keys()
    if missing:
        raise ConfigurationError(f"{place}: {', '.join(sorted(missing))} is missing")
    return value
