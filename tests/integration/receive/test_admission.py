"""Who gets in costs nothing: refused by address before a byte is read, by AE title before an item is; and who gets in
does not take the places of the others.
"""

from __future__ import annotations

import struct

import pytest
import structlog

from dicom_node.network import pdu as upper_layer
from dicom_node.receive.scp import MOST_WAITING, MOST_WAITING_PER_ADDRESS
from dicom_node.settings import SourceSettings
from tests.support.waiting import wait_until

from .peer import Peer, answer, association_request, pdu

ACCEPTED, REJECTED, ABORTED = 2, 3, 7
CALLING, CALLED, LIMIT = b"\0\1\1\3", b"\0\1\1\7", b"\0\2\3\2"
HEAD = 6 + upper_layer.FIXED_PART
LISTED_ELSEWHERE = (SourceSettings(ae_title="SENDER", addresses=("127.0.0.2",)),)


def titled(calling: bytes = b"SENDER", called: bytes = b"NODE") -> bytes:
    """An association request with exactly these bytes as AE titles."""
    request = association_request()
    return request[:10] + called.ljust(16) + calling.ljust(16) + request[42:]


def with_items(extra: bytes, calling: str = "SENDER") -> bytes:
    """An association request with more items behind its own."""
    body = association_request(calling)[6:] + extra
    return pdu(1, body)


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def test_peer_from_an_address_of_no_source_is_rejected_before_it_sends_anything(start_node):
    node = start_node(sources=LISTED_ELSEWHERE)
    stranger = Peer(node.port, associated=False)
    assert stranger.read_pdu() == (REJECTED, CALLING)
    assert stranger.read_pdu() == (0, b"")
    stranger.close()
    assert answer(node.port, association_request(), "127.0.0.2")[0] == ACCEPTED


@pytest.mark.parametrize(
    ("calling", "called", "rejection"), [("STRANGER", "NODE", CALLING), ("SENDER", "OTHER", CALLED)]
)
def test_titles_are_judged_before_the_items_arrive(node, calling, called, rejection):
    request = association_request(calling, called)
    announced = pdu(1, request[6:HEAD], length=upper_layer.LARGEST_ASSOCIATE)
    assert answer(node.port, announced) == (REJECTED, rejection)


@pytest.mark.parametrize(
    ("titles", "rejection"),
    [
        ({"calling": b"SENDER\n"}, CALLING),
        ({"calling": b"SENDER\0"}, CALLING),
        ({"calling": b"SENDER".ljust(16, b"\0")}, CALLING),
        ({"calling": b"\tSENDER"}, CALLING),
        ({"calling": b"S\xc3\x89NDER"}, CALLING),
        ({"calling": b""}, CALLING),
        ({"called": b"NODE\n"}, CALLED),
        ({"called": bytes(16)}, CALLED),
    ],
)
def test_titles_that_differ_in_any_byte_are_rejected(node, titles, rejection):
    assert answer(node.port, titled(**titles)) == (REJECTED, rejection)


def test_spaces_around_titles_have_no_meaning(node):
    assert answer(node.port, titled(b"  SENDER", b" NODE "))[0] == ACCEPTED


CT, IMPLICIT = item(0x30, b"1.2.840.10008.5.1.4.1.1.2"), item(0x40, b"1.2.840.10008.1.2")
FLOODS = {
    "empty items": item(0x99, b"") * 15_000,
    "presentation contexts": b"".join(
        item(0x20, bytes((k % 128 * 2 + 1, 0, 0, 0)) + CT + IMPLICIT) for k in range(129)
    ),
    "transfer syntaxes": item(0x20, b"\3\0\0\0" + CT + IMPLICIT * 129),
    "user information": item(0x50, item(0x56, b"") * 513),
    "lying length": b"\x50\0\xff\xff",
    "half a header": b"\x50\0",
    "context without transfer syntax": item(0x20, b"\3\0\0\0" + CT),
    "context without abstract syntax": item(0x20, b"\3\0\0\0" + IMPLICIT),
    "context of two abstract syntaxes": item(0x20, b"\3\0\0\0" + CT * 2 + IMPLICIT),
    "even context ID": item(0x20, b"\4\0\0\0" + CT + IMPLICIT),
    "context ID twice": item(0x20, b"\1\0\0\0" + CT + IMPLICIT),
    "empty context": item(0x20, b""),
    "role of nothing": item(0x50, item(0x54, b"")),
    "syntax with a line feed": item(0x20, b"\3\0\0\0" + CT + item(0x40, b"1.2\n3")),
    "syntax of 65 characters": item(0x20, b"\3\0\0\0" + CT + item(0x40, b"1" * 65)),
}


@pytest.mark.parametrize("extra", FLOODS.values(), ids=FLOODS)
def test_items_beyond_what_any_peer_needs_abort_a_listed_peer_and_reject_others(node, extra):
    assert answer(node.port, with_items(extra)) == (ABORTED, b"\0\0\2\6")
    assert answer(node.port, with_items(extra, "STRANGER")) == (REJECTED, CALLING)


def test_unknown_items_are_skipped(node):
    assert answer(node.port, with_items(item(0x99, b"later edition") + item(0x50, item(0x99, b""))))[0] == ACCEPTED


# ---- caps


def taken(node, **peer) -> tuple[Peer, tuple[int, bytes]]:
    one = Peer(node.port, associated=False, address=peer.pop("address", "127.0.0.1"))
    one.send(association_request(**peer))
    return one, one.read_pdu()


@pytest.mark.parametrize(
    ("setting", "others"),
    [
        ("maximum_associations_per_ae", {"calling": "ECHOONLY"}),
        ("maximum_associations_per_address", {"address": "127.0.0.2"}),
    ],
)
def test_one_peer_does_not_take_the_places_of_others(start_node, setting, others):
    node = start_node(**{setting: 2})
    held = [Peer(node.port), Peer(node.port)]
    refused, rejection = taken(node)
    assert rejection == (REJECTED, LIMIT)
    other, accepted = taken(node, **others)
    assert accepted[0] == ACCEPTED
    held[0].send(pdu(5, bytes(4)))
    assert held[0].read_pdu()[0] == 6

    def comes_in() -> bool:
        again, (kind, _) = taken(node)
        again.close()
        return kind == ACCEPTED

    wait_until(comes_in)
    for peer in (*held, refused, other):
        peer.close()


def test_peer_that_needs_a_moment_is_not_closed_for_the_silent_connections_of_others(node):
    patient = Peer(node.port, associated=False)
    silent = [
        Peer(node.port, associated=False, address=f"127.0.1.{1 + number // MOST_WAITING_PER_ADDRESS}")
        for number in range(MOST_WAITING + MOST_WAITING_PER_ADDRESS)
    ]
    assert silent[0].read_pdu() == (0, b""), "none was closed"
    patient.send(association_request())
    assert patient.read_pdu()[0] == ACCEPTED
    for peer in (patient, *silent):
        peer.close()


# ---- log lines


@pytest.mark.parametrize(
    ("sources", "request_bytes"),
    [
        (LISTED_ELSEWHERE, association_request()),
        (None, association_request("STRANGER")),
        (None, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    ],
    ids=["address", "title", "protocol"],
)
def test_lines_of_one_address_are_limited_and_counted(start_node, sources, request_bytes):
    with structlog.testing.capture_logs() as log:
        node = start_node(**({"sources": sources} if sources else {}))
        for _ in range(30):
            answer(node.port, request_bytes)
        wait_until(lambda: not node.listener._connections.all())
        node.listener.stop()
    lines = [line for line in log if line["event"] in ("association.rejected", "association.fault")]
    assert [line["peer"] for line in lines] == ["127.0.0.1"] * 10
    assert [line for line in log if line["event"] == "association.not_logged"] == [
        {"event": "association.not_logged", "log_level": "warning", "peer": "127.0.0.1", "lines": 20}
    ]
