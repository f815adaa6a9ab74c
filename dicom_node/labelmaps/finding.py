"""Find the subjects of a folder, in the layouts in which data sets are kept.

=========== ==========================================================================================================
published   a folder per subject with ``ct.nii.gz`` and ``segmentations/NAME.nii.gz`` or ``labels.nii.gz``, and
            ``meta.csv`` (``;``) with a row per subject: the paper's data set, and phantom cohorts
nnU-Net     ``imagesTr/ID_0000.nii.gz`` and ``labelsTr/ID.nii.gz``, the same with ``Ts``, and ``dataset.json``
pairs       ``images/ID.nii.gz`` and ``labels/ID.nii.gz``
DICOM       CT series and the SEG or RT Structure Set that refers to each, wherever in the folder they lie
=========== ==========================================================================================================

Nothing is passed over silently: what looks like a subject and is none is among those left out, with the reason.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dicom_node.errors import ConfigurationError, ResultUnreadable
from dicom_node.labelmaps.nifti_files import is_nifti, stem
from dicom_node.labelmaps.sources import (
    LABELS,
    STRUCTURES_FOLDER,
    ContourObject,
    LabelFile,
    LabelSource,
    SegmentationObject,
    open_source,
    source_of,
)
from dicom_node.labelmaps.subjects import PATIENT, DicomImage, NiftiImage, Scan, Subject
from dicom_node.reading.reader import ImageReader
from dicom_node.reading.repeated import compared
from dicom_node.standard.attributes import items, text
from dicom_node.standard.files import COPY, PassedOver, read_file
from dicom_node.standard.uids import CT_SOP_CLASSES, is_well_formed_uid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pydicom import Dataset

    from dicom_node.types import SourceInstance

CT = "ct.nii.gz"
META = "meta.csv"
SPLITS = "splits_final.json"
DESCRIPTION = "dataset.json"
CASES_OF_ONE_PATIENT = "cases_of_one_patient"
"""In :data:`DESCRIPTION`: the ids of the training cases of each patient who has several."""
_ID = "image_id"
_CHANNEL = "_0000"
_SPLITS = {"Tr": "train", "Ts": "test"}


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something in the folder that is no subject, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class FoundSubjects:
    """What a folder holds, both by id; ``layout`` is ``published``, ``nnU-Net``, ``pairs`` or ``DICOM``."""

    layout: str
    subjects: tuple[Subject, ...]
    left_out: tuple[LeftOut, ...] = ()


def find_subjects(folder: Path) -> FoundSubjects:
    """Every subject of ``folder``, in whatever layout it is kept; only names and headers are read.

    Raises:
        ConfigurationError: the folder has none of the layouts, or its ``meta.csv`` can't be read.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is not a folder")
    below = sorted(path for path in folder.iterdir() if path.is_dir())
    if any((folder / f"images{split}").is_dir() for split in _SPLITS):
        return _nnunet(folder)
    if (folder / META).is_file() or any((path / CT).is_file() for path in below):
        return _published(folder, below)
    if (folder / "images").is_dir() and (folder / "labels").is_dir():
        return _pairs(folder)
    found = _dicom(folder)
    if not found.subjects and not found.left_out:
        raise ConfigurationError(
            f"{folder} has no subjects: expected a folder per subject with {CT}, imagesTr and labelsTr, images and "
            "labels, or DICOM files"
        )
    return found


def find_segmentations(folder: Path, names_by_label: Mapping[int, str] | None = None) -> dict[str, LabelSource]:
    """Every segmentation directly in ``folder`` by its id: files ``ID.nii.gz`` and ``ID.dcm``, and a folder per id.

    A folder may hold what :func:`~dicom_node.labelmaps.sources.open_source` reads. This is how results are kept,
    without CTs.

    Raises:
        ConfigurationError: there is none, or two have one id.
        ResultUnreadable: a folder has more than one segmentation.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is not a folder")
    found: dict[str, LabelSource] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not any(path.iterdir()):
            continue
        if not (path.is_dir() or is_nifti(path) or path.suffix == ".dcm"):
            continue
        name = path.name if path.is_dir() else stem(path).removesuffix(".dcm")
        if name in found:
            raise ConfigurationError(f"{folder} has two segmentations of {name}")
        found[name] = open_source(path, names_by_label)
    if not found:
        raise ConfigurationError(f"{folder} has no segmentations: neither ID.nii.gz, ID.dcm nor a folder per id")
    return found


def find_scans(folder: Path) -> tuple[tuple[Scan, ...], tuple[LeftOut, ...]]:
    """Every CT of ``folder`` by id, whether it has a segmentation or not, and what is damaged.

    The layouts are those of :func:`find_subjects`, and files ``ID.nii.gz`` directly in the folder.

    Raises:
        ConfigurationError: there is none, or what is known about them can't be read.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is not a folder")
    files = {path.name: path / CT for path in sorted(folder.iterdir()) if (path / CT).is_file()}
    known = _meta(folder)
    if not files:
        below = [folder / f"images{split}" for split in _SPLITS] + [folder / "images", folder]
        chosen = next((each for each in below if any(_files(each))), folder)
        groups = below[:2] if chosen in below[:2] else [chosen]
        files = {stem(path).removesuffix(_CHANNEL): path for each in groups for path in _files(each)}
        known = _said_by_nnunet(folder, files) if chosen in below[:2] else known
    if files:
        return tuple(Scan(name, NiftiImage(path), attributes=known.get(name, {})) for name, path in files.items()), ()
    found = _read_dicom(folder)
    scans = tuple(
        Scan(_name(uid), _image_of(uid, members), attributes=_said_by_headers(members))
        for uid, members in sorted(found.members.items())
    )
    if not scans:
        raise ConfigurationError(f"{folder} has no CTs: neither NIfTI files nor DICOM CT series")
    return scans, _damaged(found)


def by_referenced_series(sources: Mapping[str, LabelSource]) -> dict[str, LabelSource]:
    """DICOM objects by the UID of the series that they refer to, if it is one and no other object's; others by id."""
    uids: dict[str, str] = {}
    for name, source in sources.items():
        if isinstance(source, SegmentationObject | ContourObject):
            instance = read_file(source.path)
            references = frozenset() if isinstance(instance, PassedOver) else _references(instance.header)
            if len(references) == 1:
                uids[name] = _name(next(iter(references)))
    counts = Counter(uids.values())
    return {
        uids[name] if name in uids and counts[uids[name]] == 1 else name: source for name, source in sources.items()
    }


# ---- NIfTI


def _published(folder: Path, below: list[Path]) -> FoundSubjects:
    meta = _meta(folder)
    subjects, left_out = [], []
    for path in below:
        if not (path / CT).is_file():
            if path.name in meta or (path / STRUCTURES_FOLDER).is_dir():
                left_out.append(LeftOut(path.name, f"no {CT}"))
            continue
        try:
            image, attributes = NiftiImage(path / CT), meta.get(path.name, {})
            subjects.append(Subject(path.name, image, _beside_ct(path), attributes=attributes))
        except ResultUnreadable as error:
            left_out.append(LeftOut(path.name, str(error)))
    there = {path.name for path in below}
    left_out += [LeftOut(name, f"in {META}, but there is no such folder") for name in meta if name not in there]
    return FoundSubjects("published", tuple(subjects), tuple(sorted(left_out, key=lambda each: each.id)))


def _beside_ct(folder: Path) -> LabelSource:
    """The segmentation in the folder of a subject."""
    if not ((folder / STRUCTURES_FOLDER).is_dir() or (folder / LABELS).is_file()):
        raise ResultUnreadable(f"neither {STRUCTURES_FOLDER}/ nor {LABELS} beside {CT}")
    return open_source(folder)


def _meta(folder: Path) -> dict[str, dict[str, str]]:
    return read_meta(folder / META) if (folder / META).is_file() else {}


def read_meta(path: Path) -> dict[str, dict[str, str]]:
    """The rows of ``meta.csv`` by ``image_id``.

    Columns are separated by ``;`` or, if the first line has none, by ``,``.

    Raises:
        ConfigurationError: it can't be read, has no ``image_id``, or two rows for one subject.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"can't read {path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from error
    reader = csv.DictReader(lines, delimiter=";" if ";" in (lines or [""])[0] else ",")
    columns = [name.strip() for name in reader.fieldnames or ()]
    if _ID not in columns:
        raise ConfigurationError(f"{path} has the columns {', '.join(columns)}, expected {_ID} among them")
    reader.fieldnames = columns
    rows: dict[str, dict[str, str]] = {}
    for row in reader:
        values = {name: (value or "").strip() for name, value in row.items() if name}
        if values[_ID] in rows:
            raise ConfigurationError(f"{path} has two rows for {values[_ID]}")
        rows[values[_ID]] = values
    return rows


def _nnunet(folder: Path) -> FoundSubjects:
    subjects: dict[str, Subject] = {}
    left_out = []
    for suffix in _SPLITS:
        images = {stem(path).removesuffix(_CHANNEL): path for path in _files(folder / f"images{suffix}")}
        labels = {stem(path): path for path in _files(folder / f"labels{suffix}")}
        known = _said_by_nnunet(folder, images)
        for name in sorted(images | labels):
            if name not in images or name not in labels:
                missing = f"{'labels' if name in images else 'images'}{suffix}"
                left_out.append(LeftOut(name, f"no file in {missing}"))
                continue
            if name in subjects:
                left_out.append(LeftOut(name, f"in images{suffix}, and in imagesTr already"))
                continue
            subjects[name] = Subject(name, NiftiImage(images[name]), LabelFile(labels[name]), attributes=known[name])
    return FoundSubjects("nnU-Net", tuple(subjects.values()), tuple(left_out))


def _said_by_nnunet(folder: Path, images: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """Split and patient of each of ``images``.

    ``splits_final.json`` says which of the training subjects are for validation, and ``dataset.json``, if a conversion
    has written it, which cases are of one patient; the patient is called by the first of them.
    """
    validation = _validation(folder / SPLITS) if (folder / SPLITS).is_file() else frozenset[str]()
    patients = _patients(folder / DESCRIPTION) if (folder / DESCRIPTION).is_file() else {}
    split_by_folder = {f"images{suffix}": split for suffix, split in _SPLITS.items()}
    return {
        name: {
            "split": "val" if name in validation else split_by_folder[path.parent.name],
            PATIENT: patients.get(name, name),
        }
        for name, path in images.items()
    }


def _validation(path: Path) -> frozenset[str]:
    try:
        return frozenset(str(name) for name in json.loads(path.read_text(encoding="utf-8"))[0]["val"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigurationError(f"{path} is no list of folds with train and val") from error


def _patients(path: Path) -> dict[str, str]:
    try:
        groups = json.loads(path.read_text(encoding="utf-8")).get(CASES_OF_ONE_PATIENT, [])
        return {str(name): str(cases[0]) for cases in groups for name in cases}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{path} is no description of a data set in nnU-Net's raw format") from error


def _pairs(folder: Path) -> FoundSubjects:
    meta = _meta(folder)
    images = {stem(path).removesuffix(_CHANNEL): path for path in _files(folder / "images")}
    labels = {stem(path): path for path in _files(folder / "labels")}
    left_out = [
        LeftOut(name, f"no file in {'labels' if name in images else 'images'}")
        for name in sorted(images.keys() ^ labels.keys())
    ]
    subjects = tuple(
        Subject(name, NiftiImage(images[name]), LabelFile(labels[name]), attributes=meta.get(name, {}))
        for name in sorted(images.keys() & labels.keys())
    )
    return FoundSubjects("pairs", subjects, tuple(left_out))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if is_nifti(path)) if folder.is_dir() else iter(())


# ---- DICOM


@dataclass(slots=True)
class _Dicom:
    """What the DICOM files of a folder are; ``reader`` compares those with one SOP Instance UID."""

    reader: ImageReader
    members: dict[str, dict[str, SourceInstance]] = field(default_factory=dict)
    """CT images by Series and SOP Instance UID."""
    sources: list[SegmentationObject | ContourObject] = field(default_factory=list)
    damaged: list[PassedOver] = field(default_factory=list)

    def take(self, path: Path) -> None:
        instance = read_file(path)
        if isinstance(instance, PassedOver):
            if instance.is_dicom:
                self.damaged.append(instance)
            return
        sop_class_uid = text(instance.header, "SOPClassUID")
        source = source_of(path, sop_class_uid)
        if source is not None:
            self.sources.append(type(source)(path, _references(instance.header)))
        elif sop_class_uid in CT_SOP_CLASSES:
            series = self.members.setdefault(str(instance.header.SeriesInstanceUID), {})
            known = series.setdefault(str(instance.header.SOPInstanceUID), instance)
            if known is not instance and (again := compared(known, instance, self.reader)).reason != COPY:
                self.damaged.append(again)


def _dicom(folder: Path) -> FoundSubjects:
    found = _read_dicom(folder)
    by_series: dict[str, list[LabelSource]] = {}
    left_out = list(_damaged(found))
    for source in found.sources:
        known = sorted(source.references & found.members.keys())
        if not known:
            left_out.append(LeftOut(source.path.name, "refers to no CT series in the folder"))
        for uid in known:
            by_series.setdefault(uid, []).append(source)
    subjects = []
    for uid, members in sorted(found.members.items()):
        sources = by_series.get(uid, [])
        name = _name(uid)
        if len(sources) != 1:
            left_out.append(LeftOut(name, f"{len(sources)} segmentations refer to this CT series, expected one"))
            continue
        attributes = _said_by_headers(members)
        subjects.append(Subject(name, _image_of(uid, members), sources[0], attributes=attributes))
    return FoundSubjects("DICOM", tuple(subjects), tuple(left_out))


def _said_by_headers(members: Mapping[str, SourceInstance]) -> dict[str, str]:
    """Age and sex, and whose CT it is: a patient with an ID has one in all studies, one without has the study."""
    header = next(iter(members.values())).header
    whose = text(header, "PatientID") or text(header, "StudyInstanceUID")
    return {
        "age": text(header, "PatientAge"),
        "sex": text(header, "PatientSex"),
        PATIENT: hashlib.sha256(whose.encode()).hexdigest() if whose else "",
    }


def _read_dicom(folder: Path) -> _Dicom:
    with ImageReader() as reader:
        found = _Dicom(reader)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                found.take(path)
    return found


def _damaged(found: _Dicom) -> tuple[LeftOut, ...]:
    return tuple(LeftOut(each.path.name, f"{each.reason} {each.detail}".strip()) for each in found.damaged)


def _image_of(series_instance_uid: str, members: Mapping[str, SourceInstance]) -> DicomImage:
    return DicomImage(series_instance_uid, tuple(instance.path for instance in members.values()))


def _name(series_instance_uid: str) -> str:
    """The UID, or a digest of what takes its place: files are called after it."""
    if is_well_formed_uid(series_instance_uid):
        return series_instance_uid
    return f"series-{hashlib.sha256(series_instance_uid.encode()).hexdigest()[:16]}"


def _references(header: Dataset) -> frozenset[str]:
    """The series that a segmentation (PS3.3 C.12.1.1.1) or structure set (PS3.3 C.8.8.5) refers to."""
    uids = [text(item, "SeriesInstanceUID") for item in items(header, "ReferencedSeriesSequence")]
    for frame_of_reference in items(header, "ReferencedFrameOfReferenceSequence"):
        for study in items(frame_of_reference, "RTReferencedStudySequence"):
            uids += [text(item, "SeriesInstanceUID") for item in items(study, "RTReferencedSeriesSequence")]
    return frozenset(filter(None, uids))
