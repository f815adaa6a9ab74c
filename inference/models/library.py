"""A library: the folder that holds the installed packages, one folder each; what is hidden in it is being worked on."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from inference.errors import ModelPackageError
from inference.models import checks
from inference.models.install import LEFTOVER_PREFIX, locked
from inference.models.package import MANIFEST_NAME, read_package

if TYPE_CHECKING:
    from pathlib import Path

    from inference.models.package import ModelPackage


def installed(library: Path) -> tuple[str, ...]:
    """The names of the packages in ``library``, sound or not, in alphabetical order."""
    if not library.is_dir():
        return ()
    folders = (entry for entry in library.iterdir() if (entry / MANIFEST_NAME).exists())
    return tuple(sorted(entry.name for entry in folders if not entry.name.startswith(".")))


def read(library: Path, name: str, *, check_weights: bool = True) -> ModelPackage:
    """The package ``name``, its files hashed again with ``check_weights``.

    Raises:
        ModelPackageError: there is none, it is damaged, or its manifest is of another model.
    """
    folder = _folder(library, name)
    package = read_package(folder, check_weights=check_weights)
    if package.identity.name != name:
        raise ModelPackageError(f"{folder} holds the model {package.identity.name!r}, not {name!r}")
    return package


def remove(library: Path, name: str) -> None:
    """Remove the package ``name``, at once or, when killed meanwhile, before the next change of the library.

    Raises:
        ModelPackageError: there is none.
    """
    with locked(library):
        gone = library / f"{LEFTOVER_PREFIX}removed-{name}"
        _folder(library, name).rename(gone)
        shutil.rmtree(gone)


def _folder(library: Path, name: str) -> Path:
    if checks.name(name, "name of the model") not in installed(library):
        raise ModelPackageError(f"{library} holds no model called {name!r}")
    return library / name
