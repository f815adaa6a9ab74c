"""Opens the segmenter of an installed package, together with the model that it crops by."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from inference.errors import ModelPackageError
from inference.models import library
from inference.types import MinimumExtent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from inference.models.package import ModelPackage
    from inference.nnunet.contract import EngineOptions
    from inference.types import ModelIdentity, Segmenter


def open_segmenter(package: ModelPackage, options: EngineOptions) -> Segmenter:
    """Open the segmenter of an installed package whose digests were checked.

    Raises:
        InferenceError: the files of the package, or of one that it crops by, are not valid or were changed since the
            check; or this machine does not have what ``options`` ask for.
    """
    from inference.nnunet.cropped import CroppedSegmenter  # noqa: PLC0415 - import the engine only to open one
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
    """``package``, then the package in its library that it crops by, then the one that this one crops by, and so on.

    Raises:
        ModelPackageError: one of them is not installed or not valid, or crops by itself.
    """
    models = [package]
    while (crop := models[-1].crop) is not None:
        by = models[-1].identity.name
        if crop.model in {model.identity.name for model in models}:
            raise ModelPackageError(
                f"{by} crops to structures of {crop.model}, which in turn crops to structures of {by}"
            )
        try:
            models.append(library.read(package.folder.absolute().parent, crop.model, check_weights=check_weights))
        except ModelPackageError as error:
            raise type(error)(f"{by} crops to structures of {crop.model}: {error}") from error
    return tuple(models)


def identity_of(models: Sequence[ModelPackage], options: EngineOptions) -> ModelIdentity:
    """The identity that results of the first of ``models`` state: different voxels need different UIDs.

    Its version therefore includes every option that changes the result and is not the default, and the model that it
    crops by. What ``auto`` chooses on a machine is not included, because it only changes the rounding.
    """
    model, *others = models
    words = [model.identity.version, *_unusual(options), *_left_out(model, options)]
    for other in others:
        one = other.identity
        words += ["in", one.name, one.version, one.digest[:12], *_left_out(other, options)]
    return replace(model.identity, version=" ".join(words))


def _unusual(options: EngineOptions) -> Iterator[str]:
    if options.parity:
        yield "parity"
    elif not options.body_crop:
        yield "no body crop"
    yield from (choice for choice in (options.precision, options.backend) if choice != "auto")


def _left_out(model: ModelPackage, options: EngineOptions) -> Iterator[str]:
    """nnU-Net mirrors by default where a model was trained for it; TotalSegmentator does not, nor does the node."""
    if not options.mirroring and any(part.mirroring_axes for part in model.parts):
        yield "no mirroring"


def minimum_extent(models: Sequence[ModelPackage]) -> MinimumExtent:
    """The smallest volume that all of ``models`` accept."""
    minima = [model.minimum for model in models]
    return MinimumExtent(max(one.slices for one in minima), max(one.extent_mm for one in minima))


def weights_bytes(models: Sequence[ModelPackage]) -> int:
    """Total size of all weights files; raises OSError if one is missing."""
    return sum(path.stat().st_size for model in models for part in model.parts for path in part.weights)
