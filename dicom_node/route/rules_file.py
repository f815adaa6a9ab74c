"""Reads rules.yaml and validates it against the settings; the result is :class:`~dicom_node.route.rules.Rules`."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, field_validator, model_validator
from pydicom.datadict import keyword_dict

from dicom_node.route.conditions import OPERATORS, Condition, Operand
from dicom_node.route.requests import NOTICE_ALONE, DestinationRequest
from dicom_node.route.rules import Rule, Rules
from dicom_node.route.values import FACT_ALIASES, FACTS, is_comparable
from dicom_node.settings.loader import read_file
from dicom_node.settings.models import Name, Truth, Whole  # noqa: TC001 - pydantic reads it
from dicom_node.settings.places import shown
from dicom_node.settings.validation import Closed, checked, configured, did_you_mean, misplaced

if TYPE_CHECKING:
    from pathlib import Path

    from dicom_node.settings import Settings

_FACTS = (*FACTS, *FACT_ALIASES)


def load_rules(file: Path, settings: Settings) -> Rules:
    """Read and check ``file`` (``config/rules.yaml`` explains every key).

    Raises:
        ConfigurationError: the file is missing or not in the dialect of :mod:`dicom_node.settings.loader`; a key,
            attribute, fact, operator, model, destination or option is unknown; an operand does not suit its operator;
            or a file of percentiles can't be used. One line for each, with its place.
    """
    context = {
        "model": settings.models.keys(),
        "destination": settings.destinations.keys(),
        "folder": file.resolve().parent,
    }
    return Rules(tuple(each.rule() for each in checked(read_file(file), _RulesForm, context).rules))


def _text(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    return value


def _keyword(name: str) -> str:
    if not is_comparable(name):
        near = did_you_mean(name, filter(is_comparable, keyword_dict)) if name not in keyword_dict else ""
        raise ValueError(f"{shown(name)} is not the keyword of a standard text or number attribute{near}")
    return name


def _fact(name: str) -> str:
    if name not in _FACTS:
        raise ValueError(f"unknown fact {shown(name)}{did_you_mean(name, _FACTS)}; known: {', '.join(_FACTS)}")
    return name


def _value(value: Any) -> str | float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"expected text or a number, not {shown(value)}; put text in quotes")  # noqa: TRY004 - see _values
    return _text(value) if isinstance(value, str) else _number(value)


def _values(value: Any) -> tuple[str | float, ...]:
    if not isinstance(value, list):
        raise ValueError("expected a list, such as [CT, MR]")  # noqa: TRY004 - pydantic asks for this type
    if not value:
        raise ValueError("the list must not be empty")
    return tuple(_value(choice) for choice in value)


def _value_or_values(value: Any) -> Operand:
    return _values(value) if isinstance(value, list) else _value(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        seen = "text" if isinstance(value, str) else shown(value)  # which may be a patient's
        raise ValueError(f"expected a finite number, not {seen}")
    return float(value)


def _pattern(value: Any) -> str:
    pattern = str(_value(value))
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a valid regular expression: {error}") from error
    return pattern


def _true(value: Any) -> str:
    if value is not True:
        raise ValueError("must be true: a missing attribute never matches")
    return ""


_Value = Annotated[Operand, PlainValidator(_value)]
_Values = Annotated[Operand, PlainValidator(_values)]
_ValueOrValues = Annotated[Operand, PlainValidator(_value_or_values)]
_Number = Annotated[Operand, PlainValidator(_number)]
_Pattern = Annotated[Operand, PlainValidator(_pattern)]


class _Form(Closed):
    """A part of the file in which every key must have a value."""

    @field_validator("*", mode="before")
    @classmethod
    def _is_something(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("expected a value, found nothing")
        return value


class _ConditionForm(_Form):
    """A subject, ``of`` and one of :data:`OPERATORS`."""

    attribute: Annotated[str, AfterValidator(_keyword)] | None = None
    fact: Annotated[str, AfterValidator(_fact)] | None = None
    of: Literal["all", "any"] = "all"
    exists: Annotated[Operand, PlainValidator(_true)] = ""
    equals: _ValueOrValues = ""
    not_equals: _ValueOrValues = ""
    in_: _Values = Field(default="", alias="in")
    not_in: _Values = ""
    contains: _Value = ""
    not_contains: _Value = ""
    matches: _Pattern = ""
    not_matches: _Pattern = ""
    at_least: _Number = ""
    at_most: _Number = ""
    greater_than: _Number = ""
    less_than: _Number = ""

    @model_validator(mode="after")
    def _has_one_of_each(self) -> _ConditionForm:
        if (self.attribute is None) == (self.fact is None):
            raise ValueError("expected exactly one of attribute and fact")
        if len(self._operators()) != 1:
            raise ValueError(f"expected exactly one of {', '.join(OPERATORS)}, not {len(self._operators())}")
        return self

    def _operators(self) -> dict[str, Operand]:
        written = {field.rstrip("_"): getattr(self, field) for field in self.model_fields_set}
        return {name: operand for name, operand in written.items() if name in OPERATORS}

    def condition(self) -> Condition:
        """The condition."""
        ((operator, operand),) = self._operators().items()
        return Condition(
            name=self.attribute or self.fact or "",
            operator=operator,
            operand=operand,
            is_fact=self.fact is not None,
            any_instance=self.of == "any",
        )


class _RuleForm(_Form):
    name: Annotated[Name, AfterValidator(_text)]
    when: tuple[_ConditionForm, ...]
    model: Annotated[str, AfterValidator(configured("model"))] | None = None
    refuse: Annotated[str, AfterValidator(_text)] | None = None
    destinations: tuple[DestinationRequest, ...] = ()
    priority: Annotated[Whole, Field(ge=-(2**31), lt=2**31)] = 0
    unchecked_hu: Truth = False

    @field_validator("destinations")
    @classmethod
    def _each_once(cls, destinations: tuple[DestinationRequest, ...]) -> tuple[DestinationRequest, ...]:
        names = [destination.to for destination in destinations]
        _refuse_repeated(names, "to")
        return destinations

    @model_validator(mode="after")
    def _segments_or_refuses(self) -> _RuleForm:
        if (self.model is None) == (self.refuse is None):
            raise ValueError("expected exactly one of model and refuse")
        if self.refuse is not None:
            self._refuse_without_results()
        return self

    def _refuse_without_results(self) -> None:
        text = "a rule that refuses can only send a notice: {to: NAME, notice: true}"
        faults: list[tuple[tuple[str | int, ...], str]] = [
            (("destinations", number), text)
            for number, each in enumerate(self.destinations)
            if each.model_fields_set != {"to", "notice"} or not each.notice
        ]
        faults += [
            ((key,), "can't be used in a rule that refuses")
            for key in ("priority", "unchecked_hu")
            if key in self.model_fields_set
        ]
        if faults:
            raise misplaced(faults)

    def rule(self) -> Rule:
        """The rule."""
        requests = {each.to: NOTICE_ALONE if self.refuse else each.request() for each in self.destinations}
        conditions = tuple(each.condition() for each in self.when)
        return Rule(self.name, conditions, self.model, self.refuse, requests, self.priority, self.unchecked_hu)


class _RulesForm(_Form):
    rules: tuple[_RuleForm, ...]

    @field_validator("rules")
    @classmethod
    def _each_once(cls, rules: tuple[_RuleForm, ...]) -> tuple[_RuleForm, ...]:
        _refuse_repeated([rule.name for rule in rules], "name")
        return rules


def _refuse_repeated(names: list[str], key: str) -> None:
    repeated = [(number, name) for number, name in enumerate(names) if name in names[:number]]
    if repeated:
        raise misplaced(((number, key), f"{shown(name)} appears more than once") for number, name in repeated)
