"""Writes a volume as a classic CT series that any archive and any validator accepts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dicom_node import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from inference.types import Volume

_SCANNED = datetime(2020, 1, 1, 8, 0, 0, tzinfo=UTC)
_DATE, _TIME = "%Y%m%d", "%H%M%S"
_MOST_HU, _LEAST_HU = 3071, -1024
_KERNEL = "SYNTHETIC"


@dataclass(frozen=True, slots=True)
class SyntheticPatient:
    """The patient of the series, whose name and identifier show that the patient is not real."""

    seed: int
    age_years: int
    sex: str
    """``"F"``, ``"M"`` or ``"O"``."""
    contrast: bool = False

    @property
    def name(self) -> str:
        """Patient's Name (PN)."""
        return f"Phantom^Seed {self.seed}"

    @property
    def identifier(self) -> str:
        """Patient ID (LO)."""
        return f"PHANTOM-{self.seed}"


def write_ct_series(volume: Volume, folder: Path, patient: SyntheticPatient) -> str:
    """Write ``volume`` as one file per plane, starting with ``ct_0000.dcm``, to ``folder`` (created if missing).

    Head first, supine, Explicit VR Little Endian, int16 with slope 1 and intercept -1024; HU are clipped to the 12 bits
    of a scanner. Every UID is derived from the patient's seed and the grid, so that the same phantom always gives the
    same series and different phantoms never do.

    Returns:
        The Series Instance UID.

    Raises:
        ValueError: the grid is not axial (columns to the Left, rows to the Posterior, planes to the head).
    """
    geometry = volume.geometry
    if not np.allclose(geometry.direction, np.eye(3), atol=1e-4):
        raise ValueError(f"expected an axial grid, columns along +x, rows along +y, not {geometry.direction.tolist()}")
    folder.mkdir(parents=True, exist_ok=True)
    purpose = f"{patient.seed}/{geometry.shape_zyx}/{np.round(geometry.affine_lps, 6).tolist()}"
    shared = _shared_attributes(volume, patient, purpose)
    z_mm = geometry.affine_lps[:3, 3] + np.arange(geometry.shape_zyx[0])[:, None] * geometry.affine_lps[:3, 2]
    for plane, position in enumerate(z_mm):
        dataset = _plane(shared, purpose, plane, position, volume.voxels_zyx[plane])
        dataset.save_as(folder / f"ct_{plane:04d}.dcm", enforce_file_format=True)
    return str(shared.SeriesInstanceUID)


def _shared_attributes(volume: Volume, patient: SyntheticPatient, purpose: str) -> Dataset:
    shared = Dataset()
    shared.SpecificCharacterSet = "ISO_IR 192"
    shared.update(_identity(patient, purpose))
    shared.update(_equipment())
    shared.update(_acquisition(volume, patient))
    return shared


def _identity(patient: SyntheticPatient, purpose: str) -> Dataset:
    """Patient, General Study, General Series and Frame of Reference modules."""
    item = Dataset()
    item.PatientName = patient.name
    item.PatientID = patient.identifier
    item.PatientBirthDate = (_SCANNED - timedelta(days=365.2425 * patient.age_years)).strftime(_DATE)
    item.PatientSex = patient.sex
    item.PatientAge = f"{patient.age_years:03d}Y"
    item.PatientComments = "Synthetic phantom, not a person"
    item.StudyInstanceUID = _uid(purpose, "study")
    item.StudyID = str(patient.seed)[:16]
    item.StudyDate = item.SeriesDate = item.AcquisitionDate = item.ContentDate = _SCANNED.strftime(_DATE)
    item.StudyTime = item.SeriesTime = item.AcquisitionTime = item.ContentTime = _SCANNED.strftime(_TIME)
    item.AccessionNumber = ""
    item.ReferringPhysicianName = ""
    item.StudyDescription = "Synthetic phantom"
    item.Modality = "CT"
    item.SeriesInstanceUID = _uid(purpose, "series")
    item.SeriesNumber = 1
    item.SeriesDescription = "Synthetic whole body"
    item.BodyPartExamined = "WHOLEBODY"
    item.PatientPosition = "HFS"
    item.FrameOfReferenceUID = _uid(purpose, "frame of reference")
    item.PositionReferenceIndicator = ""
    return item


def _equipment() -> Dataset:
    item = Dataset()
    item.Manufacturer = "dicom-node phantom"
    item.ManufacturerModelName = "Synthetic CT"
    item.DeviceSerialNumber = "0"
    item.SoftwareVersions = __version__
    item.InstitutionName = "None (synthetic)"
    return item


def _acquisition(volume: Volume, patient: SyntheticPatient) -> Dataset:
    """The attributes of the CT Image, Image Plane and Image Pixel modules that are the same in every plane."""
    columns_mm, rows_mm, planes_mm = volume.geometry.spacing_xyz_mm
    item = Dataset()
    item.SOPClassUID = CTImageStorage
    item.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    item.QualityControlImage = "YES"
    item.KVP = 120
    item.ConvolutionKernel = _KERNEL
    item.SliceThickness = _decimal(planes_mm)
    item.SpacingBetweenSlices = _decimal(planes_mm)
    item.DataCollectionDiameter = 500
    item.ReconstructionDiameter = _decimal(columns_mm * volume.geometry.shape_zyx[2])
    item.GantryDetectorTilt = 0
    item.XRayTubeCurrent = 200
    item.ExposureTime = 500
    item.AcquisitionNumber = 1
    if patient.contrast:
        item.ContrastBolusAgent = "Synthetic"
    item.PixelSpacing = [_decimal(rows_mm), _decimal(columns_mm)]
    item.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    item.SamplesPerPixel = 1
    item.PhotometricInterpretation = "MONOCHROME2"
    item.Rows, item.Columns = volume.geometry.shape_zyx[1:]
    item.BitsAllocated, item.BitsStored, item.HighBit = 16, 12, 11
    item.PixelRepresentation = 0
    item.RescaleIntercept, item.RescaleSlope, item.RescaleType = _LEAST_HU, 1, "HU"
    item.WindowCenter, item.WindowWidth = 40, 400
    item.BurnedInAnnotation = "NO"
    return item


def _plane(
    shared: Dataset,
    purpose: str,
    plane: int,
    position_lps_mm: NDArray[np.float64],
    hu_yx: NDArray[np.int16] | NDArray[np.float32],
) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", shared, file_meta=meta, preamble=bytes(128))
    dataset.SOPInstanceUID = _uid(purpose, f"plane {plane}")
    dataset.InstanceNumber = plane + 1
    dataset.ImagePositionPatient = [_decimal(value) for value in position_lps_mm]
    dataset.SliceLocation = _decimal(position_lps_mm[2])
    stored = np.clip(np.rint(hu_yx), _LEAST_HU, _MOST_HU).astype(np.int32) - _LEAST_HU
    dataset.PixelData = stored.astype("<u2").tobytes()
    return dataset


def _uid(purpose: str, part: str) -> str:
    """A UID under 2.25 (PS3.5 B.2) from 128 bits of a hash that is unique to this phantom and part."""
    digest = hashlib.sha256(f"dicom-node phantom/{purpose}/{part}".encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def _decimal(value: float) -> str:
    """Decimal String: at most 16 characters (PS3.5 6.2)."""
    return f"{round(float(value), 6):.10g}"
