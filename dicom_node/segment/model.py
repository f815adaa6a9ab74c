"""Which model, told by its name or folder: what it is comes at once, its weights load while the first CT is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dicom_node.errors import ConfigurationError
from inference.errors import InferenceError, UnknownStructureError
from inference.models.package import ModelPackage, read_package

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
    package: ModelPackage | None

    def load(self, options: EngineOptions) -> Segmenter:
        """The segmenter; takes seconds, and all the memory that the weights need.

        Raises:
            InferenceError: the package, or the one that finds what it crops to, is not sound.
        """
        if self.package is None:
            from inference.tissue import TissueSegmenter  # noqa: PLC0415 - engines are imported where they are chosen

            return TissueSegmenter()
        from inference.nnunet.engine import NnunetSegmenter  # noqa: PLC0415

        segmenter = NnunetSegmenter(self.package, options)
        if self.package.crop is None:
            return segmenter
        from inference.nnunet.cropped import CroppedSegmenter  # noqa: PLC0415

        first = NnunetSegmenter(read_package(self.package.folder.parent / self.package.crop.model), options)
        return CroppedSegmenter(first, segmenter, self.package.crop)


def find_model(name: str, library: Path) -> Model:
    """The model called ``name`` in ``library`` (a folder of installed packages), or the package in the folder ``name``.

    Raises:
        ConfigurationError: there is no such model, or its files are not those of its manifest.
    """
    if name == TISSUE:
        from inference.tissue import TissueSegmenter  # noqa: PLC0415

        segmenter = TissueSegmenter()
        return Model(segmenter.identity, segmenter.names_by_label, None)
    folder = _folder(name, library)
    try:
        package = read_package(folder)
    except InferenceError as error:
        raise ConfigurationError(f"model {name}: {error}") from error
    return Model(package.identity, package.names_by_label, package)


def refuse_unknown(structures: Iterable[str], model: Model) -> None:
    """Whether ``model`` finds all of these.

    Raises:
        UnknownStructureError: it does not; with a few names of those that it finds.
    """
    known = set(model.names_by_label.values())
    unknown = sorted(set(structures) - known)
    if unknown:
        raise UnknownStructureError(
            f"model {model.identity.name} finds no {', '.join(unknown)}; it finds {', '.join(sorted(known))}"
        )


def _folder(name: str, library: Path) -> Path:
    """An installed model has the name of its folder; anything that leads out of the library is a path of its own."""
    if Path(name).name == name and (library / name).is_dir():
        return library / name
    if Path(name).is_dir():
        return Path(name)
    installed = sorted(entry.name for entry in library.iterdir() if entry.is_dir()) if library.is_dir() else []
    raise ConfigurationError(
        f"no model is called {name!r}, and no folder; {TISSUE} is always there, "
        f"installed in {library}: {', '.join(installed) or 'none'}"
    )
