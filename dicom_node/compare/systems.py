"""What is compared: a model, a folder of segmentations, or the results of an evaluation."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dicom_node.errors import ConfigurationError
from dicom_node.evaluate.provenance import Stated
from dicom_node.evaluate.tables import SCORES_PARQUET, SUMMARY_JSON

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dicom_node.segment.model import Model

FEWEST = 2
_NAMED = re.compile(r"([A-Za-z0-9][\w.+-]{0,63})=(.+)")
_NOT_IN_NAMES = re.compile(r"[^\w.+-]+")


@dataclass(frozen=True, slots=True)
class System:
    """One of those that are compared: a model, or the folder of segmentations or of an evaluation.

    Files and folders are called by ``name``. ``stated``: what a person says about it.
    """

    name: str
    place: Path | Model
    stated: Stated = field(default_factory=Stated)

    @property
    def is_evaluated(self) -> bool:
        """Whether the folder has the results of `dicom-node evaluate`."""
        folder = self.place
        return isinstance(folder, Path) and all((folder / name).is_file() for name in (SCORES_PARQUET, SUMMARY_JSON))


def named(places: Sequence[str]) -> dict[str, str]:
    """Each place by its name: ``NAME=PLACE``, or PLACE alone, which is called by its last part.

    Raises:
        ConfigurationError: there are fewer than two, or two with one name.
    """
    found: dict[str, str] = {}
    for place in places:
        match = None if Path(place).exists() else _NAMED.fullmatch(place)
        name, where = (match[1], match[2]) if match else (_NOT_IN_NAMES.sub("-", Path(place).resolve().name), place)
        if name in found:
            raise ConfigurationError(f"{found[name]} and {where} would both be called {name}; name them: NAME={where}")
        found[name] = where
    if len(found) < FEWEST:
        raise ConfigurationError(f"{len(found)} given, expected at least {FEWEST} to compare")
    return found


def stated_by_name(names: Sequence[str], said: Mapping[str, Sequence[str]], common: Stated) -> dict[str, Stated]:
    """What is stated about each of ``names``. ``said``: for ``software``, ``model`` and ``resampling_order``, texts
    ``NAME=TEXT``. ``common``: data set and version.

    Raises:
        ConfigurationError: a text has no name, or one that is not compared.
    """
    about: dict[str, dict[str, str]] = {name: {} for name in names}
    for what, texts in said.items():
        for text in texts:
            name, is_named, value = text.partition("=")
            if not is_named or name not in about:
                raise ConfigurationError(f"{what} {text!r}: expected NAME=TEXT with one of {', '.join(names)}")
            about[name][what] = value
    return {
        name: Stated(common.data_set, common.data_set_version, **{key: values.get(key) for key in said})
        for name, values in about.items()
    }
