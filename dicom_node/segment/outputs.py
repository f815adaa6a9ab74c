"""Writes the output files of a segmented CT; the summary is written last, so it proves that the rest is complete."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from dicom_node import __version__
from dicom_node.errors import ConfigurationError
from dicom_node.nifti import write_labels
from dicom_node.types import ResultKind
from inference.types import ShapeMeasurement, StructureMeasurement

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from dicom_node.nifti import FileGrid
    from dicom_node.types import EncodedResult
    from inference.types import Measurements, Segmentation

LABELS = "labels.nii.gz"
LABEL_NAMES = "labels.json"
MEASUREMENTS = "measurements.json"
MEASUREMENT_TABLE = "measurements.csv"
SUMMARY = "summary.json"
_RESULTS = {
    ResultKind.SEGMENTATION: "segmentation",
    ResultKind.LABELMAP: "labelmap",
    ResultKind.REPORT: "report",
    ResultKind.CONTOURS: "contours",
    ResultKind.CAPTURE: "capture",
    ResultKind.DOCUMENT: "document",
}
_RESULT_FILE = re.compile(rf"({'|'.join(_RESULTS.values())})(-\d{{3,}})?\.dcm")
_PART = ".part"


def make_folder(folder: Path) -> None:
    """Make ``folder``.

    Raises:
        ConfigurationError: it can't be created or written.
    """
    with _translated(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def remove_earlier(folder: Path) -> None:
    """Remove the output files of an earlier run, the summary first.

    Raises:
        ConfigurationError: a file can't be removed.
    """
    with _translated(folder):
        results = (path.name for path in folder.iterdir() if _RESULT_FILE.fullmatch(path.name))
        for name in (SUMMARY, LABELS, LABEL_NAMES, MEASUREMENTS, MEASUREMENT_TABLE, *results):
            (folder / name).unlink(missing_ok=True)


def write_label_map(folder: Path, segmentation: Segmentation, grid: FileGrid) -> None:
    """Write ``labels.nii.gz``, which includes the label names, and the names also as ``labels.json``.

    Raises:
        ConfigurationError: they can't be written.
    """
    model = segmentation.model
    description = f"{model.name} {model.version}; dicom-node {__version__}; research use only"
    with _replaced(folder / LABELS) as part:
        write_labels(part, segmentation.labels_zyx, grid, segmentation.names_by_label, description)
    _write_json(folder / LABEL_NAMES, {str(label): name for label, name in segmentation.names_by_label.items()})


def write_measurements(folder: Path, measurements: Measurements) -> None:
    """Write every structure that was found, as JSON (with the names of those that were not) and as a table.

    Raises:
        ConfigurationError: they can't be written.
    """
    rows = [_row(structure) for structure in measurements.structures]
    _write_json(folder / MEASUREMENTS, {"structures": rows, "not_found": list(measurements.not_found)})
    columns = [field.name for field in fields(StructureMeasurement) if field.name != "shape"]
    if any(structure.shape for structure in measurements.structures):
        columns += [field.name for field in fields(ShapeMeasurement)]
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with _replaced(folder / MEASUREMENT_TABLE) as part:
        part.write_text(table.getvalue(), encoding="utf-8")


def _row(structure: StructureMeasurement) -> dict[str, Any]:
    """All measurements of one structure, including its shape."""
    row = asdict(structure)
    return row | (row.pop("shape") or {})


def write_results(folder: Path, results: Sequence[EncodedResult]) -> list[dict[str, str]]:
    """Write Part 10 files, numbered if there are several of a kind; returns which file has which instance.

    Raises:
        ConfigurationError: they can't be written.
    """
    written = []
    of_kind, so_far = Counter(result.kind for result in results), Counter[ResultKind]()
    for result in results:
        so_far[result.kind] += 1
        number = f"-{so_far[result.kind]:03}" if of_kind[result.kind] > 1 else ""
        name = f"{_RESULTS[result.kind]}{number}.dcm"
        with _replaced(folder / name) as part:
            part.write_bytes(result.content)
        written.append(
            {
                "file": name,
                "sop_class_uid": result.sop_class_uid,
                "sop_instance_uid": result.sop_instance_uid,
                "series_instance_uid": result.series_instance_uid,
            }
        )
    return written


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write the summary, the last file of a folder.

    Raises:
        ConfigurationError: it can't be written.
    """
    _write_json(folder / SUMMARY, summary)


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of an earlier run; None if there is none, or if it can't be read."""
    try:
        content = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _write_json(path: Path, value: Any) -> None:
    with _replaced(path) as part:
        part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A temporary file that is renamed to ``path`` when it is complete."""
    part = path.with_name(path.name + _PART)
    with _translated(path):
        try:
            yield part
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"{path} can't be written: {error.strerror}") from error
