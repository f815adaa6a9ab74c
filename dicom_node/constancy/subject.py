"""The model that is accepted or checked, opened as in the node where it is one of the node's, else as by `evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dicom_node.errors import ConfigurationError
from dicom_node.segment.model import find_model
from dicom_node.work.models import describe_model, load_segmenter
from inference.errors import InferenceError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dicom_node.settings import Settings, WorkSettings
    from inference.nnunet.contract import EngineOptions
    from inference.types import ModelIdentity, Segmentation, Segmenter, Volume


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """``identity`` is that of its results; ``segment`` labels every voxel of a volume."""

    identity: ModelIdentity
    segment: Callable[[Volume], Segmentation]


def model_of_node(name: str, settings: Settings, work: WorkSettings) -> Subject:
    """The model ``name`` of a node's configuration, run as ``work`` says; its weights load with the first volume.

    Raises:
        ConfigurationError: its files are not sound, or not the approved ones. Also raised by ``segment``.
    """
    model = settings.models[name]
    return Subject(describe_model(name, model, work), _Loaded(name, lambda: load_segmenter(name, model, work)))


def model_of_library(name: str, models_folder: Path, options: EngineOptions) -> Subject:
    """The model that :func:`dicom_node.segment.model.find_model` finds; its weights load with the first volume.

    Raises:
        ConfigurationError: there is no such model, or its files are not sound. Also raised by ``segment``.
    """
    model = find_model(name, models_folder, options)
    return Subject(model.identity, _Loaded(model.identity.name, lambda: model.load(options)))


class _Loaded:
    """Loads a segmenter once, for the first volume."""

    def __init__(self, name: str, load: Callable[[], Segmenter]) -> None:
        self._name = name
        self._load = load
        self._segmenter: Segmenter | None = None

    def __call__(self, volume: Volume) -> Segmentation:
        try:
            self._segmenter = self._segmenter or self._load()
            return self._segmenter.segment(volume, lambda *_: None)
        except InferenceError as error:
            raise ConfigurationError(f"model {self._name}: {error}") from error
