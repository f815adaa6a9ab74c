"""Which model, told by its name or folder: what it is comes at once, its weights load while the first CT is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dicom_node.app.places import DEMO_MODEL, shipped_model
from dicom_node.errors import ConfigurationError
from inference.errors import InferenceError, UnknownStructureError
from inference.models import library
from inference.models.package import MANIFEST_NAME, ModelPackage, read_package
from inference.opening import identity_of, minimum_extent, models_of, open_segmenter
from inference.types import MinimumExtent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from inference.nnunet.contract import EngineOptions
    from inference.types import ModelIdentity, Segmenter

TISSUE = "tissue"
"""The rule-based model; it needs no files."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model whose files were checked and whose weights are not loaded; ``package`` is None for ``tissue``."""

    identity: ModelIdentity
    names_by_label: Mapping[int, str]
    minimum: MinimumExtent
    package: ModelPackage | None

    def load(self, options: EngineOptions) -> Segmenter:
        """The segmenter; takes seconds, and all the memory that the weights need.

        Raises:
            InferenceError: the package, or the one that finds what it crops to, is not sound; or this machine has not
                what ``options`` ask for.
        """
        if self.package is None:
            from inference.tissue import TissueSegmenter  # noqa: PLC0415 - engines are imported where they are chosen

            return TissueSegmenter()
        return open_segmenter(self.package, options)


def is_model(name: str, models_folder: Path) -> bool:
    """Whether :func:`find_model` knows ``name`` as a model, sound or not."""
    is_known = name == TISSUE or shipped_model(name) is not None or name in library.installed(models_folder)
    return is_known or (Path(name) / MANIFEST_NAME).is_file()


def find_model(name: str, models_folder: Path, options: EngineOptions) -> Model:
    """The model ``name`` of the library ``models_folder``, or shipped, or the package in the folder ``name``.

    Its identity is that of the results of a run with ``options``.

    Raises:
        ConfigurationError: there is no such model, its files are not those of its manifest, or the model that finds
            what it crops to is not installed beside it.
    """
    if name == TISSUE:
        from inference.tissue import TissueSegmenter  # noqa: PLC0415

        segmenter = TissueSegmenter()
        return Model(segmenter.identity, segmenter.names_by_label, MinimumExtent(), None)
    installed = library.installed(models_folder)
    try:
        if name in installed:
            package = library.read(models_folder, name)
        elif (shipped := shipped_model(name)) is not None:
            package = read_package(shipped)
        elif Path(name).is_dir():
            package = read_package(Path(name))
        else:
            raise ConfigurationError(
                f"no model or folder of a model is named {name!r}; always available: {TISSUE}, {DEMO_MODEL}; "
                f"installed in {models_folder}: {', '.join(installed) or 'none'}"
            )
        models = models_of(package)
    except InferenceError as error:
        raise ConfigurationError(f"model {name}: {error}") from error
    return Model(identity_of(models, options), package.names_by_label, minimum_extent(models), package)


def refuse_unknown(structures: Iterable[str], model: Model) -> None:
    """Whether ``model`` finds all of these.

    Raises:
        UnknownStructureError: it does not; with the names of those that it finds.
    """
    known = set(model.names_by_label.values())
    unknown = sorted(set(structures) - known)
    if unknown:
        raise UnknownStructureError(
            f"model {model.identity.name} finds no {', '.join(unknown)}; it finds {', '.join(sorted(known))}"
        )
