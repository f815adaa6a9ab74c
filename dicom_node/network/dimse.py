"""DIMSE command sets of C-ECHO and C-STORE (PS3.7 9.3 and annex E): Implicit VR Little Endian, group 0000 alone."""

from __future__ import annotations

import struct
from dataclasses import dataclass

C_STORE_RQ, C_ECHO_RQ, C_CANCEL_RQ = 0x0001, 0x0030, 0x0FFF
_RESPONSE = 0x8000
_NO_DATASET = 0x0101
_ELEMENT = struct.Struct("<HHI")
_US = struct.Struct("<H")
_SOP_CLASS, _FIELD, _MESSAGE_ID, _DATASET_TYPE, _STATUS, _COMMENT, _SOP_INSTANCE = (
    0x0002,
    0x0100,
    0x0110,
    0x0800,
    0x0900,
    0x0902,
    0x1000,
)
_ANSWERED_MESSAGE_ID = 0x0120
_LONGEST = 64
"""Of a UID (PS3.5 9.1) and of a Long String (PS3.5 table 6.2-1)."""


@dataclass(frozen=True, slots=True)
class Command:
    """A request as it came; UIDs without padding and unchecked."""

    field: int
    message_id: int
    sop_class_uid: str
    sop_instance_uid: str
    has_dataset: bool


def decode(encoded: bytes) -> Command:
    """Read a command set.

    Raises:
        ValueError: no command set.
    """
    values: dict[int, bytes] = {}
    offset = 0
    while offset < len(encoded):
        if offset + _ELEMENT.size > len(encoded):
            raise ValueError("command set ends inside an element header")
        group, element, length = _ELEMENT.unpack_from(encoded, offset)
        offset += _ELEMENT.size
        if group != 0 or offset + length > len(encoded):
            raise ValueError(f"command set has element ({group:04X},{element:04X}) of {length} bytes")
        values[element] = encoded[offset : offset + length]
        offset += length
    return Command(
        field=_number(values, _FIELD),
        message_id=_number(values, _MESSAGE_ID),
        sop_class_uid=_uid(values, _SOP_CLASS),
        sop_instance_uid=_uid(values, _SOP_INSTANCE),
        has_dataset=_number(values, _DATASET_TYPE) != _NO_DATASET,
    )


def is_request(command: Command) -> bool:
    """Whether an answer is due."""
    return not command.field & _RESPONSE and command.field != C_CANCEL_RQ


def encode_response(command: Command, status: int, comment: str = "") -> bytes:
    """The response to ``command``; ``comment`` goes into Error Comment (0000,0902), never with patient data."""
    elements = b"".join(
        (
            _element(_SOP_CLASS, _padded(command.sop_class_uid[:_LONGEST], "\0")) if command.sop_class_uid else b"",
            _element(_FIELD, _US.pack(command.field | _RESPONSE)),
            _element(_ANSWERED_MESSAGE_ID, _US.pack(command.message_id)),
            _element(_DATASET_TYPE, _US.pack(_NO_DATASET)),
            _element(_STATUS, _US.pack(status)),
            _element(_COMMENT, _padded(comment[:_LONGEST], " ")) if comment else b"",
            _element(_SOP_INSTANCE, _padded(command.sop_instance_uid[:_LONGEST], "\0"))
            if command.sop_instance_uid
            else b"",
        )
    )
    return _element(0x0000, struct.pack("<I", len(elements))) + elements


def _element(element: int, value: bytes) -> bytes:
    return _ELEMENT.pack(0, element, len(value)) + value


def _padded(text: str, padding: str) -> bytes:
    return (text + padding * (len(text) % 2)).encode("ascii", "replace")


def _number(values: dict[int, bytes], element: int) -> int:
    value = values.get(element, b"")
    if len(value) != _US.size:
        raise ValueError(f"command set without a sound (0000,{element:04X})")
    return int(_US.unpack(value)[0])


def _uid(values: dict[int, bytes], element: int) -> str:
    return values.get(element, b"").decode("ascii", "backslashreplace").strip(" \0")
