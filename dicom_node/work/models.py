"""From the settings of a model to the model: the only place that knows which engine serves which kind."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from dicom_node.errors import ConfigurationError
from dicom_node.settings import NnunetModelSettings, TissueModelSettings, WorkSettings
from dicom_node.work.memory import machine_bytes
from inference.errors import InferenceError
from inference.nnunet.contract import EngineOptions
from inference.types import MinimumExtent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from inference.models.package import ModelPackage
    from inference.types import ModelIdentity, Segmenter

_LARGEST_PART_OF_MEMORY = 0.8
"""One segmentation may take; the rest is for the weights, the node and the volume itself."""
_BARE_WORKER_BYTES = 300 * 1024**2
"""Python, numpy and an engine without a model."""
_COPIES_OF_WEIGHTS = 2
"""As they are read, and as the network was compiled."""


def describe_model(name: str, model: object, work: WorkSettings) -> ModelIdentity:
    """What results of model ``name`` will name, from its files alone: no network is built, no weight is loaded.

    Raises:
        ConfigurationError: the settings are of no known kind, or the model's files are not sound or not the approved.
    """
    try:
        if isinstance(model, TissueModelSettings):
            from inference.tissue import TissueSegmenter  # noqa: PLC0415 - engines are imported where they are chosen

            return TissueSegmenter(name).identity
        if isinstance(model, NnunetModelSettings):
            return identity_of(models_of(_read_nnunet(model)), engine_options(model, work))
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
    """The segmenter of an installed package whose digests were compared, inside the one that finds what it crops to.

    Raises:
        InferenceError: the files of either are not sound, or not any more those that were compared.
    """
    from inference.nnunet.cropped import CroppedSegmenter  # noqa: PLC0415 - engines are imported where they are chosen
    from inference.nnunet.engine import NnunetSegmenter  # noqa: PLC0415

    models = models_of(package)
    opened: NnunetSegmenter | CroppedSegmenter | None = None
    for number in reversed(range(len(models))):
        one = replace(models[number], identity=identity_of(models[number:], options))
        segmenter = NnunetSegmenter(one, options)
        opened = CroppedSegmenter(opened, segmenter, one.crop) if opened and one.crop else segmenter
    assert opened is not None
    return opened


def models_of(package: ModelPackage, *, check_weights: bool = True) -> tuple[ModelPackage, ...]:
    """``package``, then the one beside it that finds what it crops to, then the one that this one needs, and so on.

    Raises:
        ModelPackageError: one of them is not installed or not sound, or works in a crop of itself.
    """
    from inference.errors import ModelPackageError  # noqa: PLC0415
    from inference.models import library  # noqa: PLC0415

    models = [package]
    while (crop := models[-1].crop) is not None:
        by = models[-1].identity.name
        if crop.model in {model.identity.name for model in models}:
            raise ModelPackageError(f"{by} crops to what {crop.model} finds, and that one to what {by} finds")
        try:
            models.append(library.read(package.folder.absolute().parent, crop.model, check_weights=check_weights))
        except ModelPackageError as error:
            raise type(error)(f"{by} works inside what {crop.model} finds: {error}") from error
    return tuple(models)


def identity_of(models: Sequence[ModelPackage], options: EngineOptions) -> ModelIdentity:
    """What results of the first of ``models`` name: other voxels for the same images must have other UIDs.

    So its version tells what of ``options`` changes the answer, unless it is the default, and the model that it crops
    by. What ``auto`` picks on a machine does not belong to it: that differs by rounding.
    """
    identity, *others = (model.identity for model in models)
    words = [identity.version, *_unusual(options)]
    for other in others:
        words += ["in", other.name, other.version, other.digest[:12]]
    return replace(identity, version=" ".join(words))


def _unusual(options: EngineOptions) -> Iterator[str]:
    if options.parity:
        yield "parity"
    elif not options.body_crop:
        yield "no body crop"
    yield from (choice for choice in (options.precision, options.backend) if choice != "auto")


def estimated_bytes(model: TissueModelSettings | NnunetModelSettings) -> int:
    """What a worker that has loaded ``model`` will about hold; unsound files count nothing, for loading names them."""
    weights = 0
    if isinstance(model, NnunetModelSettings):
        with contextlib.suppress(InferenceError, OSError):
            models = models_of(_read_nnunet(model, check_weights=False), check_weights=False)
            weights = sum(_weights_bytes(package) for package in models)
    return _BARE_WORKER_BYTES + _COPIES_OF_WEIGHTS * weights


def _weights_bytes(package: ModelPackage) -> int:
    return sum(path.stat().st_size for part in package.parts for path in part.weights)


def minimum_extent(name: str, model: TissueModelSettings | NnunetModelSettings) -> MinimumExtent:
    """What a volume must have for ``model`` and for the models that find what it crops to.

    Raises:
        ConfigurationError: the manifest of either is not sound.
    """
    if not isinstance(model, NnunetModelSettings):
        return MinimumExtent()
    try:
        models = models_of(_read_nnunet(model, check_weights=False), check_weights=False)
    except InferenceError as error:
        raise ConfigurationError(f"model {name!r}: {error}") from error
    return minimum_of(models)


def minimum_of(models: Iterable[ModelPackage]) -> MinimumExtent:
    """The least that all of ``models`` need."""
    minima = [model.minimum for model in models]
    return MinimumExtent(max(one.slices for one in minima), max(one.extent_mm for one in minima))


def _read_nnunet(model: NnunetModelSettings, *, check_weights: bool = True) -> ModelPackage:
    from inference.models.package import check_digest, read_package  # noqa: PLC0415

    package = read_package(model.package, check_weights=check_weights)
    check_digest(package.identity, model.digest)
    return package
