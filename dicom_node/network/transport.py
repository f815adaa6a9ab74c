"""The DICOM Upper Layer (PS3.8) as acceptor, on plain sockets, one blocking thread per association.

pynetdicom's codecs read and write the PDUs of the negotiation. Its reactor is not used, because it polls every
millisecond in two threads per association, reads a PDU in 4 096-byte steps, waits without end for one that comes byte
by byte, and takes PDUs and data sets of any size into memory. Here one PDU of the negotiated size is all that is ever
held, every read has a deadline, and a silent connection takes nothing but a place among the waiting ones.
"""

from __future__ import annotations

import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)

from dicom_node.standard.implementation import IMPLEMENTATION_CLASS_UID, VERSION_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pynetdicom.presentation import PresentationContext

    from dicom_node.network.pdu import Rejection

ASSOCIATE_RQ, P_DATA, RELEASE_RQ, ABORT = 0x01, 0x04, 0x05, 0x07
_RELEASE_RP = 0x06
_KNOWN_PDUS = range(0x01, 0x08)
COMMAND, LAST = 0x01, 0x02
"""Bits of the Message Control Header (PS3.8 E.2)."""

INVALID_PDU_PARAMETER = 6
UNEXPECTED_PDU = 2
UNRECOGNISED_PDU = 1
NOT_SPECIFIED = 0
ABORTS: Mapping[int, tuple[str, str]] = {
    NOT_SPECIFIED: ("reason-not-specified", "the node stops, a data set comes too slowly, or a fault of the node"),
    UNRECOGNISED_PDU: ("unrecognized-PDU", "a PDU type that PS3.8 does not know"),
    UNEXPECTED_PDU: ("unexpected-PDU", "a PDU or message fragment at the wrong moment"),
    INVALID_PDU_PARAMETER: (
        "invalid-PDU-parameter-value",
        "a PDU, command set or data set above its limit or unreadable, or a presentation context not accepted",
    ),
}
"""Every reason of an A-ABORT by the provider (PS3.8 table 9-26): its name, and when."""

LARGEST_ASSOCIATE_RQ = 64 * 1024
_PDU_HEADER = struct.Struct(">BxI")
_PDV_HEADER = struct.Struct(">IBB")
_TIMEVAL = struct.Struct("ll")
KEEPALIVE_IDLE_S = 30
_LINGER_S = 1.0


class ConnectionLost(Exception):
    """The peer closed, reset or went silent; nothing can be said to it any more."""


class ProtocolFault(Exception):
    """The peer broke PS3.8 or a limit; it gets an A-ABORT with this reason."""

    def __init__(self, abort_reason: int, what: str) -> None:
        super().__init__(what)
        self.abort_reason = abort_reason


@dataclass(frozen=True, slots=True)
class Fragment:
    """One Presentation Data Value (PS3.8 9.3.5.1); ``data`` is valid until the next PDU is read."""

    context_id: int
    is_command: bool
    is_last: bool
    data: memoryview


class Transport:
    """PDUs over one accepted socket; deadlines are for whole PDUs, however slowly their bytes come."""

    def __init__(self, connection: socket.socket, largest_pdu: int, deadline_s: float) -> None:
        self._socket = connection
        self._largest_pdu = largest_pdu
        self._buffer = bytearray(max(largest_pdu, LARGEST_ASSOCIATE_RQ))
        connection.setblocking(True)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        self.set_deadline(deadline_s)

    def set_deadline(self, seconds: float) -> None:
        """How long a PDU header, and then the rest of the PDU, may take; also how long a peer may not read."""
        whole = int(seconds)
        interval = _TIMEVAL.pack(whole, max(int((seconds - whole) * 1e6), 0 if whole else 1))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)

    def read_association_request(self, deadline_s: float) -> A_ASSOCIATE:
        """The A-ASSOCIATE-RQ, which must be the first PDU and be complete within ``deadline_s``.

        Raises:
            ConnectionLost: nothing came, or not all of it in time.
            ProtocolFault: something else came.
        """
        started = time.monotonic()
        self.set_deadline(deadline_s)
        header = self._read_exactly(_PDU_HEADER.size)
        kind, length = _PDU_HEADER.unpack(header)
        if kind != ASSOCIATE_RQ:
            raise ProtocolFault(UNEXPECTED_PDU if kind in _KNOWN_PDUS else UNRECOGNISED_PDU, f"PDU type {kind} first")
        if length > LARGEST_ASSOCIATE_RQ:
            raise ProtocolFault(INVALID_PDU_PARAMETER, f"association request of {length} bytes")
        # what is left of the deadline, and never 0, which would be without end
        self.set_deadline(max(deadline_s - (time.monotonic() - started), 0.1))
        encoded = bytes(header) + bytes(self._read_exactly(length))
        request = A_ASSOCIATE_RQ()
        try:
            request.decode(encoded)
            return request.to_primitive()
        except Exception as error:
            # the codec answers hostile bytes with whatever exception they lead to
            raise ProtocolFault(INVALID_PDU_PARAMETER, f"association request: {type(error).__name__}") from error

    def read_pdu(self) -> tuple[int, memoryview]:
        """The next PDU: its type and body, which is valid until the next call.

        Raises:
            ConnectionLost: closed, reset or silent beyond the deadline.
            ProtocolFault: unknown type, or larger than was negotiated.
        """
        kind, length = _PDU_HEADER.unpack(self._read_exactly(_PDU_HEADER.size))
        if kind not in _KNOWN_PDUS:
            raise ProtocolFault(UNRECOGNISED_PDU, f"PDU type {kind}")
        if length > self._largest_pdu:
            raise ProtocolFault(INVALID_PDU_PARAMETER, f"PDU of {length} bytes, {self._largest_pdu} were negotiated")
        return kind, self._read_exactly(length)

    def send(self, pdu: bytes) -> None:
        """Send whole PDUs.

        Raises:
            ConnectionLost: the peer is gone or does not read.
        """
        try:
            self._socket.sendall(pdu)
        except OSError as error:
            raise ConnectionLost(type(error).__name__) from error

    def close_after(self, last_words: bytes) -> None:
        """Send ``last_words`` and close; what still comes in is read away for a moment, because closing a socket with
        unread bytes resets it, and the peer would never see why.
        """
        with suppress(OSError):
            self._socket.settimeout(_LINGER_S)
            self._socket.sendall(last_words)
            self._socket.shutdown(socket.SHUT_WR)
            end = time.monotonic() + _LINGER_S
            while time.monotonic() < end and self._socket.recv_into(self._buffer):
                pass

    def _read_exactly(self, length: int) -> memoryview:
        view = memoryview(self._buffer)[:length]
        try:
            # SO_RCVTIMEO with MSG_WAITALL bounds the wait for all of the bytes, not for each
            received = self._socket.recv_into(view, length, socket.MSG_WAITALL) if length else 0
        except OSError as error:
            raise ConnectionLost(type(error).__name__) from error
        if received < length:
            raise ConnectionLost("closed" if not received else "closed or too slow inside a PDU")
        return view


def fragments(body: memoryview) -> Iterator[Fragment]:
    """The Presentation Data Values of a P-DATA-TF PDU.

    Raises:
        ProtocolFault: their lengths do not fill the PDU.
    """
    offset, end = 0, len(body)
    if not end:
        raise ProtocolFault(INVALID_PDU_PARAMETER, "empty P-DATA")
    while offset < end:
        if offset + _PDV_HEADER.size > end:
            raise ProtocolFault(INVALID_PDU_PARAMETER, "PDV header cut short")
        length, context_id, control = _PDV_HEADER.unpack_from(body, offset)
        following = offset + 4 + length
        if length < 2 or following > end:  # noqa: PLR2004 - context ID and control header
            raise ProtocolFault(INVALID_PDU_PARAMETER, f"PDV of {length} bytes in a PDU of {end}")
        yield Fragment(
            context_id, bool(control & COMMAND), bool(control & LAST), body[offset + _PDV_HEADER.size : following]
        )
        offset = following


def p_data_command(context_id: int, command: bytes) -> bytes:
    """A P-DATA-TF PDU with a whole command set; responses of ours have at most some hundred bytes."""
    pdv = _PDV_HEADER.pack(len(command) + 2, context_id, COMMAND | LAST) + command
    return _PDU_HEADER.pack(P_DATA, len(pdv)) + pdv


def acceptance(request: A_ASSOCIATE, contexts: Sequence[PresentationContext], largest_pdu: int) -> bytes:
    """The A-ASSOCIATE-AC to ``request``."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = request.application_context_name
    primitive.calling_ae_title = request.calling_ae_title
    primitive.called_ae_title = request.called_ae_title
    primitive.result = 0
    primitive.result_source = 1
    primitive.presentation_context_definition_results_list = list(contexts)
    maximum_length = MaximumLengthNotification()
    maximum_length.maximum_length_received = largest_pdu
    class_uid = ImplementationClassUIDNotification()
    class_uid.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    version_name = ImplementationVersionNameNotification()
    version_name.implementation_version_name = VERSION_NAME
    primitive.user_information = [maximum_length, class_uid, version_name]
    return A_ASSOCIATE_AC(primitive).encode()


def rejection(why: Rejection) -> bytes:
    """The A-ASSOCIATE-RJ."""
    pdu = A_ASSOCIATE_RJ()
    pdu.result = why.result
    pdu.source = why.source
    pdu.reason_diagnostic = why.diagnostic
    return pdu.encode()


def release_response() -> bytes:
    """The A-RELEASE-RP."""
    return _PDU_HEADER.pack(_RELEASE_RP, 4) + bytes(4)


def provider_abort(reason: int) -> bytes:
    """The A-ABORT by the service provider (PS3.8 9.3.8)."""
    return _PDU_HEADER.pack(ABORT, 4) + bytes((0, 0, 2, reason))
