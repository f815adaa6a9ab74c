"""From the settings of a model to the model: the only place that knows which engine serves which kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dicom_node.errors import ConfigurationError
from dicom_node.settings import NnunetModelSettings, TissueModelSettings, WorkSettings
from dicom_node.work.memory import machine_bytes
from inference.errors import InferenceError
from inference.nnunet.contract import EngineOptions

if TYPE_CHECKING:
    from inference.models.package import ModelPackage
    from inference.types import ModelIdentity, Segmenter

_LARGEST_PART_OF_MEMORY = 0.8
"""One segmentation may take; the rest is for the weights, the node and the volume itself."""
_BARE_WORKER_BYTES = 300 * 1024**2
"""Python, numpy and an engine without a model."""
_COPIES_OF_WEIGHTS = 2
"""As they are read, and as the network was compiled."""


def describe_model(name: str, model: object) -> ModelIdentity:
    """Which model ``name`` is, from its files alone: no network is built, no weight is loaded.

    Raises:
        ConfigurationError: the settings are of no known kind, or the model's files are not sound or not the approved.
    """
    try:
        if isinstance(model, TissueModelSettings):
            from inference.tissue import TissueSegmenter  # noqa: PLC0415 - engines are imported where they are chosen

            return TissueSegmenter(name).identity
        if isinstance(model, NnunetModelSettings):
            return _read_nnunet(model).identity
    except InferenceError as error:
        raise ConfigurationError(f"model {name!r}: {error}") from error
    raise ConfigurationError(f"model {name!r}: settings of an unknown kind ({type(model).__name__})")


def load_segmenter(name: str, model: TissueModelSettings | NnunetModelSettings, work: WorkSettings) -> Segmenter:
    """Load the model; takes seconds, and all the memory that its weights need.

    Raises:
        InferenceError: the model's files are not sound or not the approved ones.
    """
    if isinstance(model, TissueModelSettings):
        from inference.tissue import TissueSegmenter  # noqa: PLC0415

        return TissueSegmenter(name)
    return open_segmenter(_read_nnunet(model), engine_options(model, work))


def engine_options(model: NnunetModelSettings, work: WorkSettings) -> EngineOptions:
    """How the settings want ``model`` to be run in a node.

    What a segmentation may take is told from the machine, not from what is free at the moment: a volume is too large or
    it is not, whatever runs beside it; where memory is short it is tried again.
    """
    return EngineOptions(
        device=work.device,
        backend=work.backend,
        precision=work.precision,
        threads=work.threads,
        parity=model.answer == "parity",
        body_crop=model.body_crop,
        memory_bytes=int(_LARGEST_PART_OF_MEMORY * machine_bytes()),
        cache_folder=work.cache_folder,
    )


def open_segmenter(package: ModelPackage, options: EngineOptions) -> Segmenter:
    """The segmenter of an installed package, and of the one beside it that finds what it crops to.

    Raises:
        InferenceError: the files of either are not sound.
    """
    from inference.nnunet.engine import NnunetSegmenter  # noqa: PLC0415 - engines are imported where they are chosen

    segmenter = NnunetSegmenter(package, options)
    if package.crop is None:
        return segmenter
    from inference.models.package import read_package  # noqa: PLC0415
    from inference.nnunet.cropped import CroppedSegmenter  # noqa: PLC0415

    first = NnunetSegmenter(read_package(package.folder.parent / package.crop.model), options)
    return CroppedSegmenter(first, segmenter, package.crop)


def estimated_bytes(model: TissueModelSettings | NnunetModelSettings) -> int:
    """What a worker that has loaded ``model`` will about hold; missing files count nothing, for loading names them."""
    folder = model.package if isinstance(model, NnunetModelSettings) else None
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder else 0
    return _BARE_WORKER_BYTES + _COPIES_OF_WEIGHTS * weights


def minimum_extent(name: str, model: TissueModelSettings | NnunetModelSettings) -> tuple[int, float]:
    """How many slices, and how many millimetres along every axis, a volume must have for ``model``.

    Raises:
        ConfigurationError: the model's manifest is not sound.
    """
    if not isinstance(model, NnunetModelSettings):
        return 1, 0.0
    try:
        package = _read_nnunet(model, check_weights=False)
    except InferenceError as error:
        raise ConfigurationError(f"model {name!r}: {error}") from error
    return package.minimum_slices, package.minimum_extent_mm


def _read_nnunet(model: NnunetModelSettings, *, check_weights: bool = True) -> ModelPackage:
    from inference.models.package import check_digest, read_package  # noqa: PLC0415

    package = read_package(model.package, check_weights=check_weights)
    check_digest(package.identity, model.digest)
    return package
