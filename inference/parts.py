"""The classes of the published data set, and how the models at 1.5 mm divide them into five parts.

``parts.csv`` has the labels of both versions: ``v1``, the 104 structures of the paper, with the division of
TotalSegmentator 1 (its data sets 251 to 255), and ``v2``, the 117 of data set 2.0.1, with that of TotalSegmentator 2
(291 to 295). Models at 3 and 6 mm have all classes.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Literal

from inference.structures import STRUCTURES, paper_labels

if TYPE_CHECKING:
    from collections.abc import Mapping

Classes = Literal["v1", "v2"]


@dataclass(frozen=True, slots=True)
class LabelSet:
    """The labels of one model: ``name`` is its part, or ``total``; ``dataset_id`` TotalSegmentator's number for it."""

    name: str
    dataset_id: int | None
    names_by_label: Mapping[int, str]

    @property
    def label_by_name(self) -> dict[str, int]:
        """The labels by structure."""
        return {name: label for label, name in self.names_by_label.items()}


@cache
def parts(classes: Classes) -> Mapping[str, LabelSet]:
    """The five parts by name, in the order in which TotalSegmentator merges them."""
    labels: dict[tuple[str, int], dict[int, str]] = {}
    with resources.files("inference").joinpath("parts.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["classes"] == classes:
                part = labels.setdefault((row["part"], int(row["dataset_id"])), {})
                part[int(row["label"])] = row["structure"]
    return {name: LabelSet(name, dataset_id, table) for (name, dataset_id), table in labels.items()}


def total(classes: Classes) -> LabelSet:
    """All classes under the labels of the published data set."""
    if classes == "v1":
        return LabelSet("total", None, paper_labels())
    named = {entry.total117_index: entry.name for entry in STRUCTURES if entry.total117_index is not None}
    return LabelSet("total", None, dict(sorted(named.items())))
