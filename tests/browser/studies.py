"""Studies for a viewer: phantoms as CT series, modified where a case needs it, and the node's results."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk  # noqa: N813 - its own habit
from pydicom import dcmread

from dicom_node.demo.phantom_series import write_series
from dicom_node.encode.run import encode
from dicom_node.reconstruct import reconstruct
from dicom_node.standard.files import read_series_folder
from dicom_node.types import ResultContext
from inference.measure import measure
from inference.phantom import Phantom, phantom
from inference.types import ModelIdentity, Segmentation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pydicom import Dataset

    from dicom_node.types import EncodedResult, ResultKind, ResultRequest

CONTEXT = ResultContext(
    started_at=datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC),
    revision=1,
    content_digest="0f" * 32,
    station_name="node-1",
    device_uid="2.25.1234567890",
)
MODEL = ModelIdentity("truth", "1", "ab" * 32, "nnU-Net")


@dataclass(frozen=True)
class Study:
    """A CT series as files, the true labels of each image, and the results.

    ``truth`` maps each image's SOP Instance UID to its labels (rows, columns), ``names`` each label to its structure.
    """

    study_uid: str
    series_uid: str
    folder: Path
    truth: Mapping[str, np.ndarray]
    names: Mapping[int, str]
    results: tuple[EncodedResult, ...] = field(default=())

    def of(self, kind: ResultKind) -> tuple[EncodedResult, ...]:
        return tuple(result for result in self.results if result.kind is kind)


def small_phantom(seed: int, rows: int, columns: int) -> Phantom:
    """A chest phantom of about 20 planes with this many rows and columns."""
    case = phantom(seed, (400 / columns + 1e-6, 315 / rows + 1e-6, 16.0), "chest")
    assert case.truth.labels_zyx.shape[1:] == (rows, columns)
    return case


def written(case: Phantom, folder: Path, bend: Callable[[Dataset, int], None] | None = None) -> Study:
    """``case`` as a CT series; ``bend(header, plane)`` modifies each image before it is written."""
    series_uid = write_series(case, folder)
    truth, study_uid = {}, ""
    for plane, path in enumerate(sorted(folder.glob("*.dcm"))):
        image = dcmread(path)
        if bend is not None:
            bend(image, plane)
            image.save_as(path, enforce_file_format=True)
        truth[str(image.SOPInstanceUID)] = case.truth.labels_zyx[plane]
        study_uid = str(image.StudyInstanceUID)
    return Study(study_uid, series_uid, folder, truth, case.truth.names_by_label)


def tilted(image: Dataset, plane: int) -> None:
    """A gantry tilted by 15 degrees: the image planes are oblique to the direction of table travel, z."""
    lean = np.deg2rad(15)
    image.ImageOrientationPatient = [1, 0, 0, 0, round(np.cos(lean), 9), round(-np.sin(lean), 9)]
    image.GantryDetectorTilt = 15


def prone(image: Dataset, plane: int) -> None:
    """The same pixels for a patient in the prone position: columns towards Right, rows towards Anterior."""
    image.PatientPosition = "HFP"
    image.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]


def segmented(study: Study, model: Path, out: Path) -> Study:
    """``study`` with the labels found by ``dicom-node segment`` as truth; its SEG and label map are in ``out``."""
    command = [sys.executable, "-m", "dicom_node.cli", "segment", study.folder, "--model", model, "--out", out]
    command += ["--results", "segmentation: both"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True, timeout=300)
    labels = sitk.GetArrayFromImage(sitk.ReadImage(out / "labels.nii.gz"))
    images = sorted(map(dcmread, study.folder.glob("*.dcm")), key=lambda image: image.ImagePositionPatient[2])
    truth = {str(image.SOPInstanceUID): plane for image, plane in zip(images, labels, strict=True)}
    names = {int(label): name for label, name in json.loads((out / "labels.json").read_text()).items()}
    return replace(study, truth=truth, names=names)


def encoded(study: Study, case: Phantom, requests: Mapping[str, ResultRequest]) -> Study:
    """``study`` with the results that the node encodes when its model finds exactly the truth."""
    (series,) = read_series_folder(study.folder)
    source = reconstruct(series)
    labels = np.stack([study.truth[frame.sop_instance_uid] for frame in source.frames])
    segmentation = Segmentation(labels, source.source.geometry, case.truth.names_by_label, MODEL)
    results = encode(source, segmentation, measure(source.source, segmentation), CONTEXT, requests)
    return replace(study, results=results)
