"""The listener: Verification and Storage SCP. It alone in its process, one thread per connection.

Connections that have not sent an association request yet wait apart from the associations, for 10 s at most; when too
many wait, the oldest is closed, so that peers that connect and stay silent never keep an honest one out (that needs
milliseconds). Everything a peer may do wrong ends in a named status, a rejection or an A-ABORT.
"""

from __future__ import annotations

import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from dicom_node.errors import StoreUnavailable
from dicom_node.network import dimse, pdu
from dicom_node.network import transport as upper_layer
from dicom_node.network.transport import ConnectionLost, Fragment, ProtocolFault, Transport
from dicom_node.receive import policy
from dicom_node.receive.reception import Answer, ReceiptLedger, Reception, Sender
from dicom_node.standard import transfer_syntaxes
from dicom_node.standard.uids import APPLICATION_CONTEXT, VERIFICATION
from dicom_node.store.disk import DiskWatermark

if TYPE_CHECKING:
    from pynetdicom.pdu_primitives import A_ASSOCIATE

    from dicom_node.settings import Settings, SourceSettings
    from dicom_node.store.spool import Spool

__all__ = ["Listener", "ReceiptLedger"]

REQUEST_DEADLINE_S = 10.0
MOST_WAITING = 64
MOST_WAITING_PER_ADDRESS = 8
LARGEST_COMMAND_SET = 16 * 1024
SLOWEST_BYTES_PER_S = 10_000
STOP_DEADLINE_S = 8.0
_FORCED_STOP_S = 1.0
_ACCEPT_PAUSE_S = 0.1
_BACKLOG = 128
_LEFTOVER_AGE_S = 60.0


@dataclass(frozen=True, slots=True)
class _Node:
    """What every connection shares."""

    settings: Settings
    spool: Spool
    ledger: ReceiptLedger
    disk: DiskWatermark
    transfer_syntaxes: frozenset[str]


@dataclass(slots=True)
class _Connections:
    """Who is connected: waiting (no association yet, oldest first) and associated."""

    most_associations: int
    waiting: list[_Connection] = field(default_factory=list)
    associated: set[_Connection] = field(default_factory=set)
    stopping: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, connection: _Connection) -> None:
        """A new connection; room is made at the cost of the oldest that still wait."""
        with self._lock:
            neighbours = [other for other in self.waiting if other.address == connection.address]
            if len(neighbours) >= MOST_WAITING_PER_ADDRESS:
                self._cut_waiting(neighbours[0])
            elif len(self.waiting) >= MOST_WAITING:
                self._cut_waiting(self.waiting[0])
            self.waiting.append(connection)

    def associate(self, connection: _Connection) -> bool:
        """From waiting to associated, if there is room."""
        with self._lock:
            if len(self.associated) >= self.most_associations:
                return False
            if connection in self.waiting:
                self.waiting.remove(connection)
            self.associated.add(connection)
            return True

    def remove(self, connection: _Connection) -> None:
        """It has ended."""
        with self._lock:
            self.associated.discard(connection)
            if connection in self.waiting:
                self.waiting.remove(connection)

    def all(self) -> list[_Connection]:
        """Everybody, at this moment."""
        with self._lock:
            return [*self.waiting, *self.associated]

    def _cut_waiting(self, connection: _Connection) -> None:
        self.waiting.remove(connection)
        connection.cut()


class Listener:
    """Receives until it is stopped; may be started once."""

    def __init__(self, settings: Settings, spool: Spool, ledger: ReceiptLedger) -> None:
        disk = DiskWatermark(settings.spool_folder, settings.operate, settings.receive.minimum_free_disk_bytes)
        self._node = _Node(settings, spool, ledger, disk, transfer_syntaxes.decodable())
        self._connections = _Connections(settings.receive.maximum_associations)
        self._accepting = threading.Thread(target=self._accept, name="listener", daemon=True)
        self._log = structlog.get_logger()

    def start(self) -> None:
        """Remove what a killed predecessor left half-written, bind and listen; returns when peers can connect.

        Raises:
            OSError: the address can't be bound.
        """
        node = self._node.settings.node
        removed = self._node.spool.remove_leftovers(_LEFTOVER_AGE_S)
        family = socket.AF_INET6 if ":" in node.bind_address else socket.AF_INET
        self._socket = socket.create_server((node.bind_address, node.port), family=family, backlog=_BACKLOG)
        self._accepting.start()
        self._log.info(
            "listener.started", ae_title=node.ae_title, address=node.bind_address, port=self.port, leftovers=removed
        )

    @property
    def port(self) -> int:
        """The port that is bound (of interest where 0 was asked for)."""
        return int(self._socket.getsockname()[1])

    def stop(self) -> None:
        """Take no new connections, let instances that are under way finish, end everything within 10 s."""
        self._connections.stopping = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._accepting.join(_FORCED_STOP_S)
        self._socket.close()
        remaining = self._connections.all()
        for connection in remaining:
            connection.stop_when_idle()
        deadline = time.monotonic() + STOP_DEADLINE_S
        for connection in remaining:
            connection.thread.join(max(deadline - time.monotonic(), 0))
        for connection in remaining:
            if connection.thread.is_alive():
                connection.cut()
                connection.thread.join(_FORCED_STOP_S)
        self._log.info("listener.stopped")

    def _accept(self) -> None:
        while not self._connections.stopping:
            try:
                accepted, peer = self._socket.accept()
            except OSError as error:
                if not self._connections.stopping:
                    self._log.error("listener.accept_failed", error=type(error).__name__)
                    time.sleep(_ACCEPT_PAUSE_S)
                continue
            connection = _Connection(accepted, str(peer[0]), self._node, self._connections)
            self._connections.add(connection)
            try:
                connection.thread.start()
            except RuntimeError:
                self._log.error("listener.no_thread")
                connection.close()


class _Connection:
    """One TCP connection and the association that may come of it."""

    def __init__(self, accepted: socket.socket, address: str, node: _Node, connections: _Connections) -> None:
        self.address = address
        self.thread = threading.Thread(target=self._run, name=f"association from {address}", daemon=True)
        self._socket = accepted
        self._node = node
        self._connections = connections
        self._limits = node.settings.receive
        self._association_id = uuid.uuid4().hex
        self._log = structlog.get_logger().bind(association=self._association_id, peer=address)
        self._calling_ae = ""
        self._contexts: dict[int, tuple[str, str]] = {}
        self._command_set = bytearray()
        self._request: dimse.Command | None = None
        self._reception: Reception | None = None
        self._context_id = 0
        self._started = 0.0
        self._size_bytes = 0
        self._opened = False
        self._stored = 0
        self._refused = 0

    # ---- from other threads

    def cut(self) -> None:
        """End it now, whatever it does."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def stop_when_idle(self) -> None:
        """End it as soon as no message is under way (PS3.8 has no other way to say so than A-ABORT)."""
        if not self._is_busy():
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Give the socket and the place back."""
        self._connections.remove(self)
        with suppress(OSError):
            self._socket.close()

    # ---- in its own thread

    def _run(self) -> None:
        released = False
        try:
            transport = Transport(self._socket, self._limits.maximum_pdu_bytes, REQUEST_DEADLINE_S)
        except OSError:
            self.close()  # reset before we came to it
            return
        try:
            if self._establish(transport):
                self._converse(transport)
                released = True
        except ConnectionLost as lost:
            if self._connections.stopping:
                transport.close_after(upper_layer.provider_abort(upper_layer.NOT_SPECIFIED))
            elif self._calling_ae:
                self._log.warning("association.lost", calling_ae=self._calling_ae, reason=str(lost))
        except ProtocolFault as fault:
            self._log.warning("association.fault", calling_ae=self._calling_ae, reason=str(fault))
            transport.close_after(upper_layer.provider_abort(fault.abort_reason))
        except Exception:  # noqa: BLE001 - the border: one association may fail, the listener may not
            self._log.exception("association.crashed")
            transport.close_after(upper_layer.provider_abort(upper_layer.NOT_SPECIFIED))
        finally:
            self._end(released=released)

    def _establish(self, transport: Transport) -> bool:
        """Negotiate; False if the association was rejected."""
        request = transport.read_association_request(REQUEST_DEADLINE_S)
        admitted = self._admit(request)
        if isinstance(admitted, pdu.Rejection):
            self._log.warning("association.rejected", reason=admitted.reason)
            transport.close_after(upper_layer.rejection(admitted))
            return False
        self._calling_ae = admitted.ae_title.strip()
        answers = policy.negotiate(request.presentation_context_definition_list, admitted, self._node.transfer_syntaxes)
        self._contexts = {
            int(answer.context_id or 0): (str(answer.abstract_syntax), str(answer.transfer_syntax[0]))
            for answer in answers
            if answer.result == policy.ACCEPTED
        }
        transport.send(upper_layer.acceptance(request, answers, self._limits.maximum_pdu_bytes))
        return True

    def _admit(self, request: A_ASSOCIATE) -> SourceSettings | pdu.Rejection:
        if str(request.application_context_name) != APPLICATION_CONTEXT:
            return pdu.Rejection(*pdu.APPLICATION_CONTEXT_NOT_SUPPORTED, "application context is not DICOM's")
        settings = self._node.settings
        admitted = policy.admit(
            settings.sources,
            settings.node.ae_title,
            request.calling_ae_title or "",
            request.called_ae_title or "",
            self.address,
        )
        if isinstance(admitted, pdu.Rejection) or self._connections.associate(self):
            return admitted
        return pdu.Rejection(*pdu.LOCAL_LIMIT_EXCEEDED, f"{self._limits.maximum_associations} associations are open")

    def _converse(self, transport: Transport) -> None:
        """Serve PDUs until the peer releases."""
        while True:
            if not self._is_busy():
                if self._connections.stopping:
                    raise ConnectionLost("stopping")
                transport.set_deadline(self._limits.network_timeout_s)
            kind, body = transport.read_pdu()
            if kind == upper_layer.P_DATA:
                for fragment in upper_layer.fragments(body):
                    self._take(transport, fragment)
            elif kind == upper_layer.RELEASE_RQ and not self._is_busy():
                transport.send(upper_layer.release_response())
                return
            elif kind == upper_layer.ABORT:
                raise ConnectionLost("aborted by the peer")
            else:
                raise ProtocolFault(upper_layer.UNEXPECTED_PDU, f"PDU type {kind} at the wrong moment")

    def _is_busy(self) -> bool:
        return bool(self._command_set) or self._request is not None

    def _take(self, transport: Transport, fragment: Fragment) -> None:
        if not self._is_busy():
            self._context_id = fragment.context_id
            self._started = time.monotonic()
            self._size_bytes = 0
            transport.set_deadline(self._limits.dimse_timeout_s)
        if fragment.context_id != self._context_id or fragment.context_id not in self._contexts:
            raise ProtocolFault(upper_layer.INVALID_PDU_PARAMETER, f"presentation context {fragment.context_id}")
        if fragment.is_command == (self._request is not None):
            raise ProtocolFault(upper_layer.UNEXPECTED_PDU, "command set and data set out of order")
        if fragment.is_command:
            self._take_command(transport, fragment)
        else:
            self._take_data(transport, fragment)

    def _take_command(self, transport: Transport, fragment: Fragment) -> None:
        self._command_set += fragment.data
        if len(self._command_set) > LARGEST_COMMAND_SET:
            raise ProtocolFault(upper_layer.INVALID_PDU_PARAMETER, f"command set of {len(self._command_set)} bytes")
        if not fragment.is_last:
            return
        try:
            self._request = dimse.decode(bytes(self._command_set))
        except ValueError as error:
            raise ProtocolFault(upper_layer.INVALID_PDU_PARAMETER, str(error)) from error
        self._command_set.clear()
        if self._request.has_dataset:
            if self._request.field == dimse.C_STORE_RQ:
                self._reception = self._begin(self._request)
        else:
            self._answer(transport, self._request, self._answer_without_dataset(self._request))

    def _take_data(self, transport: Transport, fragment: Fragment) -> None:
        assert self._request is not None
        self._size_bytes += len(fragment.data)
        self._check_pace()
        if self._reception is not None:
            self._reception.write(fragment.data)
        if not fragment.is_last:
            return
        if self._reception is None:
            self._answer(transport, self._request, Answer(policy.UNRECOGNISED_OPERATION, "operation not supported"))
            return
        answer = self._reception.conclude()
        self._reception = None
        if answer.status == policy.SUCCESS:
            self._stored += 1
        else:
            self._refused += 1
        self._answer(transport, self._request, answer)

    def _check_pace(self) -> None:
        if self._size_bytes > self._limits.maximum_instance_bytes:
            raise ProtocolFault(
                upper_layer.INVALID_PDU_PARAMETER,
                f"data set of more than {self._limits.maximum_instance_bytes} bytes",
            )
        seconds = time.monotonic() - self._started
        if seconds > self._limits.dimse_timeout_s and self._size_bytes < SLOWEST_BYTES_PER_S * seconds:
            raise ProtocolFault(upper_layer.NOT_SPECIFIED, f"{self._size_bytes} bytes in {seconds:.0f} s")

    def _begin(self, request: dimse.Command) -> Reception:
        reception = Reception(
            request,
            self._contexts[self._context_id],
            Sender(self._calling_ae, self.address, self._association_id),
            (self._node.spool, self._node.ledger),
            self._node.disk,
        )
        if not self._opened:
            try:
                self._node.ledger.association_opened(
                    self._association_id, self._calling_ae, self.address, datetime.now(UTC)
                )
                self._opened = True
            except StoreUnavailable:
                reception.fail(Answer(policy.OUT_OF_RESOURCES, "ledger is not available at present"))
        return reception

    def _answer_without_dataset(self, request: dimse.Command) -> Answer:
        if request.field == dimse.C_ECHO_RQ and self._contexts[self._context_id][0] == VERIFICATION:
            return Answer(policy.SUCCESS)
        if request.field == dimse.C_STORE_RQ:
            return Answer(policy.CANNOT_UNDERSTAND, "C-STORE without a data set")
        return Answer(policy.UNRECOGNISED_OPERATION, "operation not supported")

    def _answer(self, transport: Transport, request: dimse.Command, answer: Answer) -> None:
        if dimse.is_request(request):
            response = dimse.encode_response(request, answer.status, answer.comment)
            transport.send(upper_layer.p_data_command(self._context_id, response))
        self._request = None

    def _end(self, *, released: bool) -> None:
        if self._reception is not None:
            self._reception.discard()
        with suppress(OSError):
            self._socket.close()
        if self._opened:
            try:
                self._node.ledger.association_closed(self._association_id, datetime.now(UTC), aborted=not released)
            except StoreUnavailable as error:
                self._log.error("association.close_not_recorded", reason=str(error))
        if self._stored or self._refused:
            self._log.info(
                "association.closed",
                calling_ae=self._calling_ae,
                released=released,
                stored=self._stored,
                refused=self._refused,
            )
        self.close()
