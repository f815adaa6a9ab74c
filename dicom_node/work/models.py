"""From the settings of a model to the model: the only place that knows which engine serves which kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dicom_node.errors import ConfigurationError
from dicom_node.settings import NnunetModelSettings, TissueModelSettings, WorkSettings
from inference.errors import InferenceError, ModelDigestError

if TYPE_CHECKING:
    from inference.nnunet.package import ModelPackage
    from inference.types import ModelIdentity, Segmenter


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
            return _read_nnunet(name, model).identity
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
    package = _read_nnunet(name, model)
    from inference.nnunet.engine import Limits, NnunetSegmenter  # noqa: PLC0415 - imports torch

    limits = Limits(minimum_slices=model.minimum_slices, minimum_extent_mm=model.minimum_extent_mm)
    return NnunetSegmenter(package, device=work.device, threads=work.threads, limits=limits)


def _read_nnunet(name: str, model: NnunetModelSettings) -> ModelPackage:
    from inference.nnunet.package import read_package  # noqa: PLC0415

    package = read_package(model.folders, name, model.version, model.intended_use)
    approved = model.digest
    if approved is not None and approved.lower() != package.identity.digest:
        raise ModelDigestError(f"the files have SHA-256 {package.identity.digest}, approved is {approved.lower()}")
    return package
