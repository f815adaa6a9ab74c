"""Label maps from NIfTI: one file with labels and their names, or a file per structure."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from dicom_node.errors import DicomNodeError, ResultUnreadable
from dicom_node.labelmaps.label_map import LabelMap
from dicom_node.labelmaps.painting import Canvas
from dicom_node.nifti import open_labels
from inference.types import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from dicom_node.nifti import OpenLabels
    from inference.types import Geometry

SUFFIXES = (".nii", ".nii.gz")
_NAMES_BESIDE = ("labels.json", "dataset.json")
"""Written by `dicom-node segment` (label: name), and by nnU-Net (``labels``, name: label)."""
_HIGHEST_LABEL = 255


def is_nifti(path: Path) -> bool:
    """Whether it is called like a NIfTI file; hidden files are unfinished ones, or copies of macOS's resource forks."""
    return not path.name.startswith(".") and path.name.lower().endswith(SUFFIXES)


def stem(path: Path) -> str:
    """The name without ``.nii`` or ``.nii.gz``."""
    name = path.name
    return next((name[: -len(suffix)] for suffix in reversed(SUFFIXES) if name.lower().endswith(suffix)), name)


def read_label_file(path: Path, names_by_label: Mapping[int, str] | None = None) -> LabelMap:
    """The label map in one NIfTI file, on its own grid.

    The names are ``names_by_label``, or those in the file's header, or in ``labels.json`` or ``dataset.json`` beside
    the file or (``dataset.json``) one folder above.

    Raises:
        ResultUnreadable: the file can't be read, its values are no labels, or a label has no name; or header and the
            file beside it give different names.
    """
    with _named(path), open_labels(path) as opened:
        names = dict(names_by_label) if names_by_label is not None else _names(path, opened)
        labels_zyx = np.zeros(opened.geometry.shape_zyx, np.uint8)
        for k, plane in opened.planes:
            labels_zyx[k] = plane
        return LabelMap(labels_zyx, names, opened.geometry)


def read_structure_files(path_by_name: Mapping[str, Path], label_by_name: Mapping[str, int] | None = None) -> LabelMap:
    """The label map of several masks, each of one structure, on the grid of the first.

    ``label_by_name`` gives the labels; without it they count from 1 in the order of ``path_by_name``. Where masks
    overlap, the one with the highest label is kept, as TotalSegmentator merges them, and the overlap is reported.

    Raises:
        ResultUnreadable: there is no mask, one can't be read or has several values, or their grids differ.
    """
    if not path_by_name:
        raise ResultUnreadable("no NIfTI file of a structure, expected at least one")
    labels = label_by_name or {name: label for label, name in enumerate(path_by_name, start=1)}
    if len(labels) > _HIGHEST_LABEL:
        raise ResultUnreadable(f"{len(labels)} structures, a label map holds at most {_HIGHEST_LABEL}")
    names = sorted(set(path_by_name) & set(labels), key=labels.__getitem__)
    canvas: Canvas | None = None
    geometry: Geometry | None = None
    for name in names:
        path = path_by_name[name]
        with _named(path), open_labels(path) as opened:
            if canvas is None or geometry is None:
                geometry, canvas = opened.geometry, Canvas(opened.geometry.shape_zyx)
            elif not opened.geometry.same_grid(geometry):
                raise ResultUnreadable(f"it does not lie on the grid of {path_by_name[names[0]].name}")
            _paint(canvas, opened, labels[name])
    if canvas is None or geometry is None:
        raise ResultUnreadable(f"none of {len(path_by_name)} NIfTI files has the name of a wanted structure")
    named = {label: name for name, label in labels.items()}
    return LabelMap(canvas.labels_zyx, named, geometry, canvas.overlaps(named))


def _paint(canvas: Canvas, opened: OpenLabels, label: int) -> None:
    value = 0
    for k, plane in opened.planes:
        highest = int(plane.max())
        if not highest:
            continue
        value = value or highest
        inside = plane == value
        if np.count_nonzero(inside) != np.count_nonzero(plane):
            other = next(each for each in np.unique(plane).tolist() if each not in (0, value))
            raise ResultUnreadable(f"a mask of one structure has the values {value} and {other}")
        canvas.paint(k, inside, label)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in whatever is raised about its content."""
    try:
        yield
    except DicomNodeError as error:
        raise ResultUnreadable(f"{path.name}: {error}") from error
    except InvalidValueError as error:
        raise ResultUnreadable(f"{path.name}: {error}") from error


def _names(path: Path, opened: OpenLabels) -> Mapping[int, str]:
    beside = _names_beside(path)
    stated = opened.names_by_label
    if beside is None:
        if not stated:
            places = " or ".join(_NAMES_BESIDE)
            raise ResultUnreadable(f"no names for its labels, neither in its header nor in {places} beside it")
        return stated
    place, names = beside
    for label in sorted(stated):
        if names.get(label) != stated[label]:
            there = names.get(label, "nothing")
            raise ResultUnreadable(f"label {label} is {stated[label]} in its header and {there} in {place.name}")
    return names


def _names_beside(path: Path) -> tuple[Path, dict[int, str]] | None:
    found = names_file(path)
    return None if found is None else (found, read_names(found))


def names_file(path: Path) -> Path | None:
    """The file that names the labels of the label map at ``path``; None if there is none."""
    places = [path.parent / name for name in _NAMES_BESIDE] + [path.parent.parent / _NAMES_BESIDE[1]]
    return next((place for place in places if place.is_file()), None)


def read_names(path: Path) -> dict[int, str]:
    """The names by label in a JSON file: ``{"1": "spleen"}``, or nnU-Net's ``dataset.json``.

    Raises:
        ResultUnreadable: it can't be read, or has no such table; nnU-Net's region-based labels are none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and "labels" in content:
            table = {int(label): str(name) for name, label in content["labels"].items()}
        else:
            table = {int(label): str(name) for label, name in content.items()}
    except OSError as error:
        raise ResultUnreadable(f"can't read {path}: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ResultUnreadable(f"{path.name} has no table of labels and names, one number per name") from error
    return {label: name for label, name in table.items() if label}
