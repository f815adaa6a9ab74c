"""A listener on loopback with a real spool and a real ledger, and synthetic CT to send to it."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - a dataclass field
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from sqlalchemy import select

from dicom_node.receive.scp import Listener
from dicom_node.settings import NodeSettings, ReceiveSettings, Settings, SourceSettings
from dicom_node.store.ledger import Ledger
from dicom_node.store.schema import association, instance
from dicom_node.store.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Node:
    """A running listener with its spool and ledger."""

    listener: Listener
    spool: Spool
    ledger: Ledger
    root: Path

    @property
    def port(self) -> int:
        return self.listener.port

    def rows(self) -> list:
        with self.ledger.database.read() as db:
            return list(db.execute(select(instance).order_by(instance.c.id)).all())

    def associations(self) -> list:
        with self.ledger.database.read() as db:
            return list(db.execute(select(association)).all())

    def files(self) -> set[str]:
        return {p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file()}

    def assert_consistent(self) -> None:
        """Every row has its file with the recorded bytes, and every file has a row."""
        rows = self.rows()
        for row in rows:
            assert dataset_digest(self.spool.path(row.spool_name)) == row.dataset_sha256
        assert self.files() == {row.spool_name for row in rows}


def dataset_bytes(path: Path) -> bytes:
    """The bytes after the File Meta Information of a Part 10 file, read without pydicom."""
    content = path.read_bytes()
    assert content[:128] == bytes(128)
    assert content[128:132] == b"DICM"
    (group_length,) = struct.unpack_from("<I", content, 140)
    return content[144 + group_length :]


def dataset_digest(path: Path) -> str:
    return hashlib.sha256(dataset_bytes(path)).hexdigest()


SOURCES = (
    SourceSettings(ae_title="SENDER"),
    SourceSettings(ae_title="ECHOONLY", services=("echo",)),
    SourceSettings(ae_title="ELSEWHERE", addresses=("192.0.2.0/24",)),
)


def settings_for(folder: Path, sources: tuple[SourceSettings, ...] = SOURCES, **receive) -> Settings:
    return Settings(
        node=NodeSettings(ae_title="NODE", port=0, data_folder=folder),
        receive=ReceiveSettings(**{"minimum_free_disk_bytes": 0, **receive}),
        sources=sources,
    )


@pytest.fixture
def start_node(tmp_path: Path) -> Iterator:
    """A function that starts a node; its keyword arguments are receive settings, or ``sources``."""
    nodes: list[Node] = []

    def start(**receive) -> Node:
        settings = settings_for(tmp_path / "data", **receive)
        spool = Spool(settings.spool_folder)
        ledger = Ledger(settings.effective_ledger_url, spool)
        node = Node(Listener(settings, spool, ledger.arrivals), spool, ledger, settings.spool_folder)
        node.listener.start()
        nodes.append(node)
        return node

    yield start
    for node in nodes:
        node.listener.stop()
        node.ledger.close()


@pytest.fixture
def node(start_node) -> Node:
    return start_node()


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


@pytest.fixture
def ct_files(tmp_path: Path) -> list[Path]:
    """Ten slices of one series as Part 10 files."""
    folder = tmp_path / "ct"
    folder.mkdir()
    for number in range(10):
        ct_slice(number).save_as(folder / f"{number:02}.dcm", enforce_file_format=True)
    return sorted(folder.iterdir())
