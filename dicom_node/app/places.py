"""Default locations: the configuration, the model library without a configuration, and the files in the package.

None of them depends on the current folder.
"""

from __future__ import annotations

import os
import shutil
from importlib.resources import files
from pathlib import Path

from dicom_node.errors import ConfigurationError

DEFAULT_CONFIGURATION = Path("/etc/dicom-node/node.yaml")
"""The configuration file if neither ``--config`` nor ``DICOM_NODE_CONFIG`` names one."""
DEMO_MODEL = "phantom_demo_104"
_LIBRARY_OF_ROOT = Path("/var/lib/dicom-node/models")


def models_folder(configuration: Path | None) -> Path:
    """Where models are installed: ``models_folder`` in the ``configuration`` file that was named explicitly.

    Without one (None): that of :data:`DEFAULT_CONFIGURATION` if this user can read it, otherwise the user's own folder.

    Raises:
        ConfigurationError: the configuration can't be used.
    """
    if configuration is None and not os.access(DEFAULT_CONFIGURATION, os.R_OK):
        return models_folder_without_configuration()
    from dicom_node.settings import load_settings  # noqa: PLC0415 - help needs the places, and not pydantic

    return load_settings(configuration or DEFAULT_CONFIGURATION).models_folder


def models_folder_without_configuration() -> Path:
    """The model library of a user without a configuration file.

    ``$XDG_DATA_HOME/dicom-node/models``, by default ``~/.local/share/dicom-node/models`` (XDG Base Directory
    Specification); for root, ``/var/lib/dicom-node/models``.
    """
    if os.geteuid() == 0:
        return _LIBRARY_OF_ROOT
    stated = Path(os.environ.get("XDG_DATA_HOME", ""))
    data = stated if stated.is_absolute() else Path.home() / ".local" / "share"
    return data / "dicom-node" / "models"


def cache_folder_of_user() -> Path | None:
    """Folder for this user's compiled networks (XDG Base Directory Specification); None if it can't be written."""
    root = os.environ.get("XDG_CACHE_HOME") or (Path.home() / ".cache" if os.environ.get("HOME") else None)
    if root is None:
        return None
    folder = Path(root) / "dicom-node"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def shipped_configuration() -> Path:
    """The folder with ``node.yaml``, ``rules.yaml`` and ``models/``: ``config/`` of the repository.

    The wheel contains it inside the package; in a checkout (and an editable install) it is next to the package.
    """
    package = Path(str(files("dicom_node")))
    inside = package / "_config"
    return inside if inside.is_dir() else package.parent / "config"


def shipped_model(name: str) -> Path | None:
    """The package folder of a model that is shipped with ``dicom-node``; None if there is no such model."""
    return shipped_configuration() / "models" / DEMO_MODEL if name == DEMO_MODEL else None


def write_configuration(folder: Path) -> tuple[Path, ...]:
    """Write the commented ``node.yaml`` and ``rules.yaml`` and the demo model into ``folder``, which may exist.

    Returns what was written.

    Raises:
        ConfigurationError: one of them exists (nothing is written then), or ``folder`` can't be written.
    """
    names = (Path("node.yaml"), Path("rules.yaml"), Path("models", DEMO_MODEL))
    existing = [str(folder / name) for name in names if (folder / name).exists()]
    if existing:
        raise ConfigurationError(f"nothing was written, because it would overwrite {', '.join(existing)}")
    shipped = shipped_configuration()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            if (shipped / name).is_dir():
                shutil.copytree(shipped / name, folder / name)
            else:
                shutil.copyfile(shipped / name, folder / name)
    except OSError as error:
        raise ConfigurationError(f"can't write {error.filename or folder}: {error.strerror}") from error
    return tuple(folder / name for name in names)
