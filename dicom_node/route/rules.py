"""The rules: which model a series goes to, where its results go, and why.

Rules are evaluated in the order of the file. A rule whose conditions are all met either assigns the series to its
``model`` or, with ``refuse``, ends the evaluation with a reason. A series that matches rules for two models gets two
jobs; of several matching rules for one model, the first wins. The decision keeps the outcome of every condition
evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dicom_node.standard.localizers import without_localizers
from dicom_node.types import Decision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dicom_node.route.conditions import Condition
    from dicom_node.types import ConditionOutcome, ResultRequest, Series


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the file: either ``model`` or ``refusal`` is set. Without conditions it matches every series.

    The ``requests`` of a rule that refuses contain a notice only. ``unchecked_hu``: see
    :class:`~dicom_node.types.Series`.
    """

    name: str
    conditions: tuple[Condition, ...]
    model: str | None = None
    refusal: str | None = None
    requests: Mapping[str, ResultRequest] = field(default_factory=dict)
    priority: int = 0
    unchecked_hu: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules, in the order of the file."""

    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class ExplainedCondition:
    """One row of ``dicom-node rules explain``."""

    rule: str
    condition: str
    seen: str
    held: bool


def decide(series: Series, rules: Rules) -> tuple[Decision, ...]:
    """One decision per model for the series, or a single decision without a model that says why there is none.

    Localizers in a series of other images are not looked at, because they are set aside later, too.

    Never raises, whatever the headers contain: an attribute that can't be read counts as missing and never matches.
    """
    series = without_localizers(series)
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
            Decision(rule.name, model, rule.requests, rule.priority, outcomes, unchecked_hu=rule.unchecked_hu)
            for model, rule in chosen.items()
        )
    if refusing is not None:
        return (Decision(refusing.name, None, refusing.requests, 0, outcomes, refusing.refusal),)
    return (Decision(None, None, {}, 0, outcomes),)


def explain(series: Series, rules: Rules) -> tuple[ExplainedCondition, ...]:
    """Every condition of every evaluated rule, with the value that decided it; identifying values are not shown."""
    (decision, *_) = decide(series, rules)
    rows: list[ExplainedCondition] = []
    for name, outcomes in decision.outcomes.items():
        if not outcomes:
            rows.append(ExplainedCondition(name, "(none: matches every series)", "", held=True))
        rows.extend(ExplainedCondition(name, outcome.condition, outcome.seen, outcome.held) for outcome in outcomes)
    return tuple(rows)
