"""Where things are that no setting names: the configuration, the library of models without one, what the package ships.

None of these places depends on the current folder.
"""

from __future__ import annotations

import os
import shutil
from importlib.resources import files
from pathlib import Path

from dicom_node.errors import ConfigurationError

DEFAULT_CONFIGURATION = Path("/etc/dicom-node/node.yaml")
"""The configuration file where neither ``--config`` nor ``DICOM_NODE_CONFIG`` names one."""
DEMO_MODEL = "phantom_demo_104"
_LIBRARY_OF_ROOT = Path("/var/lib/dicom-node/models")


def models_folder(configuration: Path | None) -> Path:
    """Where models are installed: ``models_folder`` of the ``configuration`` file, which was named by somebody.

    Without one (None) that of :data:`DEFAULT_CONFIGURATION`, where this user can read it; else the user's own.

    Raises:
        ConfigurationError: the configuration can't be used.
    """
    if configuration is None and not os.access(DEFAULT_CONFIGURATION, os.R_OK):
        return models_folder_without_configuration()
    from dicom_node.settings import load_settings  # noqa: PLC0415 - help needs the places, and not pydantic

    return load_settings(configuration or DEFAULT_CONFIGURATION).models_folder


def models_folder_without_configuration() -> Path:
    """The library of models of a user who has no configuration file.

    ``$XDG_DATA_HOME/dicom-node/models``, by default ``~/.local/share/dicom-node/models`` (XDG Base Directory
    Specification); of root ``/var/lib/dicom-node/models``.
    """
    if os.geteuid() == 0:
        return _LIBRARY_OF_ROOT
    stated = Path(os.environ.get("XDG_DATA_HOME", ""))
    data = stated if stated.is_absolute() else Path.home() / ".local" / "share"
    return data / "dicom-node" / "models"


def cache_folder_of_user() -> Path | None:
    """Compiled networks of this user (XDG Base Directory Specification); None where nothing can be kept."""
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

    The wheel has it inside the package; in a checkout, which an editable install uses, it is beside the package.
    """
    package = Path(str(files("dicom_node")))
    inside = package / "_config"
    return inside if inside.is_dir() else package.parent / "config"


def shipped_model(name: str) -> Path | None:
    """The package folder of a model that comes with ``dicom-node`` itself; None where none is called so."""
    return shipped_configuration() / "models" / DEMO_MODEL if name == DEMO_MODEL else None


def write_configuration(folder: Path) -> tuple[Path, ...]:
    """Write the commented ``node.yaml`` and ``rules.yaml`` and the demo model into ``folder``, which may exist.

    Returns what was written.

    Raises:
        ConfigurationError: one of them exists already, then nothing was written; or ``folder`` can't be written.
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
