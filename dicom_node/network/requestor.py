"""One association as requestor, on a plain socket: C-ECHO and C-STORE straight from a file.

pynetdicom builds and reads the PDUs of the negotiation; the transport is our own, because its requestor queues a whole
object in memory before the first byte leaves (a binary SEG of a whole body has 345 MB), starts the response timer
when the transmission starts (a slow peer is taken for a silent one) and waits without end for a peer that stops
reading. Here every wait is a wait on silence, and one PDU at a time is in memory.

Peers are trusted with nothing: an answer is bounded (``LARGEST_ANSWER_BYTES``), and whatever a peer does becomes a
:class:`DeliveryDelayed` or a :class:`DeliveryRefused`.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Self

from pydicom import Dataset, dcmread
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.dsutils import decode, encode
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made by the library at import

from dicom_node.errors import DeliveryDelayed, DeliveryError, DeliveryRefused
from dicom_node.standard.implementation import IMPLEMENTATION_CLASS_UID, VERSION_NAME
from dicom_node.standard.uids import APPLICATION_CONTEXT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import BinaryIO

    from dicom_node.settings import DestinationSettings

LARGEST_ANSWER_BYTES = 1 << 20
_LARGEST_OFFERED_CONTEXTS = 128
RELEASE_WAIT_S = 5.0
_SEND_BUFFER_BYTES = 512 * 1024
SMALLEST_PDU_BYTES = 1024
"""A peer that announces less would make every object a storm of tiny PDUs; nobody does."""

_ASSOCIATE_AC, _ASSOCIATE_RJ, _P_DATA, _RELEASE_RQ, _RELEASE_RP, _ABORT = 2, 3, 4, 5, 6, 7
_C_STORE_RQ, _C_STORE_RSP, _C_ECHO_RQ, _C_ECHO_RSP = 0x0001, 0x8001, 0x0030, 0x8030
_COMMAND, _LAST = 0x01, 0x02
_PDU_HEADER = struct.Struct(">BxI")
_PDV_HEADER = struct.Struct(">IBB")
_NO_DATASET, _WITH_DATASET = 0x0101, 0x0001
_REJECTED_FOR_GOOD = 1


@dataclass(frozen=True, slots=True)
class OutgoingFile:
    """A DICOM Part 10 file to be sent: where it is, and what it says that it is."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str


class Association:
    """An accepted association with ``destination``; a context manager that releases it, or aborts it on an exception.

    ``offers`` are the pairs (SOP Class UID, Transfer Syntax UID) that will be needed; each becomes one presentation
    context, so that the peer's answer is known per pair (PS3.8 7.1.1.13). For Explicit VR Little Endian, Implicit VR
    Little Endian is offered in addition, for peers that accept nothing else.

    Raises:
        DeliveryDelayed: peer away, silent, busy (rejected as transient), or its answer is no DICOM.
        DeliveryRefused: peer rejects the association for good (PS3.8 9.3.4, result 1).
    """

    def __init__(self, destination: DestinationSettings, our_ae: str, offers: Collection[tuple[str, str]]) -> None:
        self._peer = f"{destination.ae_title} at {destination.host}:{destination.port}"
        self._response_timeout_s = destination.response_timeout_s
        self._message_id = 0
        wanted = with_fallback(offers)
        self._socket = self._connect(destination)
        try:
            request = _association_request(destination, our_ae, wanted)
            with self._translated("sending the association request"):
                self._socket.sendall(request)
            self._accepted, self._largest_pdv = self._read_acceptance(wanted, destination.maximum_pdu_bytes)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        try:
            if kind is None:
                self._release()
            else:
                self._socket.settimeout(RELEASE_WAIT_S)
                self._socket.sendall(_PDU_HEADER.pack(_ABORT, 4) + bytes(4))
        except (OSError, DeliveryError):
            pass  # every status that matters is known already
        finally:
            self._socket.close()

    def accepts(self, sop_class: str, syntax: str) -> bool:
        """Whether the peer accepted the presentation context of this pair."""
        return (sop_class, syntax) in self._accepted

    def echo(self) -> int:
        """C-ECHO (PS3.7 9.1.5); returns the status.

        Raises:
            DeliveryRefused: Verification was not accepted.
            DeliveryDelayed: association lost, or no answer in time.
        """
        context_id = self._accepted.get((Verification, ImplicitVRLittleEndian))
        if context_id is None:
            raise DeliveryRefused(f"{self._peer} does not accept the Verification SOP Class")
        self._send_command(context_id, _C_ECHO_RQ, AffectedSOPClassUID=Verification, CommandDataSetType=_NO_DATASET)
        return self._read_status(_C_ECHO_RSP)

    def store(self, file: OutgoingFile) -> int:
        """C-STORE (PS3.7 9.1.1) one file, its data set byte for byte as it lies on disk; returns the status.

        Where the peer takes an explicit little endian object in implicit form only, the form is changed on the way.

        Raises:
            DeliveryRefused: the peer accepted no presentation context for it, or the file can't be read.
            DeliveryDelayed: association lost, or no answer in time.
        """
        sop_class, syntax = file.sop_class_uid, file.transfer_syntax_uid
        context_id = self._accepted.get((sop_class, syntax))
        as_implicit = False
        if context_id is None and syntax == ExplicitVRLittleEndian:
            context_id = self._accepted.get((sop_class, ImplicitVRLittleEndian))
            as_implicit = True
        if context_id is None:
            raise DeliveryRefused(f"{self._peer} accepts no {UID(sop_class).name} in {UID(syntax).name}")
        try:
            stream = file.path.open("rb")
        except OSError as error:
            raise DeliveryRefused(f"file of {file.sop_instance_uid} can't be read: {error.strerror}") from error
        with stream:
            head = _seek_data_set(stream, as_implicit=as_implicit)
            self._send_command(
                context_id,
                _C_STORE_RQ,
                AffectedSOPClassUID=sop_class,
                Priority=0,
                CommandDataSetType=_WITH_DATASET,
                AffectedSOPInstanceUID=file.sop_instance_uid,
            )
            self._send_data_set(context_id, head, stream)
        return self._read_status(_C_STORE_RSP)

    def _connect(self, destination: DestinationSettings) -> socket.socket:
        try:
            connection = socket.create_connection(
                (destination.host, destination.port), timeout=destination.connect_timeout_s or None
            )
        except OSError as error:
            raise DeliveryDelayed(f"{self._peer} can't be reached: {error.strerror or error}") from error
        connection.settimeout(self._response_timeout_s or None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # What waits in our kernel's buffer must not be taken for a peer's silence: keep it small against the timeout.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        return connection

    def _read_acceptance(
        self, wanted: list[tuple[str, str]], our_largest_pdu: int
    ) -> tuple[dict[tuple[str, str], int], int]:
        """Context ID per accepted pair, and the largest fragment that fits the peer's PDU."""
        kind, body = self._read_pdu("the association request")
        raw = _PDU_HEADER.pack(kind, len(body)) + body
        if kind == _ASSOCIATE_RJ:
            raise self._rejection(raw)
        if kind != _ASSOCIATE_AC:
            raise self._unexpected(kind, "the association request")
        acceptance = A_ASSOCIATE_AC()
        try:
            acceptance.decode(raw)
            accepted = {
                wanted[(item.context_id - 1) // 2]: item.context_id
                for item in acceptance.presentation_context
                if item.result == 0 and item.context_id is not None
            }
            theirs = acceptance.user_information.maximum_length if acceptance.user_information else None
        except Exception as error:
            # the library raises whatever a malformed answer makes it stumble over
            raise DeliveryDelayed(f"{self._peer} answers the association request with a malformed PDU") from error
        if not acceptance.presentation_context:
            raise DeliveryDelayed(f"{self._peer} accepts the association without a word on any presentation context")
        largest_pdu = max(min(theirs or our_largest_pdu, our_largest_pdu), SMALLEST_PDU_BYTES)
        return accepted, largest_pdu - _PDV_HEADER.size

    def _rejection(self, raw: bytes) -> DeliveryError:
        """Transient (result 2) or for good (result 1); PS3.8 9.3.4."""
        rejection = A_ASSOCIATE_RJ()
        try:
            rejection.decode(raw)
            meaning = f"{self._peer} rejects the association: {rejection.source_str}, {rejection.reason_str}"
        except Exception:  # noqa: BLE001 - codes outside the standard make the library stumble
            return DeliveryDelayed(f"{self._peer} rejects the association with unknown codes")
        return DeliveryRefused(meaning) if rejection.result == _REJECTED_FOR_GOOD else DeliveryDelayed(meaning)

    def _send_command(self, context_id: int, command_field: int, **elements: Any) -> None:
        self._message_id = self._message_id % 0xFFFF + 1
        command = Dataset()
        command.CommandField = command_field
        command.MessageID = self._message_id
        for keyword, value in elements.items():
            setattr(command, keyword, value)
        encoded = encode(command, is_implicit_vr=True, is_little_endian=True) or b""
        group_length = struct.pack("<HHII", 0x0000, 0x0000, 4, len(encoded))
        self._send_fragments(context_id, _COMMAND, BytesIO(group_length + encoded))

    def _send_data_set(self, context_id: int, head: bytes, rest: BinaryIO) -> None:
        self._send_fragments(context_id, 0, _Joined(head, rest))

    def _send_fragments(self, context_id: int, control: int, source: BinaryIO | _Joined) -> None:
        """Send ``source`` as P-DATA-TF PDUs (PS3.8 9.3.5), one fragment ahead to mark the last one."""
        fragment = source.read(self._largest_pdv)
        while True:
            following = source.read(self._largest_pdv)
            flags = control if following else control | _LAST
            header = _PDU_HEADER.pack(_P_DATA, len(fragment) + _PDV_HEADER.size)
            header += _PDV_HEADER.pack(len(fragment) + 2, context_id, flags)
            with self._translated("sending an object"):
                self._socket.sendall(header + fragment)
            if not following:
                return
            fragment = following

    def _read_status(self, expected_response: int) -> int:
        encoded = b""
        while True:
            kind, body = self._read_pdu("a C-STORE or C-ECHO request")
            if kind != _P_DATA:
                raise self._unexpected(kind, "a request")
            for flags, fragment in _fragments(body):
                if flags & _COMMAND:
                    encoded += fragment
                if flags & _COMMAND and flags & _LAST:
                    return self._status_of(encoded, expected_response)
            if len(encoded) > LARGEST_ANSWER_BYTES:
                raise DeliveryDelayed(f"{self._peer} answers with an endless command set")

    def _status_of(self, encoded: bytes, expected_response: int) -> int:
        try:
            command = decode(BytesIO(encoded), is_implicit_vr=True, is_little_endian=True)
            field, answered, status = command.CommandField, command.MessageIDBeingRespondedTo, command.Status
        except Exception as error:
            # pydicom raises whatever a malformed command set makes it stumble over
            raise DeliveryDelayed(f"{self._peer} answers with a malformed command set") from error
        if (field, answered) != (expected_response, self._message_id):
            raise DeliveryDelayed(
                f"{self._peer} answers command 0x{field:04X} to message {answered},"
                f" expected 0x{expected_response:04X} to {self._message_id}"
            )
        return int(status)

    def _release(self) -> None:
        self._socket.settimeout(RELEASE_WAIT_S)
        self._socket.sendall(_PDU_HEADER.pack(_RELEASE_RQ, 4) + bytes(4))
        self._read_pdu("the release request")

    def _read_pdu(self, answered: str) -> tuple[int, bytes]:
        with self._translated(f"waiting for the answer to {answered}"):
            kind, length = _PDU_HEADER.unpack(self._receive(_PDU_HEADER.size))
            if length > LARGEST_ANSWER_BYTES:
                raise DeliveryDelayed(f"{self._peer} announces an answer of {length} bytes")
            return kind, self._receive(length)

    def _receive(self, count: int) -> bytes:
        received = bytearray()
        while len(received) < count:
            # The kernel forgets this option; without it the ACK of a split answer waits 40 ms (Nagle at the peer).
            if hasattr(socket, "TCP_QUICKACK"):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            part = self._socket.recv(count - len(received))
            if not part:
                raise ConnectionResetError("connection closed by the peer")
            received += part
        return bytes(received)

    def _unexpected(self, kind: int, answered: str) -> DeliveryDelayed:
        names = {_ABORT: "aborts the association", _RELEASE_RQ: "releases the association"}
        what = names.get(kind, f"answers with PDU type 0x{kind:02X}")
        return DeliveryDelayed(f"{self._peer} {what} instead of answering {answered}")

    def _translated(self, doing: str) -> _Translated:
        return _Translated(self._peer, doing)


class _Translated:
    """The border: what the socket raises becomes a DeliveryDelayed that says what we were doing."""

    def __init__(self, peer: str, doing: str) -> None:
        self._peer = peer
        self._doing = doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, TimeoutError):
            raise DeliveryDelayed(f"{self._peer} is silent: timeout while {self._doing}") from error
        if isinstance(error, OSError):
            raise DeliveryDelayed(f"{self._peer} lost while {self._doing}: {error.strerror or error}") from error


class _Joined:
    """``head`` and then the rest of ``stream``, read as one."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self._head = BytesIO(head)
        self._stream = stream

    def read(self, count: int) -> bytes:
        """Up to ``count`` bytes; fewer only at the end."""
        part = self._head.read(count)
        if len(part) < count:
            part += self._stream.read(count - len(part))
        return part


def with_fallback(offers: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
    """The presentation contexts proposed for ``offers``, each a SOP class and one transfer syntax.

    Raises:
        DeliveryRefused: more than an association can propose.
    """
    wanted = list(dict.fromkeys(offers))
    for sop_class, syntax in tuple(wanted):
        fallback = (sop_class, str(ImplicitVRLittleEndian))
        if syntax == ExplicitVRLittleEndian and fallback not in wanted:
            wanted.append(fallback)
    if len(wanted) > _LARGEST_OFFERED_CONTEXTS:
        raise DeliveryRefused(f"{len(wanted)} presentation contexts needed, one association can offer 128")
    return wanted


def _association_request(destination: DestinationSettings, our_ae: str, wanted: list[tuple[str, str]]) -> bytes:
    request = A_ASSOCIATE()
    request.application_context_name = UID(APPLICATION_CONTEXT)
    request.calling_ae_title = our_ae
    request.called_ae_title = destination.ae_title
    contexts = []
    for index, (sop_class, syntax) in enumerate(wanted):
        context = build_context(sop_class, syntax)
        context.context_id = 2 * index + 1
        contexts.append(context)
    request.presentation_context_definition_list = contexts
    largest, implementation, version = (
        MaximumLengthNotification(),
        ImplementationClassUIDNotification(),
        ImplementationVersionNameNotification(),
    )
    largest.maximum_length_received = destination.maximum_pdu_bytes
    implementation.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    version.implementation_version_name = VERSION_NAME
    request.user_information = [largest, implementation, version]
    return A_ASSOCIATE_RQ(request).encode()


def _fragments(body: bytes) -> Iterator[tuple[int, bytes]]:
    """The presentation data values of one P-DATA-TF PDU: (message control header, fragment)."""
    place = 0
    while place + _PDV_HEADER.size <= len(body):
        length, _, flags = _PDV_HEADER.unpack_from(body, place)
        yield flags, body[place + _PDV_HEADER.size : place + 4 + length]
        place += 4 + max(length, 2)


def _seek_data_set(stream: BinaryIO, *, as_implicit: bool) -> bytes:
    """Place ``stream`` where the bytes to send go on, and return those that come before.

    Unchanged form: at the first byte after the file meta information, nothing before. Implicit form: the header is
    encoded anew; native pixel data are the same bytes in both forms and go on from the file.

    Raises:
        DeliveryRefused: not a readable DICOM Part 10 file.
    """
    try:
        if as_implicit:
            return _implicit_head(stream)
        stream.seek(_meta_end(stream))
    except Exception as error:
        # pydicom raises whatever it stumbles over
        raise DeliveryRefused(f"result file is no readable DICOM Part 10 file ({type(error).__name__})") from error
    return b""


def _implicit_head(stream: BinaryIO) -> bytes:
    """The data set in implicit form up to the pixel values, where ``stream`` is left (at its end if there are none)."""
    header = dcmread(stream, stop_before_pixels=True)
    head = encode(header, is_implicit_vr=True, is_little_endian=True)
    if head is None:
        raise ValueError("header can't be encoded in implicit form")
    element = stream.read(12)
    if not element:
        return head
    group, number, _, length = struct.unpack("<HH4sI", element)
    values_at = stream.tell()
    if stream.seek(0, 2) != values_at + length:
        raise ValueError("elements behind the pixel data")
    stream.seek(values_at)
    return head + struct.pack("<HHI", group, number, length)


def _meta_end(stream: BinaryIO) -> int:
    """Offset of the first byte after the file meta information (PS3.10 7.1: preamble, prefix, group 0002)."""
    stream.seek(0)
    start = stream.read(144)
    tag, representation, value = start[132:136], start[136:138], start[140:144]
    if start[128:132] != b"DICM" or tag != b"\x02\x00\x00\x00" or representation != b"UL":
        raise ValueError("no file meta information with group length")
    return 144 + int(struct.unpack("<I", value)[0])
