"""Synthetic CT slices as a sender sends them, and their bytes as the node stores them."""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

if TYPE_CHECKING:
    from pathlib import Path

_TO_GROUP_LENGTH = 144
"""Bytes of a Part 10 file up to the end of its first element."""


def ct_slice(number: int, series_uid: str = "1.2.3.4", rows: int = 16) -> Dataset:
    """One slice of a synthetic CT with 2 mm between slices."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID = "1.2.3"
    dataset.SeriesInstanceUID = series_uid
    dataset.Modality = "CT"
    dataset.InstanceNumber = number
    dataset.ImagePositionPatient = [-100, -100, 2.0 * number]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.Rows = dataset.Columns = rows
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 1
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    values = np.random.default_rng(number).integers(-1000, 1000, (rows, rows), dtype="<i2")
    dataset.set_pixel_data(values, "MONOCHROME2", 16)
    return dataset


def encoded(dataset: Dataset, syntax: str) -> bytes:
    """The data set alone, as sent over the network."""
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, syntax == ImplicitVRLittleEndian
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def dataset_bytes(path: Path) -> bytes:
    """The bytes after the File Meta Information of a Part 10 file, read without pydicom."""
    return path.read_bytes()[_data_set_start(path) :]


def dataset_digest(path: Path) -> str:
    """Their SHA-256."""
    with path.open("rb") as file:
        file.seek(_data_set_start(path))
        return hashlib.file_digest(file, "sha256").hexdigest()


def _data_set_start(path: Path) -> int:
    with path.open("rb") as file:
        head = file.read(_TO_GROUP_LENGTH)
    assert head[:128] == bytes(128)
    assert head[128:132] == b"DICM"
    return _TO_GROUP_LENGTH + int(struct.unpack_from("<I", head, 140)[0])
