"""Converts a data set to nnU-Net's raw format, one data set per set of labels, with a report of the findings.

Source: nnU-Net's documentation of its data set format. ``splits_final.json`` has the published training and validation
subjects; nnU-Net reads it from the folder of the preprocessed data set. Test subjects are in ``imagesTs``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from dicom_node import __version__
from dicom_node.dataset.conversion import (
    FILE_ENDING,
    RECORDS,
    SPLIT_FOLDERS,
    convert_subject,
    remove,
)
from dicom_node.dataset.files import make_folder, write_json, write_text
from dicom_node.dataset.folds import by_patient, folds
from dicom_node.dataset.html import report_page
from dicom_node.dataset.processes import in_processes
from dicom_node.errors import ConfigurationError, DicomNodeError
from dicom_node.labelmaps import StructureFiles
from dicom_node.labelmaps.finding import CASES_OF_ONE_PATIENT, DESCRIPTION, SPLITS
from inference.parts import total

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from dicom_node.dataset.conversion import Conversion, Finding, Record
    from dicom_node.dataset.sets import RawSet
    from dicom_node.labelmaps import FoundSubjects, Subject
    from inference.parts import Classes

REPORT, REPORT_PAGE = "validation.json", "validation.html"


def classes_of(found: FoundSubjects, names: Mapping[str, str]) -> Classes:
    """The version of the published classes found in the first readable subject.

    Raises:
        ConfigurationError: no subject can be read, or its classes fit neither version, or both.
    """
    for subject in found.subjects:
        seen = _structures(subject, names)
        if seen:
            break
    else:
        raise ConfigurationError("no segmentation can be read to tell its classes; state them with --classes")
    versions: tuple[Classes, ...] = ("v1", "v2")
    known = {version: frozenset(total(version).names_by_label.values()) for version in versions}
    fitting: list[Classes] = [version for version in versions if seen <= known[version]]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ConfigurationError(f"{subject.id} has only structures of both versions; state --classes v1 or v2")
    closest = max(versions, key=lambda version: len(seen & known[version]))
    strange = ", ".join(sorted(seen - known[closest])[:5])
    raise ConfigurationError(
        f"{subject.id} has {strange}, not among the classes of {closest}; state --classes, --structures or --rename"
    )


def _structures(subject: Subject, names: Mapping[str, str]) -> frozenset[str]:
    try:
        if isinstance(subject.segmentation, StructureFiles):
            seen = list(subject.segmentation.path_by_name)
        else:
            seen = list(subject.read_labels(subject.image.read().geometry).names_by_label.values())
    except DicomNodeError:
        return frozenset()
    return frozenset(names.get(name, name) for name in seen)


def convert(
    found: FoundSubjects,
    out: Path,
    conversion: Conversion,
    source_name: str,
    processes: int,
    report: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Convert the subjects that an earlier run did not, write the tables, and return the report.

    ``source_name`` states in dataset.json where the data come from; ``report(stage, done, total)`` is called for each
    subject.

    Raises:
        ConfigurationError: ``out`` can't be written, or contains something else.
    """
    _refuse_other_content(out, conversion)
    subjects = found.subjects
    _remove_stale(out, conversion, {subject.id for subject in subjects})
    for each in conversion.sets:
        make_folder(out / each.folder / RECORDS)  # tells the next run that the set is ours
    made: dict[str, tuple[Record, ...]] = {}
    report("subjects", 0, len(subjects))
    work = partial(convert_subject, out=out, conversion=conversion)
    for done, (subject, records) in enumerate(in_processes(work, subjects, processes), start=1):
        made[subject.id] = records
        report("subjects", done, len(subjects))
    ordered = [record for subject in subjects for record in made[subject.id]]
    patients = {subject.id: subject.patient for subject in subjects}
    for each in conversion.sets:
        _write_tables(out / each.folder, each, ordered, conversion, source_name, patients)
    content = _report(found, ordered, conversion, source_name)
    write_json(out / REPORT, content, shared=True)
    write_text(out / REPORT_PAGE, report_page(content), shared=True)
    return content


def _refuse_other_content(out: Path, conversion: Conversion) -> None:
    for each in conversion.sets:
        folder = out / each.folder
        if folder.exists() and not (folder / RECORDS).is_dir():
            raise ConfigurationError(f"{folder} exists, but was not written by a conversion")


def _remove_stale(out: Path, conversion: Conversion, subjects: set[str]) -> None:
    """Remove subjects that are no longer in the source; nnU-Net would still train on their files."""
    for each in conversion.sets:
        for path in sorted((out / each.folder / RECORDS).glob("*.json")):
            if path.stem not in subjects:
                remove(out, each.folder, path.stem)


def _write_tables(
    folder: Path,
    each: RawSet,
    records: Sequence[Record],
    conversion: Conversion,
    source_name: str,
    patients: Mapping[str, str],
) -> None:
    converted = [record for record in records if record.folder == each.folder and record.is_converted]
    by_split = {split: [record.subject for record in converted if record.split == split] for split in SPLIT_FOLDERS}
    training = [record.subject for record in converted if SPLIT_FOLDERS[record.split] == "Tr"]
    groups = by_patient(training, patients)
    repeated = [group for group in groups if len(group) > 1]
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **each.labels.label_by_name},
        "numTraining": len(training),
        "file_ending": FILE_ENDING,
        "overwrite_image_reader_writer": "NibabelIOWithReorient",
        "name": each.folder,
        "reference": source_name,
        "description": f"{len(each.labels.names_by_label)} structures at {each.spacing_mm:g} mm",
        "converted_by": f"dicom-node {__version__}",
        "orientation": "RAS",
        "resampling": {"image_order": conversion.order, "label_order": 0, "spacing_mm": each.spacing_mm},
        **({CASES_OF_ONE_PATIENT: repeated} if repeated else {}),
    }
    write_json(folder / DESCRIPTION, content)
    # nnU-Net makes its own folds of the cases, which is right only where each is of another patient
    own = folds(groups) if repeated else []
    splits = [{"train": by_split["train"], "val": by_split["val"]}] if by_split["val"] else own
    if splits:
        write_json(folder / SPLITS, splits)
    else:
        (folder / SPLITS).unlink(missing_ok=True)


def _report(
    found: FoundSubjects, records: Sequence[Record], conversion: Conversion, source_name: str
) -> dict[str, Any]:
    converted = [record for record in records if record.is_converted]
    names = {each.folder: each.name for each in conversion.sets}
    findings: dict[tuple[str, Finding], list[str]] = {}
    for record in records:
        for finding in record.findings:
            findings.setdefault((record.subject, finding), []).append(names[record.folder])
    return {
        "source": source_name,
        "layout": found.layout,
        "dicom_node": __version__,
        "resampling": {"image_order": conversion.order, "label_order": 0, "orientation": "RAS"},
        "sets": [
            {
                "folder": each.folder,
                "structures": len(each.labels.names_by_label),
                "spacing_mm": each.spacing_mm,
                **{
                    split: sum(record.folder == each.folder and record.split == split for record in converted)
                    for split in SPLIT_FOLDERS
                },
                "refused": sum(record.folder == each.folder and not record.is_converted for record in records),
                "subjects_with_structure": {
                    name: sum(record.folder == each.folder and record.voxels.get(name, 0) > 0 for record in converted)
                    for name in each.labels.label_by_name
                },
            }
            for each in conversion.sets
        ],
        "left_out": [{"id": each.id, "reason": each.reason} for each in found.left_out],
        "findings": [
            *_patients_on_both_sides(found, list(names.values())),
            *(
                {"id": subject, "kind": finding.kind, "fault": finding.fault, "text": finding.text, "sets": folders}
                for (subject, finding), folders in findings.items()
            ),
        ],
    }


def _patients_on_both_sides(found: FoundSubjects, sets: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A remark for every CT of a patient who has others in another part of the stated split."""
    parts: dict[str, set[str]] = {}
    for subject in found.subjects:
        parts.setdefault(subject.patient, set()).add(subject.split or "train")
    for subject in found.subjects:
        others = parts[subject.patient] - {subject.split or "train"}
        if others:
            text = f"in {subject.split or 'train'}, and other series of the same patient in {', '.join(sorted(others))}"
            yield {"id": subject.id, "kind": "split", "fault": False, "text": text, "sets": list(sets)}
