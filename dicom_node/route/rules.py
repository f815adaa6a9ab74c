"""The rules: which model a series goes to, where its results go, and why.

Rules are looked at in the order of the file. A rule whose conditions all hold either gives the series to its ``model``
or, with ``refuse``, ends the search with a reason. A series that two models are meant for gets two jobs; of several
matching rules for one model the first wins. Every outcome of every condition looked at is kept with the decision.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from dicom_node.errors import ConfigurationError
from dicom_node.route.conditions import (
    LIST_OPERATORS,
    NUMERIC_OPERATORS,
    OPERATORS,
    PATTERN_OPERATORS,
    Condition,
    Operand,
)
from dicom_node.route.requests import read_notices, read_requests
from dicom_node.route.values import FACT_ALIASES, FACTS, is_comparable
from dicom_node.route.yaml_core import load_yaml
from dicom_node.route.yaml_values import entries, known, mapping, text
from dicom_node.types import Decision

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dicom_node.settings import Settings
    from dicom_node.types import ConditionOutcome, ResultRequest, Series


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the file: either ``model`` or ``refusal`` is set. Without conditions it matches every series.

    ``requests`` of a rule that refuses ask for a notice alone.
    """

    name: str
    conditions: tuple[Condition, ...]
    model: str | None = None
    refusal: str | None = None
    requests: Mapping[str, ResultRequest] = field(default_factory=dict)
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules, in the order of the file."""

    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class ExplainedCondition:
    """One printable row of ``dicom-node rules explain``."""

    rule: str
    condition: str
    seen: str
    held: bool


def decide(series: Series, rules: Rules) -> tuple[Decision, ...]:
    """One decision per model that the series goes to, else a single one without model that says why not.

    Never raises, whatever the headers hold: an attribute that cannot be read is missing, and what is missing never
    matches.
    """
    outcomes: dict[str, tuple[ConditionOutcome, ...]] = {}
    chosen: dict[str, Rule] = {}
    refusing: Rule | None = None
    for rule in rules.rules:
        outcomes[rule.name] = tuple(condition.look_at(series) for condition in rule.conditions)
        if not all(outcome.held for outcome in outcomes[rule.name]):
            continue
        if rule.model is None:
            refusing = rule
            break
        chosen.setdefault(rule.model, rule)
    if chosen:
        return tuple(
            Decision(rule.name, model, rule.requests, rule.priority, outcomes) for model, rule in chosen.items()
        )
    if refusing is not None:
        return (Decision(refusing.name, None, refusing.requests, 0, outcomes, refusing.refusal),)
    return (Decision(None, None, {}, 0, outcomes),)


def explain(series: Series, rules: Rules) -> tuple[ExplainedCondition, ...]:
    """Every condition of every rule that was looked at, with the value that decided it; identities are not shown."""
    (decision, *_) = decide(series, rules)
    rows: list[ExplainedCondition] = []
    for name, outcomes in decision.outcomes.items():
        if not outcomes:
            rows.append(ExplainedCondition(name, "(none: every series)", "", held=True))
        rows.extend(ExplainedCondition(name, outcome.condition, outcome.seen, outcome.held) for outcome in outcomes)
    return tuple(rows)


def load_rules(file: Path, settings: Settings) -> Rules:
    """Read and check ``file`` (``config/rules.yaml`` explains every key).

    Raises:
        ConfigurationError: missing, not YAML, an unknown key, attribute, fact, operator, model, destination or
            option, or an operand that does not fit its operator; the message names the place.
    """
    try:
        content = load_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} is not YAML: {error}") from error
    try:
        top = mapping(content, "the file", {"rules"}, set())
        rules = tuple(
            _rule(entry, f"rules[{number}]", settings) for number, entry in enumerate(entries(top["rules"], "rules"))
        )
        _refuse_same_names(rules)
    except ConfigurationError as error:
        raise ConfigurationError(f"{file}: {error}") from error
    return Rules(rules)


def _refuse_same_names(rules: tuple[Rule, ...]) -> None:
    names = [rule.name for rule in rules]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(f"rules: names used more than once: {', '.join(twice)}")


def _rule(entry: Any, place: str, settings: Settings) -> Rule:
    fields = mapping(entry, place, {"name", "when"}, {"model", "refuse", "destinations", "priority"})
    name = text(fields["name"], f"{place}.name")
    place = f"{place} ({name})"
    if ("model" in fields) == ("refuse" in fields):
        raise ConfigurationError(f"{place} must have either model or refuse")
    if "refuse" in fields and "priority" in fields:
        raise ConfigurationError(f"{place} refuses; priority has no meaning there")
    priority = fields.get("priority", 0)
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise ConfigurationError(f"{place}.priority must be a whole number, not {priority!r}")
    conditions = enumerate(entries(fields["when"], f"{place}.when"))
    read = read_requests if "model" in fields else read_notices
    return Rule(
        name=name,
        conditions=tuple(_condition(condition, f"{place}.when[{number}]") for number, condition in conditions),
        model=known(fields["model"], f"{place}.model", "model", settings.models) if "model" in fields else None,
        refusal=text(fields["refuse"], f"{place}.refuse") if "refuse" in fields else None,
        requests=read(fields.get("destinations", []), f"{place}.destinations", settings.destinations),
        priority=priority,
    )


def _condition(entry: Any, place: str) -> Condition:
    fields = mapping(entry, place, set(), {"attribute", "fact", "of", *OPERATORS})
    subjects = {"attribute", "fact"} & fields.keys()
    operators = OPERATORS.keys() & fields.keys()
    if len(subjects) != 1:
        raise ConfigurationError(f"{place} must have either attribute or fact")
    if len(operators) != 1:
        raise ConfigurationError(f"{place} must have exactly one of {', '.join(OPERATORS)}; it has {len(operators)}")
    (subject,), (operator,) = subjects, operators
    of = fields.get("of", "all")
    if of not in ("all", "any"):
        raise ConfigurationError(f"{place}.of must be all or any, not {of!r}")
    return Condition(
        name=_subject(fields[subject], f"{place}.{subject}", is_fact=subject == "fact"),
        operator=operator,
        operand=_operand(fields[operator], operator, f"{place}.{operator}"),
        is_fact=subject == "fact",
        any_instance=of == "any",
    )


def _subject(value: Any, place: str, *, is_fact: bool) -> str:
    name = text(value, place)
    if is_fact and name not in FACTS and name not in FACT_ALIASES:
        raise ConfigurationError(f"{place}: unknown fact {name!r}; known: {', '.join([*FACTS, *FACT_ALIASES])}")
    if not is_fact and not is_comparable(name):
        raise ConfigurationError(f"{place}: {name!r} is no keyword of a standard attribute with a text or number value")
    return name


def _operand(value: Any, operator: str, place: str) -> Operand:
    if operator == "exists":
        if value is not True:
            raise ConfigurationError(f"{place} can only be true: a missing attribute never matches")
        return ""
    if operator in LIST_OPERATORS or isinstance(value, list):
        if operator not in LIST_OPERATORS | {"equals", "not_equals"}:
            raise ConfigurationError(f"{place} takes one value, not a list")
        choices = entries(value, place)
        if not choices:
            raise ConfigurationError(f"{place} must not be empty")
        return tuple(_scalar(choice, f"{place}[{number}]") for number, choice in enumerate(choices))
    scalar = _scalar(value, place)
    if operator in NUMERIC_OPERATORS and isinstance(scalar, str):
        raise ConfigurationError(f"{place} must be a number, not {value!r}")
    if operator in PATTERN_OPERATORS:
        _refuse_bad_pattern(str(scalar), place)
    return scalar


def _refuse_bad_pattern(pattern: str, place: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigurationError(f"{place} is no regular expression: {error}") from error


def _scalar(value: Any, place: str) -> str | float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigurationError(f"{place} must be text or a number, not {value!r}; put text in quotes")
    if isinstance(value, str) and not value.strip():
        raise ConfigurationError(f"{place} must not be empty")
    return value if isinstance(value, str) else float(value)
