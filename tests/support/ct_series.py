"""Small CT series that tests write and then modify."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from dicom_node.types import Series, SourceInstance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Stack:
    """Stored values of a regular stack and its position; ``step_mm`` is the vector from plane to plane."""

    stored: np.ndarray
    orientation: tuple[float, ...] = AXIAL
    origin_mm: tuple[float, ...] = (-10.0, -20.0, 30.0)
    step_mm: tuple[float, ...] = (0.0, 0.0, 2.5)
    row_spacing_mm: float = 0.75
    column_spacing_mm: float = 0.5
    bits_stored: int = 16

    def position(self, k: int) -> np.ndarray:
        return np.array(self.origin_mm) + k * np.array(self.step_mm)


def write(folder: Path, stack: Stack) -> Series:
    """One classic CT image per plane, Explicit VR Little Endian, slope 1, intercept -1024."""
    study, series, frame_of_reference = generate_uid(), generate_uid(), generate_uid()
    instances = []
    for k, plane in enumerate(stack.stored):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.Modality, ds.Manufacturer = "CT", "Test"
        ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = "T1", "Test^One", "19700101", "O"
        ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20200101", "080000", "1", "A1"
        ds.ReferringPhysicianName = ""
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame_of_reference
        ds.SeriesNumber, ds.InstanceNumber, ds.PositionReferenceIndicator = 1, len(stack.stored) - k, ""
        ds.ImagePositionPatient = [f"{value:.10g}"[:16] for value in stack.position(k)]
        ds.ImageOrientationPatient = [f"{value:.10f}"[:16] for value in stack.orientation]
        ds.PixelSpacing = [stack.row_spacing_mm, stack.column_spacing_mm]
        ds.SliceThickness, ds.KVP, ds.AcquisitionNumber = 5, 120, 1
        ds.Rows, ds.Columns = plane.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, stack.bits_stored, stack.bits_stored - 1
        ds.PixelRepresentation = int(plane.dtype.kind == "i")
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        ds.PixelData = plane.astype(plane.dtype.newbyteorder("<")).tobytes()
        path = folder / f"{k}.dcm"
        ds.save_as(path, enforce_file_format=True)
        instances.append(SourceInstance(path, dcmread(path, stop_before_pixels=True)))
    return Series(str(series), str(study), tuple(instances))


def enhanced(series: Series, folder: Path, parts: Iterable[Iterable[int]]) -> Series:
    """Legacy Converted Enhanced CT objects in a separate series, one for the planes named in each of ``parts``."""
    uid, instances = generate_uid(), []
    for number, part in enumerate(parts):
        planes = [dcmread(series.instances[k].path) for k in part]
        for plane in planes:
            plane.Laterality = ""
        path = folder / f"{number}.dcm"
        LegacyConvertedEnhancedCTImage(
            planes,
            series_instance_uid=uid,
            series_number=7,
            sop_instance_uid=generate_uid(),
            instance_number=number + 1,
        ).save_as(path, enforce_file_format=True)
        instances.append(SourceInstance(path, dcmread(path, stop_before_pixels=True)))
    return replace(series, series_instance_uid=str(uid), instances=tuple(instances))


def bent(series: Series, change: Callable[[Dataset], None], *indices: int) -> Series:
    """The series with ``change`` applied to the headers (not the files) of the given instances, or of all."""
    instances = list(series.instances)
    for index in indices or range(len(instances)):
        header = copy.deepcopy(instances[index].header)
        change(header)
        instances[index] = SourceInstance(instances[index].path, header)
    return replace(series, instances=tuple(instances))


def noise(shape_zyx: tuple[int, int, int], seed: int = 0, low: int = 0, high: int = 4096) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape_zyx).astype(np.uint16 if low >= 0 else np.int16)


def tilted_axes(degrees: float) -> tuple[float, ...]:
    """The column direction is rotated by ``degrees`` about the x axis; the table still moves along z."""
    angle = math.radians(degrees)
    return (1.0, 0.0, 0.0, 0.0, math.cos(angle), -math.sin(angle))
