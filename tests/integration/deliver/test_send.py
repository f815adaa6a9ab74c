"""The SCU against real and misbehaving peers: unreachable, silent, slow, refusing, aborting, and every status."""

import hashlib
import socket
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from io import BytesIO

import pytest
from pydicom import dcmread
from pydicom.filereader import read_dataset
from pydicom.uid import ComprehensiveSRStorage, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.pdu import A_ASSOCIATE_RJ

from dicom_node.deliver.scu import echo, send
from tests.support.dicom_peers import destination, make_result, raw_peer, scripted_pacs
from tests.support.received_series import flip_a_bit

pytestmark = pytest.mark.timeout(60)


def _send(port, results, **changes):
    calls = []
    outcomes = send(destination(port, **changes), "NODE", results, calls.append)
    assert tuple(calls) == outcomes
    assert [o.sop_instance_uid for o in outcomes] == [r.sop_instance_uid for r in results]
    return outcomes


def _data_set_bytes(path):
    content = path.read_bytes()
    return content[144 + int.from_bytes(content[140:144], "little") :]


def test_storescp_keeps_every_byte(storescp, results):
    port, folder = storescp
    outcomes = _send(port, results)
    assert [(o.delivered, o.status) for o in outcomes] == [(True, 0)] * 4
    arrived = {hashlib.sha256(_data_set_bytes(path)).hexdigest() for path in folder.iterdir()}
    assert arrived == {hashlib.sha256(_data_set_bytes(r.path)).hexdigest() for r in results}


def test_echo_succeeds_with_storescp_and_fails_without_a_listener(storescp):
    assert echo(destination(storescp[0]), "NODE") == (True, "C-ECHO answered with 0x0000")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]
    ok, reason = echo(destination(free), "NODE")
    assert not ok
    assert "can't be reached" in reason


def test_split_response_does_not_wait_for_a_delayed_acknowledgement(storescp, tmp_path):
    """Without TCP_NODELAY and TCP_QUICKACK each instance costs 40 ms or more: 2.4 s for 60."""
    many = tuple(make_result(tmp_path, n, megabytes=0.002) for n in range(60))
    started = time.monotonic()
    assert all(o.delivered for o in _send(storescp[0], many))
    assert time.monotonic() - started < 2.0


@pytest.mark.parametrize("largest_pdu", [4096, 131072, 0])
def test_every_pdu_size_of_the_peer_works(results, largest_pdu):
    with scripted_pacs(maximum_pdu_size=largest_pdu) as (port, stored):
        assert all(o.delivered for o in _send(port, results))
    assert [data for _, data in stored] == [_data_set_bytes(r.path) for r in results]


@pytest.mark.parametrize(
    ("status", "delivered", "retry"),
    [(0xA700, False, True), (0xA900, False, False), (0xC000, False, False), (0x0122, False, False),
     (0x0124, False, False), (0xB000, True, False), (0xB007, True, False)],
)  # fmt: skip
def test_one_failed_instance_does_not_stop_the_others(results, status, delivered, retry):
    with scripted_pacs(lambda _, k: status if k == 2 else 0x0000) as (port, stored):
        outcomes = _send(port, results)
    assert len(stored) == 4
    assert [(o.delivered, o.retry, o.status) for o in outcomes] == [
        (True, False, 0),
        (delivered, retry, status),
        (True, False, 0),
        (True, False, 0),
    ]


def test_abort_half_way_leaves_the_rest_for_later(results):
    def abort_at_third(event, k):
        if k == 3:
            event.assoc.abort()
        return 0x0000

    with scripted_pacs(abort_at_third) as (port, _):
        outcomes = _send(port, results)
        assert [(o.delivered, o.retry) for o in outcomes] == [
            (True, False),
            (True, False),
            (False, True),
            (False, True),
        ]
        assert "abort" in outcomes[2].reason or "lost" in outcomes[2].reason
    with scripted_pacs() as (port, stored):
        remaining = [r for r, o in zip(results, outcomes, strict=True) if not o.delivered]
        assert all(o.delivered for o in _send(port, remaining))
        assert [event.request.AffectedSOPInstanceUID for event, _ in stored] == [
            r.sop_instance_uid for r in results[2:]
        ]


def test_peer_that_accepts_only_implicit_little_endian_gets_the_same_object_converted(results):
    with scripted_pacs(syntaxes=[ImplicitVRLittleEndian]) as (port, stored):
        assert all(o.delivered for o in _send(port, results))
    for result, (event, data) in zip(results, stored, strict=True):
        assert event.context.transfer_syntax == ImplicitVRLittleEndian
        arrived = read_dataset(BytesIO(data), is_implicit_VR=True, is_little_endian=True)
        assert {e.tag: e.value for e in arrived} == {e.tag: e.value for e in dcmread(result.path)}


def test_instance_of_an_unaccepted_sop_class_is_refused_and_the_other_is_sent(results):
    with scripted_pacs(classes=[ComprehensiveSRStorage]) as (port, stored):
        outcomes = _send(port, results)
    assert [(o.delivered, o.retry) for o in outcomes] == [(False, False)] * 3 + [(True, False)]
    assert "Segmentation Storage" in outcomes[0].reason
    assert len(stored) == 1


def test_no_accepted_context_is_a_refusal(results):
    with scripted_pacs(classes=[]) as (port, _):
        assert [(o.delivered, o.retry) for o in _send(port, results)] == [(False, False)] * 4


def test_permanent_rejection_is_a_refusal(results):
    with scripted_pacs(require_calling_aet=["SOMEONE"]) as (port, _):
        outcomes = _send(port, results)
    assert {(o.delivered, o.retry, o.status) for o in outcomes} == {(False, False, None)}
    assert "calling-AE-title-not-recognized" in outcomes[0].reason


def test_transient_rejection_is_a_delay(results):
    def reject(connection):
        connection.recv(65536)
        rejection = A_ASSOCIATE_RJ()
        rejection.result, rejection.source, rejection.reason_diagnostic = 2, 3, 2  # local limit exceeded
        connection.sendall(rejection.encode())

    with raw_peer(reject) as port:
        outcomes = _send(port, results)
    assert {(o.delivered, o.retry) for o in outcomes} == {(False, True)}
    assert "local-limit-exceeded" in outcomes[0].reason


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x02\x00\x00\x00\x00\x0a" + b"\xff" * 10, b"\x02\x00\xff\xff\xff\xff",
     b"\x07\x00\x00\x00\x00\x04\x00\x00\x00\x00", b"\x03\x00\x00\x00\x00\x04\x00\x09\x09\x09"],
    ids=["closes", "http", "malformed", "endless", "abort", "unknown-rejection"],
)  # fmt: skip
def test_peer_with_another_protocol_is_a_delay(results, answer):
    with raw_peer(lambda c: (c.recv(65536), c.sendall(answer))) as port:
        assert {(o.delivered, o.retry) for o in _send(port, results)} == {(False, True)}


def test_silent_peer_is_a_delay(results):
    with raw_peer(lambda c: [c.recv(65536), c.recv(1)]) as port:
        outcomes = _send(port, results, response_timeout_s=0.5)
    assert {(o.delivered, o.retry) for o in outcomes} == {(False, True)}
    assert "silent" in outcomes[0].reason


def test_missing_response_to_an_instance_is_a_delay(results):
    with scripted_pacs(lambda _, k: time.sleep(2) or 0 if k == 2 else 0) as (port, _):
        outcomes = _send(port, results, response_timeout_s=0.5)
    assert [(o.delivered, o.retry) for o in outcomes] == [(True, False)] + [(False, True)] * 3
    assert "silent" in outcomes[1].reason


def test_slow_peer_is_not_treated_as_silent(tmp_path):
    """The transfer takes longer than the response timeout, but bytes keep flowing."""
    result = make_result(tmp_path, 1, megabytes=12)
    slow = [(evt.EVT_CONN_OPEN, lambda e: _narrow(e.assoc)), (evt.EVT_PDU_RECV, lambda _: time.sleep(0.005))]
    with scripted_pacs(handlers=slow) as (port, _):
        started = time.monotonic()
        outcomes = _send(port, [result], response_timeout_s=1.5)
    assert outcomes[0].delivered
    assert time.monotonic() - started > 2


def _narrow(association):
    association.dul.socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)


def test_file_that_is_away_is_a_delay_and_the_others_are_sent(results):
    results[1].path.unlink()
    with scripted_pacs() as (port, stored):
        outcomes = _send(port, results)
    assert [(o.delivered, o.retry) for o in outcomes] == [(True, False), (False, True), (True, False), (True, False)]
    assert len(stored) == 3


def test_file_that_changed_is_not_sent(results):
    flip_a_bit(results[1].path)
    with scripted_pacs() as (port, stored):
        outcomes = _send(port, results)
    assert [(o.delivered, o.retry, o.is_damaged) for o in outcomes] == [
        (True, False, False),
        (False, False, True),
        (True, False, False),
        (True, False, False),
    ]
    assert len(stored) == 3


def test_file_that_is_not_dicom_is_refused(results):
    content = b"not DICOM"
    results[0].path.write_bytes(content)
    results = (replace(results[0], sha256=hashlib.sha256(content).hexdigest()), *results[1:])
    with scripted_pacs() as (port, _):
        assert [o.delivered for o in _send(port, results)] == [False, True, True, True]


def test_error_of_the_ledger_aborts_and_propagates(results):
    aborted = []

    def ledger_is_away(_):
        raise RuntimeError("ledger is away")

    with scripted_pacs(handlers=[(evt.EVT_ABORTED, aborted.append)]) as (port, stored):
        with pytest.raises(RuntimeError, match="ledger is away"):
            send(destination(port), "NODE", results, ledger_is_away)
        for _ in range(100):
            if aborted:
                break
            time.sleep(0.02)
    assert len(stored) == 1
    assert aborted


def test_memory_stays_bounded_for_a_whole_body_segmentation(storescp, tmp_path):
    """Sending a 345 MB binary SEG raises the process's peak memory by less than 32 MB."""
    result = make_result(tmp_path, 1, megabytes=345)
    program = textwrap.dedent(
        f"""
        import resource, pathlib
        from dicom_node.network.requestor import Association, OutgoingFile, Peer
        peer = Peer("PACS", "127.0.0.1", {storescp[0]}, 10, 60, 131072)
        file = OutgoingFile(pathlib.Path({str(result.path)!r}), {result.sop_class_uid!r},
                            {result.sop_instance_uid!r}, {result.transfer_syntax_uid!r})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with Association(peer, "NODE", [(file.sop_class_uid, file.transfer_syntax_uid)]) as association:
            assert association.store(file) == 0
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 32 * 1024
