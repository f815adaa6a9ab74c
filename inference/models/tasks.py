"""The known models: how TotalSegmentator 2.18 uses each of its models, as data (``tasks.json``).

A task becomes one package. The table says where its weights are released, which folders they unpack to, which part
finds which structures, and how HU are resampled. It leaves out tasks that need more than windows and a crop
(post-processing, several passes) and tasks for MR.
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
    """One nnU-Net model of a task; ``structures`` names its channels from 1 on."""

    dataset: str
    """The folder of the model in nnU-Net's results and in the released zip."""
    model: str
    """The folder within it: trainer, plans, configuration."""
    release: str | None
    structures: tuple[str, ...]

    @property
    def url(self) -> str | None:
        """Where its zip can be downloaded; None if a licence must be requested first."""
        return None if self.release is None else f"{_RELEASES}/{self.release}/{self.dataset}.zip"


@dataclass(frozen=True, slots=True)
class Task:
    """A known model. ``parts`` None: any folders that together have its structures.

    ``spacing_xyz_mm`` is the spacing to which TotalSegmentator resamples before nnU-Net; None: nnU-Net resamples.
    ``folds`` None: all folds in the folders. ``structures`` are its labels from 1 on; its parts also find ``auxiliary``
    structures, which TotalSegmentator drops. The margin of ``crop`` is the effective one: where TotalSegmentator crops
    by its ``total`` it uses 20 mm, whatever its own table says.
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
        """The labels of the task."""
        return dict(enumerate(self.structures, start=1))

    @property
    def downloadable(self) -> bool:
        """Whether all its weights can be downloaded without requesting a licence."""
        return self.parts is not None and all(part.url for part in self.parts)


@cache
def tasks() -> Mapping[str, Task]:
    """Every known task by name."""
    text = resources.files("inference.models").joinpath("tasks.json").read_text(encoding="utf-8")
    return {name: _task(name, entry) for name, entry in json.loads(text).items()}


def task(name: str) -> Task:
    """The task called ``name``.

    Raises:
        ModelPackageError: it is not in the table.
    """
    try:
        return tasks()[name]
    except KeyError:
        raise ModelPackageError(f"unknown task {name!r}; known tasks: {', '.join(tasks())}") from None


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
    """Read a part; if it finds all structures of its task, the table does not repeat them."""
    structures = of_task if entry["structures"] is None else tuple(entry["structures"])
    return TaskPart(entry["dataset"], entry["model"], entry["release"], structures)
