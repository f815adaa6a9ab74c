"""Associations that carry very many instances, and associations that end in the middle of one."""

from __future__ import annotations

import hashlib
import random
import socket
import struct
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from pydicom.uid import CTImageStorage

from tests.faults.case import FaultCase, Outcome
from tests.faults.listening import (
    LIMIT_S,
    Node,
    Slices,
    Told,
    adopt_now,
    in_pdus,
    left,
    partial_files,
    recorded_associations,
    store,
)
from tests.integration.receive.peer import Peer, number_in, pdu, pdv_command, store_command

if TYPE_CHECKING:
    from pathlib import Path

INSTANCES = 20_000
GROWTH_LIMIT_MB = 10.0
"""For each 10,000 instances."""
_COUNTED = 10_000
_WARM = 1_000
_AT_ONCE = 4
_PER_SERIES = 500
_MESSAGE_IDS = (1, 7, 7, 65535)
_PRIORITIES = (0, 1, 2)

ABORT = 7
WAYS = ("abort", "reset", "close", "silence")
FRACTIONS = (0.1, 0.5, 0.99)
_SILENCE_S = 3.0
_MOST_BEFORE = 5
_SLOT_LIMIT_S = 60.0
_LOOK_AGAIN_S = 0.02


# ---- many instances


def many(folder: Path, rounds: int) -> Outcome:
    """Store ``rounds`` slices on one association, four requests ahead of the answers, with repeated message IDs."""
    node, slices, told = Node(folder / "node"), Slices(rows=16), Told()
    warm = min(_WARM, rounds // 4)
    waiting: deque[tuple[str, int]] = deque()
    violations: list[str] = []

    def take_answer(peer: Peer) -> None:
        uid, message_id = waiting.popleft()
        answer = peer.response()
        seen = (number_in(answer, 0x0900), number_in(answer, 0x0120), answer[0x1000].rstrip(b"\0").decode())
        if seen != (0, message_id, uid):
            violations.append(f"answered {seen}, expected {(0, message_id, uid)}")
        else:
            told.acknowledged.add(uid)

    try:
        node.start()
        peer, before_mb = Peer(node.port, timeout_s=LIMIT_S), 0.0
        for number in range(rounds):
            if number == warm:
                before_mb = node.memory_mb()
            uid, dataset = slices.next(number // _PER_SERIES)
            told.sent.add((uid, hashlib.sha256(dataset).hexdigest()))
            message_id, priority = _MESSAGE_IDS[number % 4], _PRIORITIES[number % 3]
            command = store_command(CTImageStorage, uid, message_id=message_id, priority=priority)
            peer.send(pdv_command(1, command) + in_pdus(dataset))
            waiting.append((uid, message_id))
            if len(waiting) == _AT_ONCE:
                take_answer(peer)
        while waiting:
            take_answer(peer)
        after_mb = node.memory_mb()
        peer.close()
        node.stop()
    finally:
        node.kill_all()
    remaining = left(node, told)
    violations += [*remaining.violations(), *node.crashes()]
    if after_mb - before_mb > GROWTH_LIMIT_MB * max(1.0, (rounds - warm) / _COUNTED):
        violations.append(f"the listener grew by {after_mb - before_mb:.1f} MB over {rounds - warm} instances")
    return Outcome(
        tried={"instances on one association": rounds, "acknowledged": len(told.acknowledged)},
        seen={
            "stored": remaining.rows,
            "listener before, MB": round(before_mb, 1),
            "listener after, MB": round(after_mb, 1),
            "grown for each 10,000, MB": round((after_mb - before_mb) * _COUNTED / (rounds - warm), 2),
        },
        violations=tuple(violations),
    )


# ---- associations that end


def cut_off(folder: Path, rounds: int) -> Outcome:
    """End associations in each way at each point of the pixels, after some instances that were acknowledged.

    The listener takes as many associations as are ended at a time: that the next ones are accepted shows that the
    places are free again.
    """
    node = Node(
        folder / "node",
        maximum_associations=len(FRACTIONS),
        network_timeout_s=_SILENCE_S,
        dimse_timeout_s=_SILENCE_S,
    )
    slices, told, draw = Slices(rows=256), Told(), random.Random(1)
    waits = dict.fromkeys(WAYS, 0.0)
    violations: list[str] = []
    ended = 0
    try:
        node.start()
        peers = _associations(node)
        for _ in range(rounds):
            for way in WAYS:
                for peer, fraction in zip(peers, FRACTIONS, strict=True):
                    _send_a_part(peer, fraction, slices, told, draw)
                for peer in peers:
                    _end(peer, way)
                begun, ended = time.monotonic(), ended + len(peers)
                silent, peers = peers, _associations(node)
                waits[way] = max(waits[way], time.monotonic() - begun)
                for peer in silent:
                    peer.close()
                now = left(node, told)
                violations += now.violations()
                if now.rows != len(told.acknowledged) or partial_files(node):
                    violations.append(
                        f"after {way}: {now.rows} rows for {len(told.acknowledged)} acknowledged instances, "
                        f"{partial_files(node)} temporary files"
                    )
        node.stop()
    finally:
        node.kill_all()
    adoption = adopt_now(node)
    if adoption.adopted or adoption.removed:
        violations.append(f"the sweep found files without a row: {adoption}")
    if unclear := sum(each.closed_at is None or not each.aborted for each in recorded_associations(node)):
        violations.append(f"{unclear} associations are not recorded as aborted")
    return Outcome(
        tried={"associations ended": ended, "acknowledged before": len(told.acknowledged)},
        seen={
            "acknowledged and lost": len(left(node, told).lost),
            "temporary files left": partial_files(node),
            **{f"places free again after {way}, s, most": round(most, 2) for way, most in waits.items()},
        },
        violations=(*violations, *node.crashes()),
    )


def _associations(node: Node) -> list[Peer]:
    """As many as the listener takes, once it takes them."""
    ends, peers = time.monotonic() + _SLOT_LIMIT_S, []
    while len(peers) < len(FRACTIONS):
        try:
            peers.append(Peer(node.port))
        except AssertionError:
            assert time.monotonic() < ends, f"no place is free after {_SLOT_LIMIT_S:g} s"
            time.sleep(_LOOK_AGAIN_S)
    return peers


def _send_a_part(peer: Peer, fraction: float, slices: Slices, told: Told, draw: random.Random) -> None:
    """Whole instances that are acknowledged, and the beginning of another."""
    with suppress(OSError, AssertionError):  # a machine that is too slow for the timeouts: it ended before
        for _ in range(draw.randint(0, _MOST_BEFORE)):
            uid, dataset = slices.next(1)
            told.sent.add((uid, hashlib.sha256(dataset).hexdigest()))
            if store(peer, uid, dataset) == 0:
                told.acknowledged.add(uid)
        uid, dataset = slices.next(1)
        end = slices.pixels_at + int(fraction * (len(dataset) - slices.pixels_at))
        peer.send(pdv_command(1, store_command(CTImageStorage, uid)) + in_pdus(dataset[:end], whole=False))


def _end(peer: Peer, way: str) -> None:
    with suppress(OSError):
        if way == "abort":
            peer.send(pdu(ABORT, bytes(4)))
        if way == "reset":
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if way != "silence":
            peer.close()


CASES = (
    FaultCase(
        name="many-instances-one-association",
        fault="20,000 small instances on one association, four requests ahead of the answers, with repeated message "
        "IDs and every priority.",
        holds="Each request gets its own answer, all instances are stored, and the listener grows by less than 10 MB "
        "for each 10,000.",
        answers=("R7",),
        run=many,
        rounds=INSTANCES,
        rounds_in_tests=200,
    ),
    FaultCase(
        name="sender-cut-off",
        fault="A-ABORT, TCP reset, close without a word, and silence after 10, 50 and 99 % of the pixels of an "
        "instance, after up to five instances that were acknowledged.",
        holds="The acknowledged instances are kept, nothing of the other is left as a row or a file, and its place is "
        "free again (after silence: once the timeout of 3 s has passed).",
        answers=("R3", "R4"),
        run=cut_off,
        rounds=25,
    ),
)
