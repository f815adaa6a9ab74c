"""Peers and results for the delivery tests."""

import hashlib
import socket
import threading
from contextlib import contextmanager

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian, SegmentationStorage, generate_uid
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
from pynetdicom.sop_class import Verification

from dicom_node.settings import DestinationSettings
from dicom_node.types import ResultInstance, ResultKind

ANY_HOST = "127.0.0.1"


def make_result(folder, number, *, kind=ResultKind.SEGMENTATION, megabytes=0.3):
    """A SEG-like (or SR-like) Part 10 file with different pixels in every byte range."""
    dataset = Dataset()
    sop_class = SegmentationStorage if kind is ResultKind.SEGMENTATION else ComprehensiveSRStorage
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[kind.value, str(number)])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series"])
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
    dataset.PatientName = "Phantom^Deliver"
    dataset.PatientID = "D1"
    dataset.InstanceNumber = number
    if kind is ResultKind.SEGMENTATION:
        dataset.BitsAllocated = 8
        count = int(megabytes * 1e6) // 2 * 2
        dataset.PixelData = np.random.default_rng(number).integers(0, 256, count, dtype=np.uint8).tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = folder / f"result_{kind.value}_{number}.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return ResultInstance(
        kind=kind,
        sop_class_uid=str(sop_class),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        series_instance_uid=str(dataset.SeriesInstanceUID),
        transfer_syntax_uid=str(ExplicitVRLittleEndian),
        path=path,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        size_bytes=path.stat().st_size,
    )


def destination(port, **changes):
    return DestinationSettings(
        **{"host": ANY_HOST, "port": port, "ae_title": "PACS", "connect_timeout_s": 2, "response_timeout_s": 2}
        | changes
    )


@contextmanager
def scripted_pacs(
    on_store=lambda _event, _count: 0x0000,
    *,
    classes=(SegmentationStorage, ComprehensiveSRStorage),
    syntaxes=None,
    port=0,
    **ae,
):
    """A pynetdicom SCP that answers its k-th C-STORE (k from 1) with ``on_store(event, k)``."""
    stored = []

    def handle(event):
        status = on_store(event, len(stored) + 1)
        stored.append((event, event.encoded_dataset(include_meta=False)))
        return status

    entity = AE("PACS")
    entity.require_called_aet = ae.pop("require_called_aet", False)
    entity.require_calling_aet = ae.pop("require_calling_aet", [])
    entity.maximum_pdu_size = ae.pop("maximum_pdu_size", 16382)
    for sop_class in classes:
        entity.add_supported_context(sop_class, syntaxes or ALL_TRANSFER_SYNTAXES)
    entity.add_supported_context(Verification)
    handlers = [(evt.EVT_C_STORE, handle), *ae.pop("handlers", [])]
    server = entity.start_server((ANY_HOST, port), block=False, evt_handlers=handlers)
    try:
        yield server.server_address[1], stored
    finally:
        server.shutdown()


@contextmanager
def raw_peer(serve, port=0):
    """A TCP listener on a port (0: any) that calls ``serve(connection)`` in a thread for each connection."""
    listener = socket.create_server((ANY_HOST, port))

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                serve(connection)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def with_count(identifier, text):
    """``identifier`` with any text as its Number of Series Related Instances, if sent in Implicit VR."""
    identifier.add_new("NumberOfSeriesRelatedInstances", "LO", text)  # pydicom would write no invalid IS
    return identifier
