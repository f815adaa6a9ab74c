"""The transport over real sockets, plain and TLS: complete PDUs, one deadline for all bytes of a PDU, bounded sizes."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from dicom_node.errors import ConnectionLost, ProtocolFault
from dicom_node.network import pdu
from dicom_node.network.transport import StopSignal, Transport, cut

if TYPE_CHECKING:
    import ssl

LARGEST = 131072
BODY = bytes(range(256)) * 64


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname(), timeout=30)
        return listener.accept()[0], peer


def over_tls(ends, contexts) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """Both ends after the TLS handshake."""
    wrapped = []
    server = threading.Thread(target=lambda: wrapped.append(contexts[0].wrap_socket(ends[0], server_side=True)))
    server.start()
    peer = contexts[1].wrap_socket(ends[1], server_hostname="localhost")
    server.join()
    return wrapped[0], peer


@pytest.fixture(params=["plain", "TLS"])
def ends(request, contexts):
    """A connected pair of sockets: ours, for the transport, and the peer's, which is blocking."""
    pair = connected()
    if request.param == "TLS":
        pair = over_tls(pair, contexts)
    yield pair
    for end in pair:
        end.close()


@pytest.fixture
def peer(ends):
    return ends[1]


@pytest.fixture
def transport(ends):
    return Transport(ends[0], LARGEST)


def encoded(body: bytes, kind: int = pdu.PduType.P_DATA) -> bytes:
    return pdu.HEADER.pack(kind, len(body)) + body


def in_background(work) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def trickle(peer: socket.socket, content: bytes, interval_s: float) -> int:
    """Send byte by byte until the other end hangs up; return how many were sent."""
    for count in range(len(content)):
        try:
            peer.sendall(content[count : count + 1])
        except OSError:
            return count
        time.sleep(interval_s)
    return len(content)


@pytest.mark.parametrize("size", [0, 1, 1000, 16382, 131071, LARGEST])
def test_pdu_of_any_size_is_read_completely(transport, peer, size):
    body = (BODY * 9)[:size]
    sender = in_background(lambda: peer.sendall(encoded(body)))
    kind, got = transport.read_pdu(20)
    assert (kind, bytes(got)) == (pdu.PduType.P_DATA, body)
    sender.join()


@pytest.mark.parametrize("pieces", [1, 2, 3, 7, 1000])
def test_pdus_are_read_one_by_one_however_the_bytes_are_split(transport, peer, pieces):
    """Several PDUs at once, and parts of them: the buffer may already contain the first bytes of the next PDU."""
    bodies = [(BODY * 9)[k : k + size] for k, size in enumerate((5, 0, 16382, 131072, 1, 70000, 70000, 3, 131072))]
    stream = b"".join(map(encoded, bodies))
    step = -(-len(stream) // pieces)
    sender = in_background(lambda: [peer.sendall(stream[k : k + step]) for k in range(0, len(stream), step)])
    for body in bodies:
        assert bytes(transport.read_pdu(20)[1]) == body
    sender.join()


@pytest.mark.parametrize("where", ["header", "body"])
def test_trickling_pdu_is_abandoned_at_its_overall_deadline(transport, peer, where):
    """Each byte arrives well within the deadline; all of them would take a hundred times as long."""
    content = encoded(BODY)
    at_once = 0 if where == "header" else pdu.HEADER.size
    peer.sendall(content[:at_once])
    sent = []
    sender = in_background(lambda: sent.append(trickle(peer, content[at_once : at_once + 200], 0.2)))
    with pytest.raises(ConnectionLost, match="the peer was silent or too slow"):
        transport.read_pdu(0.5 if where == "header" else 0.9)
    transport.close()
    sender.join()
    assert sent[0] < 30


def test_association_request_has_one_deadline_for_header_and_body(transport, peer):
    sender = in_background(lambda: trickle(peer, encoded(BODY, pdu.PduType.ASSOCIATE_RQ)[:200], 0.1))
    ends = time.monotonic() + 1.0
    _, length = transport.read_header(ends)
    with pytest.raises(ConnectionLost):
        transport.read_body(length, ends)
    transport.close()
    sender.join()


def test_silent_peer_times_out(transport):
    with pytest.raises(ConnectionLost, match="silent"):
        transport.read_pdu(0.2)


def test_slow_peer_within_the_deadline_is_waited_for(transport, peer):
    sender = in_background(lambda: trickle(peer, encoded(b"abc"), 0.05))
    assert bytes(transport.read_pdu(20)[1]) == b"abc"
    sender.join()


@pytest.mark.parametrize(
    ("sent", "reason"), [(b"", "closed by the peer"), (encoded(BODY)[:100], "closed inside a PDU")]
)
def test_peer_that_hangs_up_is_an_error(transport, peer, sent, reason):
    peer.sendall(sent)
    peer.close()
    with pytest.raises(ConnectionLost, match=reason):
        transport.read_pdu(20)


@pytest.mark.parametrize("header", [pdu.HEADER.pack(4, LARGEST + 1), pdu.HEADER.pack(4, 2**32 - 1)])
def test_oversized_pdu_is_refused_by_its_header(transport, peer, header):
    peer.sendall(header)
    with pytest.raises(ProtocolFault, match=f"expected at most {LARGEST}"):
        transport.read_pdu(20)


def test_unknown_pdu_type_is_refused_by_its_header(transport, peer):
    peer.sendall(pdu.HEADER.pack(0x42, 10))
    with pytest.raises(ProtocolFault, match="PDU type 66"):
        transport.read_pdu(20)


def test_sent_bytes_arrive_completely(transport, peer):
    content = BODY * 200
    received = bytearray()

    def receive():
        while len(received) < len(content):
            received.extend(peer.recv(65536))

    reader = in_background(receive)
    transport.send(content, 20)
    reader.join()
    assert received == content


def test_peer_that_does_not_read_times_out(transport):
    with pytest.raises(ConnectionLost, match="the peer was silent or too slow"):
        transport.send(BODY * 4000, 0.5)


def test_both_directions_work_at_once(transport, peer):
    """Both ends send more than the socket buffers hold, at the same time."""
    content = encoded(BODY * 8)
    echoes = in_background(lambda: [peer.sendall(content) for _ in range(20)])
    for _ in range(20):
        transport.read_pdu(20)
        transport.send(b"x" * 100, 20)
    echoes.join()
    received = b""
    while len(received) < 2000:
        received += peer.recv(4096)


def test_final_pdu_arrives_although_the_peer_is_still_sending(transport, peer):
    peer.sendall(BODY * 8)
    closing = in_background(lambda: transport.close_after(pdu.provider_abort(6)))
    with suppress(OSError):
        peer.sendall(BODY)
    assert peer.recv(100) == pdu.provider_abort(6)
    assert peer.recv(100) == b""
    peer.close()
    closing.join()


def reading(transport: Transport, **arguments) -> tuple[threading.Thread, list[str]]:
    """A thread that waits for a PDU, and the reason why it ended."""
    reasons = []

    def read():
        try:
            transport.read_pdu(60, **arguments)
        except ConnectionLost as lost:
            reasons.append(str(lost))

    return in_background(read), reasons


def test_another_thread_can_end_a_waiting_read(ends, transport):
    reader, reasons = reading(transport)
    cut(ends[0])
    reader.join(20)
    assert reasons
    assert "silent" not in reasons[0]


@pytest.fixture
def stop():
    signal = StopSignal()
    yield signal
    signal.close()


def test_stop_ends_the_wait_and_a_final_pdu_can_still_be_sent(transport, peer, stop):
    reader, reasons = reading(transport, stop=stop)
    stop.set()
    reader.join(20)
    assert reasons == ["the node is stopping"]
    transport.close_after(pdu.provider_abort(0))
    assert peer.recv(100) == pdu.provider_abort(0)
    assert peer.recv(100) == b""


def test_stop_does_not_end_the_wait_for_the_rest_of_a_pdu(transport, peer, stop):
    content = encoded(BODY)
    peer.sendall(content[:100])
    transport.read_header(time.monotonic() + 20, stop)
    stop.set()
    sender = in_background(lambda: peer.sendall(content[100:]))
    assert bytes(transport.read_body(len(BODY), time.monotonic() + 20)) == BODY
    sender.join()


def test_connection_closed_before_the_start_is_an_error():
    ours, peer = connected()
    peer.close()
    ours.close()
    with pytest.raises(ConnectionLost):
        Transport(ours, LARGEST)
