"""One C-STORE from its command set to its status: first the spool file, then the ledger row, then 0x0000."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import structlog

from dicom_node.errors import InstanceRefused, MalformedDataset, StoreUnavailable
from dicom_node.network.dimse import SUCCESS, Response
from dicom_node.receive.header import InstanceHeader, read_header
from dicom_node.receive.policy import (
    CANNOT_UNDERSTAND,
    DUPLICATE_SOP_INSTANCE,
    OUT_OF_RESOURCES,
    check_announcement,
    check_dataset,
)
from dicom_node.standard.part10 import FileMeta
from dicom_node.standard.uids import MULTI_FRAME_CT_SOP_CLASSES, is_well_formed_uid
from dicom_node.store.clock import now_utc
from dicom_node.types import Receipt, ReceivedInstance, Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from dicom_node.network.acceptor import AcceptedContext
    from dicom_node.network.dimse import CommandSet
    from dicom_node.store.disk import DiskWatermark
    from dicom_node.store.spool import InstanceWriter, Spool


class ReceiptLedger(Protocol):
    """What the listener records in the ledger; every call is durable on return, or raises StoreUnavailable."""

    def association_opened(self, association_id: str, calling_ae: str, peer_address: str, at: datetime) -> None:
        """An association is about to bring its first instance, or ends without one; nothing if this is known."""

    def association_closed(
        self, association_id: str, at: datetime, aborted: bool, refusals: Sequence[Refusal] = ()
    ) -> None:
        """An association ended; ``refusals`` are its instances that the node did not keep."""

    def record_instance(self, received: ReceivedInstance) -> Receipt:
        """The bytes of ``received`` are durable in the spool."""

    def current_file(self, series_instance_uid: str, sop_instance_uid: str) -> str | None:
        """The spool name of the current bytes of an instance."""


@dataclass(frozen=True, slots=True)
class Sender:
    """The sender of the instances.

    ``retrieved_by``: the AE title that asked for all of them; empty where each says by itself whether one did.
    """

    calling_ae: str
    peer_address: str
    association_id: str
    retrieved_by: str = ""


class Reception:
    """Receives one instance.

    An error before the last fragment is kept as the answer, and the rest of the data set is discarded, because a
    C-STORE is answered after its data set. No exception leaves this class.
    """

    def __init__(
        self,
        command: CommandSet,
        context: AcceptedContext,
        sender: Sender,
        store: tuple[Spool, ReceiptLedger],
        disk: DiskWatermark,
    ) -> None:
        """``context``: the presentation context of the command."""
        self._command = command
        self._abstract_syntax, self._transfer_syntax = context.abstract_syntax, context.transfer_syntax
        self._sender = sender
        self._spool, self._ledger = store
        self._disk = disk
        self._writer: InstanceWriter | None = None
        self._spool_name: str | None = None
        """Set once there may be a file in the spool."""
        self._failure: Response | None = None
        self._series_instance_uid: str | None = None
        self._dataset_sha256: str | None = None
        self.refusal: Refusal | None = None
        """Set if the answer is a failure."""
        with _Guard(self):
            self._open()

    def write(self, fragment: memoryview) -> None:
        """Take a fragment of the data set."""
        if self._writer is not None and self._failure is None:
            with _Guard(self):
                self._writer.write(fragment)

    def conclude(self) -> Response:
        """After the last fragment: make the instance durable, record it, and return the answer."""
        if self._failure is None:
            with _Guard(self):
                self._keep()
        self.discard()
        return self._failure or Response(SUCCESS)

    def discard(self) -> None:
        """Discard an incomplete instance; removes its file."""
        if self._writer is not None:
            self._writer.__exit__(None, None, None)
            self._writer = None

    def fail(self, answer: Response) -> None:
        """Keep ``answer`` for the end of the data set, and discard the data."""
        self._failure = answer
        self._mark_refused()  # before the file is let go, or it may be taken for one whose writer was killed
        self.discard()
        announced = self._command.sop_instance_uid
        self.refusal = Refusal(
            sop_instance_uid=announced if is_well_formed_uid(announced) else "",
            series_instance_uid=self._series_instance_uid,
            dataset_sha256=self._dataset_sha256,
            status=answer.status,
            reason=answer.comment,
            refused_at=now_utc(),
        )
        structlog.get_logger().warning(
            "instance.refused",
            association=self._sender.association_id,
            calling_ae=self._sender.calling_ae,
            status=f"{answer.status:04X}",
            reason=answer.comment,
        )

    def makes_up_for(self, refusal: Refusal) -> bool:
        """Whether this instance, if it is kept, is one that was refused before."""
        return refusal.sop_instance_uid == self._command.sop_instance_uid and refusal.status != DUPLICATE_SOP_INSTANCE

    def _mark_refused(self) -> None:
        """The bytes must never be taken for received once the sender is told that they are not stored."""
        if self._spool_name is None:
            return
        try:
            self._spool.mark_refused(self._spool_name)
        except StoreUnavailable as error:
            # what is left is the order of arrival: nothing newer is replaced by them
            structlog.get_logger().error("instance.refusal_not_marked", reason=str(error))

    def _open(self) -> None:
        check_announcement(self._abstract_syntax, self._command.sop_class_uid, self._command.sop_instance_uid)
        self._disk.refuse_when_full()
        self._writer = self._spool.open_instance(
            FileMeta(
                self._command.sop_class_uid,
                self._command.sop_instance_uid,
                self._transfer_syntax,
                self._sender.calling_ae,
            )
        )

    def _keep(self) -> None:
        assert self._writer is not None
        header, pixels_sha256 = self._checked_header(self._writer)
        self._spool_name = self._writer.name
        spooled = self._writer.commit()
        self._series_instance_uid, self._dataset_sha256 = header.series_instance_uid, spooled.dataset_sha256
        # If this raises, keep the file: the row may exist anyway (if the connection broke during COMMIT).
        # A refused file without a row is removed by the sweep of unclaimed files; a row without a file would be a loss.
        receipt = self._ledger.record_instance(
            ReceivedInstance(
                sop_instance_uid=header.sop_instance_uid,
                sop_class_uid=header.sop_class_uid,
                series_instance_uid=header.series_instance_uid,
                study_instance_uid=header.study_instance_uid,
                transfer_syntax_uid=self._transfer_syntax,
                spool_name=spooled.spool_name,
                dataset_sha256=spooled.dataset_sha256,
                size_bytes=spooled.size_bytes,
                calling_ae=self._sender.calling_ae,
                peer_address=self._sender.peer_address,
                association_id=self._sender.association_id,
                received_at=now_utc(),
                position_mm=header.position_mm,
                orientation=header.orientation,
                instance_number=header.instance_number,
                number_of_frames=header.number_of_frames,
                pixels_sha256=pixels_sha256,
                retrieved_by=self._sender.retrieved_by or self._command.move_originator,
            )
        )
        if receipt is Receipt.DUPLICATE:
            # never say that bytes are stored whose file is gone
            name = self._ledger.current_file(header.series_instance_uid, header.sop_instance_uid)
            if name is not None:
                self._spool.replace_if_gone(name, spooled.spool_name)
        if receipt in (Receipt.DUPLICATE, Receipt.REUSED):
            self._spool.delete(spooled.spool_name)
        if receipt is Receipt.REUSED:
            raise InstanceRefused(DUPLICATE_SOP_INSTANCE, "another image of the series has this SOP Instance UID")

    def _checked_header(self, writer: InstanceWriter) -> tuple[InstanceHeader, str | None]:
        """The attributes of the data set, and the digest of its pixel data."""
        with writer.dataset() as dataset:
            try:
                is_multi_frame = self._command.sop_class_uid in MULTI_FRAME_CT_SOP_CLASSES
                header = read_header(dataset, self._transfer_syntax, is_multi_frame=is_multi_frame)
            except MalformedDataset as error:
                raise InstanceRefused(CANNOT_UNDERSTAND, f"malformed data set, {error}") from error
        check_dataset(self._command.sop_class_uid, self._command.sop_instance_uid, header)
        return header, writer.digest(header.pixel_data)


class _Guard:
    """Turns every exception in its block into the answer of the reception."""

    def __init__(self, reception: Reception) -> None:
        self._reception = reception

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if error is None:
            return False
        if isinstance(error, InstanceRefused):
            self._reception.fail(Response(error.status, str(error)))
        elif isinstance(error, StoreUnavailable):
            structlog.get_logger().error("store.unavailable", reason=str(error))
            self._reception.fail(Response(OUT_OF_RESOURCES, "storage is currently unavailable"))
        elif isinstance(error, Exception):
            # a fault of the node, not of the instance: the sender may try again
            structlog.get_logger().error("reception.crashed", exc_info=error)
            self._reception.fail(Response(OUT_OF_RESOURCES, "internal error"))
        else:
            return False
        return True
