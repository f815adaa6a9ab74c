"""Stores pulled instances as received ones, with the same checks, durability and evidence as for C-STORE."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from pydicom.filereader import read_file_meta_info

from dicom_node.cohort.sources import Pulled
from dicom_node.errors import FileUnreadable
from dicom_node.network import dimse
from dicom_node.network.acceptor import AcceptedContext
from dicom_node.network.pdu import DEFAULT_ROLES
from dicom_node.receive.reception import Reception, Sender
from dicom_node.standard.part10 import HEAD_LENGTH, data_set_start
from dicom_node.store.clock import now_utc

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dicom_node.network.dimse import CommandSet, Response
    from dicom_node.receive.reception import ReceiptLedger
    from dicom_node.store.disk import DiskWatermark
    from dicom_node.store.spool import Spool
    from dicom_node.types import Refusal

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Entrance:
    """Where pulled instances are stored."""

    spool: Spool
    ledger: ReceiptLedger
    disk: DiskWatermark
    count: Callable[[str], int]
    """The number of current instances of a series that are stored."""


class Intake:
    """The instances of one pull; a context manager. In the ledger it is an association of ``calling_ae``.

    A :class:`~dicom_node.network.requestor.Storing`, for C-GET; :meth:`take_file` is for files.
    """

    def __init__(self, entrance: Entrance, calling_ae: str, address: str) -> None:
        self._entrance = entrance
        self._sender = Sender(calling_ae, address, uuid.uuid4().hex)
        self._reception: Reception | None = None
        self._is_open = False
        self.refusals: list[Refusal] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._reception is not None:
            self._reception.discard()
        if self._is_open:
            self._entrance.ledger.association_closed(
                self._sender.association_id, now_utc(), aborted=kind is not None, refusals=self.refusals
            )

    def begin(self, request: CommandSet, abstract_syntax: str, transfer_syntax: str) -> None:
        """See Storing.

        Raises:
            StoreUnavailable: the ledger is unavailable.
        """
        if not self._is_open:
            sender = self._sender
            self._entrance.ledger.association_opened(
                sender.association_id, sender.calling_ae, sender.peer_address, now_utc()
            )
            self._is_open = True
        self._reception = Reception(
            request,
            AcceptedContext(abstract_syntax, transfer_syntax, DEFAULT_ROLES),
            self._sender,
            (self._entrance.spool, self._entrance.ledger),
            self._entrance.disk,
        )

    def write(self, fragment: memoryview) -> None:
        """See Storing."""
        assert self._reception is not None
        self._reception.write(fragment)

    def conclude(self) -> Response:
        """See Storing."""
        assert self._reception is not None
        reception, self._reception = self._reception, None
        response = reception.conclude()
        if reception.refusal is not None:
            self.refusals.append(reception.refusal)
        return response

    def pulled(self, series_instance_uid: str) -> Pulled:
        """See Taking."""
        refused = f"{len(self.refusals)} refused: {self.refusals[0].reason}" if self.refusals else ""
        return Pulled(self._entrance.count(series_instance_uid), refused)

    def take_file(self, path: Path) -> None:
        """Store the instance in a Part 10 file.

        Raises:
            FileUnreadable: it is not a Part 10 file.
            StoreUnavailable: the ledger is unavailable.
        """
        try:
            meta = read_file_meta_info(path)
            sop_class, syntax = str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)
            request = dimse.store_request(sop_class, str(meta.MediaStorageSOPInstanceUID)).command(1)
            stream = path.open("rb")
        except Exception as error:
            raise FileUnreadable(f"not a DICOM file ({type(error).__name__})", is_dicom=False) from error
        with stream:
            stream.seek(data_set_start(stream.read(HEAD_LENGTH)))
            self.begin(request, sop_class, syntax)
            while chunk := stream.read(_CHUNK_BYTES):
                self.write(memoryview(chunk))
            self.conclude()
