"""DIMSE messages (PS3.7): a command set, and a data set if the command set announces one.

A command set is group 0000 alone in Implicit VR Little Endian (PS3.7 6.3.1, annex E). Requests and responses of every
service have the same shape here: a C-STORE, a C-FIND and an N-ACTION differ in their elements only.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping  # noqa: TC003 - the type of a field
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Self

from dicom_node.errors import ProtocolFault
from dicom_node.network.pdu import AbortReason

if TYPE_CHECKING:
    from collections.abc import Container

    from dicom_node.network.pdu import Fragment

LARGEST_COMMAND_SET = 16 * 1024
"""In bytes; real command sets have a few hundred."""
SUCCESS = 0x0000
UNRECOGNISED_OPERATION = 0x0211
PENDING = (0xFF00, 0xFF01)
"""More responses follow (PS3.4 C.4.1.1.4)."""

C_STORE_RQ, C_GET_RQ, C_FIND_RQ, C_MOVE_RQ, C_ECHO_RQ, C_CANCEL_RQ = 0x0001, 0x0010, 0x0020, 0x0021, 0x0030, 0x0FFF
N_EVENT_REPORT_RQ, N_ACTION_RQ = 0x0100, 0x0130
RESPONSE = 0x8000
"""The bit of the Command Field that distinguishes a response from its request."""
_WITH_DATA_SET, _NO_DATA_SET = 0x0001, 0x0101
_MEDIUM, _LOW = 0, 2
"""Priorities (PS3.7 E.1-1): what is pulled for research must not delay a reading room."""
_LONGEST = 64
"""Of a UID (PS3.5 9.1) and of a Long String (PS3.5 table 6.2-1)."""
_ELEMENT = struct.Struct("<HHI")
_US = struct.Struct("<H")


class Element(IntEnum):
    """Elements of group 0000 (PS3.7 table E.1-1)."""

    AFFECTED_SOP_CLASS_UID = 0x0002
    REQUESTED_SOP_CLASS_UID = 0x0003
    COMMAND_FIELD = 0x0100
    MESSAGE_ID = 0x0110
    MESSAGE_ID_BEING_RESPONDED_TO = 0x0120
    MOVE_DESTINATION = 0x0600
    PRIORITY = 0x0700
    COMMAND_DATA_SET_TYPE = 0x0800
    STATUS = 0x0900
    ERROR_COMMENT = 0x0902
    AFFECTED_SOP_INSTANCE_UID = 0x1000
    REQUESTED_SOP_INSTANCE_UID = 0x1001
    EVENT_TYPE_ID = 0x1002
    ACTION_TYPE_ID = 0x1008
    MOVE_ORIGINATOR = 0x1030


_UIDS = frozenset(
    {
        Element.AFFECTED_SOP_CLASS_UID,
        Element.REQUESTED_SOP_CLASS_UID,
        Element.AFFECTED_SOP_INSTANCE_UID,
        Element.REQUESTED_SOP_INSTANCE_UID,
    }
)
_TEXTS = frozenset({Element.ERROR_COMMENT, Element.MOVE_DESTINATION})
"""All others have the VR US."""


@dataclass(frozen=True, slots=True)
class CommandSet:
    """The elements of a command set, by element number, their values as encoded (and as a peer sent them: unchecked).

    Command Group Length is left out; it is computed when the set is encoded.
    """

    values: Mapping[int, bytes]

    @classmethod
    def of(cls, elements: Mapping[Element, int | str]) -> Self:
        """A command set of ``elements``; UIDs and comments are cut to 64 characters."""
        return cls({int(element): _value(element, value) for element, value in sorted(elements.items())})

    @classmethod
    def decode(cls, encoded: bytes | bytearray) -> Self:
        """Read a command set.

        Raises:
            ProtocolFault: no command set, or without a Command Field, a message ID or a Command Data Set Type.
        """
        values: dict[int, bytes] = {}
        offset = 0
        while offset < len(encoded):
            if offset + _ELEMENT.size > len(encoded):
                raise _unsound("the command set ends inside an element header")
            group, element, length = _ELEMENT.unpack_from(encoded, offset)
            offset += _ELEMENT.size
            if group != 0 or offset + length > len(encoded):
                raise _unsound(f"unexpected element ({group:04X},{element:04X}) of {length} bytes in a command set")
            values[element] = bytes(encoded[offset : offset + length])
            offset += length
        values.pop(0, None)
        command = cls(values)
        _ = command.message_id, command.has_data_set
        return command

    def encoded(self) -> bytes:
        """Group length and elements."""
        elements = b"".join(
            _ELEMENT.pack(0, element, len(value)) + value for element, value in sorted(self.values.items())
        )
        return _ELEMENT.pack(0, 0, 4) + struct.pack("<I", len(elements)) + elements

    def number(self, element: Element) -> int:
        """The value of an element of VR US.

        Raises:
            ProtocolFault: it is missing, or not of two bytes.
        """
        value = self.values.get(element, b"")
        if len(value) != _US.size:
            raise _unsound(f"(0000,{element:04X}) is missing from the command set or invalid")
        return int(_US.unpack(value)[0])

    def text(self, element: Element) -> str:
        """The value of a UID or text element without padding; empty where it is missing."""
        return self.values.get(element, b"").decode("ascii", "backslashreplace").strip(" \0")

    @property
    def field(self) -> int:
        """The Command Field."""
        return self.number(Element.COMMAND_FIELD)

    @property
    def is_response(self) -> bool:
        """Whether it answers a request."""
        return bool(self.field & RESPONSE)

    @property
    def wants_response(self) -> bool:
        """Whether it is a request that is answered; a C-CANCEL is not (PS3.7 9.3.2.3)."""
        return not self.is_response and self.field != C_CANCEL_RQ

    @property
    def message_id(self) -> int:
        """The ID of a request; for a response or a C-CANCEL, the ID of the request it refers to."""
        is_own = self.wants_response
        return self.number(Element.MESSAGE_ID if is_own else Element.MESSAGE_ID_BEING_RESPONDED_TO)

    @property
    def has_data_set(self) -> bool:
        """Whether a data set follows."""
        return self.number(Element.COMMAND_DATA_SET_TYPE) != _NO_DATA_SET

    @property
    def sop_class_uid(self) -> str:
        """Affected or (N-services) Requested SOP Class UID."""
        return self.text(Element.AFFECTED_SOP_CLASS_UID) or self.text(Element.REQUESTED_SOP_CLASS_UID)

    @property
    def sop_instance_uid(self) -> str:
        """Affected or (N-services) Requested SOP Instance UID."""
        return self.text(Element.AFFECTED_SOP_INSTANCE_UID) or self.text(Element.REQUESTED_SOP_INSTANCE_UID)

    @property
    def move_originator(self) -> str:
        """The AE title whose C-MOVE a C-STORE is part of (PS3.7 9.1.1.1); empty where none is stated."""
        return self.text(Element.MOVE_ORIGINATOR)


@dataclass(frozen=True, slots=True)
class Request:
    """A request to a peer. ``elements`` are those of the service, besides Command Field, IDs and data set type."""

    field: int
    elements: Mapping[Element, int | str]
    has_data_set: bool = False

    def command(self, message_id: int) -> CommandSet:
        """The command set."""
        return CommandSet.of(
            {
                Element.COMMAND_FIELD: self.field,
                Element.MESSAGE_ID: message_id,
                Element.COMMAND_DATA_SET_TYPE: _WITH_DATA_SET if self.has_data_set else _NO_DATA_SET,
                **self.elements,
            }
        )


@dataclass(frozen=True, slots=True)
class Response:
    """The response to a request: a status, an Error Comment (0000,0902) without patient data, the ``elements`` of the
    service, and an encoded ``data_set``.
    """

    status: int
    comment: str = ""
    elements: Mapping[Element, int | str] = field(default_factory=dict)
    data_set: bytes | None = None

    def command(self, request: CommandSet) -> CommandSet:
        """The command set of the response to ``request``, with its SOP Class and Instance UIDs."""
        elements: dict[Element, int | str] = {
            Element.COMMAND_FIELD: request.field | RESPONSE,
            Element.MESSAGE_ID_BEING_RESPONDED_TO: request.message_id,
            Element.COMMAND_DATA_SET_TYPE: _NO_DATA_SET if self.data_set is None else _WITH_DATA_SET,
            Element.STATUS: self.status,
        }
        if request.sop_class_uid:
            elements[Element.AFFECTED_SOP_CLASS_UID] = request.sop_class_uid
        if request.sop_instance_uid:
            elements[Element.AFFECTED_SOP_INSTANCE_UID] = request.sop_instance_uid
        if self.comment:
            elements[Element.ERROR_COMMENT] = self.comment
        return CommandSet.of({**elements, **self.elements})


@dataclass(frozen=True, slots=True)
class Message:
    """A whole message in memory, such as a response to our request."""

    command: CommandSet
    data_set: bytes | None = None


def echo_request(sop_class_uid: str) -> Request:
    """C-ECHO (PS3.7 9.3.5)."""
    return Request(C_ECHO_RQ, {Element.AFFECTED_SOP_CLASS_UID: sop_class_uid})


def store_request(sop_class_uid: str, sop_instance_uid: str) -> Request:
    """C-STORE (PS3.7 9.3.1)."""
    elements: dict[Element, int | str] = {
        Element.AFFECTED_SOP_CLASS_UID: sop_class_uid,
        Element.PRIORITY: _MEDIUM,
        Element.AFFECTED_SOP_INSTANCE_UID: sop_instance_uid,
    }
    return Request(C_STORE_RQ, elements, has_data_set=True)


def find_request(sop_class_uid: str) -> Request:
    """C-FIND (PS3.7 9.3.2); the data set is the identifier."""
    elements: dict[Element, int | str] = {Element.AFFECTED_SOP_CLASS_UID: sop_class_uid, Element.PRIORITY: _MEDIUM}
    return Request(C_FIND_RQ, elements, has_data_set=True)


def get_request(sop_class_uid: str) -> Request:
    """C-GET (PS3.7 9.3.3); the data set is the identifier."""
    elements: dict[Element, int | str] = {Element.AFFECTED_SOP_CLASS_UID: sop_class_uid, Element.PRIORITY: _LOW}
    return Request(C_GET_RQ, elements, has_data_set=True)


def move_request(sop_class_uid: str, destination_ae: str) -> Request:
    """C-MOVE (PS3.7 9.3.4); the data set is the identifier."""
    elements: dict[Element, int | str] = {
        Element.AFFECTED_SOP_CLASS_UID: sop_class_uid,
        Element.PRIORITY: _LOW,
        Element.MOVE_DESTINATION: destination_ae,
    }
    return Request(C_MOVE_RQ, elements, has_data_set=True)


class Assembly:
    """The incoming message: first its command set, then its data set if it has one (PS3.7 6.3.1).

    ``accepted``: the IDs of the accepted presentation contexts. ``command`` is None until it is complete.
    """

    def __init__(self, accepted: Container[int]) -> None:
        self.command: CommandSet | None = None
        self.context_id = 0
        self._accepted = accepted
        self._encoded = bytearray()

    @property
    def is_under_way(self) -> bool:
        """Whether a message has started and not ended."""
        return bool(self._encoded) or self.command is not None

    def take(self, fragment: Fragment) -> bool:
        """Take the next fragment; returns whether it completes the command set.

        Raises:
            ProtocolFault: the fragment is out of sequence, on a wrong presentation context, or not a command set.
        """
        if not self.is_under_way:
            self.context_id = fragment.context_id
        if fragment.context_id != self.context_id or fragment.context_id not in self._accepted:
            raise _unsound(f"unexpected presentation context {fragment.context_id}")
        if fragment.is_command == (self.command is not None):
            raise ProtocolFault(AbortReason.UNEXPECTED_PDU, "command set and data set out of order")
        if not fragment.is_command:
            return False
        self._encoded += fragment.data
        if len(self._encoded) > LARGEST_COMMAND_SET:
            raise _unsound(f"command set is larger than {LARGEST_COMMAND_SET} bytes")
        if not fragment.is_last:
            return False
        self.command = CommandSet.decode(self._encoded)
        self._encoded.clear()
        return True

    def end(self) -> None:
        """End the message; the next one may start."""
        self.command = None


def _value(element: Element, value: int | str) -> bytes:
    if element in _UIDS or element in _TEXTS:
        text = str(value)[:_LONGEST]
        padding = "\0" if element in _UIDS else " "
        return (text + padding * (len(text) % 2)).encode("ascii", "replace")
    return _US.pack(int(value))


def _unsound(what: str) -> ProtocolFault:
    return ProtocolFault(AbortReason.INVALID_PARAMETER, what)
