"""The listener: Verification and Storage SCP. It runs alone in its process, with one thread per connection.

A connection from an address from which no source may come is turned away before it gets a thread. Connections that have
not sent an association request yet are limited separately from associations and wait at most 10 s. If too many are
waiting, the oldest is closed of an address that has most of them, so that silent peers never keep out others, which
need only milliseconds. Associations are limited in total, for each AE title and for each address, so that one peer
never takes the places of all. Every fault of a peer results in a defined status, a rejection or an A-ABORT.
"""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import structlog

from dicom_node.errors import ConnectionLost, ProtocolFault, StoreUnavailable
from dicom_node.network import dimse, pdu
from dicom_node.network.acceptor import Acceptor, Limits, Refused
from dicom_node.network.dimse import Response
from dicom_node.network.transport import StopSignal
from dicom_node.operate.schedule import Schedule, Sweep
from dicom_node.receive import policy
from dicom_node.receive.log_limit import LogLimit
from dicom_node.receive.reception import ReceiptLedger, Reception, Sender
from dicom_node.standard import transfer_syntaxes
from dicom_node.standard.uids import VERIFICATION
from dicom_node.store.clock import now_utc
from dicom_node.store.disk import DiskWatermark

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from dicom_node.network.acceptor import AcceptedContext, Served
    from dicom_node.network.dimse import CommandSet
    from dicom_node.network.pdu import AssociationRequest, Titles
    from dicom_node.settings import ReceiveSettings, Settings, SourceSettings
    from dicom_node.store.spool import Spool
    from dicom_node.types import Refusal

__all__ = ["Listener", "ReceiptLedger"]

MOST_WAITING = 64
MOST_WAITING_PER_ADDRESS = 8
_MOST_ENDING = 16
"""Connections that were closed and whose threads still run: in a flood, they would be more than all others."""
_ENDING_LIMIT_S = 1.0
STOP_DEADLINE_S = 8.0
_FORCED_STOP_S = 1.0
_ACCEPT_PAUSE_S = 0.1
_BACKLOG = 128
_LEFTOVER_AGE_S = 60.0
_TELL_AGAIN_S = 5.0
_MOST_UNTOLD = 1000
_NO_SOURCE_THERE = "no source may come from this address"
_TURNED_AWAY = pdu.CALLING_AE_NOT_RECOGNISED.encoded()
_NOT_SUPPORTED = Response(dimse.UNRECOGNISED_OPERATION, "operation not supported")


@dataclass(frozen=True, slots=True)
class _Ended:
    """The end of an association, of which the ledger is to be told. ``is_known``: it was told of the beginning."""

    sender: Sender
    at: datetime
    aborted: bool
    refusals: tuple[Refusal, ...]
    is_known: bool


class _Endings:
    """Tells the ledger of the ends of associations, later where it is away.

    What was refused because it was away is evidence that a series is not whole, and would be forgotten otherwise.
    """

    def __init__(self, ledger: ReceiptLedger) -> None:
        self._ledger = ledger
        self._untold: deque[_Ended] = deque(maxlen=_MOST_UNTOLD)

    def tell(self, ended: _Ended) -> None:
        """Tell the ledger of an end, now or later."""
        try:
            self._tell(ended)
        except StoreUnavailable as error:
            self._untold.append(replace(ended, is_known=False))  # a COMMIT whose answer was lost may not have been one
            structlog.get_logger().error(
                "association.close_not_recorded",
                association=ended.sender.association_id,
                reason=str(error),
                again_in_s=_TELL_AGAIN_S,
            )

    def tell_again(self) -> None:
        """Tell the ledger of those of which it could not be told.

        Raises:
            StoreUnavailable: it is still away.
        """
        for _ in range(len(self._untold)):
            ended = self._untold.popleft()
            try:
                self._tell(ended)
            except StoreUnavailable:
                self._untold.append(ended)
                raise

    def _tell(self, ended: _Ended) -> None:
        sender = ended.sender
        if not ended.is_known:
            self._ledger.association_opened(sender.association_id, sender.calling_ae, sender.peer_address, ended.at)
        self._ledger.association_closed(sender.association_id, ended.at, ended.aborted, ended.refusals)


@dataclass(frozen=True, slots=True)
class _Node:
    """What all connections share."""

    settings: Settings
    spool: Spool
    ledger: ReceiptLedger
    endings: _Endings
    disk: DiskWatermark
    transfer_syntaxes: frozenset[str]
    lines: LogLimit = field(default_factory=LogLimit)


@dataclass(slots=True)
class _Connections:
    """The open connections: waiting (no association yet, oldest first) and associated; and those that were closed while
    they waited, until their threads have ended.
    """

    limits: ReceiveSettings
    waiting: list[_Connection] = field(default_factory=list)
    associated: set[_Connection] = field(default_factory=set)
    ending: set[_Connection] = field(default_factory=set)
    stopping: bool = False
    stop: StopSignal = field(default_factory=StopSignal)
    _lock: threading.Condition = field(default_factory=threading.Condition)

    def add(self, connection: _Connection) -> None:
        """Add a new connection; if too many are waiting, close one that waits."""
        with self._lock:
            self._lock.wait_for(lambda: len(self.ending) < _MOST_ENDING, _ENDING_LIMIT_S)
            neighbours = [other for other in self.waiting if other.address == connection.address]
            if len(neighbours) >= MOST_WAITING_PER_ADDRESS:
                self._cut_waiting(neighbours[0])
            elif len(self.waiting) >= MOST_WAITING:
                self._cut_waiting(self._oldest_of_the_greediest())
            self.waiting.append(connection)

    def associate(self, connection: _Connection, calling_ae: str) -> str | None:
        """Move a connection from waiting to associated; returns the limit that prevents it, if one is reached."""
        with self._lock:
            reached = self._limit_reached(calling_ae, connection.address)
            if reached is None:
                connection.calling_ae = calling_ae
                if connection in self.waiting:
                    self.waiting.remove(connection)
                self.associated.add(connection)
            return reached

    def _limit_reached(self, calling_ae: str, address: str) -> str | None:
        same_ae = sum(other.calling_ae == calling_ae for other in self.associated)
        same_address = sum(other.address == address for other in self.associated)
        counted = (
            (len(self.associated), self.limits.maximum_associations, ""),
            (same_ae, self.limits.maximum_associations_per_ae, f" of {calling_ae}"),
            (same_address, self.limits.maximum_associations_per_address, " from this address"),
        )
        reached = (f"the limit of {most} associations{whose} is reached" for now, most, whose in counted if now >= most)
        return next(reached, None)

    def remove(self, connection: _Connection) -> None:
        """Remove a connection that has ended."""
        with self._lock:
            self.associated.discard(connection)
            self.ending.discard(connection)
            self._lock.notify_all()
            if connection in self.waiting:
                self.waiting.remove(connection)

    def all(self) -> list[_Connection]:
        """All connections at this moment."""
        with self._lock:
            return [*self.waiting, *self.associated]

    def _oldest_of_the_greediest(self) -> _Connection:
        """Of the addresses with most waiting connections: whoever has one only is not closed for those of others."""
        waiting = Counter(other.address for other in self.waiting)
        most = max(waiting.values())
        return next(other for other in self.waiting if waiting[other.address] == most)

    def _cut_waiting(self, connection: _Connection) -> None:
        self.waiting.remove(connection)
        self.ending.add(connection)
        connection.acceptor.cut()


class Listener:
    """Receives until it is stopped; may be started once."""

    def __init__(self, settings: Settings, spool: Spool, ledger: ReceiptLedger) -> None:
        disk = DiskWatermark(settings.spool_folder, settings.operate, settings.receive.minimum_free_disk_bytes)
        endings = _Endings(ledger)
        self._node = _Node(settings, spool, ledger, endings, disk, transfer_syntaxes.decodable())
        self._schedule = Schedule([Sweep("ends of associations", _TELL_AGAIN_S, endings.tell_again)])
        self._connections = _Connections(settings.receive)
        self._accepting = threading.Thread(target=self._accept, name="listener", daemon=True)
        self._log = structlog.get_logger()

    def start(self) -> None:
        """Remove partial files of a killed listener, bind and listen; returns once peers can connect.

        Raises:
            OSError: the address can't be bound.
        """
        node = self._node.settings.node
        removed = self._node.spool.remove_leftovers(_LEFTOVER_AGE_S)
        self._node.spool.continue_order()
        family = socket.AF_INET6 if ":" in node.bind_address else socket.AF_INET
        try:
            self._socket = socket.create_server((node.bind_address, node.port), family=family, backlog=_BACKLOG)
        except OSError:
            self._connections.stop.close()
            raise
        self._accepting.start()
        self._schedule.start()
        self._log.info(
            "listener.started", ae_title=node.ae_title, address=node.bind_address, port=self.port, leftovers=removed
        )

    @property
    def port(self) -> int:
        """The bound port (useful if 0 was configured)."""
        return int(self._socket.getsockname()[1])

    def stop(self) -> None:
        """Accept no new connections, let instances in transfer finish, and end everything within 10 s."""
        self._connections.stopping = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._accepting.join(_FORCED_STOP_S)
        self._socket.close()
        self._connections.stop.set()
        remaining = self._connections.all()
        deadline = time.monotonic() + STOP_DEADLINE_S
        for connection in remaining:
            connection.thread.join(max(deadline - time.monotonic(), 0))
        for connection in remaining:
            if connection.thread.is_alive():
                connection.acceptor.cut()
                connection.thread.join(_FORCED_STOP_S)
        self._connections.stop.close()
        self._schedule.stop()
        self._node.lines.close()
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
            if policy.may_connect(self._node.settings.sources, address := str(peer[0])):
                self._serve(accepted, address)
            else:
                self._turn_away(accepted, address)

    def _serve(self, accepted: socket.socket, address: str) -> None:
        connection = _Connection(accepted, address, self._node, self._connections)
        self._connections.add(connection)
        try:
            connection.thread.start()
        except RuntimeError:
            self._log.error("listener.no_thread")
            self._connections.remove(connection)
            accepted.close()

    def _turn_away(self, accepted: socket.socket, address: str) -> None:
        """Reject the request that the peer sends or will send; it is not waited for."""
        if self._node.lines.may_log(address):
            self._log.warning("association.rejected", peer=address, reason=_NO_SOURCE_THERE)
        with suppress(OSError), accepted:
            accepted.setblocking(False)
            accepted.send(_TURNED_AWAY)
            accepted.shutdown(socket.SHUT_WR)


class _Connection:
    """One TCP connection and the service on its association (an acceptor's ``Service``)."""

    def __init__(self, accepted: socket.socket, address: str, node: _Node, connections: _Connections) -> None:
        self.address = address
        self.thread = threading.Thread(target=self._run, name=f"association from {address}", daemon=True)
        limits = node.settings.receive
        self.acceptor = Acceptor(
            accepted,
            self,
            Limits(
                largest_pdu_bytes=limits.maximum_pdu_bytes,
                largest_data_set_bytes=limits.maximum_instance_bytes,
                idle_s=limits.network_timeout_s,
                message_s=limits.dimse_timeout_s,
            ),
            connections.stop,
        )
        self._node = node
        self._connections = connections
        self._association_id = uuid.uuid4().hex
        self._log = structlog.get_logger().bind(association=self._association_id, peer=address)
        self.calling_ae = ""
        """Of an admitted peer."""
        self._source: SourceSettings | None = None
        self._reception: Reception | None = None
        self._opened = False
        self._stored = 0
        self._refusals: list[Refusal] = []

    def _run(self) -> None:
        released = False
        try:
            released = self.acceptor.run()
        except ConnectionLost as lost:
            if self.calling_ae and not self._connections.stopping and self._node.lines.may_log(self.address):
                self._log.warning("association.lost", calling_ae=self.calling_ae, reason=str(lost))
        except ProtocolFault as fault:
            if self._node.lines.may_log(self.address):
                self._log.warning("association.fault", calling_ae=self.calling_ae, reason=str(fault))
        except Exception:  # noqa: BLE001 - one association may fail, but not the listener
            self._log.exception("association.crashed")
        try:
            self._end(released=released)
        except Exception:  # noqa: BLE001 - it must not keep its place among the associations
            self._log.exception("association.crashed")
        finally:
            self._connections.remove(self)

    # ---- called by the acceptor

    def recognise(self, titles: Titles) -> Refused | None:
        """See Service."""
        settings = self._node.settings
        known = policy.admit(
            settings.sources, settings.node.ae_title, titles.calling_ae, titles.called_ae, self.address
        )
        if isinstance(known, Refused):
            return self._rejected(known)
        self._source = known
        return None

    def admit(self, request: AssociationRequest) -> Mapping[str, Served] | Refused:  # noqa: ARG002 - as in Service
        """See Service."""
        assert self._source is not None
        reached = self._connections.associate(self, self._source.ae_title.strip())
        if reached is not None:
            return self._rejected(Refused(pdu.LOCAL_LIMIT_EXCEEDED, reached))
        return policy.served(self._source, self._node.transfer_syntaxes)

    def _rejected(self, refused: Refused) -> Refused:
        if self._node.lines.may_log(self.address):
            self._log.warning("association.rejected", reason=refused.reason)
        return refused

    def answer(self, request: CommandSet, context: AcceptedContext) -> Response:
        """See Service."""
        if request.field == dimse.C_ECHO_RQ and context.abstract_syntax == VERIFICATION:
            return Response(dimse.SUCCESS)
        if request.field == dimse.C_STORE_RQ:
            return Response(policy.CANNOT_UNDERSTAND, "C-STORE without a data set")
        return _NOT_SUPPORTED

    def begin(self, request: CommandSet, context: AcceptedContext) -> None:
        """See Service; of a request other than C-STORE the data set is let pass."""
        if request.field != dimse.C_STORE_RQ:
            return
        self._reception = Reception(
            request,
            context,
            Sender(self.calling_ae, self.address, self._association_id),
            (self._node.spool, self._node.ledger),
            self._node.disk,
        )
        self._open(self._reception)

    def write(self, fragment: memoryview) -> None:
        """See Service."""
        if self._reception is not None:
            self._reception.write(fragment)

    def conclude(self) -> Response:
        """See Service."""
        if self._reception is None:
            return _NOT_SUPPORTED
        reception, self._reception = self._reception, None
        response = reception.conclude()
        if reception.refusal is None:
            self._stored += 1
            self._refusals = [each for each in self._refusals if not reception.makes_up_for(each)]
        else:
            self._refusals.append(reception.refusal)
        return response

    def discard(self) -> None:
        """See Service."""
        if self._reception is not None:
            self._reception.discard()

    def _open(self, reception: Reception) -> None:
        """The ledger knows the association before its first instance."""
        try:
            self._record_opening()
        except StoreUnavailable:
            reception.fail(Response(policy.OUT_OF_RESOURCES, "ledger is currently unavailable"))

    def _record_opening(self) -> None:
        if not self._opened:
            self._node.ledger.association_opened(self._association_id, self.calling_ae, self.address, now_utc())
            self._opened = True

    def _end(self, *, released: bool) -> None:
        if self._opened or self._refusals:
            sender = Sender(self.calling_ae, self.address, self._association_id)
            self._node.endings.tell(
                _Ended(sender, now_utc(), not released, tuple(self._refusals), is_known=self._opened)
            )
        if self._stored or self._refusals:
            self._log.info(
                "association.closed",
                calling_ae=self.calling_ae,
                released=released,
                stored=self._stored,
                refused=len(self._refusals),
            )
