"""An answer beside the accepted one: what differs, whether it is within the limits, and what may have caused it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dicom_node.constancy.baseline import Answer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dicom_node.constancy.baseline import Limits
    from dicom_node.constancy.conditions import Conditions
    from inference.types import ModelIdentity

_SHOWN_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Change:
    """Something that an answer may depend on and that is not as it was at acceptance."""

    what: str
    accepted: str
    now: str

    def __str__(self) -> str:
        return f"{self.what}: {self.now}, accepted was {self.accepted}"


@dataclass(frozen=True, slots=True)
class Compared:
    """One structure of one phantom. ``dice`` is that of accepted and new labels, ``exceeded`` names the limits."""

    phantom: str
    structure: str
    dice: float
    accepted: Answer
    found: Answer
    exceeded: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        row: dict[str, Any] = {"phantom": self.phantom, "structure": self.structure, "dice": self.dice}
        for key in ("volume_ml", "mean_hu", "dice"):
            name = "dice_with_truth" if key == "dice" else key
            row |= {f"accepted_{name}": getattr(self.accepted, key), name: getattr(self.found, key)}
        return {**row, "exceeded": list(self.exceeded)}


@dataclass(frozen=True, slots=True)
class Check:
    """The result of a check. ``identical``: the phantoms whose labels are the accepted ones, voxel by voxel."""

    checked_at: str
    accepted_at: str
    model: ModelIdentity
    accepted_model: ModelIdentity
    conditions: Conditions
    changes: tuple[Change, ...]
    structures: tuple[Compared, ...]
    phantoms: int
    identical: int

    @property
    def is_other_model(self) -> bool:
        """Whether the files of the model, or the options that it runs with, are others than at acceptance."""
        now, accepted = self.model, self.accepted_model
        return (now.digest, now.version) != (accepted.digest, accepted.version)

    @property
    def exceeded(self) -> tuple[Compared, ...]:
        """What is beyond the limits."""
        return tuple(each for each in self.structures if each.exceeded)

    @property
    def drifted(self) -> bool:
        """Whether a person must look: the answer is beyond the limits, or it is that of another model."""
        return self.is_other_model or bool(self.exceeded)

    @property
    def lowest_dice(self) -> float:
        """Of accepted and new labels; 1 where no structure was found at either time."""
        return min((each.dice for each in self.structures), default=1.0)

    @property
    def conclusion(self) -> str:
        """In a sentence or two, the cause first if there is one."""
        beyond = f"{len(self.exceeded)} of {len(self.structures)} structures are beyond the limits"
        changed = "; ".join(map(str, self.changes))
        if self.is_other_model:
            return (
                f"This is not the model that was accepted ({changed}). {beyond}. "
                "If the change was intended, accept the model again."
            )
        if self.exceeded and self.changes:
            return f"Drift: {beyond}. Changed since acceptance: {changed}."
        if self.exceeded:
            return f"Drift: {beyond}. Nothing that is recorded has changed; suspect the machine itself."
        if self.identical == self.phantoms:
            same = f"all {self.phantoms} label maps are the accepted ones, voxel by voxel"
        else:
            same = f"all structures are within the limits, lowest Dice {self.lowest_dice:.4f}"
        return f"No drift: {same}." + (f" Changed since acceptance: {changed}." if changed else "")

    def as_json(self) -> dict[str, Any]:
        """Plain values for programs."""
        return {**self.as_record(), "structures": [each.as_json() for each in self.structures]}

    def as_record(self) -> dict[str, Any]:
        """The same without the structures that are within the limits."""
        return {
            "checked_at": self.checked_at,
            "accepted_at": self.accepted_at,
            "drifted": self.drifted,
            "conclusion": self.conclusion,
            "model": asdict(self.model),
            "conditions": asdict(self.conditions),
            "changes": [asdict(each) for each in self.changes],
            "phantoms": self.phantoms,
            "identical": self.identical,
            "lowest_dice": self.lowest_dice,
            "exceeded": [each.as_json() for each in self.exceeded],
        }


def changes_between(
    accepted: tuple[ModelIdentity, Conditions], now: tuple[ModelIdentity, Conditions]
) -> tuple[Change, ...]:
    """What is not as it was at acceptance, the model first."""
    of_model = _differing(_told_apart(accepted[0]), _told_apart(now[0]))
    return (*of_model, *_differing(asdict(accepted[1]), asdict(now[1])))


def _told_apart(model: ModelIdentity) -> dict[str, str]:
    """The name is not included: it is the one under which the node or a library has the model."""
    digest = f"{model.digest[:_SHOWN_DIGITS]}…"
    return {"digest of the model": digest, "version and options of the model": model.version}


def _differing(accepted: Mapping[str, str], now: Mapping[str, str]) -> Iterator[Change]:
    for what, before in accepted.items():
        if now[what] != before:
            words = what.replace("_", " ").replace("dicom node", "dicom-node")
            yield Change(words, before, now[what])


def compare(
    phantom: str,
    accepted: Sequence[Answer],
    found: Sequence[Answer],
    dice_by_name: Mapping[str, float],
    voxel_ml: float,
    limits: Limits,
) -> Iterator[Compared]:
    """Each structure that was found at either time.

    ``dice_by_name`` is of the accepted and the new labels; a structure that only one of them has counts as 0.
    """
    before, after = ({each.name: each for each in answers} for answers in (accepted, found))
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name), after.get(name)
        old, new = old or Answer(name, 0.0, None, None), new or Answer(name, 0.0, None, None)
        if old.volume_ml == new.volume_ml == 0:
            continue
        dice = dice_by_name.get(name, 0.0)
        yield Compared(phantom, name, dice, old, new, tuple(_exceeded(old, new, dice, voxel_ml, limits)))


def _exceeded(old: Answer, new: Answer, dice: float, voxel_ml: float, limits: Limits) -> Iterator[str]:
    # Dice = 1 - different / (old + new): the voxels that only one of the two has
    different = round((1 - dice) * (old.volume_ml + new.volume_ml) / voxel_ml)
    change_ml = abs(new.volume_ml - old.volume_ml)
    change = round(change_ml / voxel_ml)
    if dice < limits.lowest_dice and different > limits.free_voxels:
        yield "dice"
    if change_ml > limits.volume_percent / 100 * old.volume_ml and change > limits.free_voxels:
        yield "volume"
    if old.mean_hu is None or new.mean_hu is None:
        if different > limits.free_voxels:
            yield "found" if old.mean_hu is None else "not found"
    elif abs(new.mean_hu - old.mean_hu) > limits.mean_hu:
        yield "mean HU"
