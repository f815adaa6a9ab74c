"""A condition: an attribute or fact of a series, an operator and an operand.

A missing value never matches, not even with ``not_equals`` or another negation: a rule must name what a series has, not
what it lacks.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dicom_node.route.values import FACT_ALIASES, FACTS, attribute_values, fact_values, is_identifying
from dicom_node.types import ConditionOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dicom_node.route.values import InstanceValues
    from dicom_node.types import Series

Operand = str | float | tuple[str | float, ...]

_SHOWN_VALUES = 3
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Condition:
    """``name`` is an attribute's keyword or, if ``is_fact``, a fact. All instances must satisfy it, or any one."""

    name: str
    operator: str
    operand: Operand
    is_fact: bool = False
    any_instance: bool = False

    @property
    def identifying(self) -> bool:
        """Whether the values may identify the patient and must not be shown."""
        return self.name not in FACTS and is_identifying(FACT_ALIASES.get(self.name, self.name))

    def __str__(self) -> str:
        whose = "any " if self.any_instance else ""
        if self.operator == "exists":
            return f"{whose}{self.name} exists"
        operand = "(hidden)" if self.identifying else _operand_text(self.operand)
        return f"{whose}{self.name} {self.operator.replace('_', ' ')} {operand}"

    def look_at(self, series: Series) -> ConditionOutcome:
        """Whether the condition is met, and the value that decided. Never raises, whatever the headers contain."""
        if self.is_fact and self.name in FACTS:
            entries = fact_values(series, self.name)
        else:
            entries = attribute_values(series, FACT_ALIASES.get(self.name, self.name))
        satisfied = [bool(values) and OPERATORS[self.operator](values, self.operand) for values in entries]
        held = bool(satisfied) and (any(satisfied) if self.any_instance else all(satisfied))
        decisive = [values for values, one in zip(entries, satisfied, strict=True) if one == held]
        return ConditionOutcome(str(self), self._seen(decisive, len(entries), held=held), held)

    def _seen(self, decisive: list[InstanceValues], total: int, *, held: bool) -> str:
        """The values of the instances that decided; for identifying attributes, only whether they matched."""
        present = [values for values in decisive if values]
        if not present:
            return "missing" if len(decisive) == total else f"missing in {len(decisive)} of {total}"
        if self.identifying:
            return "matched" if held else "not matched"
        counted = Counter(_values_text(values) for values in present).most_common()
        shown = ", ".join(text for text, _ in counted[:_SHOWN_VALUES]) + (" ..." if counted[_SHOWN_VALUES:] else "")
        return shown if len(decisive) == total else f"{shown} (in {len(decisive)} of {total})"


def _equals(values: InstanceValues, operand: Operand) -> bool:
    expected = operand if isinstance(operand, tuple) else (operand,)
    if len(expected) == 1 and isinstance(expected[0], str):
        return _folded(_joined(values)) == _folded(expected[0])
    return len(values) == len(expected) and all(_same(value, one) for value, one in zip(values, expected, strict=True))


def _same(value: str | float, expected: str | float) -> bool:
    if isinstance(expected, str):
        return _folded(str(value)) == _folded(expected)
    return _number(value) == expected


def _in(values: InstanceValues, operand: Operand) -> bool:
    choices = operand if isinstance(operand, tuple) else (operand,)
    return any(_equals(values, choice) for choice in choices)


def _matches(values: InstanceValues, operand: Operand) -> bool:
    return re.search(str(operand), _joined(values), re.IGNORECASE) is not None


def _contains(values: InstanceValues, operand: Operand) -> bool:
    return any(_folded(str(operand)) in _folded(str(value)) for value in values)


def _compared(compare: Callable[[float, float], bool]) -> Callable[[InstanceValues, Operand], bool]:
    def test(values: InstanceValues, operand: Operand) -> bool:
        numbers = [_number(value) for value in values]
        limit = _number(operand) if not isinstance(operand, tuple) else None
        return limit is not None and all(number is not None and compare(number, limit) for number in numbers)

    return test


OPERATORS: Mapping[str, Callable[[InstanceValues, Operand], bool]] = {
    "exists": lambda values, _: bool(values),
    "equals": _equals,
    "not_equals": lambda values, operand: not _equals(values, operand),
    "in": _in,
    "not_in": lambda values, operand: not _in(values, operand),
    "matches": _matches,
    "not_matches": lambda values, operand: not _matches(values, operand),
    "contains": _contains,
    "not_contains": lambda values, operand: not _contains(values, operand),
    "at_least": _compared(lambda number, limit: number >= limit),
    "at_most": _compared(lambda number, limit: number <= limit),
    "greater_than": _compared(lambda number, limit: number > limit),
    "less_than": _compared(lambda number, limit: number < limit),
}
"""Called for existing values only. Text comparison ignores case and leading and trailing spaces."""


def _number(value: str | float) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _folded(text: str) -> str:
    return text.strip().casefold()


def _joined(values: InstanceValues) -> str:
    return "\\".join(str(value) for value in values)


def _values_text(values: InstanceValues) -> str:
    """The values as one printable line: they come from the network and may contain anything."""
    joined = "\\".join(f"{value:g}" if isinstance(value, float) else value for value in values)
    printable = "".join(character if character.isprintable() else "?" for character in joined)
    return printable if len(printable) <= _SHOWN_CHARACTERS else printable[:_SHOWN_CHARACTERS] + "..."


def _operand_text(operand: Operand) -> str:
    if isinstance(operand, tuple):
        return "[" + ", ".join(_operand_text(part) for part in operand) + "]"
    return f"{operand:g}" if isinstance(operand, float) else str(operand)
