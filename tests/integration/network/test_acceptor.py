"""An association as acceptor, with pynetdicom as requestor: roles, requests of any service, with and without TLS."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO

import pytest
from pydicom import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import CTImageStorage, ImplicitVRLittleEndian
from pynetdicom import AE, build_role
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

from dicom_node.errors import ConnectionLost, NetworkError
from dicom_node.network import dimse, pdu
from dicom_node.network.acceptor import AcceptedContext, Acceptor, Limits, Refused, Served
from dicom_node.network.dimse import CommandSet, Element, Response
from dicom_node.network.pdu import Roles
from dicom_node.network.transport import StopSignal

LIMITS = Limits(largest_pdu_bytes=16384, largest_data_set_bytes=10**6, idle_s=20, message_s=20)
IMPLICIT = frozenset({str(ImplicitVRLittleEndian)})
TRANSACTION = "1.2.3.4.5"


@dataclass
class Recorder:
    """A service that answers every request with a given response, and records the requests."""

    served: dict[str, Served] | Refused
    response: Response = field(default_factory=lambda: Response(dimse.SUCCESS))
    requests: list[tuple[CommandSet, AcceptedContext]] = field(default_factory=list)
    data_set: bytes = b""

    def recognise(self, titles):
        self.titles = titles

    def admit(self, request):
        self.request = request
        return self.served

    def answer(self, request, context):
        self.requests.append((request, context))
        return self.response

    def begin(self, request, context):
        self.requests.append((request, context))

    def write(self, fragment):
        self.data_set += bytes(fragment)

    def conclude(self):
        return self.response

    def discard(self):
        pass


@dataclass
class Running:
    """A listener for one association."""

    port: int
    thread: threading.Thread
    released: list[bool]
    errors: list[NetworkError]
    stop: StopSignal


@pytest.fixture(params=["plain", "TLS"])
def tls(request, contexts):
    """The TLS contexts of server and client; None without TLS."""
    return contexts if request.param == "TLS" else None


@pytest.fixture
def start(tls):
    """A function that starts a listener for one association with a service."""
    running = []

    def start(service) -> Running:
        listener = socket.create_server(("127.0.0.1", 0))
        one = Running(listener.getsockname()[1], threading.Thread(), [], [], StopSignal())

        def accept():
            with listener:
                connection, _ = listener.accept()
            if tls:
                connection = tls[0].wrap_socket(connection, server_side=True)
            try:
                one.released.append(Acceptor(connection, service, LIMITS, one.stop).run())
            except NetworkError as error:
                one.errors.append(error)

        one.thread = threading.Thread(target=accept, daemon=True)
        one.thread.start()
        running.append(one)
        return one

    yield start
    for one in running:
        one.thread.join(20)
        one.stop.close()


def associate(running, sop_class, tls, roles=(), handlers=()):
    entity = AE(ae_title="PEER")
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20
    entity.add_requested_context(sop_class, ImplicitVRLittleEndian)
    return entity.associate(
        "127.0.0.1",
        running.port,
        ae_title="NODE",
        ext_neg=list(roles),
        evt_handlers=list(handlers),
        tls_args=(tls[1], "localhost") if tls else None,
    )


def test_echo_and_release(start, tls):
    service = Recorder({Verification: Served(IMPLICIT)})
    running = start(service)
    association = associate(running, Verification, tls)
    assert association.send_c_echo().Status == 0
    association.release()
    running.thread.join(20)
    assert running.released == [True]
    assert (service.request.calling_ae, service.request.called_ae) == ("PEER", "NODE")
    assert service.titles == pdu.Titles(called_ae="NODE", calling_ae="PEER")
    ((command, context),) = service.requests
    assert command.sop_class_uid == Verification
    assert context == AcceptedContext(Verification, ImplicitVRLittleEndian, Roles())


@pytest.mark.parametrize(
    ("proposed", "may_take", "as_scu", "as_scp"),
    [
        ({"scu_role": True, "scp_role": True}, Roles(), True, False),
        ({"scu_role": True, "scp_role": True}, Roles(scu=True, scp=True), True, True),
        ({"scp_role": True}, Roles(scu=True, scp=True), False, True),
        ({"scp_role": True}, Roles(), None, None),
    ],
    ids=["SCU of both", "both", "SCP of both", "SCP where it must not"],
)
def test_peer_gets_the_granted_role(start, tls, proposed, may_take, as_scu, as_scp):
    running = start(Recorder({CTImageStorage: Served(IMPLICIT, may_take)}))
    association = associate(running, CTImageStorage, tls, [build_role(CTImageStorage, **proposed)])
    if as_scu is None:
        assert [context.result for context in association.rejected_contexts] == [1]
        running.thread.join(20)
        return
    (context,) = association.accepted_contexts
    assert (context.as_scu, context.as_scp) == (as_scu, as_scp)
    association.release()


def test_n_action_request_and_response_both_carry_a_data_set(start, tls):
    reply = Dataset()
    reply.TransactionUID = TRANSACTION
    encoded_reply = encode(reply, is_implicit_vr=True, is_little_endian=True)
    service = Recorder(
        {StorageCommitmentPushModel: Served(IMPLICIT)},
        Response(0, elements={Element.ACTION_TYPE_ID: 1}, data_set=encoded_reply),
    )
    association = associate(start(service), StorageCommitmentPushModel, tls)
    asked = Dataset()
    asked.TransactionUID = TRANSACTION
    asked.ReferencedSOPSequence = [Dataset() for _ in range(500)]
    for number, item in enumerate(asked.ReferencedSOPSequence):
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CTImageStorage, f"1.2.3.{number}"
    status, answered = association.send_n_action(asked, 1, StorageCommitmentPushModel, "1.2.840.10008.1.20.1.1")
    assert status.Status == 0
    assert answered.TransactionUID == TRANSACTION
    association.release()
    ((command, _),) = service.requests
    assert (command.field, command.number(Element.ACTION_TYPE_ID)) == (dimse.N_ACTION_RQ, 1)
    assert command.sop_instance_uid == "1.2.840.10008.1.20.1.1"
    arrived = read_dataset(BytesIO(service.data_set), is_implicit_VR=True, is_little_endian=True)
    assert arrived == asked


def test_rejection_arrives_with_its_reason(start, tls):
    """Read from the socket: pynetdicom mistakes a rejection for an abort if the connection closes right after it."""
    running = start(Recorder(Refused(pdu.LOCAL_LIMIT_EXCEEDED, "for the test")))
    context = pdu.ProposedContext(1, str(Verification), (str(ImplicitVRLittleEndian),))
    peer = socket.create_connection(("127.0.0.1", running.port), timeout=20)
    if tls:
        peer = tls[1].wrap_socket(peer, server_hostname="localhost")
    with peer:
        peer.sendall(pdu.AssociationRequest("PEER", "NODE", (context,), 16384).encoded())
        received = b""
        while part := peer.recv(100):
            received += part
    assert received == pdu.LOCAL_LIMIT_EXCEEDED.encoded()
    running.thread.join(20)
    assert running.released == [False]


def test_stop_aborts_an_idle_association_and_the_peer_is_told(start, tls):
    from pynetdicom import evt  # noqa: PLC0415 - the constant exists at run time only

    aborted = threading.Event()
    running = start(Recorder({Verification: Served(IMPLICIT)}))
    association = associate(running, Verification, tls, handlers=[(evt.EVT_ABORTED, lambda _: aborted.set())])
    assert association.send_c_echo().Status == 0
    running.stop.set()
    assert aborted.wait(20)
    running.thread.join(20)
    assert isinstance(running.errors[0], ConnectionLost)
    with suppress(RuntimeError):
        association.abort()
