"""The settings of a node: its file, and overrides from the environment.

``DICOM_NODE__NODE__PORT=11112`` overrides ``node.port`` (two underscores between levels). Values have the syntax of the
file, so that ``DICOM_NODE__WORK__PRELOAD='[tissue]'`` is a list; text needs no quotes. This does not use
pydantic-settings, which ignores a variable for an unknown setting and can't say which variable is wrong.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from dicom_node.settings.loader import parse, read_file
from dicom_node.settings.models import NnunetModelSettings, Settings
from dicom_node.settings.places import Place, Tree
from dicom_node.settings.validation import checked, schemas_at

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PREFIX = "DICOM_NODE__"


def load_settings(file: Path) -> Settings:
    """Read and validate ``file`` and the environment; relative paths are relative to the folder of ``file``.

    Raises:
        ConfigurationError: the file is missing or not in the dialect of :mod:`dicom_node.settings.loader`, a key is
            unknown or a value is out of range; one line for each, with its place in the file or its variable.
    """
    tree = _overridden(read_file(file), os.environ)
    return _with_absolute_paths(checked(tree, Settings), file.resolve().parent)


def _overridden(tree: Tree, environment: Mapping[str, str]) -> Tree:
    schema = Settings.model_json_schema()
    for name in sorted(environment):
        if name.upper().startswith(PREFIX):
            steps = name[len(PREFIX) :].lower().split("__")
            expected = schemas_at(schema, steps)
            if not expected or any(each.get("type") == "string" for each in expected):
                entry = Tree(environment[name], Place(name))
            else:
                entry = parse(environment[name], name, has_lines=False)
            tree = tree.with_entry(steps, entry)
    return tree


def _with_absolute_paths(settings: Settings, folder: Path) -> Settings:
    models = {
        name: model.model_copy(update={"package": folder / model.package})
        if isinstance(model, NnunetModelSettings)
        else model
        for name, model in settings.models.items()
    }
    node = settings.node.model_copy(update={"data_folder": folder / settings.node.data_folder})
    work = settings.work.model_copy(
        update={"cache_folder": folder / (settings.work.cache_folder or node.data_folder / "cache")}
    )
    constancy = settings.constancy
    if constancy.folder is not None:
        constancy = constancy.model_copy(update={"folder": folder / constancy.folder})
    return settings.model_copy(
        update={
            "constancy": constancy,
            "models": models,
            "models_folder": folder / settings.models_folder,
            "node": node,
            "work": work,
            "rules_file": folder / settings.rules_file,
        }
    )
