"""An association as acceptor: negotiation, requests in and responses out, release and abort (PS3.8 7, PS3.7 annex D).

A :class:`Service` decides what is served, and to whom. It gets whole command sets, but data sets one fragment at a
time, so that an instance of any size goes straight to disk.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pydicom.uid import ImplicitVRLittleEndian

from dicom_node.errors import ConnectionLost, ProtocolFault
from dicom_node.network import dimse, pdu
from dicom_node.network.pdu import AbortReason, ContextResult, PduType, Rejection, Roles
from dicom_node.network.transport import Transport, cut
from dicom_node.standard.uids import APPLICATION_CONTEXT

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from dicom_node.network.dimse import CommandSet, Response
    from dicom_node.network.pdu import AnsweredContext, AssociationRequest, Fragment, ProposedContext, Titles
    from dicom_node.network.transport import StopSignal

REQUEST_DEADLINE_S = 10.0
"""For the A-ASSOCIATE-RQ, from the connection to its last byte (ARTIM, PS3.8 9.1.4)."""
SLOWEST_BYTES_PER_S = 10_000
ABORTS: Mapping[AbortReason, str] = {
    AbortReason.NOT_SPECIFIED: "the node is stopping or failed, or a message arrives too slowly",
    AbortReason.UNRECOGNISED_PDU: "the PDU type is not defined in PS3.8",
    AbortReason.UNEXPECTED_PDU: "a PDU or message fragment is out of sequence",
    AbortReason.INVALID_PARAMETER: (
        "a PDU, command set or data set is too large or unreadable, or its presentation context was not accepted"
    ),
}
"""Every reason for which an acceptor aborts, and when it is used."""


@dataclass(frozen=True, slots=True)
class Served:
    """How an abstract syntax is served: its transfer syntaxes, and the roles that the requestor may take."""

    transfer_syntaxes: frozenset[str]
    requestor_roles: Roles = pdu.DEFAULT_ROLES


@dataclass(frozen=True, slots=True)
class Refused:
    """Why an association is not accepted: the rejection sent to the peer, and a reason for people."""

    rejection: Rejection
    reason: str


@dataclass(frozen=True, slots=True)
class AcceptedContext:
    """An accepted presentation context; ``roles`` are those of the requestor."""

    abstract_syntax: str
    transfer_syntax: str
    roles: Roles


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for one peer: bytes, and seconds of silence between messages and within one."""

    largest_pdu_bytes: int
    largest_data_set_bytes: int
    idle_s: float
    message_s: float


class Service(Protocol):
    """The service on one association. A request with a data set is begun, written and concluded, or discarded."""

    def recognise(self, titles: Titles) -> Refused | None:
        """Why a peer with these AE titles is rejected, if it is; nothing else of its request was read yet."""

    def admit(self, request: AssociationRequest) -> Mapping[str, Served] | Refused:
        """What this peer, which was recognised, may use, by abstract syntax, or why it is rejected."""

    def answer(self, request: CommandSet, context: AcceptedContext) -> Response:
        """The response to a request without a data set."""

    def begin(self, request: CommandSet, context: AcceptedContext) -> None:
        """A request whose data set follows."""

    def write(self, fragment: memoryview) -> None:
        """The next bytes of the data set; valid during this call."""

    def conclude(self) -> Response:
        """The response to the request, whose data set is complete."""

    def discard(self) -> None:
        """The association ended; drop the data set if it is incomplete."""


class Acceptor:
    """One accepted connection and its association. :meth:`run` may be called once."""

    def __init__(self, connection: socket.socket, service: Service, limits: Limits, stop: StopSignal) -> None:
        """``connection``: just accepted, after the TLS handshake if there is one. ``stop``: when set, abort the
        association as soon as no message is in transfer (PS3.8 offers an acceptor no other way to end it).
        """
        self._socket = connection
        self._service = service
        self._limits = limits
        self._contexts: dict[int, AcceptedContext] = {}
        self._assembly = dimse.Assembly(self._contexts)
        self._stop = stop
        self._started = 0.0
        self._taken_bytes = self._data_bytes = 0

    def cut(self) -> None:
        """Close the connection immediately; may be called from any thread."""
        cut(self._socket)

    def run(self) -> bool:
        """Serve until the association ends: True if the peer released it, False if it was not accepted.

        Raises:
            ConnectionLost: the peer went away or aborted, or the node stops.
            ProtocolFault: the peer was aborted for this.
        """
        self._transport = Transport(self._socket, self._limits.largest_pdu_bytes)
        try:
            return self._establish() and self._converse()
        except ConnectionLost:
            if self._stop.is_set:
                self._abort(AbortReason.NOT_SPECIFIED)
            raise
        except ProtocolFault as fault:
            self._abort(fault.abort_reason)
            raise
        except Exception:
            self._abort(AbortReason.NOT_SPECIFIED)
            raise
        finally:
            self._service.discard()
            self._transport.close()

    def _abort(self, reason: int) -> None:
        self._transport.close_after(pdu.provider_abort(reason))

    def _establish(self) -> bool:
        ends = time.monotonic() + REQUEST_DEADLINE_S
        length = self._association_request_length(ends)
        fixed_part = bytes(self._transport.read_body(pdu.FIXED_PART, ends))
        # most of the bytes, and all of the work, are in the items: they are looked at for peers that may connect only
        refused = self._service.recognise(pdu.Titles.decode(fixed_part))
        if refused is not None:
            return self._reject(refused)
        items = self._transport.read_body(length - pdu.FIXED_PART, ends)
        request = pdu.AssociationRequest.decode(memoryview(fixed_part + bytes(items)))
        admitted = self._admit(request)
        if isinstance(admitted, Refused):
            return self._reject(admitted)
        answer = negotiate(request, admitted, self._limits.largest_pdu_bytes)
        self._contexts.update(accepted_contexts(request, answer))
        self._transport.send(answer.encoded(), self._limits.message_s)
        return True

    def _admit(self, request: AssociationRequest) -> Mapping[str, Served] | Refused:
        if request.application_context != APPLICATION_CONTEXT:
            return Refused(pdu.APPLICATION_CONTEXT_NOT_SUPPORTED, "the application context is not that of DICOM")
        return self._service.admit(request)

    def _reject(self, refused: Refused) -> bool:
        self._transport.close_after(refused.rejection.encoded())
        return False

    def _association_request_length(self, ends: float) -> int:
        """The length of the body of the A-ASSOCIATE-RQ, which comes next."""
        kind, length = self._transport.read_header(ends, self._stop)
        if kind != PduType.ASSOCIATE_RQ:
            raise ProtocolFault(AbortReason.UNEXPECTED_PDU, f"expected an association request, not PDU type {kind}")
        if not pdu.FIXED_PART <= length <= pdu.LARGEST_ASSOCIATE:
            raise ProtocolFault(AbortReason.INVALID_PARAMETER, f"an association request of {length} bytes")
        return length

    def _converse(self) -> bool:
        """Serve PDUs until the peer releases."""
        while True:
            is_busy = self._assembly.is_under_way
            if self._stop.is_set and not is_busy:
                raise ConnectionLost("the node is stopping")
            kind, body = (
                self._transport.read_pdu(self._limits.message_s)
                if is_busy
                else self._transport.read_pdu(self._limits.idle_s, stop=self._stop)
            )
            if kind == PduType.P_DATA:
                for fragment in pdu.fragments(body):
                    self._take(fragment)
            elif kind == PduType.RELEASE_RQ and not is_busy:
                self._transport.send(pdu.release_response(), self._limits.message_s)
                return True
            elif kind == PduType.ABORT:
                raise ConnectionLost("aborted by the peer")
            else:
                raise ProtocolFault(AbortReason.UNEXPECTED_PDU, f"unexpected PDU type {kind}")

    def _take(self, fragment: Fragment) -> None:
        assembly = self._assembly
        if not assembly.is_under_way:
            self._started = time.monotonic()
            self._taken_bytes = self._data_bytes = 0
        self._taken_bytes += len(fragment.data)
        self._check_pace()
        is_whole_command = assembly.take(fragment)
        if assembly.command is None:
            return
        if is_whole_command:
            self._take_command(assembly.command)
        else:
            self._take_data(assembly.command, fragment)

    def _take_command(self, command: CommandSet) -> None:
        context = self._contexts[self._assembly.context_id]
        if command.has_data_set:
            self._service.begin(command, context)
        else:
            self._respond(command, self._service.answer(command, context))

    def _take_data(self, command: CommandSet, fragment: Fragment) -> None:
        self._data_bytes += len(fragment.data)
        largest = self._limits.largest_data_set_bytes
        if self._data_bytes > largest:
            raise ProtocolFault(AbortReason.INVALID_PARAMETER, f"data set is larger than {largest} bytes")
        self._service.write(fragment.data)
        if fragment.is_last:
            self._respond(command, self._service.conclude())

    def _check_pace(self) -> None:
        """From the first byte of the command set on: a peer must not hold its place with one fragment a minute."""
        seconds = time.monotonic() - self._started
        if seconds > self._limits.message_s and self._taken_bytes < SLOWEST_BYTES_PER_S * seconds:
            raise ProtocolFault(AbortReason.NOT_SPECIFIED, f"too slow: {self._taken_bytes} bytes in {seconds:.0f} s")

    def _respond(self, request: CommandSet, response: Response) -> None:
        if request.wants_response:
            context_id = self._assembly.context_id
            encoded = response.command(request).encoded()
            answer = pdu.p_data(context_id, pdu.COMMAND | pdu.LAST, encoded)
            if response.data_set is not None:
                answer += pdu.p_data(context_id, pdu.LAST, response.data_set)
            self._transport.send(answer, self._limits.message_s)
        self._assembly.end()


# ---- negotiation


def negotiate(request: AssociationRequest, served: Mapping[str, Served], largest_pdu: int) -> pdu.AssociationAcceptance:
    """Answer each presentation context (PS3.8 9.3.3.2) and each role that is proposed (PS3.7 D.3.3.4).

    Of several transfer syntaxes, the first supported one is accepted, because senders list the one they have first. A
    role is granted if it was proposed and the requestor may take it; a context that leaves the requestor no role is
    rejected (user-rejection).
    """
    granted = {
        uid: roles
        for uid, proposed in request.roles.items()
        if uid in served and (roles := proposed & served[uid].requestor_roles)
    }
    return pdu.AssociationAcceptance(
        calling_ae=request.calling_ae,
        called_ae=request.called_ae,
        contexts=tuple(
            _answer(context, served.get(context.abstract_syntax), request.roles) for context in request.contexts
        ),
        largest_pdu=largest_pdu,
        roles=granted,
        application_context=request.application_context,
    )


def accepted_contexts(request: AssociationRequest, acceptance: pdu.AssociationAcceptance) -> dict[int, AcceptedContext]:
    """The presentation contexts that ``acceptance`` accepts, by their ID."""
    proposed = {context.context_id: context.abstract_syntax for context in request.contexts}
    return {
        answer.context_id: AcceptedContext(
            proposed[answer.context_id],
            answer.transfer_syntax,
            acceptance.roles.get(proposed[answer.context_id], pdu.DEFAULT_ROLES),
        )
        for answer in acceptance.contexts
        if answer.result == ContextResult.ACCEPTED
    }


def _answer(proposed: ProposedContext, served: Served | None, roles: Mapping[str, Roles]) -> AnsweredContext:
    common = [uid for uid in proposed.transfer_syntaxes if served is not None and uid in served.transfer_syntaxes]
    if served is None:
        result = ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED
    elif not common:
        result = ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED
    elif not roles.get(proposed.abstract_syntax, pdu.DEFAULT_ROLES) & served.requestor_roles:
        result = ContextResult.USER_REJECTION
    else:
        result = ContextResult.ACCEPTED
    # where it has no meaning (PS3.8 table 9-18), nothing that the peer made up: pydicom warns of each text that is no
    # UID, and Python remembers every warning
    return pdu.AnsweredContext(proposed.context_id, result, common[0] if common else ImplicitVRLittleEndian)
