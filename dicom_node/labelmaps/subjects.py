"""A subject of a study or a data set: a CT, its segmentation, and what is known about the patient."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dicom_node.nifti import read_volume
from dicom_node.reconstruct import reconstruct
from dicom_node.standard.age import age_years_of_table
from dicom_node.standard.files import read_headers
from dicom_node.types import Series

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dicom_node.labelmaps.label_map import LabelMap
    from dicom_node.labelmaps.sources import LabelSource
    from inference.types import Geometry, Volume

PATIENT = "patient_id"
"""The attribute that says whose CT it is: text of ``meta.csv``, and for DICOM a digest, which names nobody."""
_SEXES = {"m": "M", "male": "M", "f": "F", "female": "F", "o": "O"}


@dataclass(frozen=True, slots=True)
class NiftiImage:
    """A CT in one NIfTI file."""

    path: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def read(self) -> Volume:
        """The volume.

        Raises:
            SeriesRejected: see :func:`dicom_node.nifti.read_volume`.
            StoreUnavailable: it can't be read.
        """
        return read_volume(self.path)[0]


@dataclass(frozen=True, slots=True)
class DicomImage:
    """A CT series of DICOM files, one per SOP Instance UID."""

    series_instance_uid: str
    paths: tuple[Path, ...]

    def read(self) -> Volume:
        """The volume on the frames of the series, sheared if the gantry was tilted.

        Raises:
            SeriesRejected: see :func:`dicom_node.reconstruct.reconstruct`.
            StoreUnavailable: a file is missing or the disk fails.
        """
        instances = read_headers(self.paths)
        study_instance_uid = str(instances[0].header.get("StudyInstanceUID", ""))
        return reconstruct(Series(self.series_instance_uid, study_instance_uid, instances)).source


Image = NiftiImage | DicomImage


@dataclass(frozen=True, slots=True)
class Scan:
    """A CT, which may have no segmentation, and what is known about its patient.

    ``attributes`` are the columns of ``meta.csv`` as written, or the same from DICOM headers.
    """

    id: str
    image: Image
    attributes: Mapping[str, str] = field(default_factory=dict, kw_only=True)

    @property
    def age_years(self) -> float | None:
        """From ``age`` (``61``, ``61.0`` or DICOM's ``061Y``, ``007M``); None where unknown, also for ``000Y``."""
        return age_years_of_table(self.attributes.get("age", ""))

    @property
    def sex(self) -> str | None:
        """``M``, ``F`` or ``O``, from ``sex`` or ``gender``; None where unknown."""
        return sex_of_table(self.attributes.get("sex") or self.attributes.get("gender") or "")

    @property
    def split(self) -> str | None:
        """``train``, ``val`` or ``test`` of the published split; None where it has none."""
        return self.attributes.get("split") or None

    @property
    def patient(self) -> str:
        """The same text for all CTs of one patient, from ``patient_id``; where that is unknown, the CT's own id."""
        return self.attributes.get(PATIENT) or self.id


@dataclass(frozen=True, slots=True)
class Subject(Scan):
    """A CT with its segmentation."""

    segmentation: LabelSource

    def read_labels(self, geometry: Geometry) -> LabelMap:
        """The label map on ``geometry``, the grid of :attr:`image`.

        Raises:
            ResultUnreadable: it can't be read, or does not lie on the CT.
        """
        return self.segmentation.read(geometry)


def sex_of_table(value: str) -> str | None:
    """``M``, ``F`` or ``O`` as a table such as ``meta.csv`` states it; None where it does not."""
    return _SEXES.get(value.strip().lower())
