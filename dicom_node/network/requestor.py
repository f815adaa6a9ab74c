"""An association as requestor: C-ECHO, C-STORE straight from a file, C-FIND, C-MOVE, and C-GET straight to disk.

Peers are not trusted: the size of an answer is limited (``LARGEST_ANSWER_BYTES``), every wait has a timeout, and every
fault of a peer becomes a :class:`~dicom_node.errors.NetworkError`.
"""

from __future__ import annotations

import math
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Protocol, Self

from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_node.errors import AssociationRejected, ConnectionLost, NetworkError, NotSendable, ProtocolFault
from dicom_node.network import dimse, pdu
from dicom_node.network.pdu import AbortReason, ContextResult, PduType
from dicom_node.network.transport import Transport
from dicom_node.standard.part10 import seek_data_set
from dicom_node.standard.uids import VERIFICATION

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import BinaryIO

    from pydicom import Dataset

    from dicom_node.network.dimse import CommandSet, Message, Request, Response
    from dicom_node.network.pdu import Fragment

LARGEST_ANSWER_BYTES = 1 << 20
RELEASE_WAIT_S = 5.0
SMALLEST_PDU_BYTES = 1024
"""No real peer announces less, which would split every object into a flood of tiny PDUs."""
_SEND_BUFFER_BYTES = 512 * 1024


@dataclass(frozen=True, slots=True)
class Peer:
    """An Application Entity to call. A timeout of 0 s means none; ``largest_pdu_bytes`` is our limit for its PDUs.

    ``whole_limit_s``: the whole association may take no longer, however busy the peer keeps us.
    """

    ae_title: str
    host: str
    port: int
    connect_timeout_s: float
    response_timeout_s: float
    largest_pdu_bytes: int
    whole_limit_s: float = 0.0

    def __str__(self) -> str:
        return f"{self.ae_title} at {self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class OutgoingFile:
    """A DICOM Part 10 file to send: its path, and the UIDs it states."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str


class Storing(Protocol):
    """Takes the instances that a C-GET brings: each is begun, written and concluded."""

    def begin(self, request: CommandSet, abstract_syntax: str, transfer_syntax: str) -> None:
        """A C-STORE whose data set follows."""

    def write(self, fragment: memoryview) -> None:
        """The next bytes of the data set; valid during this call."""

    def conclude(self) -> Response:
        """The response to the C-STORE, whose data set is complete."""


class Association:
    """An accepted association with ``peer``; a context manager that releases it, or aborts it on an exception.

    ``offers`` are the pairs (SOP Class UID, Transfer Syntax UID) that will be needed; each becomes one presentation
    context, so that the peer's answer is known per pair (PS3.8 7.1.1.13). For Explicit VR Little Endian, Implicit VR
    Little Endian is offered in addition, for peers that accept nothing else. ``received`` are the SOP classes for which
    we propose to be the SCP (PS3.7 D.3.3.4), so that a C-GET can bring their instances.

    Raises:
        ConnectionLost: peer away or silent.
        AssociationRejected: by an A-ASSOCIATE-RJ (PS3.8 9.3.4).
        ProtocolFault: its answer is not DICOM.
        NotSendable: there are more offers than an association can propose.
    """

    def __init__(
        self, peer: Peer, our_ae: str, offers: Collection[tuple[str, str]], received: Collection[str] = ()
    ) -> None:
        self._peer = peer
        self._ends = time.monotonic() + (peer.whole_limit_s or math.inf)
        self._message_id = self._asked = 0
        wanted = with_fallback(offers)
        self._transport = Transport(connect(peer), peer.largest_pdu_bytes, acknowledges_at_once=True)
        try:
            request = _association_request(peer, our_ae, wanted, received)
            acceptance = self._negotiate(request)
            results = {answer.context_id: answer.result for answer in acceptance.contexts}
            self._accepted = {
                pair: context.context_id
                for pair, context in zip(wanted, request.contexts, strict=True)
                if results.get(context.context_id) == ContextResult.ACCEPTED
            }
        except BaseException:
            self._transport.close()
            raise
        largest_pdu = min(acceptance.largest_pdu or peer.largest_pdu_bytes, peer.largest_pdu_bytes)
        self._largest_fragment = max(largest_pdu, SMALLEST_PDU_BYTES) - pdu.PDV_HEADER.size
        self._assembly = dimse.Assembly(self._accepted.values())
        self._fragments: Iterator[Fragment] = iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        try:
            if error is None:
                self._transport.send(pdu.release_request(), self._within(RELEASE_WAIT_S))
                self._transport.read_pdu(self._within(RELEASE_WAIT_S))
            elif isinstance(error, ProtocolFault):
                self._transport.send(pdu.provider_abort(error.abort_reason), RELEASE_WAIT_S)
            else:
                self._transport.send(pdu.user_abort(), RELEASE_WAIT_S)
        except NetworkError:
            pass  # all relevant statuses are known already
        finally:
            self._transport.close()

    @property
    def _silence_s(self) -> float:
        """How long the peer may be silent now."""
        return self._within(self._peer.response_timeout_s or math.inf)

    def _within(self, limit_s: float) -> float:
        return min(limit_s, self._ends - time.monotonic())

    def accepts(self, sop_class: str, syntax: str) -> bool:
        """Whether the peer accepted the presentation context of this pair."""
        return (sop_class, syntax) in self._accepted

    def echo(self) -> int:
        """C-ECHO (PS3.7 9.1.5); returns the status.

        Raises:
            NotSendable: Verification was not accepted.
            ConnectionLost: association lost, or no answer in time.
            ProtocolFault: the answer is none.
        """
        context_id, _ = self._context(VERIFICATION, ImplicitVRLittleEndian)
        with self._named("a C-ECHO"):
            self._send(context_id, dimse.echo_request(VERIFICATION))
            return self._response().command.number(dimse.Element.STATUS)

    def store(self, file: OutgoingFile) -> int:
        """C-STORE (PS3.7 9.1.1) one file, its data set byte for byte as on disk; returns the status.

        If the peer accepts an explicit little endian object in implicit form only, it is converted during the transfer.

        Raises:
            NotSendable: the peer accepted no presentation context for it, or the file can't be read.
            ConnectionLost: association lost, or no answer in time.
            ProtocolFault: the answer is none.
        """
        context_id, syntax = self._context(file.sop_class_uid, file.transfer_syntax_uid)
        try:
            stream = file.path.open("rb")
        except OSError as error:
            raise NotSendable(f"the file of {file.sop_instance_uid} can't be read: {error.strerror}") from error
        with stream:
            head = _data_set(stream, as_implicit=syntax != file.transfer_syntax_uid)
            with self._named("a C-STORE"):
                request = dimse.store_request(file.sop_class_uid, file.sop_instance_uid)
                self._send(context_id, request, _Joined(head, stream))
                return self._response().command.number(dimse.Element.STATUS)

    def find(self, sop_class: str, identifier: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        """C-FIND (PS3.7 9.1.2): yields the status and identifier of each response, pending ones and the last.

        Must be read to the end, or left by an exception, before the association is used for anything else.

        Raises:
            NotSendable: no presentation context for ``sop_class`` was accepted.
            ConnectionLost: association lost, or no answer in time.
            ProtocolFault: an answer is none.
        """
        context_id, syntax = self._context(sop_class, ExplicitVRLittleEndian)
        is_implicit = syntax == ImplicitVRLittleEndian
        encoded = BytesIO(_encoded(identifier, is_implicit=is_implicit))
        with self._named("a C-FIND"):
            self._send(context_id, dimse.find_request(sop_class), encoded)
            while True:
                response = self._response()
                status = response.command.number(dimse.Element.STATUS)
                yield status, _decoded(response.data_set, is_implicit=is_implicit)
                if status not in dimse.PENDING:
                    return

    def move(self, sop_class: str, identifier: Dataset, destination_ae: str) -> int:
        """C-MOVE (PS3.7 9.1.4) to ``destination_ae``; returns the last status.

        Raises:
            NotSendable: no presentation context for ``sop_class`` was accepted.
            ConnectionLost: association lost, or no answer in time.
            ProtocolFault: an answer is none.
        """
        context_id, syntax = self._context(sop_class, ExplicitVRLittleEndian)
        encoded = BytesIO(_encoded(identifier, is_implicit=syntax == ImplicitVRLittleEndian))
        with self._named("a C-MOVE"):
            self._send(context_id, dimse.move_request(sop_class, destination_ae), encoded)
            while True:
                status = self._response().command.number(dimse.Element.STATUS)
                if status not in dimse.PENDING:
                    return status

    def get(self, sop_class: str, identifier: Dataset, storing: Storing) -> int:
        """C-GET (PS3.7 9.1.3): ``storing`` takes the instances, one fragment at a time; returns the last status.

        Raises:
            NotSendable: no presentation context for ``sop_class`` was accepted.
            ConnectionLost: association lost, or no message in time.
            ProtocolFault: a message is neither an answer nor a C-STORE.
        """
        context_id, syntax = self._context(sop_class, ExplicitVRLittleEndian)
        encoded = BytesIO(_encoded(identifier, is_implicit=syntax == ImplicitVRLittleEndian))
        with self._named("a C-GET"):
            self._send(context_id, dimse.get_request(sop_class), encoded)
            while True:
                command = self._next_while_getting(storing)
                if command.field == dimse.C_STORE_RQ:
                    self._respond(command, storing.conclude())
                elif (status := command.number(dimse.Element.STATUS)) not in dimse.PENDING:
                    return status

    def _next_while_getting(self, storing: Storing) -> CommandSet:
        """The next message: an answer, or a C-STORE whose data set ``storing`` has taken."""
        pairs = {context_id: pair for pair, context_id in self._accepted.items()}

        def begin(command: CommandSet, context_id: int) -> None:
            if command.field == dimse.C_STORE_RQ:
                storing.begin(command, *pairs[context_id])
            else:
                self._check_answers(command)

        def take(command: CommandSet, data: memoryview) -> None:
            if command.field == dimse.C_STORE_RQ:
                storing.write(data)

        return self._next_message(begin, take)

    def _respond(self, request: CommandSet, response: Response) -> None:
        encoded = response.command(request).encoded()
        answer = pdu.p_data(self._assembly.context_id, pdu.COMMAND | pdu.LAST, encoded)
        self._transport.send(answer, self._silence_s)

    def _negotiate(self, request: pdu.AssociationRequest) -> pdu.AssociationAcceptance:
        with self._named("the association request"):
            self._transport.send(request.encoded(), self._silence_s)
            kind, body = self._transport.read_pdu(self._silence_s, pdu.LARGEST_ASSOCIATE)
            if kind == PduType.ASSOCIATE_RJ:
                raise self._rejected(pdu.Rejection.decode(body))
            if kind != PduType.ASSOCIATE_AC:
                raise _unexpected(kind)
            acceptance = pdu.AssociationAcceptance.decode(body)
            if not acceptance.contexts:
                raise ProtocolFault(AbortReason.INVALID_PARAMETER, "accepted without any presentation context")
            return acceptance

    def _rejected(self, rejection: pdu.Rejection) -> AssociationRejected:
        what = f"{self._peer} rejected the association: {rejection.term}"
        return AssociationRejected(what, permanent=rejection.is_permanent)

    def _context(self, sop_class: str, syntax: str) -> tuple[int, str]:
        """ID and transfer syntax of the presentation context to use.

        Raises:
            NotSendable: none was accepted.
        """
        for accepted in (syntax, *((str(ImplicitVRLittleEndian),) if syntax == ExplicitVRLittleEndian else ())):
            context_id = self._accepted.get((sop_class, accepted))
            if context_id is not None:
                return context_id, accepted
        raise NotSendable(f"{self._peer} does not accept {UID(sop_class).name} in {UID(syntax).name}")

    def _send(self, context_id: int, request: Request, data_set: _Readable | None = None) -> None:
        self._message_id = self._message_id % 0xFFFF + 1
        self._asked = request.field
        command = request.command(self._message_id).encoded()
        self._send_fragments(context_id, pdu.COMMAND, BytesIO(command))
        if data_set is not None:
            self._send_fragments(context_id, 0, data_set)

    def _send_fragments(self, context_id: int, control: int, source: _Readable) -> None:
        """Send ``source`` as P-DATA-TF PDUs (PS3.8 9.3.5), one fragment ahead to mark the last one."""
        fragment = source.read(self._largest_fragment)
        while True:
            following = source.read(self._largest_fragment)
            flags = control if following else control | pdu.LAST
            self._transport.send(pdu.p_data(context_id, flags, fragment), self._silence_s)
            if not following:
                return
            fragment = following

    def _response(self) -> Message:
        """The next response to the last request.

        Raises:
            ConnectionLost: association lost or aborted, or no answer in time.
            ProtocolFault: something else, or more than ``LARGEST_ANSWER_BYTES``.
        """
        data_set = bytearray()

        def take(_: CommandSet, data: memoryview) -> None:
            data_set.extend(data)
            if len(data_set) > LARGEST_ANSWER_BYTES:
                raise ProtocolFault(AbortReason.INVALID_PARAMETER, f"the answer exceeds {LARGEST_ANSWER_BYTES} bytes")

        command = self._next_message(lambda command, _: self._check_answers(command), take)
        return dimse.Message(command, bytes(data_set) if command.has_data_set else None)

    def _next_message(
        self, begin: Callable[[CommandSet, int], None], take: Callable[[CommandSet, memoryview], None]
    ) -> CommandSet:
        """The command of the next message. ``begin`` gets it with its context, ``take`` each part of its data set."""
        while True:
            fragment = self._next_fragment()
            is_whole_command = self._assembly.take(fragment)
            command = self._assembly.command
            if command is None:
                continue
            if is_whole_command:
                begin(command, fragment.context_id)
            else:
                take(command, fragment.data)
            if fragment.is_last and not (is_whole_command and command.has_data_set):
                self._assembly.end()
                return command

    def _next_fragment(self) -> Fragment:
        while True:
            for fragment in self._fragments:
                return fragment
            kind, body = self._transport.read_pdu(self._silence_s)
            if kind != PduType.P_DATA:
                raise _unexpected(kind)
            self._fragments = pdu.fragments(body)

    def _check_answers(self, command: dimse.CommandSet) -> None:
        expected = self._asked | dimse.RESPONSE
        if (command.field, command.message_id) != (expected, self._message_id):
            raise ProtocolFault(
                AbortReason.INVALID_PARAMETER,
                f"command 0x{command.field:04X} for message {command.message_id},"
                f" expected 0x{expected:04X} for message {self._message_id}",
            )

    @contextmanager
    def _named(self, request: str) -> Iterator[None]:
        """Add the peer and the request to the errors of the layers below."""
        try:
            yield
        except ConnectionLost as error:
            raise ConnectionLost(f"lost the connection to {self._peer} during {request}: {error}") from error
        except ProtocolFault as error:
            raise ProtocolFault(
                error.abort_reason, f"{self._peer} answered {request} with an invalid message: {error}"
            ) from error


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


_Readable = BytesIO | _Joined


def connect(peer: Peer) -> socket.socket:
    """A connection to ``peer``.

    Raises:
        ConnectionLost: it can't be reached.
    """
    try:
        connection = socket.create_connection((peer.host, peer.port), timeout=peer.connect_timeout_s or None)
    except OSError as error:
        raise ConnectionLost(f"{peer} can't be reached: {error.strerror or error}") from error
    # Keep the kernel's send buffer small relative to the timeout: time spent draining it looks like a silent peer.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    return connection


def with_fallback(offers: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
    """The presentation contexts proposed for ``offers``, each a SOP class and one transfer syntax.

    Raises:
        NotSendable: more than an association can propose.
    """
    wanted = list(dict.fromkeys(offers))
    for sop_class, syntax in tuple(wanted):
        fallback = (sop_class, str(ImplicitVRLittleEndian))
        if syntax == ExplicitVRLittleEndian and fallback not in wanted:
            wanted.append(fallback)
    if len(wanted) > pdu.MOST_CONTEXTS:
        raise NotSendable(f"{len(wanted)} presentation contexts needed; an association has at most {pdu.MOST_CONTEXTS}")
    return wanted


def _association_request(
    peer: Peer, our_ae: str, wanted: list[tuple[str, str]], received: Collection[str]
) -> pdu.AssociationRequest:
    return pdu.AssociationRequest(
        calling_ae=our_ae,
        called_ae=peer.ae_title,
        contexts=tuple(
            pdu.ProposedContext(2 * index + 1, sop_class, (syntax,)) for index, (sop_class, syntax) in enumerate(wanted)
        ),
        largest_pdu=peer.largest_pdu_bytes,
        roles={sop_class: pdu.Roles(scu=False, scp=True) for sop_class in received},
    )


def _unexpected(kind: int) -> NetworkError:
    if kind == PduType.ABORT:
        return ConnectionLost("aborted by the peer")
    return ProtocolFault(AbortReason.UNEXPECTED_PDU, f"unexpected PDU type {kind}")


def _data_set(stream: BinaryIO, *, as_implicit: bool) -> bytes:
    """Place ``stream`` where the bytes to send go on, and return those that come before.

    Raises:
        NotSendable: not a readable DICOM Part 10 file.
    """
    try:
        return seek_data_set(stream, as_implicit=as_implicit)
    except Exception as error:
        # pydicom may raise anything
        raise NotSendable(f"the result is not a readable DICOM Part 10 file ({type(error).__name__})") from error


def _encoded(identifier: Dataset, *, is_implicit: bool) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, is_implicit
    write_dataset(buffer, identifier)
    return buffer.getvalue()


def _decoded(encoded: bytes | None, *, is_implicit: bool) -> Dataset | None:
    if encoded is None:
        return None
    try:
        return read_dataset(BytesIO(encoded), is_implicit_VR=is_implicit, is_little_endian=True)
    except Exception as error:
        # as above
        raise ProtocolFault(AbortReason.INVALID_PARAMETER, f"identifier: {type(error).__name__}") from error
