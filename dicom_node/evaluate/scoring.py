"""The scores of one subject, kept in a file so that an interrupted evaluation can be resumed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from dicom_node import __version__
from dicom_node.dataset.files import digest_of, read_json, sha256_of, write_json
from dicom_node.errors import DicomNodeError
from dicom_node.labelmaps import LabelFile, StructureFiles
from inference.evaluation.scores import StructureScore, score_case
from inference.types import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dicom_node.evaluate.cases import Truth
    from dicom_node.labelmaps import LabelMap, LabelSource

_HIGHEST_LABEL = 255


@dataclass(frozen=True, slots=True)
class SubjectScores:
    """Every structure that is in the truth or was found, with the names known to truth and segmentation.

    ``notes``: choices that the format of a segmentation required, such as for overlaps.
    """

    id: str
    attributes: Mapping[str, str]
    structures: tuple[StructureScore, ...]
    truth_names: tuple[str, ...]
    found_names: tuple[str, ...]
    found_names_are_all: bool
    """Whether the segmentation names all structures that were searched for, not only those found."""
    mixed_up: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def score_subject(pair: tuple[Truth, LabelSource], folder: Path, tolerance_mm: float) -> SubjectScores | str:
    """The scores of one subject, or why there are none; taken from ``folder`` if its files are unchanged."""
    truth, source = pair
    path = folder / f"{truth.id}.json"
    try:
        digest = _digest(truth, source, tolerance_mm)
        earlier = read_json(path)
        if earlier is not None and earlier.get("digest") == digest:
            return replace(_from_json(earlier["scores"]), attributes=dict(truth.attributes))
        scores = _scored(truth, source, tolerance_mm)
        write_json(path, {"digest": digest, "scores": _to_json(scores)})
    except (DicomNodeError, InvalidValueError) as error:
        return str(error)
    except OSError as error:
        return f"a file can't be read: {error.strerror}"
    except ValueError as error:  # from the measures: grids without perpendicular axes
        return str(error)
    return scores


def _digest(truth: Truth, source: LabelSource, tolerance_mm: float) -> str:
    """A digest of everything that determines the scores."""
    paths = [*truth.labels.paths, *source.paths]
    return digest_of([__version__, tolerance_mm, [(path.name, sha256_of(path)) for path in paths]])


def _scored(truth: Truth, source: LabelSource, tolerance_mm: float) -> SubjectScores:
    expected = truth.read()
    found = source.read(expected.geometry)
    labels = _common_labels(expected, found)
    score = score_case(expected.relabelled(labels), found.relabelled(labels), tolerance_mm)
    notes = [
        f"{side}: {note}"
        for side, label_map in (("truth", expected), ("segmentation", found))
        for note in (*label_map.notes, *map(str, label_map.overlaps))
    ]
    return SubjectScores(
        truth.id,
        dict(truth.attributes),
        score.counted("nnunet"),
        tuple(expected.names_by_label.values()),
        tuple(found.names_by_label.values()),
        isinstance(source, LabelFile | StructureFiles),
        score.mixed_up,
        tuple(notes),
    )


def _common_labels(truth: LabelMap, found: LabelMap) -> dict[str, int]:
    """A common numbering for the structures of both; those of the truth come first."""
    names = list(dict.fromkeys([*truth.names_by_label.values(), *sorted(found.names_by_label.values())]))
    if len(names) > _HIGHEST_LABEL:
        names = [name for name in names if name in truth.present | found.present]
    if len(names) > _HIGHEST_LABEL:
        raise InvalidValueError(f"{len(names)} structures in truth and segmentation, expected at most {_HIGHEST_LABEL}")
    return {name: label for label, name in enumerate(names, start=1)}


def _to_json(scores: SubjectScores) -> dict[str, Any]:
    content = asdict(scores)
    for each in content["structures"]:
        each["hd95_mm"] = each["hd95_mm"] if math.isfinite(each["hd95_mm"]) else None
    return content


def _from_json(content: Mapping[str, Any]) -> SubjectScores:
    structures = tuple(
        StructureScore(**{**each, "hd95_mm": math.inf if each["hd95_mm"] is None else each["hd95_mm"]})
        for each in content["structures"]
    )
    lists = {key: tuple(content[key]) for key in ("truth_names", "found_names", "mixed_up", "notes")}
    return SubjectScores(
        id=content["id"],
        attributes=content["attributes"],
        structures=structures,
        found_names_are_all=content["found_names_are_all"],
        **lists,
    )
