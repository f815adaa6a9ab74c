"""Scores of many cases as one table, in Markdown and JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.structures import structure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference.evaluation.scores import CaseScore


@dataclass(frozen=True, slots=True)
class Row:
    """One structure, over all cases whose truth contains it."""

    name: str
    group: str
    cases: int
    dice_mean: float
    dice_min: float
    surface_dice_mean: float
    volume_ratio: float
    """Found volume divided by true volume, median over the cases."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows by structure, and summary figures."""

    rows: tuple[Row, ...]
    cases: int
    mixed_up: tuple[str, ...]
    voxels_on_wrong_side: int

    @property
    def dice_mean(self) -> float:
        """Mean over all structures of their mean Dice."""
        return float(np.mean([row.dice_mean for row in self.rows]))

    @property
    def surface_dice_mean(self) -> float:
        """Mean over all structures of their mean normalised surface Dice."""
        return float(np.mean([row.surface_dice_mean for row in self.rows]))

    @property
    def worst(self) -> Row:
        """The structure with the lowest mean Dice."""
        return min(self.rows, key=lambda row: row.dice_mean)

    def as_json(self) -> dict[str, Any]:
        """The whole table as plain values."""
        return {
            "cases": self.cases,
            "dice_mean": self.dice_mean,
            "surface_dice_mean": self.surface_dice_mean,
            "worst": self.worst.name,
            "mixed_up": list(self.mixed_up),
            "voxels_on_wrong_side": self.voxels_on_wrong_side,
            "structures": [asdict(row) for row in self.rows],
        }

    def as_markdown(self) -> str:
        """Summary by group, then every structure."""
        lines = ["| group | structures | Dice | NSD 3 mm | lowest Dice |", "|---|---|---|---|---|"]
        for group in dict.fromkeys(row.group for row in self.rows):
            members = [row for row in self.rows if row.group == group]
            dice, surface = (
                np.mean([getattr(row, key) for row in members]) for key in ("dice_mean", "surface_dice_mean")
            )
            worst = min(members, key=lambda row: row.dice_mean)
            lines.append(
                f"| {group} | {len(members)} | {dice:.3f} | {surface:.3f} | {worst.dice_mean:.3f} {worst.name} |"
            )
        total = f"{self.dice_mean:.3f}** | **{self.surface_dice_mean:.3f}"
        lines.append(
            f"| **all** | **{len(self.rows)}** | **{total}** | **{self.worst.dice_mean:.3f} {self.worst.name}** |"
        )
        mixed = ", ".join(self.mixed_up) or "none"
        wrong = f"voxels on the wrong side: {self.voxels_on_wrong_side}."
        lines += [
            "",
            f"Paired structures on the wrong side: {len(self.mixed_up)} ({mixed}); {wrong}",
            "",
            "| structure | cases | Dice | lowest | NSD 3 mm | found / true volume |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {row.name} | {row.cases} | {row.dice_mean:.3f} | {row.dice_min:.3f} | {row.surface_dice_mean:.3f} "
            f"| {row.volume_ratio:.2f} |"
            for row in self.rows
        ]
        return "\n".join(lines) + "\n"


def tabulate(scores: Sequence[CaseScore]) -> Table:
    """Collect the scores of all cases; structures keep their order in the truth."""
    names = dict.fromkeys(entry.name for case in scores for entry in case.structures)
    rows = []
    for name in names:
        entries = [entry for case in scores for entry in case.structures if entry.name == name]
        dice = [entry.dice for entry in entries]
        rows.append(
            Row(
                name=name,
                group=structure(name).group,
                cases=len(entries),
                dice_mean=float(np.mean(dice)),
                dice_min=float(np.min(dice)),
                surface_dice_mean=float(np.mean([entry.surface_dice for entry in entries])),
                volume_ratio=float(np.median([entry.found_ml / entry.truth_ml for entry in entries])),
            )
        )
    return Table(
        rows=tuple(rows),
        cases=len(scores),
        mixed_up=tuple(name for case in scores for name in case.mixed_up),
        voxels_on_wrong_side=sum(case.voxels_on_wrong_side for case in scores),
    )
