"""PDUs that were changed at random, from seeds, over real sockets."""

from __future__ import annotations

import hashlib
import select
import socket
import struct
import threading
import time
import warnings
from collections import Counter
from random import Random
from typing import TYPE_CHECKING

from pydicom import dcmread
from pydicom.uid import CTImageStorage
from pynetdicom.sop_class import Verification

from tests.faults.case import FaultCase, Outcome
from tests.faults.listening import Echoes, Node, Slices, Told, current_instances, echo, left
from tests.integration.receive.peer import (
    Peer,
    association_request,
    echo_command,
    elements_in,
    number_in,
    pdu,
    pdv,
    pdv_command,
    store_command,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MUTATED = 100_000
GROWTH_LIMIT_MB = 50.0
HANG_S = 40.0
"""More than every limit of the listener together: 10 s for a request, the timeouts below, and a second to close."""
_TIMEOUT_S = 2.0
_LANES = 4
_MOST_PLACES = 64
_MOST_MESSAGES = 12
_PATIENCE_S = 0.1
"""For an answer; without one, the listener waits for bytes that a changed length announced."""
_SHARE_OF_REQUESTS = 0.15
_SHARE_OF_SILENCE = 1 / 500
_ECHO_PAUSE_S = 0.25
_ACCEPTED, _P_DATA, _RELEASE, _ABORT = 2, 4, 5, 7
_STORE_RESPONSE, _ECHO_RESPONSE = 0x8001, 0x8030
_COMMAND, _LAST = 1, 2
_LENGTHS = (0, 1, 2, 5, 6, 7, 131072, 131073, 0x7FFFFFFF, 0xFFFFFFFC, 0xFFFFFFFF)
_REQUEST = association_request(classes=(CTImageStorage, Verification))
_ECHO = pdv_command(3, echo_command())


def mutated(folder: Path, rounds: int) -> Outcome:
    """Send ``rounds`` changed PDUs, several on one connection as long as the listener goes on."""
    node = Node(
        folder / "node",
        network_timeout_s=_TIMEOUT_S,
        dimse_timeout_s=_TIMEOUT_S,
        maximum_associations=_MOST_PLACES,
        maximum_associations_per_ae=_MOST_PLACES,
        maximum_associations_per_address=_MOST_PLACES,
    )
    slices, told = Slices(rows=16), Told()
    echoes = Echoes(node.port, _ECHO_PAUSE_S)
    lanes = [Lane(node.port, number, -(-rounds // _LANES), slices) for number in range(_LANES)]
    try:
        node.start()
        pid, before_mb = node.listener(), node.memory_mb()
        echoes.start()
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
        echoes.stop()
        last_echo_s = echo(node.port)
        same, most_mb = node.listener() == pid, node.memory_mb("VmHWM")
        code = node.stop()
    finally:
        node.kill_all()
    told.add(lane.told for lane in lanes)
    remaining = left(node, told)
    cut = set().union(*(lane.cut for lane in lanes))
    malformed = _malformed(node, cut)
    crashes = node.crashes()
    violations = [
        *(each for lane in lanes for each in lane.violations),
        *echoes.failures,
        *remaining.violations(),
        *(f"{each} is no whole instance and is stored" for each in malformed),
        *crashes,
    ]
    if (sent := sum(lane.mutated for lane in lanes)) < rounds:
        violations.append(f"only {sent} mutated PDUs were sent")
    if not same or code:
        violations.append(f"the listener did not live until it was stopped (exit code {code})")
    if most_mb - before_mb > GROWTH_LIMIT_MB:
        violations.append(f"the listener grew by {most_mb - before_mb:.1f} MB")
    answers = sum((lane.answers for lane in lanes), Counter())
    ends = sum((lane.ends for lane in lanes), Counter())
    return Outcome(
        tried={
            "mutated PDUs": sum(lane.mutated for lane in lanes),
            "connections": sum(ends.values()),
            "acknowledged": len(told.acknowledged),
            "C-ECHO meanwhile": len(echoes.seconds),
        },
        seen={
            "crashes": len(crashes),
            "hangs": sum(len(lane.violations) for lane in lanes),
            "malformed instances stored": len(malformed),
            "acknowledged and lost": len(remaining.lost),
            "C-ECHO at most, s": round(max([*echoes.seconds, last_echo_s]), 3),
            "slowest end of a connection, s": round(max(lane.slowest_s for lane in lanes), 2),
            "listener grew at most, MB": round(most_mb - before_mb, 1),
            "stores answered": ", ".join(f"{status:04X} {count}x" for status, count in sorted(answers.items())),
            "connections ended": ", ".join(f"{how} {count}x" for how, count in ends.most_common()),
        },
        violations=tuple(violations),
    )


class Lane(threading.Thread):
    """Connections one after the other until so many changed PDUs were taken."""

    def __init__(self, port: int, number: int, wanted: int, slices: Slices) -> None:
        super().__init__(daemon=True)
        self.mutated, self.slowest_s = 0, 0.0
        self.told, self.cut = Told(), set[str]()
        self.answers, self.ends = Counter[int](), Counter[str]()
        self.violations: list[str] = []
        self._port, self._number, self._wanted, self._slices = port, number, wanted, slices

    def run(self) -> None:
        connection = 0
        while self.mutated < self._wanted:
            seed = f"{self._number} {connection}"
            try:
                self._converse(Random(seed))
            except TimeoutError:
                self.violations.append(f"connection {seed} did not end within {HANG_S:g} s")
            connection += 1

    def _converse(self, draw: Random) -> None:
        peer = Peer(self._port, associated=False, timeout_s=HANG_S)
        sent = bytearray()
        try:
            end = self._talk(peer, draw, sent)
        except ConnectionError:
            end = "reset"
        if end == "unanswered":
            end = self._wait_for_the_end(peer, draw)
        peer.close()
        self.ends[end] += 1
        self.told.sent |= {(uid, hashlib.sha256(data).hexdigest()) for uid, data in whole_stores(bytes(sent))}

    def _talk(self, peer: Peer, draw: Random, sent: bytearray) -> str:
        """Ask for an association and send messages, each with a changed PDU; returns how the connection ended."""
        request = _REQUEST
        if draw.random() < _SHARE_OF_REQUESTS:
            request, self.mutated = _changed_request(request, draw), self.mutated + 1
        peer.send(request)
        if not _is_readable(peer):
            return "unanswered"
        kind, _ = peer.read_pdu()
        if kind != _ACCEPTED:
            return _NAMES.get(kind, "other")
        for _ in range(draw.randint(1, _MOST_MESSAGES)):
            changed = self._changed_message(draw)
            sent += changed + _ECHO
            self.mutated += 1
            peer.send(changed + _ECHO)
            if end := self._read_until_echo(peer):
                return end
        return "unanswered"

    def _changed_message(self, draw: Random) -> bytes:
        uid, dataset = self._slices.next(self._number)
        message = Message(uid, dataset, self._slices.pixels_at)
        changed = draw.choice(_CHANGES)(message, draw)
        self.cut |= {hashlib.sha256(message.cut).hexdigest()} if message.cut else set()
        return changed

    def _read_until_echo(self, peer: Peer) -> str:
        """Take the answers; "" once the C-ECHO behind the changed message is answered, else how it ended."""
        while True:
            if not _is_readable(peer):
                return "unanswered"
            kind, body = peer.read_pdu()
            if kind != _P_DATA:
                return _NAMES.get(kind, "other")
            if self._is_of_echo(body):
                return ""

    def _wait_for_the_end(self, peer: Peer, draw: Random) -> str:
        """Say that no more comes, or nothing at all."""
        begun = time.monotonic()
        is_silent = draw.random() < _SHARE_OF_SILENCE
        if not is_silent:
            peer.socket.shutdown(socket.SHUT_WR)
        kind, body = peer.read_pdu()
        while kind:
            if kind == _P_DATA:
                self._is_of_echo(body)
            kind, body = peer.read_pdu()
        self.slowest_s = max(self.slowest_s, time.monotonic() - begun)
        return "left in silence" if is_silent else "half closed"

    def _is_of_echo(self, body: bytes) -> bool:
        """Whether it answers a C-ECHO; what answers a C-STORE is noted."""
        answer = elements_in(body[6:])
        if number_in(answer, 0x0100) == _STORE_RESPONSE:
            status = number_in(answer, 0x0900)
            self.answers[status] += 1
            if status == 0:
                self.told.acknowledged.add(answer[0x1000].decode("ascii").rstrip("\0"))
        return number_in(answer, 0x0100) == _ECHO_RESPONSE


_NAMES = {0: "closed", 3: "rejected", 6: "released", _ABORT: "aborted"}


def _is_readable(peer: Peer) -> bool:
    return bool(select.select([peer.socket], [], [], _PATIENCE_S)[0])


# ---- what is changed


class Message:
    """A C-STORE in PDUs: its command set, and its data set in two or three fragments."""

    def __init__(self, uid: str, dataset: bytes, pixels_at: int) -> None:
        self.command = store_command(CTImageStorage, uid)
        self.dataset, self.pixels_at = dataset, pixels_at
        self.cut = b""
        """A data set that was sent without its end."""

    def pdus(self) -> list[bytes]:
        return [pdv_command(1, self.command), *_fragments(self.dataset, 3)]


def _fragments(dataset: bytes, count: int) -> list[bytes]:
    size = -(-len(dataset) // count)
    parts = [dataset[k : k + size] for k in range(0, len(dataset), size)]
    return [pdu(_P_DATA, pdv(1, 0, part)) for part in parts[:-1]] + [pdu(_P_DATA, pdv(1, _LAST, parts[-1]))]


def _any_byte(message: Message, draw: Random) -> bytes:
    """Flip bits anywhere in one PDU."""
    pdus = message.pdus()
    chosen = draw.randrange(len(pdus))
    pdus[chosen] = _flipped(pdus[chosen], draw)
    return b"".join(pdus)


def _flipped(encoded: bytes, draw: Random, start: int = 0) -> bytes:
    changed = bytearray(encoded)
    for _ in range(draw.randint(1, 4)):
        changed[draw.randrange(start, len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _pdu_length(message: Message, draw: Random) -> bytes:
    pdus = message.pdus()
    chosen = draw.randrange(len(pdus))
    true = len(pdus[chosen]) - 6
    length = draw.choice((*_LENGTHS, true - 1, true + 1, true + draw.randrange(10_000)))
    pdus[chosen] = pdus[chosen][:2] + struct.pack(">I", length) + pdus[chosen][6:]
    return b"".join(pdus)


def _pdv_length(message: Message, draw: Random) -> bytes:
    pdus = message.pdus()
    chosen = draw.randrange(len(pdus))
    true = len(pdus[chosen]) - 10
    length = draw.choice((*_LENGTHS, true - 1, true + 1, draw.randrange(true)))
    pdus[chosen] = pdus[chosen][:6] + struct.pack(">I", length) + pdus[chosen][10:]
    return b"".join(pdus)


def _pdv_header(message: Message, draw: Random) -> bytes:
    """Another presentation context, or other bits of the message control header."""
    pdus = message.pdus()
    chosen = draw.randrange(len(pdus))
    changed = bytearray(pdus[chosen])
    changed[draw.choice((10, 11))] = draw.choice((0, 1, 2, 3, 4, 5, draw.randrange(256)))
    pdus[chosen] = bytes(changed)
    return b"".join(pdus)


def _command_bytes(message: Message, draw: Random) -> bytes:
    """Flip bits in the command set; its PDU is as it should be."""
    message.command = _flipped(message.command, draw)
    return b"".join(message.pdus())


def _command_values(message: Message, draw: Random) -> bytes:
    """Leave out, repeat, empty or replace an element of the command set."""
    elements = list(elements_in(message.command).items())
    chosen = draw.randrange(len(elements))
    number, value = elements[chosen]
    value = draw.choice((b"", draw.randbytes(len(value)), draw.randbytes(2), b"9" * 65, value + b"\0"))
    other = (draw.choice((number, 0x0002, 0x0100, 0x0110, 0x0800, 0x1000, draw.randrange(0x10000))), value)
    elements[chosen : chosen + 1] = draw.choice(([], [other], [elements[chosen], other], [other, elements[chosen]]))
    message.command = b"".join(struct.pack("<HHI", 0, each, len(value)) + value for each, value in elements)
    return b"".join(message.pdus())


def _data_set_bytes(message: Message, draw: Random) -> bytes:
    """Flip bits in the data set before its pixels; its PDUs are as they should be."""
    head, pixels = message.dataset[: message.pixels_at], message.dataset[message.pixels_at :]
    message.dataset = _flipped(head, draw) + pixels
    return b"".join(message.pdus())


def _cut_data_set(message: Message, draw: Random) -> bytes:
    """Leave out the end of the pixels, and say that the data set is whole."""
    message.dataset = message.cut = message.dataset[: draw.randrange(message.pixels_at, len(message.dataset))]
    return b"".join(message.pdus())


def _other_pdu(message: Message, draw: Random) -> bytes:
    """Put a PDU of any type at any place."""
    pdus = message.pdus()
    kind = draw.choice((1, 2, 3, _RELEASE, _RELEASE, 6, _ABORT, _ABORT, 0, 8, draw.randrange(256)))
    body = draw.choice((bytes(4), b"", draw.randbytes(draw.randrange(200)), _REQUEST[6:]))
    pdus.insert(draw.randrange(len(pdus) + 1), pdu(kind, body))
    return b"".join(pdus)


def _order(message: Message, draw: Random) -> bytes:
    """Leave out, repeat or swap PDUs."""
    pdus = message.pdus()
    chosen, other = draw.randrange(len(pdus)), draw.randrange(len(pdus))
    how = draw.randrange(3)
    if how == 0:
        del pdus[chosen]
    elif how == 1:
        pdus.insert(other, pdus[chosen])
    else:
        pdus[chosen], pdus[other] = pdus[other], pdus[chosen]
    return b"".join(pdus)


def _pieces(message: Message, draw: Random) -> bytes:
    """Fragments of any size, some of them empty, several in a PDU: what the standard allows and nobody does."""
    values = []
    for control, whole in ((_COMMAND, message.command), (0, message.dataset)):
        ends = sorted(draw.randrange(len(whole) + 1) for _ in range(draw.randint(1, 8)))
        parts = [whole[start:end] for start, end in zip([0, *ends], [*ends, len(whole)], strict=True)]
        values += [pdv(1, control, part) for part in parts[:-1]] + [pdv(1, control | _LAST, parts[-1])]
    together = draw.randint(1, len(values))
    return b"".join(pdu(_P_DATA, b"".join(values[k : k + together])) for k in range(0, len(values), together))


def _cut_pdu(message: Message, draw: Random) -> bytes:
    """Leave out the end of a PDU; the next one follows at once."""
    pdus = message.pdus()
    chosen = draw.randrange(len(pdus))
    pdus[chosen] = pdus[chosen][: draw.randrange(len(pdus[chosen]))]
    return b"".join(pdus)


def _junk(message: Message, draw: Random) -> bytes:
    """Random bytes at any place."""
    whole = b"".join(message.pdus())
    place = draw.randrange(len(whole) + 1)
    return whole[:place] + draw.randbytes(draw.randint(1, 100)) + whole[place:]


_CHANGES: tuple[Callable[[Message, Random], bytes], ...] = (
    _any_byte,
    _pdu_length,
    _pdv_length,
    _pdv_header,
    _command_bytes,
    *(_command_values,) * 3,
    *(_data_set_bytes,) * 4,
    *(_cut_data_set,) * 2,
    _other_pdu,
    _order,
    *(_pieces,) * 2,
    _cut_pdu,
    _junk,
)
"""Those after which the listener may go on come more often, or there would be a connection for every change."""


def _changed_request(request: bytes, draw: Random) -> bytes:
    """An association request with other bits, another length, without its end, or with an item twice."""
    how = draw.randrange(5)
    if how == 0:
        return _flipped(request, draw)
    if how == 1:
        return _flipped(request, draw, start=74)  # in the items
    if how == 2:
        return request[:2] + struct.pack(">I", draw.choice((*_LENGTHS, draw.randrange(70_000)))) + request[6:]
    if how == 3:
        return request[: draw.randrange(len(request))]
    start = draw.randrange(74, len(request))
    body = request[6:] + request[start : draw.randrange(start, len(request)) + 1] * draw.randint(1, 200)
    return pdu(1, body)


# ---- what was sent, read as the standard says


def whole_stores(sent: bytes) -> Iterator[tuple[str, bytes]]:
    """SOP Instance UID and data set of each C-STORE in what was sent after the association request (PS3.8 9.3.5).

    It ends where the bytes are no P-DATA-TF PDU any more. It may find more than a listener should accept.
    """
    command, uid, dataset = b"", "", b""
    for control, value in _values(sent):
        if control & _COMMAND:
            command += value
            if control & _LAST:
                elements, command = elements_in(command), b""
                uid = (elements.get(0x1000) or elements.get(0x1001, b"")).decode("ascii", "replace").strip(" \0")
        else:
            dataset += value
            if control & _LAST:
                yield uid, dataset
                dataset = b""


def _values(sent: bytes) -> Iterator[tuple[int, bytes]]:
    """Message control header and value of each PDV."""
    start = 0
    while start + 6 <= len(sent):
        kind, length = struct.unpack_from(">BxI", sent, start)
        body = sent[start + 6 : start + 6 + length]
        if kind != _P_DATA or len(body) < length:
            return
        place = 0
        while place + 6 <= length:
            size, _, control = struct.unpack_from(">IBB", body, place)
            if not 2 <= size <= length - place - 4:
                return
            yield control, body[place + 6 : place + 4 + size]
            place += 4 + size
        start += 6 + length


def _malformed(node: Node, cut: set[str]) -> list[str]:
    """The current instances that are no whole instance: sent without their end, or not what pydicom reads."""
    return [
        row.spool_name
        for row, path in current_instances(node)
        if row.dataset_sha256 in cut or _uids(path) != (row.sop_instance_uid, row.series_instance_uid)
    ]


def _uids(path: Path) -> tuple[str, str]:
    """As bytes: pydicom converts no value of an unknown VR, though the structure of the data set is sound."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = dcmread(path)
    instance, series = (dataset.get_item(tag) for tag in (0x00080018, 0x0020000E))
    return _text(instance.value), _text(series.value)


def _text(value: bytes) -> str:
    return value.decode("ascii", "replace").strip(" \0")


CASES = (
    FaultCase(
        name="mutated-pdus",
        fault="100,000 changed PDUs from seeds (association requests, lengths, command sets, data sets, fragments, "
        "releases and aborts at any place, junk) over real sockets, several on one connection.",
        holds="The listener does not crash, every connection ends within its limits, a C-ECHO is answered all the "
        "time, its memory grows by 50 MB at most, nothing acknowledged is lost, and nothing malformed is current.",
        answers=("F5", "F6", "F9", "C2", "C3"),
        run=mutated,
        rounds=MUTATED,
        rounds_in_tests=600,
    ),
)
