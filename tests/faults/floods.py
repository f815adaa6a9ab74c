"""Connections that say nothing, senders that dribble, and requests of strangers, all at once."""

from __future__ import annotations

import multiprocessing
import resource
import selectors
import socket
import struct
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from pydicom.uid import CTImageStorage

from tests.faults.case import FaultCase, Outcome
from tests.faults.listening import LIMIT_S, SENDER, Echoes, Node, Sender, Slices, left, percentile
from tests.integration.receive.peer import Peer, association_request, pdu, pdv_command, pdv_data, store_command

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.process import BaseProcess
    from multiprocessing.sharedctypes import Synchronized
    from pathlib import Path

CONNECTIONS = 1000
ECHO_LIMIT_S = 1.0
LEAST_KEPT = 0.5
MOST_GROWTH_MB = 50.0
_SECONDS, _SECONDS_IN_TESTS = 30.0, 3.0
_SLOW = "SLOW"
_SLOW_REQUESTS = _SLOW_STORES = 8
_LANES = 4
"""Requests of strangers at a time."""
_ITEMS = 9_000
"""Transfer syntaxes of a stranger's request: 63 kB."""
_PER_ADDRESS = 8
_REOPENED_PER_S = 100
_ECHO_PAUSE_S = 0.05
_LOOK_AGAIN_S = 0.1


def flooded(folder: Path, rounds: int) -> Outcome:
    """Stores and C-ECHO of a listed peer, undisturbed and then under ``rounds`` silent connections and the rest."""
    is_whole = rounds >= CONNECTIONS
    seconds = _SECONDS if is_whole else _SECONDS_IN_TESTS
    node = Node(folder / "node", sources=({"ae_title": SENDER, "addresses": ["127.0.0.1"]}, {"ae_title": _SLOW}))
    strangers = multiprocessing.get_context("spawn").Value("L", 0)
    attackers: list[BaseProcess] = []
    try:
        node.start()
        sender, echoes = Sender(node.port, Slices(rows=256), 1), Echoes(node.port, _ECHO_PAUSE_S)
        sender.start()
        echoes.start()
        undisturbed = _stored_per_s(sender, seconds / 2)
        before_mb = node.memory_mb()
        attackers = _attack(node.port, rounds, strangers)
        first_echo, first_stranger = len(echoes.seconds), strangers.value
        most_mb = before_mb

        def enough() -> bool:
            nonlocal most_mb
            most_mb = max(most_mb, node.memory_mb())
            return len(echoes.seconds) > first_echo and strangers.value > first_stranger

        flooded_per_s = _stored_per_s(sender, seconds, enough)
        under_attack = echoes.seconds[first_echo:]
        lost_its_place = not sender.is_alive()
        requests, growth_mb = strangers.value - first_stranger, most_mb - before_mb
        echoes.stop()
        sender.stop()
        _end(attackers)
        crashes = node.crashes()
        node.stop()
    finally:
        _end(attackers)
        node.kill_all()
    remaining = left(node, sender.told)
    violations = [*echoes.failures, *remaining.violations(), *crashes]
    if lost_its_place:
        violations.append("a listed sender lost its association")
    kept = flooded_per_s / undisturbed
    echo_s = percentile(under_attack, 99) if len(under_attack) > 1 else LIMIT_S
    if is_whole:
        violations += [
            sentence
            for sentence, is_violated in (
                (f"C-ECHO: p99 {echo_s:.2f} s", echo_s > ECHO_LIMIT_S),
                (f"stores: {kept:.0%} of undisturbed", kept < LEAST_KEPT),
                (f"memory grew by {growth_mb:.1f} MB", growth_mb > MOST_GROWTH_MB),
            )
            if is_violated
        ]
    return Outcome(
        tried={
            "silent connections": rounds,
            "slow senders": _SLOW_REQUESTS + _SLOW_STORES,
            "requests of strangers": requests,
            "C-ECHO under attack": len(under_attack),
            "acknowledged": len(sender.told.acknowledged),
        },
        seen={
            "C-ECHO p99, s": round(echo_s, 3),
            "C-ECHO failed": len(echoes.failures),
            "stores/s undisturbed": round(undisturbed, 1),
            "stores/s under attack": round(flooded_per_s, 1),
            "kept": round(kept, 2),
            "listener before, MB": round(before_mb, 1),
            "listener grew at most, MB": round(growth_mb, 1),
            "acknowledged and lost": len(remaining.lost),
        },
        violations=tuple(violations),
    )


# ---- the listed peer


def _stored_per_s(sender: Sender, seconds: float, enough: Callable[[], bool] = lambda: True) -> float:
    """Measured for ``seconds``, or until something is acknowledged and the rest is ``enough``, if that is longer."""
    begun, before = time.monotonic(), len(sender.told.acknowledged)
    while True:
        time.sleep(_LOOK_AGAIN_S)
        is_enough = enough()
        passed, stored = time.monotonic() - begun, len(sender.told.acknowledged) - before
        if (passed >= seconds and stored and is_enough) or passed > LIMIT_S or not sender.is_alive():
            return stored / passed


# ---- the attackers, each in a process of its own


def _attack(port: int, connections: int, strangers: Synchronized[int]) -> list[BaseProcess]:
    """Start them; returns once all are at work."""
    context = multiprocessing.get_context("spawn")
    ready = [context.Event() for _ in range(3)]
    attackers = [
        context.Process(target=_stay_silent, args=(port, connections, ready[0]), daemon=True),
        context.Process(target=_dribble, args=(port, ready[1]), daemon=True),
        context.Process(target=_ask_as_strangers, args=(port, strangers, ready[2]), daemon=True),
    ]
    for attacker in attackers:
        attacker.start()
    for event in ready:
        assert event.wait(LIMIT_S), "an attacker did not start"
    return attackers


def _end(attackers: list[BaseProcess]) -> None:
    for attacker in attackers:
        attacker.kill()
        attacker.join(LIMIT_S)


def _stay_silent(port: int, connections: int, ready: threading.Event) -> None:
    """Keep so many connections, from addresses of their own; those that the listener closes are opened again."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    poll = selectors.DefaultSelector()

    def connect(number: int) -> None:
        address = f"127.0.1.{1 + number // _PER_ADDRESS % 250}"
        with suppress(OSError):
            connection = socket.create_connection(("127.0.0.1", port), 10, (address, 0))
            poll.register(connection, selectors.EVENT_READ, number)

    for number in range(connections):
        connect(number)
    ready.set()
    while True:
        for key, _ in poll.select():
            poll.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]
            time.sleep(1 / _REOPENED_PER_S)
            connect(key.data)


def _dribble(port: int, ready: threading.Event) -> None:
    """Send association requests, and the data sets of a listed peer, by one byte a second."""
    lanes: list[Peer | None] = [None] * (_SLOW_REQUESTS + _SLOW_STORES)
    sent = [0] * len(lanes)
    request = association_request(_SLOW)
    while True:
        for number in range(len(lanes)):
            is_request = number < _SLOW_REQUESTS
            try:
                if (peer := lanes[number]) is None:
                    address = f"127.0.2.{number + 1}"
                    peer = lanes[number] = Peer(port, associated=not is_request, calling=_SLOW, address=address)
                    sent[number] = 0
                    if not is_request:
                        peer.send(pdv_command(1, store_command(CTImageStorage, f"1.2.5.{number + 1}")))
                byte = request[sent[number] : sent[number] + 1]
                peer.send(byte if is_request else pdv_data(1, b"\0", last=False))
                sent[number] = min(sent[number] + 1, len(request) - 2)  # never the last byte
            except (OSError, AssertionError):
                lanes[number] = None
        ready.set()
        time.sleep(1)


def _ask_as_strangers(port: int, answered: Synchronized[int], ready: threading.Event) -> None:
    """Large association requests with an AE title of no source, one after the other in each lane."""
    body = association_request("STRANGER")[6:]
    syntaxes = b"\x03\0\0\0" + struct.pack(">BxH", 0x30, 3) + b"1.2" + (struct.pack(">BxH", 0x40, 3) + b"1.2") * _ITEMS
    request = pdu(1, body + struct.pack(">BxH", 0x20, len(syntaxes)) + syntaxes)

    def lane(address: str) -> None:
        while True:
            with (
                suppress(OSError),
                socket.create_connection(("127.0.0.1", port), 10, (address, 0)) as connection,
            ):
                connection.sendall(request)
                while connection.recv(1000):
                    pass
                with answered.get_lock():
                    answered.value += 1
                ready.set()

    lanes = [threading.Thread(target=lane, args=(f"127.0.3.{k + 1}",), daemon=True) for k in range(_LANES)]
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join()


CASES = (
    FaultCase(
        name="silent-slow-and-unlisted",
        fault="1,000 silent connections from 125 addresses that are opened again when the listener closes them, 16 "
        "senders of one byte a second (of an association request, and of a data set), and requests of 63 kB with an "
        "AE title of no source, four at a time without a pause, all at once.",
        holds="A listed peer's C-ECHO is answered within 1 s (p99), it keeps at least half of the stores per second "
        "that it had undisturbed in the same run, the listener grows by 50 MB at most, and nothing is lost.",
        answers=("F1", "F2", "F8", "R11"),
        run=flooded,
        rounds=CONNECTIONS,
        rounds_in_tests=40,
    ),
)
