"""Series that a node has already received."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import update

from dicom_node.receive.adopt import adopt_unclaimed
from dicom_node.standard.part10 import FileMeta, data_set_start
from dicom_node.store.schema import instance
from tests.support.ct_series import Stack, write

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from dicom_node.store.ledger import Ledger
    from dicom_node.store.spool import Spool, SpooledInstance
    from dicom_node.types import SourceInstance


def receive(spool: Spool, ledger: Ledger, folder: Path, hu: int, step_mm: float = 2.5, columns: int = 8) -> str:
    """Receive a series of 4 x 8 x ``columns`` voxels of ``hu`` directly, without a network; returns its UID."""
    folder.mkdir()
    series = write(folder, Stack(np.full((4, 8, columns), hu + 1024, np.uint16), step_mm=(0.0, 0.0, step_mm)))
    receive_instances(spool, ledger, series.instances)
    return series.series_instance_uid


def write_instance(spool: Spool, meta: FileMeta, dataset_bytes: bytes) -> SpooledInstance:
    """Write an encoded data set as the file of a completely received instance."""
    with spool.open_instance(meta) as writer:
        writer.write(dataset_bytes)
        return writer.commit()


def receive_instances(spool: Spool, ledger: Ledger, instances: Iterable[SourceInstance]) -> None:
    """Receive the instances of any series directly, without a network."""
    for each in instances:
        meta = each.header.file_meta
        whole = each.path.read_bytes()
        start = 144 + int(meta.FileMetaInformationGroupLength)
        write_instance(
            spool,
            FileMeta(meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID),
            whole[start:],
        )
    adopt_unclaimed(spool, ledger.arrivals, ledger.retention.claims, older_than_s=-1)


def as_received(spool: Spool, ledger: Ledger, spool_name: str, dataset_bytes: bytes) -> None:
    """Make the stored instance one that was received with another data set."""
    path = spool.path(spool_name)
    whole = path.read_bytes()
    path.write_bytes(whole[: data_set_start(whole)] + dataset_bytes)
    with ledger.database.write() as db:
        digest = hashlib.sha256(dataset_bytes).hexdigest()
        db.execute(update(instance).where(instance.c.spool_name == spool_name).values(dataset_sha256=digest))


def flip_a_bit(path: Path) -> None:
    """As a disk may do it, in the last value of the file."""
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
