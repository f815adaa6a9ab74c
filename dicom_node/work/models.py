"""Loads a model from its settings: chooses the engine for its kind, and the options."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from dicom_node.errors import ConfigurationError
from dicom_node.settings import NnunetModelSettings, TissueModelSettings, WorkSettings
from dicom_node.work.memory import machine_bytes
from inference import opening
from inference.errors import InferenceError
from inference.nnunet.contract import EngineOptions
from inference.types import MinimumExtent

if TYPE_CHECKING:
    from inference.models.package import ModelPackage
    from inference.types import ModelIdentity, Segmenter

_LARGEST_PART_OF_MEMORY = 0.8
"""The share of memory for one segmentation; the rest is for the weights, the node and the volume itself."""
_BARE_WORKER_BYTES = 300 * 1024**2
"""Python, numpy and an engine without a model."""
_COPIES_OF_WEIGHTS = 2
"""Once as read, and once in the compiled network."""


def describe_model(name: str, model: TissueModelSettings | NnunetModelSettings, work: WorkSettings) -> ModelIdentity:
    """The identity of model ``name`` in results, from its files only, without building the network or loading weights.

    Raises:
        ConfigurationError: the model's files are damaged or not the approved ones.
    """
    if isinstance(model, TissueModelSettings):
        from inference.tissue import TissueSegmenter  # noqa: PLC0415 - engines are imported where they are chosen

        return TissueSegmenter(name).identity
    try:
        return opening.identity_of(opening.models_of(_read_nnunet(model)), engine_options(model, work))
    except InferenceError as error:
        raise ConfigurationError(f"model {name!r}: {error}") from error


def load_segmenter(name: str, model: TissueModelSettings | NnunetModelSettings, work: WorkSettings) -> Segmenter:
    """Load the model, which takes seconds and the memory for its weights.

    Raises:
        InferenceError: the model's files are damaged or not the approved ones.
    """
    if isinstance(model, TissueModelSettings):
        from inference.tissue import TissueSegmenter  # noqa: PLC0415

        return TissueSegmenter(name)
    return opening.open_segmenter(_read_nnunet(model), engine_options(model, work))


def engine_options(model: NnunetModelSettings, work: WorkSettings) -> EngineOptions:
    """The engine options for ``model`` in a node.

    The memory limit of a segmentation depends on the machine, not on what is free at the moment: whether a volume is
    too large must not depend on what else is running. If memory is short at the time, the job is tried again.
    """
    return EngineOptions(
        device=work.device,
        backend=work.backend,
        precision=work.precision,
        threads=work.threads,
        parity=model.answer == "parity",
        body_crop=model.body_crop,
        mirroring=model.mirroring,
        memory_bytes=int(_LARGEST_PART_OF_MEMORY * machine_bytes()),
        cache_folder=work.cache_folder,
    )


def estimated_bytes(model: TissueModelSettings | NnunetModelSettings) -> int:
    """The approximate memory of a worker with ``model`` loaded; damaged files count 0, because loading reports them."""
    weights = 0
    if isinstance(model, NnunetModelSettings):
        with contextlib.suppress(InferenceError, OSError):
            models = opening.models_of(_read_nnunet(model, check_weights=False), check_weights=False)
            weights = opening.weights_bytes(models)
    return _BARE_WORKER_BYTES + _COPIES_OF_WEIGHTS * weights


def minimum_extent(name: str, model: TissueModelSettings | NnunetModelSettings) -> MinimumExtent:
    """The smallest volume for ``model`` and for the models that find the region it is cropped to.

    Raises:
        ConfigurationError: a manifest is invalid.
    """
    if not isinstance(model, NnunetModelSettings):
        return MinimumExtent()
    try:
        models = opening.models_of(_read_nnunet(model, check_weights=False), check_weights=False)
    except InferenceError as error:
        raise ConfigurationError(f"model {name!r}: {error}") from error
    return opening.minimum_extent(models)


def _read_nnunet(model: NnunetModelSettings, *, check_weights: bool = True) -> ModelPackage:
    from inference.models.package import check_digest, read_package  # noqa: PLC0415

    package = read_package(model.package, check_weights=check_weights)
    check_digest(package.identity, model.digest)
    return package
