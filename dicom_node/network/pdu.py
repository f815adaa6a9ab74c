"""Encodes and decodes the PDUs of the Upper Layer (PS3.8 section 9.3)."""

from __future__ import annotations

import struct
from collections.abc import Mapping  # noqa: TC003 - the type of a field
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Generic, NamedTuple, Self, TypeVar

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)
from pynetdicom.presentation import PresentationContext

from dicom_node.errors import ProtocolFault
from dicom_node.standard.implementation import IMPLEMENTATION_CLASS_UID, VERSION_NAME
from dicom_node.standard.uids import APPLICATION_CONTEXT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

HEADER = struct.Struct(">BxI")
"""PDU type and length of the rest."""
PDV_HEADER = struct.Struct(">IBB")
"""Length, presentation context ID and message control header; the length counts the last two and the data."""
COMMAND, LAST = 0x01, 0x02
"""Bits of the message control header (PS3.8 E.2)."""
LARGEST_ASSOCIATE = 64 * 1024
"""Body of an A-ASSOCIATE-RQ or -AC in bytes; 128 presentation contexts need about 15 000."""
MOST_CONTEXTS = 128
MOST_TRANSFER_SYNTAXES = 128
"""Of one presentation context; PS3.6 registers about 60."""
MOST_USER_ITEMS = 512
"""Sub-items of the user information: three for each of 128 SOP Classes, and some more."""
_MOST_OTHER_ITEMS = 16
_LONGEST_UID = 64
_TITLES = struct.Struct(">4x16s16s32x")
FIXED_PART = _TITLES.size
"""Bytes of an A-ASSOCIATE-RQ before its items (PS3.8 table 9-11), without type and length of the PDU."""
_ITEM = struct.Struct(">BxH")
_LENGTH = struct.Struct(">H")


class _Item(IntEnum):
    """Items and sub-items of an A-ASSOCIATE-RQ (PS3.8 9.3.2, PS3.7 annex D)."""

    APPLICATION_CONTEXT = 0x10
    PRESENTATION_CONTEXT = 0x20
    ABSTRACT_SYNTAX = 0x30
    TRANSFER_SYNTAX = 0x40
    USER_INFORMATION = 0x50
    MAXIMUM_LENGTH = 0x51
    ROLE_SELECTION = 0x54


class PduType(IntEnum):
    """PS3.8 section 9.3.1."""

    ASSOCIATE_RQ = 0x01
    ASSOCIATE_AC = 0x02
    ASSOCIATE_RJ = 0x03
    P_DATA = 0x04
    RELEASE_RQ = 0x05
    RELEASE_RP = 0x06
    ABORT = 0x07


KNOWN_TYPES = range(PduType.ASSOCIATE_RQ, PduType.ABORT + 1)


class AbortReason(IntEnum):
    """The reasons for which the node aborts as service provider (PS3.8 table 9-26)."""

    NOT_SPECIFIED = 0
    UNRECOGNISED_PDU = 1
    UNEXPECTED_PDU = 2
    INVALID_PARAMETER = 6

    @property
    def term(self) -> str:
        """As the standard spells it."""
        return _ABORT_TERMS[self]


_ABORT_TERMS = {
    AbortReason.NOT_SPECIFIED: "reason-not-specified",
    AbortReason.UNRECOGNISED_PDU: "unrecognized-PDU",
    AbortReason.UNEXPECTED_PDU: "unexpected-PDU",
    AbortReason.INVALID_PARAMETER: "invalid-PDU-parameter-value",
}


class ContextResult(IntEnum):
    """The answer to a presentation context (PS3.8 table 9-18)."""

    ACCEPTED = 0
    USER_REJECTION = 1
    NO_REASON = 2
    ABSTRACT_SYNTAX_NOT_SUPPORTED = 3
    TRANSFER_SYNTAXES_NOT_SUPPORTED = 4


# ---- P-DATA-TF


class Fragment(NamedTuple):
    """One Presentation Data Value (PS3.8 9.3.5.1); ``data`` is valid until the next PDU is read."""

    context_id: int
    is_command: bool
    is_last: bool
    data: memoryview


def fragments(body: memoryview) -> Iterator[Fragment]:
    """The Presentation Data Values of a P-DATA-TF PDU.

    Raises:
        ProtocolFault: their lengths do not fill the PDU.
    """
    offset, end = 0, len(body)
    if not end:
        raise ProtocolFault(AbortReason.INVALID_PARAMETER, "empty P-DATA")
    while offset < end:
        if offset + PDV_HEADER.size > end:
            raise ProtocolFault(AbortReason.INVALID_PARAMETER, "truncated PDV header")
        length, context_id, control = PDV_HEADER.unpack_from(body, offset)
        following = offset + 4 + length
        if length < 2 or following > end:  # noqa: PLR2004 - context ID and control header
            raise ProtocolFault(AbortReason.INVALID_PARAMETER, f"PDV of {length} bytes in a PDU of {end}")
        data = body[offset + PDV_HEADER.size : following]
        yield Fragment(context_id, bool(control & COMMAND), bool(control & LAST), data)
        offset = following


def p_data(context_id: int, control: int, data: bytes) -> bytes:
    """A P-DATA-TF PDU with one Presentation Data Value; ``control`` holds COMMAND and LAST."""
    pdv_header = PDV_HEADER.pack(len(data) + 2, context_id, control)
    return HEADER.pack(PduType.P_DATA, len(pdv_header) + len(data)) + pdv_header + data


# ---- release and abort


def release_request() -> bytes:
    """The A-RELEASE-RQ."""
    return HEADER.pack(PduType.RELEASE_RQ, 4) + bytes(4)


def release_response() -> bytes:
    """The A-RELEASE-RP."""
    return HEADER.pack(PduType.RELEASE_RP, 4) + bytes(4)


def provider_abort(reason: int) -> bytes:
    """The A-ABORT by the service provider (PS3.8 9.3.8)."""
    return HEADER.pack(PduType.ABORT, 4) + bytes((0, 0, 2, reason))


def user_abort() -> bytes:
    """The A-ABORT by the service user, which states no reason."""
    return HEADER.pack(PduType.ABORT, 4) + bytes(4)


# ---- negotiation


@dataclass(frozen=True, slots=True)
class Rejection:
    """The triple of an A-ASSOCIATE-RJ (PS3.8 table 9-21)."""

    result: int
    source: int
    diagnostic: int

    @property
    def is_permanent(self) -> bool:
        """Whether another request would be rejected too."""
        return self.result == 1

    @property
    def term(self) -> str:
        """The reason as the standard spells it."""
        known = _REJECTION_TERMS.get((self.source, self.diagnostic))
        return known or f"unknown reason {self.diagnostic} of source {self.source}"

    def encoded(self) -> bytes:
        """The A-ASSOCIATE-RJ."""
        rejection = A_ASSOCIATE_RJ()
        rejection.result = self.result
        rejection.source = self.source
        rejection.reason_diagnostic = self.diagnostic
        return rejection.encode()

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        """Read the body of an A-ASSOCIATE-RJ.

        Raises:
            ProtocolFault: it is cut short.
        """
        try:
            _, result, source, diagnostic = bytes(body[:4])
        except ValueError as error:
            raise ProtocolFault(AbortReason.INVALID_PARAMETER, f"A-ASSOCIATE-RJ of {len(body)} bytes") from error
        return cls(result, source, diagnostic)


_REJECTION_TERMS = {
    (1, 1): "no-reason-given",
    (1, 2): "application-context-name-not-supported",
    (1, 3): "calling-AE-title-not-recognized",
    (1, 7): "called-AE-title-not-recognized",
    (2, 1): "no-reason-given",
    (2, 2): "protocol-version-not-supported",
    (3, 1): "temporary-congestion",
    (3, 2): "local-limit-exceeded",
}
APPLICATION_CONTEXT_NOT_SUPPORTED = Rejection(1, 1, 2)
CALLING_AE_NOT_RECOGNISED = Rejection(1, 1, 3)
CALLED_AE_NOT_RECOGNISED = Rejection(1, 1, 7)
LOCAL_LIMIT_EXCEEDED = Rejection(2, 3, 2)


@dataclass(frozen=True, slots=True)
class Roles:
    """The roles of the association requestor for one SOP Class (PS3.7 D.3.3.4); without negotiation it is SCU."""

    scu: bool = True
    scp: bool = False

    def __and__(self, other: Roles) -> Roles:
        return Roles(self.scu and other.scu, self.scp and other.scp)

    def __bool__(self) -> bool:
        return self.scu or self.scp


DEFAULT_ROLES = Roles()


@dataclass(frozen=True, slots=True)
class ProposedContext:
    """A presentation context of an A-ASSOCIATE-RQ."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AnsweredContext:
    """A presentation context of an A-ASSOCIATE-AC; ``transfer_syntax`` has no meaning unless it is accepted."""

    context_id: int
    result: int
    transfer_syntax: str


@dataclass(frozen=True, slots=True)
class Titles:
    """The AE titles in an A-ASSOCIATE-RQ, without the spaces around them; a peer may have sent any other bytes."""

    called_ae: str
    calling_ae: str

    @classmethod
    def decode(cls, fixed_part: memoryview | bytes) -> Self:
        """Read the first ``FIXED_PART`` bytes of the body of an A-ASSOCIATE-RQ."""
        called, calling = _TITLES.unpack(fixed_part[:FIXED_PART])
        return cls(called.decode("latin-1").strip(" "), calling.decode("latin-1").strip(" "))


_Context = TypeVar("_Context", ProposedContext, AnsweredContext)


@dataclass(frozen=True, slots=True)
class _Associate(Generic[_Context]):
    """What an A-ASSOCIATE-RQ and an A-ASSOCIATE-AC have in common. ``largest_pdu`` is in bytes, 0 for no limit."""

    calling_ae: str
    called_ae: str
    contexts: tuple[_Context, ...]
    largest_pdu: int
    roles: Mapping[str, Roles] = field(default_factory=dict)
    application_context: str = APPLICATION_CONTEXT

    def _primitive(self) -> A_ASSOCIATE:
        """Everything but the contexts."""
        primitive = A_ASSOCIATE()
        primitive.application_context_name = UID(self.application_context)
        primitive.calling_ae_title = self.calling_ae
        primitive.called_ae_title = self.called_ae
        maximum_length = MaximumLengthNotification()
        maximum_length.maximum_length_received = self.largest_pdu
        class_uid = ImplementationClassUIDNotification()
        class_uid.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
        version_name = ImplementationVersionNameNotification()
        version_name.implementation_version_name = VERSION_NAME
        primitive.user_information = [maximum_length, class_uid, version_name, *map(_role_item, self.roles.items())]
        return primitive


@dataclass(frozen=True, slots=True)
class AssociationRequest(_Associate[ProposedContext]):
    """An A-ASSOCIATE-RQ; ``roles`` are those proposed, by SOP Class."""

    def encoded(self) -> bytes:
        """The PDU."""
        primitive = self._primitive()
        primitive.presentation_context_definition_list = [
            _context(each.context_id, each.abstract_syntax, each.transfer_syntaxes) for each in self.contexts
        ]
        return A_ASSOCIATE_RQ(primitive).encode()

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        """Read the body of an A-ASSOCIATE-RQ, in one pass that no body makes long; unknown items are skipped.

        Raises:
            ProtocolFault: it can't be read, or has more items than any peer needs.
        """
        with _unreadable("association request"):
            titles = Titles.decode(body)
            application_context = ""
            contexts: list[ProposedContext] = []
            user_items: list[tuple[int, memoryview]] = []
            for kind, value in _items(body[FIXED_PART:], MOST_CONTEXTS + _MOST_OTHER_ITEMS):
                if kind == _Item.APPLICATION_CONTEXT:
                    application_context = _uid(value)
                elif kind == _Item.PRESENTATION_CONTEXT:
                    contexts.append(_proposed(value))
                elif kind == _Item.USER_INFORMATION:
                    user_items += _items(value, MOST_USER_ITEMS)
            return cls(
                calling_ae=titles.calling_ae,
                called_ae=titles.called_ae,
                contexts=_distinct(contexts),
                largest_pdu=_proposed_length(user_items),
                roles=_proposed_roles(user_items),
                application_context=application_context,
            )


@dataclass(frozen=True, slots=True)
class AssociationAcceptance(_Associate[AnsweredContext]):
    """An A-ASSOCIATE-AC; ``roles`` are those granted, by SOP Class."""

    def encoded(self) -> bytes:
        """The PDU."""
        primitive = self._primitive()
        primitive.result, primitive.result_source = 0, 1
        answers = []
        for each in self.contexts:
            # an A-ASSOCIATE-AC does not repeat the abstract syntax
            answer = _context(each.context_id, None, (each.transfer_syntax,))
            answer.result = each.result
            answers.append(answer)
        primitive.presentation_context_definition_results_list = answers
        return A_ASSOCIATE_AC(primitive).encode()

    @classmethod
    def decode(cls, body: memoryview) -> Self:
        """Read the body of an A-ASSOCIATE-AC.

        Raises:
            ProtocolFault: it can't be read.
        """
        encoded = A_ASSOCIATE_AC()
        with _unreadable("association acceptance"):
            encoded.decode(HEADER.pack(encoded.pdu_type, len(body)) + bytes(body))
            primitive = encoded.to_primitive()
            return cls(
                calling_ae=(primitive.calling_ae_title or "").strip(),
                called_ae=(primitive.called_ae_title or "").strip(),
                contexts=tuple(
                    AnsweredContext(int(item.context_id or 0), int(item.result or 0), str(item.transfer_syntax or ""))
                    for item in encoded.presentation_context
                ),
                largest_pdu=_largest_pdu(primitive),
                roles=_roles(primitive),
                application_context=str(primitive.application_context_name),
            )


def _items(place: memoryview, most: int) -> Iterator[tuple[int, memoryview]]:
    """Type and value of each item in ``place``, which they fill."""
    offset, count = 0, 0
    while offset < len(place):
        kind, length = _ITEM.unpack_from(place, offset)
        start, offset, count = offset + _ITEM.size, offset + _ITEM.size + length, count + 1
        if count > most or offset > len(place):
            raise ValueError(f"item {count} of {length} bytes")
        yield kind, place[start:offset]


def _uid(value: memoryview) -> str:
    uid = bytes(value).decode("ascii").rstrip("\0 ")
    if not 0 < len(uid) <= _LONGEST_UID or not uid.isprintable():
        raise ValueError(f"a UID of {len(uid)} characters")
    return uid


def _proposed(value: memoryview) -> ProposedContext:
    """A presentation context (PS3.8 9.3.2.2)."""
    abstract_syntaxes, transfer_syntaxes = [], []
    for kind, uid in _items(value[4:], 1 + MOST_TRANSFER_SYNTAXES):
        if kind == _Item.ABSTRACT_SYNTAX:
            abstract_syntaxes.append(_uid(uid))
        elif kind == _Item.TRANSFER_SYNTAX:
            transfer_syntaxes.append(_uid(uid))
    (abstract_syntax,) = abstract_syntaxes
    if not transfer_syntaxes or not value[0] % 2:
        raise ValueError(f"presentation context {value[0]} with {len(transfer_syntaxes)} transfer syntaxes")
    return ProposedContext(value[0], abstract_syntax, tuple(transfer_syntaxes))


def _distinct(contexts: Sequence[ProposedContext]) -> tuple[ProposedContext, ...]:
    ids = {each.context_id for each in contexts}
    if len(ids) != len(contexts) or len(ids) > MOST_CONTEXTS:
        raise ValueError(f"{len(contexts)} presentation contexts with {len(ids)} IDs")
    return tuple(contexts)


def _proposed_length(user_items: Iterable[tuple[int, memoryview]]) -> int:
    """The Maximum Length (PS3.8 D.1); 0, for no limit, if it is not stated."""
    stated = [int.from_bytes(value) for kind, value in user_items if kind == _Item.MAXIMUM_LENGTH]
    return stated[0] if stated else 0


def _proposed_roles(user_items: Iterable[tuple[int, memoryview]]) -> dict[str, Roles]:
    """The roles that are selected (PS3.7 D.3.3.4.1), by SOP Class."""
    roles = {}
    for kind, value in user_items:
        if kind == _Item.ROLE_SELECTION:
            end = _LENGTH.size + _LENGTH.unpack_from(value)[0]
            roles[_uid(value[_LENGTH.size : end])] = Roles(bool(value[end]), bool(value[end + 1]))
    return roles


@contextmanager
def _unreadable(what: str) -> Iterator[None]:
    """Hostile bytes are answered with whatever exception they lead to, by pynetdicom's codecs too."""
    try:
        yield
    except Exception as error:
        raise ProtocolFault(AbortReason.INVALID_PARAMETER, f"{what}: {type(error).__name__}") from error


def _role_item(of_class: tuple[str, Roles]) -> SCP_SCU_RoleSelectionNegotiation:
    item = SCP_SCU_RoleSelectionNegotiation()
    item.sop_class_uid, roles = UID(of_class[0]), of_class[1]
    item.scu_role, item.scp_role = roles.scu, roles.scp
    return item


def _context(context_id: int, abstract_syntax: str | None, transfer_syntaxes: tuple[str, ...]) -> PresentationContext:
    context = PresentationContext()
    context.context_id = context_id
    if abstract_syntax is not None:
        context.abstract_syntax = UID(abstract_syntax)
    context.transfer_syntax = list(transfer_syntaxes)
    return context


def _largest_pdu(primitive: A_ASSOCIATE) -> int:
    lengths = [each for each in primitive.user_information if isinstance(each, MaximumLengthNotification)]
    return int(lengths[0].maximum_length_received or 0) if lengths else 0


def _roles(primitive: A_ASSOCIATE) -> dict[str, Roles]:
    return {
        str(each.sop_class_uid): Roles(bool(each.scu_role), bool(each.scp_role))
        for each in primitive.user_information
        if isinstance(each, SCP_SCU_RoleSelectionNegotiation)
    }
