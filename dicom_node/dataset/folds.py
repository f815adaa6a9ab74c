"""Folds of a cross-validation that keep all cases of a patient on one side.

nnU-Net's own folds are drawn from the cases. Two series of one patient look alike, so with one of them in training and
the other in validation, a model is validated on what it has seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

FOLDS = 5
"""As many as nnU-Net makes."""


def by_patient(cases: Iterable[str], patients: Mapping[str, str]) -> list[list[str]]:
    """The ``cases`` of each patient, sorted; ``patients`` says whose each is."""
    groups: dict[str, list[str]] = {}
    for case in sorted(cases):
        groups.setdefault(patients[case], []).append(case)
    return list(groups.values())


def folds(groups: Sequence[Sequence[str]], count: int = FOLDS) -> list[dict[str, list[str]]]:
    """A dictionary with ``train`` and ``val`` for each fold, as in ``splits_final.json``.

    ``groups`` are the cases of each patient. Every case is in ``val`` once. The patients with the most cases are dealt
    out first, each to the fold with the fewest, so that two folds differ by no more than the cases of one patient.
    With fewer than ``count`` patients there are as many folds as patients, and none with a single one.
    """
    if len(groups) <= 1:
        return []
    validation: list[list[str]] = [[] for _ in range(min(count, len(groups)))]
    for group in sorted(groups, key=len, reverse=True):
        min(validation, key=len).extend(group)
    every = {case for group in groups for case in group}
    return [{"train": sorted(every.difference(cases)), "val": sorted(cases)} for cases in validation]
