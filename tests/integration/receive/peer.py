"""A peer that sends exactly the bytes a test asks for."""

from __future__ import annotations

import socket
import struct

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification


def association_request(calling: str = "SENDER", called: str = "NODE", syntax: str = ExplicitVRLittleEndian) -> bytes:
    """An A-ASSOCIATE-RQ with CT Image Storage as context 1."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = calling, called
    context = build_context(CTImageStorage, syntax)
    context.context_id = 1
    primitive.presentation_context_definition_list = [context]
    length = MaximumLengthNotification()
    length.maximum_length_received = 16382
    class_uid = ImplementationClassUIDNotification()
    class_uid.implementation_class_uid = "1.2.3"
    primitive.user_information = [length, class_uid]
    return A_ASSOCIATE_RQ(primitive).encode()


def pdu(kind: int, body: bytes, length: int | None = None) -> bytes:
    return struct.pack(">BxI", kind, len(body) if length is None else length) + body


def pdv(context_id: int, control: int, data: bytes, length: int | None = None) -> bytes:
    return struct.pack(">IBB", len(data) + 2 if length is None else length, context_id, control) + data


def pdv_command(context_id: int, command: bytes) -> bytes:
    return pdu(4, pdv(context_id, 3, command))


def pdv_data(context_id: int, data: bytes, *, last: bool) -> bytes:
    return pdu(4, pdv(context_id, 2 if last else 0, data))


def store_command(sop_class: str, sop_instance: str, *, with_dataset: bool = True, field: int = 1) -> bytes:
    def element(number: int, value: bytes) -> bytes:
        return struct.pack("<HHI", 0, number, len(value)) + value

    def uid(text: str) -> bytes:
        return text.encode() + b"\0" * (len(text) % 2)

    elements = element(0x0002, uid(sop_class)) + element(0x0100, struct.pack("<H", field))
    elements += element(0x0110, struct.pack("<H", 1)) + element(0x0700, struct.pack("<H", 0))
    elements += element(0x0800, struct.pack("<H", 1 if with_dataset else 0x0101)) + element(0x1000, uid(sop_instance))
    return element(0, struct.pack("<I", len(elements))) + elements


def answer(port: int, request: bytes, address: str = "127.0.0.1") -> tuple[int, bytes]:
    """What the node answers to ``request`` on a connection of its own."""
    peer = Peer(port, associated=False, address=address)
    peer.send(request)
    answered = peer.read_pdu()
    peer.close()
    return answered


class Peer:
    """One TCP connection."""

    def __init__(
        self,
        port: int,
        *,
        associated: bool = True,
        syntax: str = ExplicitVRLittleEndian,
        calling: str = "SENDER",
        address: str = "127.0.0.1",
    ) -> None:
        """``address``: where on the loopback interface the peer comes from."""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=15, source_address=(address, 0))
        if associated:
            self.socket.sendall(association_request(calling, syntax=syntax))
            assert self.read_pdu()[0] == 2

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read_pdu(self) -> tuple[int, bytes]:
        """The type and body of the next PDU; (0, b"") at the end of the connection."""
        header = self._read(6)
        if len(header) < 6:
            return 0, b""
        kind, length = struct.unpack(">BxI", header)
        return kind, self._read(length)

    def status(self) -> int:
        """The status in the next response."""
        kind, body = self.read_pdu()
        assert kind == 4, f"PDU type {kind}"
        where = body.index(struct.pack("<HHI", 0, 0x0900, 2))
        return struct.unpack_from("<H", body, where + 8)[0]

    def close(self) -> None:
        self.socket.close()

    def _read(self, count: int) -> bytes:
        received = b""
        while len(received) < count:
            try:
                part = self.socket.recv(count - len(received))
            except ConnectionError:
                break
            if not part:
                break
            received += part
        return received
