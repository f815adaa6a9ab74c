"""A peer that sends exactly the bytes a test asks for."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification
from pynetdicom.sop_class import Verification

if TYPE_CHECKING:
    from collections.abc import Sequence

_ELEMENT = struct.Struct("<HHI")
_US = struct.Struct("<H")


def association_request(
    calling: str = "SENDER",
    called: str = "NODE",
    syntax: str = ExplicitVRLittleEndian,
    classes: Sequence[str] = (CTImageStorage,),
) -> bytes:
    """An A-ASSOCIATE-RQ with the SOP ``classes`` as contexts 1, 3, 5 ..."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = calling, called
    contexts = [build_context(each, syntax) for each in classes]
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1
    primitive.presentation_context_definition_list = contexts
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


def store_command(
    sop_class: str,
    sop_instance: str,
    *,
    with_dataset: bool = True,
    field: int = 1,
    message_id: int = 1,
    priority: int = 0,
) -> bytes:
    """The command set of a C-STORE-RQ, or of the request with the Command Field ``field``."""
    return _command_set(
        {
            0x0002: _uid(sop_class),
            0x0100: _US.pack(field),
            0x0110: _US.pack(message_id),
            0x0700: _US.pack(priority),
            0x0800: _US.pack(1 if with_dataset else 0x0101),
            0x1000: _uid(sop_instance),
        }
    )


def echo_command(message_id: int = 1) -> bytes:
    """The command set of a C-ECHO-RQ."""
    return _command_set(
        {
            0x0002: _uid(Verification),
            0x0100: _US.pack(0x0030),
            0x0110: _US.pack(message_id),
            0x0800: _US.pack(0x0101),
        }
    )


def _command_set(elements: dict[int, bytes]) -> bytes:
    encoded = b"".join(_ELEMENT.pack(0, number, len(value)) + value for number, value in elements.items())
    return _ELEMENT.pack(0, 0, 4) + struct.pack("<I", len(encoded)) + encoded


def _uid(text: str) -> bytes:
    return text.encode() + b"\0" * (len(text) % 2)


def elements_in(command: bytes) -> dict[int, bytes]:
    """The values of a command set, by element number, up to the first that is cut short."""
    elements, start = {}, 0
    while start + _ELEMENT.size <= len(command):
        _, number, length = _ELEMENT.unpack_from(command, start)
        start += _ELEMENT.size
        elements[number] = command[start : start + length]
        start += length
    return elements


def number_in(elements: dict[int, bytes], number: int) -> int:
    """The value of an element of VR US."""
    return _US.unpack(elements[number])[0]


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
        classes: Sequence[str] = (CTImageStorage,),
        timeout_s: float = 15,
    ) -> None:
        """``address``: where on the loopback interface the peer comes from; ``timeout_s``: for each of its waits."""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s, source_address=(address, 0))
        if associated:
            self.socket.sendall(association_request(calling, syntax=syntax, classes=classes))
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

    def response(self) -> dict[int, bytes]:
        """The command set of the next response, by element number."""
        kind, body = self.read_pdu()
        assert kind == 4, f"PDU type {kind}"
        return elements_in(body[6:])

    def status(self) -> int:
        """The status in the next response."""
        return number_in(self.response(), 0x0900)

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
