"""SIGKILL of the listener, and of its supervisor, while senders send."""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from typing import TYPE_CHECKING

from tests.faults.case import FaultCase, Outcome
from tests.faults.listening import (
    LIMIT_S,
    Node,
    Sender,
    Slices,
    Told,
    adopt_now,
    left,
    partial_files,
    recorded_associations,
)

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = 200
ACCEPTING_LIMIT_S = 5.0
_MOST_BEFORE_A_KILL = 130
"""Acknowledged instances of a round."""
_CHECKED_EACH = 10
_MANY = 4


def killed(folder: Path, rounds: int) -> Outcome:
    """Most rounds kill ``dicom-node listen``; the last tenth, in turn, the listener of ``serve`` and ``serve``."""
    node, slices, draw, told = Node(folder / "node"), Slices(), random.Random(1), Told()
    supervised = max(2, rounds // 10)
    waits: list[float] = []
    violations: list[str] = []
    try:
        node.start("listen")
        for number in range(rounds):
            if number == rounds - supervised:
                node.stop()
                node.start("serve")
            is_supervised = number >= rounds - supervised
            has_many = (number // 2 if is_supervised else number) % 2
            senders = [Sender(node.port, slices, number * _MANY + k) for k in range(_MANY if has_many else 1)]
            _send(senders, draw)
            waits.append(_kill(node, is_supervised=is_supervised, kills_child=bool(number % 2)))
            for sender in senders:
                sender.join(LIMIT_S)
                if sender.is_alive():
                    violations.append(f"round {number}: a sender waits for an answer after the listener was killed")
            told.add(sender.told for sender in senders)
            if number % _CHECKED_EACH == _CHECKED_EACH - 1:
                violations += left(node, told).violations()
        if code := node.stop():
            violations.append(f"the node ended with exit code {code} when it was stopped")
    finally:
        node.kill_all()
    partial, adoption = partial_files(node), adopt_now(node)
    finally_left = left(node, told, unclaimed_age_s=0)
    violations += finally_left.violations()
    if still_open := sum(each.closed_at is None for each in recorded_associations(node)):
        violations.append(f"{still_open} associations have no end in the ledger")
    if rounds >= ROUNDS and max(waits) > ACCEPTING_LIMIT_S:
        violations.append(f"accepting again after {max(waits):.1f} s")
    return Outcome(
        tried={"kills": rounds, "of the supervisor": supervised // 2, "acknowledged": len(told.acknowledged)},
        seen={
            "acknowledged and lost": len(finally_left.lost),
            "with other bytes": len(finally_left.other_bytes),
            "half files visible": len(finally_left.half),
            "ledger check violations": len(finally_left.unsound),
            "accepting again, s, median": round(statistics.median(waits), 2),
            "accepting again, s, most": round(max(waits), 2),
            "whole files without a row, recorded afterwards": adoption.adopted,
            "temporary files left": partial,
        },
        violations=tuple(violations),
    )


def _send(senders: list[Sender], draw: random.Random) -> None:
    """Until a drawn number of instances is acknowledged, and a moment longer."""
    wanted = draw.randrange(_MOST_BEFORE_A_KILL)
    for sender in senders:
        sender.start()
    while sum(len(each.told.acknowledged) for each in senders) < wanted and any(each.is_alive() for each in senders):
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.01))


def _kill(node: Node, *, is_supervised: bool, kills_child: bool) -> float:
    """Kill, and start again what nobody else starts; returns the seconds until it accepts associations again."""
    if is_supervised and kills_child:
        begun = time.monotonic()
        os.kill(node.listener(), signal.SIGKILL)
        node.wait_until_accepting()
        return time.monotonic() - begun
    node.kill()
    return node.start("serve" if is_supervised else "listen")


CASES = (
    FaultCase(
        name="listener-killed",
        fault="SIGKILL of the listener at random moments while 1 and 4 senders send, and of the listener and the "
        "supervisor of `dicom-node serve`.",
        holds="No acknowledged instance is lost or has other bytes, no half file is visible, the check of the ledger "
        "finds nothing; accepting again within 5 s after the restart.",
        answers=("R1",),
        run=killed,
        rounds=ROUNDS,
        rounds_in_tests=4,
    ),
)
