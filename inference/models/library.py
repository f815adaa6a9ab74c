"""The model library: a folder with one folder per installed package; hidden folders are work in progress."""

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
    """The names of the packages in ``library``, valid or not, in alphabetical order."""
    if not library.is_dir():
        return ()
    folders = (entry for entry in library.iterdir() if (entry / MANIFEST_NAME).exists())
    return tuple(sorted(entry.name for entry in folders if not entry.name.startswith(".")))


def read(library: Path, name: str, *, check_weights: bool = True) -> ModelPackage:
    """Read the package ``name``; with ``check_weights`` its files are hashed again.

    Raises:
        ModelPackageError: there is no such package, it is damaged, or its manifest is that of another model.
    """
    folder = _folder(library, name)
    package = read_package(folder, check_weights=check_weights)
    if package.identity.name != name:
        raise ModelPackageError(f"{folder} contains the model {package.identity.name!r}, not {name!r}")
    return package


def remove(library: Path, name: str) -> None:
    """Remove the package ``name``; if the process is killed meanwhile, the next change of the library finishes it.

    Raises:
        ModelPackageError: there is no such package.
    """
    with locked(library):
        gone = library / f"{LEFTOVER_PREFIX}removed-{name}"
        _folder(library, name).rename(gone)
        shutil.rmtree(gone)


def _folder(library: Path, name: str) -> Path:
    if checks.name(name, "name of the model") not in installed(library):
        raise ModelPackageError(f"{library} has no model named {name!r}")
    return library / name
