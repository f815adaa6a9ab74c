"""The known models: what TotalSegmentator 2.18 does with each of its weights, as data (``tasks.json``).

A task is one package: where its weights are released, which folders they unpack to, which structures come out of which
part, and how HU come to the network. Tasks that need more than windows and a crop (clean-up of what was found, several
passes) and those for MR are not in the table.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from inference.errors import ModelPackageError
from inference.models.package import Crop

if TYPE_CHECKING:
    from collections.abc import Mapping

_RELEASES = "https://github.com/wasserth/TotalSegmentator/releases/download"


@dataclass(frozen=True, slots=True)
class TaskPart:
    """One nnU-Net model of a task; ``structures`` are its channels from 1 on."""

    dataset: str
    """The folder that nnU-Net's results and the released zip hold it in."""
    model: str
    """The folder therein: trainer, plans, configuration."""
    release: str | None
    structures: tuple[str, ...]

    @property
    def url(self) -> str | None:
        """Where its zip can be downloaded; None where a licence must be asked for first."""
        return None if self.release is None else f"{_RELEASES}/{self.release}/{self.dataset}.zip"


@dataclass(frozen=True, slots=True)
class Task:
    """A known model. ``parts`` None: any folders that together name its structures.

    ``spacing_xyz_mm`` is what TotalSegmentator resamples to before nnU-Net; None: nnU-Net resamples by itself.
    ``folds`` None: all that are there. ``structures`` are its labels from 1 on; its parts give ``auxiliary`` ones too,
    which TotalSegmentator drops. The margin of ``crop`` is the one that
    is used: where TotalSegmentator crops by its ``total`` it takes 20 mm, whatever its own table says.
    """

    name: str
    title: str
    version: str
    licence: str
    folds: tuple[str, ...] | None
    spacing_xyz_mm: tuple[float, float, float] | None
    window_step: float
    crop: Crop | None
    structures: tuple[str, ...]
    parts: tuple[TaskPart, ...] | None
    auxiliary: tuple[str, ...] = ()

    @property
    def names_by_label(self) -> dict[int, str]:
        """Its labels."""
        return dict(enumerate(self.structures, start=1))

    @property
    def downloadable(self) -> bool:
        """Whether all its weights can be fetched without asking anybody."""
        return self.parts is not None and all(part.url for part in self.parts)


@cache
def tasks() -> Mapping[str, Task]:
    """Every known task by name."""
    text = resources.files("inference.models").joinpath("tasks.json").read_text(encoding="utf-8")
    return {name: _task(name, entry) for name, entry in json.loads(text).items()}


def task(name: str) -> Task:
    """The task called ``name``.

    Raises:
        ModelPackageError: the table does not know it.
    """
    try:
        return tasks()[name]
    except KeyError:
        raise ModelPackageError(f"no task is called {name!r}; known: {', '.join(tasks())}") from None


def _task(name: str, entry: Mapping[str, Any]) -> Task:
    structures = tuple(entry["labels"])
    return Task(
        name=name,
        title=entry["title"],
        version=entry["version"],
        licence=entry["licence"],
        folds=None if entry["folds"] is None else tuple(entry["folds"]),
        spacing_xyz_mm=None if entry["spacing_xyz_mm"] is None else tuple(entry["spacing_xyz_mm"]),
        window_step=entry["window_step"],
        crop=None if entry["crop"] is None else _crop(entry["crop"]),
        structures=structures,
        auxiliary=tuple(entry.get("auxiliary", ())),
        parts=None if entry["parts"] is None else tuple(_part(part, structures) for part in entry["parts"]),
    )


def _crop(entry: Mapping[str, Any]) -> Crop:
    return Crop(entry["model"], tuple(entry["structures"]), tuple(entry["margin_xyz_mm"]))


def _part(entry: Mapping[str, Any], of_task: tuple[str, ...]) -> TaskPart:
    """A part that gives everything its task gives does not list it again."""
    structures = of_task if entry["structures"] is None else tuple(entry["structures"])
    return TaskPart(entry["dataset"], entry["model"], entry["release"], structures)
