"""The configuration of a training: a YAML file like those in ``config/training/``, checked before any computation."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import yaml

from inference.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Planner = Literal[
    "ExperimentPlanner", "ResEncUNetPlanner", "nnUNetPlannerResEncM", "nnUNetPlannerResEncL", "nnUNetPlannerResEncXL"
]
Trainer = Literal["nnunet", "sampled"]
_LARGEST_FILE_BYTES = 100_000
_Bounds = tuple[float, float]
_WHOLE: dict[str, _Bounds] = {
    "epochs": (1, 100_000),
    "iterations_per_epoch": (1, 100_000),
    "validation_iterations": (1, 10_000),
    "seed": (0, 2**31),
    "batch_size": (1, 1024),
}
_NUMBERS: dict[str, _Bounds] = {
    "gpu_memory_gb": (1, 1000),
    "spacing_mm": (0.1, 20),
    "learning_rate": (1e-7, 1),
    "weight_decay": (0, 1),
    "window_step": (0.1, 1),
}


@dataclass(frozen=True, slots=True)
class TrainingConfiguration:
    """One configuration; None: as chosen by nnU-Net's planner.

    ``trainer``: ``nnunet`` is nnU-Net's own training, ``sampled`` its cheap variant for CPUs
    (:class:`inference.training.sampled.SampledTrainer`). ``patch_size``, ``features_per_stage`` and
    ``convolutions_per_stage`` replace the planned values; per-stage lists start at full resolution, and the decoder of
    a replaced network has one convolution per stage. ``fold``: index in splits_final.json, or ``all``: every case is
    used for training, and validation runs on training cases.
    """

    name: str
    epochs: int
    iterations_per_epoch: int
    validation_iterations: int
    seed: int
    spacing_mm: float | None = None
    trainer: Trainer = "nnunet"
    mirroring: bool = False
    fold: int | Literal["all"] = 0
    planner: Planner = "ExperimentPlanner"
    gpu_memory_gb: float | None = None
    patch_size: tuple[int, ...] | None = None
    batch_size: int | None = None
    features_per_stage: tuple[int, ...] | None = None
    convolutions_per_stage: tuple[int, ...] | None = None
    learning_rate: float = 1e-2
    weight_decay: float = 3e-5
    resampling: Literal["corners", "nnunet"] = "corners"
    window_step: float = 0.5
    licence: str = "not stated"
    intended_use: str = "Research use only - not for clinical use"
    half_precision: bool = False
    """Whether the package stores the weights as 16-bit floats."""

    def described(self) -> dict[str, Any]:
        """All values in JSON types."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def read_configuration(path: Path) -> TrainingConfiguration:
    """Read a configuration.

    Raises:
        TrainingError: the file can't be read, or an entry is missing, unknown or not allowed.
    """
    try:
        data = path.read_bytes()
        if len(data) > _LARGEST_FILE_BYTES:
            raise TrainingError(f"{path} has {len(data)} bytes, expected at most {_LARGEST_FILE_BYTES}")
        content = yaml.safe_load(data)
    except OSError as error:
        raise TrainingError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise TrainingError(f"{path} is not YAML") from error
    if not isinstance(content, dict):
        raise TrainingError(f"{path} holds {type(content).__name__}, expected a table of settings")
    try:
        return configuration_of(content)
    except TrainingError as error:
        raise TrainingError(f"{path}: {error}") from None


def configuration_of(content: Mapping[Any, Any]) -> TrainingConfiguration:
    """The configuration with the given entries.

    Raises:
        TrainingError: an entry is missing, unknown or not allowed.
    """
    known = {field.name: field for field in fields(TrainingConfiguration)}
    foreign = sorted(str(key)[:80] for key in set(content) - set(known))
    missing = sorted(name for name, field in known.items() if field.default is MISSING and name not in content)
    if foreign or missing:
        raise TrainingError(f"unknown settings {foreign}, missing settings {missing}")
    found = TrainingConfiguration(**{key: _checked(key, value) for key, value in content.items()})
    if (found.features_per_stage is None) != (found.convolutions_per_stage is None):
        raise TrainingError("features_per_stage and convolutions_per_stage can only be given together")
    if found.features_per_stage and len(found.features_per_stage) != len(found.convolutions_per_stage or ()):
        raise TrainingError("features_per_stage and convolutions_per_stage have different lengths")
    if found.features_per_stage and (found.planner != "ExperimentPlanner" or found.patch_size is None):
        raise TrainingError("features_per_stage needs patch_size and the planner ExperimentPlanner")
    if found.trainer == "sampled" and found.mirroring:
        raise TrainingError("the trainer 'sampled' never mirrors, but mirroring is true")
    return found


def _checked(key: str, value: Any) -> Any:  # noqa: PLR0911 - one line per kind of setting
    choices = {
        "planner": get_args(Planner),
        "trainer": get_args(Trainer),
        "resampling": ("corners", "nnunet"),
        "mirroring": (True, False),
        "half_precision": (True, False),
    }
    if key in choices:
        if not any(value is each or (isinstance(value, str) and value == each) for each in choices[key]):
            raise TrainingError(f"{key} is {_seen(value)}, expected one of {', '.join(map(str, choices[key]))}")
        return value
    if key in _WHOLE:
        return int(_number(key, value, _WHOLE[key], whole=True))
    if key in _NUMBERS:
        return None if value is None and key in ("gpu_memory_gb", "spacing_mm") else _number(key, value, _NUMBERS[key])
    if key == "fold":
        return value if value == "all" else int(_number(key, value, (0, 100), whole=True))
    if key == "patch_size":
        return _whole_numbers(key, value, (3, 3), (8, 512))
    if key in ("features_per_stage", "convolutions_per_stage"):
        return _whole_numbers(key, value, (2, 8), (1, 1024))
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > 500:
        raise TrainingError(f"{key} is {_seen(value)}, expected a line of text")
    return value


def _number(key: str, value: Any, bounds: _Bounds, *, whole: bool = False) -> float:
    kinds = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kinds) or not bounds[0] <= value <= bounds[1]:
        kind = "a whole number" if whole else "a number"
        raise TrainingError(f"{key} is {_seen(value)}, expected {kind} from {bounds[0]:g} to {bounds[1]:g}")
    return cast("float", value)


def _whole_numbers(key: str, value: Any, lengths: tuple[int, int], bounds: _Bounds) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not lengths[0] <= len(value) <= lengths[1]:
        raise TrainingError(f"{key} is {_seen(value)}, expected a list of {lengths[0]} to {lengths[1]} numbers")
    return tuple(int(_number(key, each, bounds, whole=True)) for each in value)


def _seen(value: Any) -> str:
    return repr(value)[:80]
