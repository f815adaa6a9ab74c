"""Stores pulled instances as received ones, with the same checks, durability and evidence as for C-STORE."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from dicom_node.cohort.sources import Pulled
from dicom_node.errors import FileUnreadable
from dicom_node.network import dimse
from dicom_node.network.acceptor import AcceptedContext
from dicom_node.network.pdu import DEFAULT_ROLES
from dicom_node.receive.reception import Reception, Sender
from dicom_node.standard.attributes import text
from dicom_node.standard.headers import read_header
from dicom_node.standard.opening import open_part10
from dicom_node.standard.part10 import HEAD_LENGTH, data_set_start
from dicom_node.store.clock import now_utc

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import BinaryIO

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
    retrieves_as: str
    """The AE title by which the ledger knows what a cohort pulled."""


class Intake:
    """The instances of one pull; a context manager. In the ledger it is an association of ``calling_ae``.

    A :class:`~dicom_node.network.requestor.Storing`, for C-GET; :meth:`take_file` is for files.
    """

    def __init__(self, entrance: Entrance, calling_ae: str, address: str) -> None:
        self._entrance = entrance
        self._sender = Sender(calling_ae, address, uuid.uuid4().hex, entrance.retrieves_as)
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
            opened = open_part10(path)
        except OSError as error:
            raise FileUnreadable(f"can't be read: {error.strerror}", is_dicom=True) from error
        with opened.stream as stream:
            request, sop_class, syntax = _announced(stream)
            self.begin(request, sop_class, syntax)
            try:
                while chunk := stream.read(_CHUNK_BYTES):
                    self.write(memoryview(chunk))
            except OSError as error:
                raise FileUnreadable(f"can't be read: {error.strerror}", is_dicom=True) from error
            self.conclude()


def _announced(stream: BinaryIO) -> tuple[CommandSet, str, str]:
    """The C-STORE request that a sender would make of a Part 10 file, whose data set ``stream`` is then at.

    File Meta Information that is missing, as in a file without a preamble, is taken from the data set.

    Raises:
        FileUnreadable: the file is none, or damaged.
    """
    try:
        header = read_header(stream)
        stream.seek(0)
        stream.seek(data_set_start(stream.read(HEAD_LENGTH)))
        meta = header.file_meta
        sop_class, sop_instance = (
            text(meta, f"MediaStorage{name}UID") or text(header, f"{name}UID") for name in ("SOPClass", "SOPInstance")
        )
        return dimse.store_request(sop_class, sop_instance).command(1), sop_class, text(meta, "TransferSyntaxUID")
    except Exception as error:
        raise FileUnreadable(f"not a DICOM file ({type(error).__name__})", is_dicom=False) from error
