"""From an installed package to a segmenter that is ready to run, inside the one that finds what it crops to."""

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
    """The segmenter of an installed package whose digests were compared.

    Raises:
        InferenceError: the files of the package, or of one that it crops by, are not sound, or no longer those that
            were compared; or this machine does not have what ``options`` ask for.
    """
    from inference.nnunet.cropped import CroppedSegmenter  # noqa: PLC0415 - engines are imported where one is opened
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

    So its version names what of ``options`` changes the answer, unless it is the default, and the model that it crops
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


def minimum_extent(models: Sequence[ModelPackage]) -> MinimumExtent:
    """What a volume must measure for all of ``models``."""
    minima = [model.minimum for model in models]
    return MinimumExtent(max(one.slices for one in minima), max(one.extent_mm for one in minima))


def weights_bytes(models: Sequence[ModelPackage]) -> int:
    """Size of all files of weights; raises OSError where one is missing."""
    return sum(path.stat().st_size for model in models for part in model.parts for path in part.weights)
