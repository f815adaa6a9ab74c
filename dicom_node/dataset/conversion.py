"""Converts one subject for every set: checks, reorients to RAS, resamples like TotalSegmentator, writes and records.

TotalSegmentator reorients the CT to the closest axes towards Right, Anterior and Superior, and resamples it with
``scipy.ndimage.zoom(grid_mode=False)``: the outermost voxel centres stay, and the result is truncated to integer HU.
Interpolation is linear (order 1) since its version 2.16 and was cubic (order 3) before. Labels are resampled to the
nearest voxel (order 0). A CT that already has the spacing keeps its voxels.

Each set has a record of each subject, written last. It contains the settings and the SHA-256 of all inputs,
so that an interrupted conversion can be resumed, and changed files are converted again.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from scipy.ndimage import zoom

from dicom_node import __version__
from dicom_node.dataset.files import digest_of, read_json, replaced_file, sha256_of, write_json
from dicom_node.errors import ConfigurationError, DicomNodeError
from dicom_node.labelmaps import ContourObject, LabelMap, SegmentationObject, StructureFiles
from dicom_node.labelmaps.nifti_files import read_structure_files
from dicom_node.nifti import grid_of, write_labels, write_volume
from dicom_node.reconstruct.scale import implausible_scale
from inference.nnunet.grid import Canonical, resampled_shape, sample_positions
from inference.nnunet.host.resample import resample
from inference.types import Geometry, InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from dicom_node.dataset.sets import RawSet
    from dicom_node.labelmaps import Subject
    from inference.types import Volume

RECORDS = "subjects"
FILE_ENDING = ".nii.gz"
SPLIT_FOLDERS = {"train": "Tr", "val": "Tr", "test": "Ts"}
_INT16 = np.iinfo(np.int16)

Kind = Literal["split", "image", "labels", "missing", "unknown", "overlap", "empty", "lost", "remark"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding of the validation. A ``fault`` excludes the subject from the data sets."""

    kind: Kind
    text: str
    fault: bool = False


@dataclass(frozen=True, slots=True)
class Conversion:
    """The settings that determine the files of a subject.

    ``classes`` are all structures expected in the data, including those in none of ``sets``. ``names`` renames
    structures of the source. ``absent_where_missing``: a structure without a file is absent, instead of unknown.
    ``needs_split``: every subject must state its part of the published split.
    """

    sets: tuple[RawSet, ...]
    classes: tuple[str, ...]
    order: Literal[1, 3]
    names: Mapping[str, str]
    absent_where_missing: bool
    needs_split: bool


@dataclass(frozen=True, slots=True)
class Record:
    """The outcome for a subject in one set: findings, the voxels of each structure in the source, and the files."""

    subject: str
    folder: str
    key: str
    split: str
    findings: tuple[Finding, ...]
    voxels: Mapping[str, int]
    files: tuple[str, ...]

    @property
    def is_converted(self) -> bool:
        """Whether it is in the set."""
        return not any(finding.fault for finding in self.findings)


def convert_subject(subject: Subject, out: Path, conversion: Conversion) -> tuple[Record, ...]:
    """Convert one subject into every set, unless an earlier run did so from the same files with the same settings.

    Raises:
        ConfigurationError: ``out`` can't be written.
    """
    content = _content(subject, conversion)
    keys = {each.folder: digest_of([content, asdict(each)]) for each in conversion.sets}
    records = {each.folder: read_record(out, each.folder, subject.id) for each in conversion.sets}
    pending = []
    for each in conversion.sets:
        record = records[each.folder]
        if record is None or record.key != keys[each.folder] or not _are_there(out, record):
            remove(out, each.folder, subject.id)
            pending.append(each)
    try:
        made = tuple(_convert(subject, out, pending, conversion))
    except MemoryError:
        # without a record, because another run may have more memory
        for each in pending:
            remove(out, each.folder, subject.id)
            reason = Finding("image", "out of memory; run the command again with fewer --processes", fault=True)
            records[each.folder] = Record(subject.id, each.folder, "", subject.split or "train", (reason,), {}, ())
        return tuple(record for record in records.values() if record is not None)
    for each, record in zip(pending, made, strict=True):
        records[each.folder] = kept = replace(record, key=keys[each.folder])
        write_json(_record_path(out, each.folder, subject.id), asdict(kept))
    return tuple(record for record in records.values() if record is not None)


def _convert(subject: Subject, out: Path, sets: Sequence[RawSet], conversion: Conversion) -> Iterator[Record]:
    """A record, without its key, for each of ``sets``; its files are written before it is returned."""
    findings: list[Finding] = []
    split = subject.split or "train"
    if not sets:
        return
    refused = conversion.needs_split and _refuse_split(subject, findings)
    volume = None if refused else _image(subject, findings)
    labels = None if volume is None else _open_labels(subject, volume, conversion, findings)
    if volume is None or labels is None:
        yield from (Record(subject.id, each.folder, "", split, tuple(findings), {}, ()) for each in sets)
        return
    writer = _Writer(subject.id, volume, out, split, conversion.order)
    for each in sets:
        of_set = [*findings, *_missing(labels, each, conversion)]
        own = labels.of(each, of_set)
        files: tuple[str, ...] = ()
        if own is not None and not any(finding.fault for finding in of_set):
            labels_zyx, files = writer.write(each, own)
            of_set += _findings_on(each, own, labels_zyx)
        voxels = {} if own is None else own.voxels_by_name
        yield Record(subject.id, each.folder, "", split, tuple(of_set), voxels, files)


# ---- records


def read_record(out: Path, folder: str, subject: str) -> Record | None:
    """The record of an earlier run for a subject in a set; None if there is none, or it can't be read."""
    content = read_json(_record_path(out, folder, subject))
    try:
        if content is not None:
            findings = tuple(Finding(**each) for each in content.pop("findings"))
            return Record(findings=findings, files=tuple(content.pop("files")), **content)
    except (KeyError, TypeError):
        pass
    return None


def remove(out: Path, folder: str, subject: str) -> None:
    """Remove everything of a subject from a set: it is converted again, or no longer in the source.

    Raises:
        ConfigurationError: a file can't be removed.
    """
    try:
        _record_path(out, folder, subject).unlink(missing_ok=True)
        for split in set(SPLIT_FOLDERS.values()):
            for path in _paths(out / folder, split, subject):
                path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(f"files of {subject} can't be removed: {error.strerror}") from error


def _paths(folder: Path, split: str, subject: str) -> tuple[Path, Path]:
    """Image and labels."""
    image = folder / f"images{split}" / f"{subject}_0000{FILE_ENDING}"
    return image, folder / f"labels{split}" / f"{subject}{FILE_ENDING}"


def _record_path(out: Path, folder: str, subject: str) -> Path:
    return out / folder / RECORDS / f"{subject}.json"


def _are_there(out: Path, record: Record) -> bool:
    return all((out / name).is_file() for name in record.files)


def _content(subject: Subject, conversion: Conversion) -> str:
    """A digest of everything that determines the files of a subject; an unreadable file counts as unreadable."""
    digests = [_sha256(path) for path in (*subject.image.paths, *subject.segmentation.paths)]
    names = [path.name for path in subject.segmentation.paths]
    settings = (conversion.classes, conversion.order, dict(conversion.names), conversion.absent_where_missing)
    return digest_of([__version__, subject.split, digests, names, settings, conversion.needs_split])


def _sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        return f"unreadable: {error.strerror}"


# ---- validation


def _refuse_split(subject: Subject, findings: list[Finding]) -> bool:
    if subject.split in SPLIT_FOLDERS:
        return False
    stated = f"split is {subject.split!r}" if subject.split else "no split is stated"
    findings.append(Finding("split", f"{stated}, expected {', '.join(SPLIT_FOLDERS)}", fault=True))
    return True


def _image(subject: Subject, findings: list[Finding]) -> Volume | None:
    """The CT as a model should see it; None if it is refused. Reasons and remarks are added to ``findings``."""
    try:
        volume = subject.image.read()
    except (DicomNodeError, InvalidValueError) as error:
        findings.append(Finding("image", str(error), fault=True))
        return None
    if not volume.geometry.is_orthogonal:
        why = "the gantry is tilted, so labels on the frames can't be resampled to an orthogonal grid"
        findings.append(Finding("image", why, fault=True))
        return None
    if count := int(np.count_nonzero(~np.isfinite(volume.voxels_zyx))):
        findings.append(Finding("image", f"{count} voxels are not finite numbers", fault=True))
        return None
    if (implausible := implausible_scale(volume)) is not None:
        findings.append(Finding("remark", f"the values may not be Hounsfield units: {implausible}"))
    return volume.with_air_for_padding()


class _Labels(Protocol):
    """The segmentation of a subject, with the names that the sets use."""

    known: frozenset[str]
    """The structures that were segmented, present or not."""
    is_complete: bool
    """Whether a structure that is not mentioned is absent."""

    def of(self, each: RawSet, findings: list[Finding]) -> LabelMap | None:
        """The label map of a set; None if it is refused, with the reason in ``findings``."""
        ...


class _LabelsInOne:
    """A label map: each voxel belongs to one structure, in any of the sets."""

    def __init__(self, label_map: LabelMap, *, is_complete: bool) -> None:
        self._label_map = label_map
        self.known = frozenset(label_map.names_by_label.values())
        self.is_complete = is_complete

    def of(self, each: RawSet, findings: list[Finding]) -> LabelMap | None:
        own = self._label_map.relabelled(each.labels.label_by_name)
        findings += [Finding("overlap", str(overlap)) for overlap in own.overlaps]
        return own


class _LabelsInFiles:
    """A mask per structure: the masks of each set are merged separately, as in TotalSegmentator."""

    is_complete = False

    def __init__(self, path_by_name: Mapping[str, Path], geometry: Geometry) -> None:
        self._path_by_name = path_by_name
        self._geometry = geometry
        self._merged: dict[tuple[str, ...], LabelMap] = {}
        self.known = frozenset(path_by_name)

    def of(self, each: RawSet, findings: list[Finding]) -> LabelMap | None:
        names = tuple(each.labels.label_by_name)
        try:
            if names not in self._merged:
                self._merged[names] = self._merge(each)
        except DicomNodeError as error:
            findings.append(Finding("labels", str(error), fault=True))
            return None
        own = self._merged[names]
        findings += [Finding("overlap", str(overlap)) for overlap in own.overlaps]
        return own

    def _merge(self, each: RawSet) -> LabelMap:
        own = {name: path for name, path in self._path_by_name.items() if name in each.labels.label_by_name}
        if not own:
            return LabelMap(np.zeros(self._geometry.shape_zyx, np.uint8), each.labels.names_by_label, self._geometry)
        return read_structure_files(own, each.labels.label_by_name).on_grid(self._geometry)


def _open_labels(subject: Subject, volume: Volume, conversion: Conversion, findings: list[Finding]) -> _Labels | None:
    """The segmentation; None if it is refused. Reasons and remarks are added to ``findings``."""
    source, names = subject.segmentation, conversion.names
    labels: _Labels
    try:
        if isinstance(source, StructureFiles):
            files = {names.get(name, name): path for name, path in source.path_by_name.items()}
            labels = _LabelsInFiles(files, volume.geometry)
        else:
            label_map = source.read(volume.geometry)
            findings += [Finding("remark", note) for note in label_map.notes]
            # a SEG contains only what was found, and nobody contours an absent structure
            is_complete = isinstance(source, SegmentationObject | ContourObject)
            labels = _LabelsInOne(label_map.renamed(names), is_complete=is_complete)
    except (DicomNodeError, InvalidValueError) as error:
        findings.append(Finding("labels", str(error), fault=True))
        return None
    if unknown := sorted(labels.known - set(conversion.classes)):
        findings.append(Finding("unknown", f"{_listed(unknown)}: not among the classes, and in none of the sets"))
    return labels


def _missing(labels: _Labels, each: RawSet, conversion: Conversion) -> Iterator[Finding]:
    missing = [name for name in each.labels.label_by_name if name not in labels.known]
    if missing:
        is_absent = labels.is_complete or conversion.absent_where_missing
        taken = "; treated as absent" if is_absent else ""
        yield Finding("missing", f"{_listed(missing)}: not segmented{taken}", fault=not is_absent)


def _listed(names: Sequence[str], shown: int = 8) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


# ---- files


class _Writer:
    """Writes a subject to sets; sets with the same spacing share one image."""

    def __init__(self, subject: str, volume: Volume, out: Path, split: str, order: Literal[1, 3]) -> None:
        self._subject = subject
        self._volume = volume
        self._out = out
        self._split = SPLIT_FOLDERS[split]
        self._order = order
        self._canonical = Canonical.of(volume.geometry)
        self._turned = _turned(volume.geometry, self._canonical)
        self._images: dict[float, Path] = {}

    def write(self, each: RawSet, own: LabelMap) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
        """Write image and labels; returns the labels after resampling, and the files relative to the output folder."""
        image, labels = _paths(self._out / each.folder, self._split, self._subject)
        geometry = _grid(self._turned, each.spacing_mm)
        description = f"dicom-node {__version__}: order {self._order}, RAS"
        with replaced_file(image) as part:
            if each.spacing_mm in self._images:
                _link(self._images[each.spacing_mm], part)
            else:
                seen = self._canonical.view(self._volume.voxels_zyx)
                write_volume(
                    part, _resampled(seen, geometry, self._turned, self._order), grid_of(geometry), description
                )
        self._images[each.spacing_mm] = image
        labels_zyx = _nearest(self._canonical.view(own.labels_zyx), geometry.shape_zyx)
        with replaced_file(labels) as part:
            write_labels(part, labels_zyx, grid_of(geometry), each.labels.names_by_label, description)
        return labels_zyx, tuple(path.relative_to(self._out).as_posix() for path in (image, labels))


def _turned(geometry: Geometry, canonical: Canonical) -> Geometry:
    """The grid of the canonical view of an array on ``geometry``."""
    source_xyz = np.array(geometry.shape_zyx[::-1])
    affine = np.eye(4)
    affine[:3, 3] = geometry.affine_lps[:3, 3]
    for axis, (source, reverse) in enumerate(zip(canonical.source_axes, canonical.reversed_axes, strict=True)):
        step = geometry.affine_lps[:3, 2 - source]
        affine[:3, 2 - axis] = -step if reverse else step
        if reverse:
            affine[:3, 3] += (source_xyz[2 - source] - 1) * step
    first, second, third = (geometry.shape_zyx[axis] for axis in canonical.source_axes)
    return Geometry((first, second, third), affine)


def _grid(geometry: Geometry, spacing_mm: float) -> Geometry:
    """The grid after resampling: the first voxel stays, and the spacing is exactly the requested one."""
    spacing_zyx = geometry.spacing_xyz_mm[::-1]
    if np.array_equal(np.array(spacing_zyx, np.float32), np.full(3, spacing_mm, np.float32)):
        return geometry
    shape = resampled_shape(geometry.shape_zyx, spacing_zyx, (spacing_mm,) * 3)
    affine = geometry.affine_lps.copy()
    affine[:3, :3] = geometry.direction * spacing_mm
    return Geometry(shape, affine)


def _resampled(
    voxels_zyx: NDArray[Any], geometry: Geometry, source: Geometry, order: Literal[1, 3]
) -> NDArray[np.int16]:
    if geometry is source:
        whole: NDArray[np.int16] = np.clip(np.rint(voxels_zyx), _INT16.min, _INT16.max).astype(np.int16)
        return whole
    if order == 1:
        return resample(voxels_zyx, geometry.shape_zyx)
    factors = [new / old for new, old in zip(geometry.shape_zyx, voxels_zyx.shape, strict=True)]
    # along x first, like TotalSegmentator, because truncation exposes the rounding of another order
    zoomed = zoom(voxels_zyx.T.astype(np.float64), factors[::-1], order=order, mode="nearest").T
    cubic: NDArray[np.int16] = np.clip(zoomed.astype(np.int32), _INT16.min, _INT16.max).astype(np.int16)
    return cubic


def _nearest(labels_zyx: NDArray[np.uint8], shape_zyx: Sequence[int]) -> NDArray[np.uint8]:
    """As ``scipy.ndimage.zoom`` with order 0: the voxel whose centre is nearest, the later one of two."""
    chosen = [
        np.minimum(np.floor(sample_positions(count, old) + 0.5).astype(np.int64), old - 1)
        for count, old in zip(shape_zyx, labels_zyx.shape, strict=True)
    ]
    return np.ascontiguousarray(labels_zyx[np.ix_(*chosen)])


def _findings_on(each: RawSet, own: LabelMap, labels_zyx: NDArray[np.uint8]) -> Iterator[Finding]:
    if not own.present:
        yield Finding("empty", f"none of the {len(own.names_by_label)} structures of {each.name} is present")
        return
    counts = np.bincount(labels_zyx.ravel(), minlength=256)
    lost = [name for label, name in own.names_by_label.items() if name in own.present and not counts[label]]
    if lost:
        yield Finding("lost", f"{_listed(lost)}: lost by resampling to {each.spacing_mm:g} mm")


def _link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy if the file system has no links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
