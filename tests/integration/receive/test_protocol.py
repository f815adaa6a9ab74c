"""Peers that break the protocol or stay silent: all others are served, nothing is kept, nothing grows."""

from __future__ import annotations

import select
import socket
import struct
import subprocess
import threading
import time

import pytest
from pydicom.uid import CTImageStorage

from tests.support.sent_slices import ct_slice, encoded
from tests.support.waiting import wait_until

from .peer import Peer, association_request, pdu, pdv, pdv_command, pdv_data, store_command

ABORT = 7
STORE = pdv_command(1, store_command(CTImageStorage, "1.2.3.4"))


def echo(node) -> bool:
    command = ["echoscu", "-aet", "SENDER", "-aec", "NODE", "-ta", "5", "127.0.0.1", str(node.port)]
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0


@pytest.mark.parametrize("silent", [10, 200])
def test_silent_connections_do_not_keep_others_out(node, silent):
    before = threading.active_count()  # with those that other tests have left
    sockets = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(silent)]
    try:
        assert all(echo(node) for _ in range(3))
        assert threading.active_count() < before + 9
    finally:
        for connection in sockets:
            connection.close()


def test_connect_and_close_leaves_nothing_behind(node):
    for _ in range(500):
        socket.create_connection(("127.0.0.1", node.port)).close()
    assert echo(node)
    wait_until(lambda: not node.listener._connections.all())


FAULTS = {
    "unknown PDU type": pdu(0x42, b"abcd"),
    "PDU of 4 GiB": pdu(4, b"", length=0xFFFFFFFF),
    "PDU above what was negotiated": pdu(4, b"", length=131073),
    "empty P-DATA": pdu(4, b""),
    "second association request": association_request(),
    "PDV of length 0": pdu(4, pdv(1, 3, b"", length=0)),
    "PDV of length 1": pdu(4, pdv(1, 3, b"", length=1)),
    "PDV beyond its PDU": pdu(4, pdv(1, 3, b"abcd", length=100)),
    "PDV with overflowing length": pdu(4, pdv(1, 3, b"abcd", length=0xFFFFFFFC)),
    "truncated PDV header": pdu(4, b"\0\0\0"),
    "context that was not accepted": pdv_command(3, store_command(CTImageStorage, "1.2.3")),
    "data before any command": pdv_data(1, b"abcd", last=True),
    "two commands": STORE + STORE,
    "release in the middle of an instance": STORE + pdu(5, bytes(4)),
    "command set that is none": pdv_command(1, b"\xff" * 40),
    "command set without end": pdu(4, pdv(1, 1, bytes(10_000))) * 2,
    "command set without fields": pdv_command(1, struct.pack("<HHI", 0, 0, 4) + bytes(4)),
}


@pytest.mark.parametrize("sent", FAULTS.values(), ids=FAULTS)
def test_broken_protocol_is_aborted_and_leaves_nothing(node, sent):
    peer = Peer(node.port)
    peer.send(sent)
    kind, body = peer.read_pdu()
    assert kind == ABORT
    assert body[2] == 2  # by the service provider
    assert peer.read_pdu() == (0, b"")
    peer.close()
    wait_until(lambda: node.files() == set())
    assert echo(node)


@pytest.mark.parametrize(
    "sent",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"SSH-2.0-x\r\n", pdu(1, b"", length=0xFFFFFFFF), pdu(1, bytes(67)), STORE],
)
def test_anything_but_an_association_request_is_aborted(node, sent):
    peer = Peer(node.port, associated=False)
    peer.send(sent)
    assert peer.read_pdu()[0] == ABORT
    peer.close()


def test_association_request_sent_byte_by_byte_has_a_deadline(node, monkeypatch):
    monkeypatch.setattr("dicom_node.network.acceptor.REQUEST_DEADLINE_S", 1.0)
    peer = Peer(node.port, associated=False)
    request = association_request()
    sent = 0
    while sent < len(request):
        try:
            peer.send(request[sent : sent + 1])
        except OSError:
            break
        sent += 1
        time.sleep(0.2)
    assert 0 < sent < 20
    peer.close()


@pytest.mark.parametrize("silence", ["before an instance", "inside an instance", "inside a PDU"])
def test_silence_ends_the_association_and_removes_the_partial_file(start_node, silence):
    node = start_node(network_timeout_s=0.5, dimse_timeout_s=0.5)
    peer = Peer(node.port)
    if silence != "before an instance":
        peer.send(STORE + pdv_data(1, bytes(1000), last=False))
    if silence == "inside a PDU":
        peer.send(pdu(4, bytes(100), length=1000))
    assert peer.read_pdu() == (0, b"")
    peer.close()
    wait_until(lambda: node.files() == set() and not node.listener._connections.all())


def test_command_set_in_small_fragments_has_a_deadline(start_node):
    node = start_node(dimse_timeout_s=0.3)
    peer = Peer(node.port)
    command, sent = store_command(CTImageStorage, "1.2.3.4"), 0
    while sent < len(command) and not select.select([peer.socket], [], [], 0.05)[0]:
        peer.send(pdu(4, pdv(1, 1, command[sent : sent + 1])))
        sent += 1
    assert peer.read_pdu() == (ABORT, b"\0\0\2\0")
    assert 0 < sent < len(command)
    peer.close()


def test_fragments_of_any_size_and_pipelined_messages(node):
    """Command and data set in the smallest fragments, several in one PDU, and the next request before the response."""
    slices = [ct_slice(number, rows=4) for number in range(2)]
    peer = Peer(node.port)
    for dataset in slices:
        command = store_command(CTImageStorage, dataset.SOPInstanceUID)
        data = encoded(dataset, "1.2.840.10008.1.2.1")
        pieces = [pdv(1, 1, command[k : k + 1]) for k in range(len(command) - 1)] + [pdv(1, 3, command[-1:])]
        pieces += [pdv(1, 0, data[k : k + 3]) for k in range(0, len(data), 3)] + [pdv(1, 2, b"")]
        for start in range(0, len(pieces), 7):
            peer.send(pdu(4, b"".join(pieces[start : start + 7])))
    assert [peer.status(), peer.status()] == [0, 0]
    peer.send(pdu(5, bytes(4)))
    assert peer.read_pdu()[0] == 6
    peer.close()
    assert len(node.rows()) == 2
    node.assert_consistent()


def test_other_operations_are_answered_with_their_error_status(node):
    peer = Peer(node.port)
    peer.send(pdv_command(1, store_command(CTImageStorage, "1.2.3", with_dataset=False)))
    assert peer.status() == 0xC000
    peer.send(pdv_command(1, store_command(CTImageStorage, "1.2.3")) + pdv_data(1, b"", last=True))
    assert peer.status() == 0xA900
    for field in (0x0020, 0x0021, 0x0100):
        peer.send(pdv_command(1, store_command(CTImageStorage, "1.2.3", field=field)) + pdv_data(1, b"x", last=True))
        assert peer.status() == 0x0211
    peer.close()
    assert node.files() == set()


def test_more_simultaneous_senders_than_cores_are_served(node, ct_files):
    command = ["storescu", "-aet", "SENDER", "-aec", "NODE", "127.0.0.1", str(node.port), *map(str, ct_files)]
    senders = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(8)]
    assert [sender.wait(60) for sender in senders] == [0] * 8
    rows = node.rows()
    assert len(rows) == len(ct_files)
    assert sum(row.duplicates for row in rows) == 7 * len(ct_files)
    node.assert_consistent()


def test_stop_lets_the_current_instance_finish_and_aborts_idle_associations(node):
    dataset = ct_slice(1)
    data = encoded(dataset, "1.2.840.10008.1.2.1")
    port = node.port
    idle, sending = Peer(port), Peer(port)
    sending.send(pdv_command(1, store_command(CTImageStorage, dataset.SOPInstanceUID)))
    sending.send(pdv_data(1, data[:500], last=False))
    wait_until(lambda: node.files() != set())
    stopper = threading.Thread(target=node.listener.stop)
    stopper.start()
    assert idle.read_pdu()[0] == ABORT
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)
    sending.send(pdv_data(1, data[500:], last=True))
    assert sending.status() == 0
    assert sending.read_pdu()[0] == ABORT
    stopper.join(10)
    assert not stopper.is_alive()
    assert len(node.rows()) == 1
    node.assert_consistent()
    for peer in (idle, sending):
        peer.close()


def test_stop_does_not_wait_for_a_hanging_sender(node, monkeypatch):
    monkeypatch.setattr("dicom_node.receive.scp.STOP_DEADLINE_S", 0.3)
    peer = Peer(node.port)
    peer.send(STORE + pdv_data(1, bytes(1000), last=False))
    wait_until(lambda: node.files() != set())
    node.listener.stop()
    assert node.files() == set()
    assert [a.aborted for a in node.associations()] == [True]
    peer.close()
