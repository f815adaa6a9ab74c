"""The anatomy catalogue: every structure that a model may name, with its codes and colour.

``structures.csv`` has the 104 structures of the paper (arXiv 2208.05868), the 117 of TotalSegmentator v2, those of
its other tasks for which DICOM's dictionary has codes, and the tissue classes of :mod:`inference.tissue`. Codes are
SNOMED CT (``SCT``) as used in DICOM: category from CID 7150, type, laterality as type modifier if the type does not
include it (CID 244), and for a lesion the affected organ as region.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Literal

from inference.errors import UnknownStructureError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Code:
    """A coded concept: coding scheme designator, code value, code meaning (PS3.3 8.8)."""

    scheme: str
    value: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Structure:
    """One anatomical structure or tissue class.

    ``category``, ``type``, ``type_modifier`` are the Segmented Property Category, Type and Type Modifier of a segment
    (PS3.3 C.8.20.2); ``region`` and ``region_modifier`` its Anatomic Region and that region's modifier. ``rgb`` is
    sRGB, 0..255. ``paper104_index`` is the label in the paper's public data set, ``total117_index`` the one in
    TotalSegmentator v2.
    """

    name: str
    group: str
    """``organ``, ``bone``, ``muscle``, ``vessel`` or ``tissue``."""
    category: Code
    type: Code
    type_modifier: Code | None
    region: Code | None
    region_modifier: Code | None
    rgb: tuple[int, int, int]
    paper104_index: int | None
    total117_index: int | None

    @property
    def laterality(self) -> Literal["Right", "Left"] | None:
        """The side that its codes give as a modifier; None for an unpaired structure."""
        for modifier in (self.type_modifier, self.region_modifier):
            if modifier is not None and modifier.meaning in ("Right", "Left"):
                return "Right" if modifier.meaning == "Right" else "Left"
        return None

    @property
    def title(self) -> str:
        """The display name, e.g. ``Kidney right``."""
        words = self.name.replace("_", " ")
        return words[0].upper() + words[1:]


def _code(row: Mapping[str, str], prefix: str) -> Code | None:
    if not row[f"{prefix}_code"]:
        return None
    return Code(row[f"{prefix}_scheme"], row[f"{prefix}_code"], row[f"{prefix}_meaning"])


def _required_code(row: Mapping[str, str], prefix: str) -> Code:
    code = _code(row, prefix)
    if code is None:
        raise UnknownStructureError(f"structures.csv: {row['name']} has no {prefix} code")
    return code


def _structure(row: Mapping[str, str]) -> Structure:
    red, green, blue = (int(part) for part in row["rgb"].split(","))
    return Structure(
        name=row["name"],
        group=row["group"],
        category=_required_code(row, "category"),
        type=_required_code(row, "type"),
        type_modifier=_code(row, "type_modifier"),
        region=_code(row, "region"),
        region_modifier=_code(row, "region_modifier"),
        rgb=(red, green, blue),
        paper104_index=int(row["paper104_index"]) if row["paper104_index"] else None,
        total117_index=int(row["total117_index"]) if row["total117_index"] else None,
    )


def _read() -> tuple[Structure, ...]:
    with resources.files("inference").joinpath("structures.csv").open(encoding="utf-8") as file:
        return tuple(_structure(row) for row in csv.DictReader(file))


STRUCTURES: tuple[Structure, ...] = _read()
"""Every structure, in the order of structures.csv."""
_BY_NAME: dict[str, Structure] = {entry.name: entry for entry in STRUCTURES}


def catalogue() -> Mapping[str, Structure]:
    """Every structure by name."""
    return dict(_BY_NAME)


def structure(name: str) -> Structure:
    """The structure called ``name``.

    Raises:
        UnknownStructureError: it is not in the catalogue.
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        raise UnknownStructureError(f"inference/structures.csv has no structure named {name!r}") from None


def paper_labels() -> dict[int, str]:
    """Names of the paper's 104 structures by their label in the paper (1..104)."""
    named = {entry.paper104_index: entry.name for entry in STRUCTURES if entry.paper104_index is not None}
    return dict(sorted(named.items()))
