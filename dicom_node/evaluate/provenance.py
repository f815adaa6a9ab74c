"""The provenance of a score: with other data, another split or another resampling, figures are not comparable."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from dicom_node import __version__
from dicom_node.segment.outputs import read_summary

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from dicom_node.segment.model import Model
    from inference.evaluation.scores import Convention

UNKNOWN = "unknown"
_PHANTOM_COHORT = "phantom cohort"
_ORDER_BY_RESAMPLING = {"corners": "1 (linear, outermost voxel centres kept)", "nnunet": "3 (cubic, as nnU-Net)"}


@dataclass(frozen=True, slots=True)
class Provenance:
    """Printed with every score; :data:`UNKNOWN` where it was not stated.

    ``software`` made the segmentations with ``model``, after resampling the images with ``resampling_order``;
    ``tool`` computed the scores.
    """

    data_set: str = UNKNOWN
    data_set_version: str = UNKNOWN
    split: str = UNKNOWN
    software: str = UNKNOWN
    model: str = UNKNOWN
    resampling_order: str = UNKNOWN
    tool: str = UNKNOWN

    def by_title(self) -> dict[str, str]:
        """The values by title, for people."""
        return {name.replace("_", " "): value for name, value in asdict(self).items()}

    @property
    def line(self) -> str:
        """All of it in one line, for a figure that is taken out of its page."""
        said = [f"{title}: {value}" for title, value in self.by_title().items()]
        return "; ".join([*said, "research software, not cleared for clinical use"])


@dataclass(frozen=True, slots=True)
class Stated:
    """What the user states; None: as stated in the files."""

    data_set: str | None = None
    data_set_version: str | None = None
    software: str | None = None
    model: str | None = None
    resampling_order: str | None = None


def data_set_of(folder: Path) -> tuple[str, str]:
    """Name and version of the data set in ``folder``, as far as it states them."""
    manifest = _read(folder / "manifest.json")
    if manifest.get("kind") == _PHANTOM_COHORT:
        return _PHANTOM_COHORT, f"dicom-node {manifest.get('dicom_node', UNKNOWN)}"
    described = _read(folder / "dataset.json")
    return str(described.get("name") or described.get("reference") or UNKNOWN), str(described.get("release") or UNKNOWN)


def _read(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def split_of(splits: Iterable[str | None], chosen: str | None) -> str:
    """The split that was evaluated, with the number of subjects."""
    counts = Counter(split or "none" for split in splits)
    if set(counts) == {"none"}:
        return UNKNOWN
    listed = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return f"{chosen} ({counts[chosen]} subjects)" if chosen else f"all ({listed})"


def software_of_model(model: Model) -> tuple[str, str, str]:
    """Software, model and resampling order of segmentations made by the node."""
    identity = model.identity
    named = f"{identity.name} {identity.version} (sha256 {identity.digest[:12]})"
    order = "none" if model.package is None else _ORDER_BY_RESAMPLING[model.package.resampling]
    return f"dicom-node {__version__}", named, order


def software_of_results(folders: Sequence[Path]) -> tuple[str, str, str]:
    """The same for results of `dicom-node segment`, if all are of one model and version."""
    summaries = [read_summary(folder) if folder.is_dir() else None for folder in folders]
    said = {
        (f"dicom-node {each['dicom_node']}", f"{each['model']['name']} {each['model']['version']}")
        if each and "model" in each and "dicom_node" in each
        else (UNKNOWN, UNKNOWN)
        for each in summaries
    }
    return (*said.pop(), UNKNOWN) if len(said) == 1 else (UNKNOWN, UNKNOWN, UNKNOWN)


def tool(convention: Convention, tolerance_mm: float) -> str:
    """The program that computes the scores, and its method."""
    counted = {"paper": "structures absent from the truth not counted", "nnunet": "as nnU-Net"}[convention]
    return f"dicom-node evaluate {__version__} (convention {convention}: {counted}; tolerance {tolerance_mm:g} mm)"
