"""The forms in which a segmentation is kept on disk. Each is found first and read later, on the grid of its CT."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from dicom_node.errors import ResultUnreadable
from dicom_node.labelmaps.contours import read_contours
from dicom_node.labelmaps.label_map import LabelMap
from dicom_node.labelmaps.nifti_files import is_nifti, names_file, read_label_file, read_structure_files, stem
from dicom_node.results import read_segmentation
from dicom_node.standard.attributes import text
from dicom_node.standard.files import PassedOver, read_file
from dicom_node.types import LABEL_MAP_SEGMENTATION_STORAGE
from inference.types import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from inference.types import Geometry

SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"
STRUCTURE_SET_STORAGE = "1.2.840.10008.5.1.4.1.1.481.3"
SEGMENTATION_CLASSES = (SEGMENTATION_STORAGE, LABEL_MAP_SEGMENTATION_STORAGE)
STRUCTURES_FOLDER = "segmentations"
LABELS = "labels.nii.gz"
"""The label map that `dicom-node segment` and `dicom-node dataset phantom` write."""


class LabelSource(Protocol):
    """A segmentation on disk."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """Its files."""
        ...

    def read(self, geometry: Geometry | None = None) -> LabelMap:
        """The label map on ``geometry``, the grid of the CT, or on its own grid without one.

        Raises:
            ResultUnreadable: it can't be read, or lies on other voxels than ``geometry``.
        """
        ...


@dataclass(frozen=True, slots=True)
class LabelFile:
    """One NIfTI file; ``names_by_label`` None: the names are in its header or in a file beside it."""

    path: Path
    names_by_label: Mapping[int, str] | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file, and the one beside it that names its labels, if there is one and it counts."""
        beside = names_file(self.path) if self.names_by_label is None else None
        return (self.path,) if beside is None else (self.path, beside)

    def read(self, geometry: Geometry | None = None) -> LabelMap:
        """See :class:`LabelSource`."""
        return _on_grid(read_label_file(self.path, self.names_by_label), geometry, self.path.name)


@dataclass(frozen=True, slots=True)
class StructureFiles:
    """A folder with one NIfTI file per structure, called ``NAME.nii.gz``.

    ``label_by_name`` gives the labels; without it, they count from 1 by name.
    """

    folder: Path
    label_by_name: Mapping[str, int] | None = None

    @property
    def path_by_name(self) -> dict[str, Path]:
        """The files by structure, sorted by name."""
        return {stem(path): path for path in sorted(self.folder.iterdir()) if is_nifti(path)}

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, sorted by name."""
        return tuple(self.path_by_name.values())

    def read(self, geometry: Geometry | None = None) -> LabelMap:
        """See :class:`LabelSource`."""
        return _on_grid(read_structure_files(self.path_by_name, self.label_by_name), geometry, self.folder.name)


@dataclass(frozen=True, slots=True)
class SegmentationObject:
    """A DICOM SEG, binary or label map. ``references`` are the UIDs of the series of its images."""

    path: Path
    references: frozenset[str] = field(default=frozenset())

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def read(self, geometry: Geometry | None = None) -> LabelMap:
        """See :class:`LabelSource`. Its own grid is the smallest that contains its frames."""
        stored = read_segmentation(self.path, geometry)
        try:
            return LabelMap(stored.labels_zyx, stored.names_by_label, stored.geometry)
        except InvalidValueError as error:
            raise ResultUnreadable(f"{self.path.name}: {error}") from error


@dataclass(frozen=True, slots=True)
class ContourObject:
    """An RT Structure Set. ``references`` are the UIDs of the series of its images."""

    path: Path
    references: frozenset[str] = field(default=frozenset())

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def read(self, geometry: Geometry | None = None) -> LabelMap:
        """See :class:`LabelSource`. Contours have no grid of their own, so ``geometry`` is needed."""
        if geometry is None:
            raise ResultUnreadable(f"{self.path.name}: contours have no grid, so the CT is needed to read them")
        return read_contours(self.path, geometry)


def open_source(path: Path, names_by_label: Mapping[int, str] | None = None) -> LabelSource:
    """Tell by its content in which form the segmentation at ``path`` is kept.

    A folder may be that of a subject of the published data set, a folder of masks, or the results of
    `dicom-node segment`. ``names_by_label`` names the labels of a NIfTI file.

    Raises:
        ResultUnreadable: there is no segmentation, or more than one.
    """
    if path.is_dir():
        return _in_folder(path, names_by_label)
    if is_nifti(path):
        return LabelFile(path, names_by_label)
    found = dicom_source(path)
    if found is None:
        raise ResultUnreadable(f"{path.name} is no NIfTI file, DICOM segmentation or structure set")
    return found


def dicom_source(path: Path) -> SegmentationObject | ContourObject | None:
    """The segmentation or structure set in the DICOM file at ``path``; None for anything else."""
    instance = read_file(path)
    if isinstance(instance, PassedOver):
        return None
    return source_of(path, text(instance.header, "SOPClassUID"))


def source_of(path: Path, sop_class_uid: str) -> SegmentationObject | ContourObject | None:
    """By its SOP Class."""
    if sop_class_uid in SEGMENTATION_CLASSES:
        return SegmentationObject(path)
    return ContourObject(path) if sop_class_uid == STRUCTURE_SET_STORAGE else None


def _in_folder(folder: Path, names_by_label: Mapping[int, str] | None) -> LabelSource:
    if (folder / STRUCTURES_FOLDER).is_dir():
        return StructureFiles(folder / STRUCTURES_FOLDER)
    if (folder / LABELS).is_file():
        return LabelFile(folder / LABELS, names_by_label)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if any(is_nifti(path) for path in files):
        return StructureFiles(folder)
    found = [source for path in files if (source := dicom_source(path)) is not None]
    if len(found) != 1:
        raise ResultUnreadable(f"{folder.name} has {len(found)} segmentations, expected one")
    return found[0]


def _on_grid(label_map: LabelMap, geometry: Geometry | None, name: str) -> LabelMap:
    try:
        return label_map if geometry is None else label_map.on_grid(geometry)
    except ResultUnreadable as error:
        raise ResultUnreadable(f"{name}: {error}") from error
