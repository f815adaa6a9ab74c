"""Ledgers that are locked, moved away, or whose server is stopped."""

from __future__ import annotations

import shutil
import sqlite3
from typing import TYPE_CHECKING

from tests.faults.archive import Archive
from tests.faults.case import CannotBeDone, FaultCase, Outcome
from tests.faults.disks import Course, Fault, outcome, under_fault
from tests.faults.node import RunningNode, make_series
from tests.support.postgresql import PostgresServer, server_programs

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

_LONG_S, _SHORT_S = 30.0, 4.0
_DELIVERED_LIMIT_S = 180.0


def ledger_locked_and_away(folder: Path, rounds: int) -> Outcome:
    """SQLite moved away and locked by another process, and PostgreSQL stopped: one after the other."""
    faults = (_moved, _locked, _stopped)
    lasts_s = _LONG_S if rounds >= len(faults) else _SHORT_S
    outcomes = [faults[number % len(faults)](folder / str(number), lasts_s) for number in range(rounds)]
    tried = {"faults": rounds, "images acknowledged": sum(each.tried["images acknowledged"] for each in outcomes)}
    refused = sum(each.tried["images refused"] for each in outcomes)
    again_s = max(float(each.seen["accepted again after s"]) for each in outcomes)
    ends = sum(int(each.seen["ends of a process"]) for each in outcomes)
    violations = tuple(violation for each in outcomes for violation in each.violations)
    seen = {"images refused": refused, "accepted again after s": again_s, "ends of a process": ends}
    return Outcome(tried, seen, violations)


def _course(folder: Path, fault: Any, lasts_s: float, ledger_url: str | None = None) -> Outcome:
    """A node with a ledger, under one fault of it; ``fault`` is made from the node."""
    archive, course = Archive(), Course()
    settings = {} if ledger_url is None else {"ledger_url": ledger_url}
    with archive.serving() as port, RunningNode(folder / "node", {"archive": port}, settings) as node:
        node.start("serve")
        node.wait_for_listener()
        course.note(node.send(make_series(folder / "first")))
        node.wait_for_jobs(1, limit_s=_DELIVERED_LIMIT_S)
        under_fault(node, folder, course, fault(node, lasts_s))
        ends = node.ends_of("listen") + node.ends_of("work")
        return outcome(node, archive, course, {}, {"ends of a process": ends})


def _locked(folder: Path, lasts_s: float) -> Outcome:
    def fault(node: RunningNode, lasts_s: float) -> Fault:
        lock = sqlite3.connect(node.settings.ledger_file, timeout=60, isolation_level=None)
        return Fault("locked", lambda: lock.execute("BEGIN EXCLUSIVE"), lock.close, lasts_s)

    return _course(folder, fault, lasts_s)


def _moved(folder: Path, lasts_s: float) -> Outcome:
    def fault(node: RunningNode, lasts_s: float) -> Fault:
        """What has the files open goes on with them wherever they are; whoever opens them finds none."""
        ledger, elsewhere = node.settings.ledger_file, folder / "elsewhere"
        elsewhere.mkdir()

        def move() -> None:
            for file in ledger.parent.glob(f"{ledger.name}*"):
                file.rename(elsewhere / file.name)

        def put_back() -> None:
            for file in elsewhere.iterdir():
                shutil.move(file, ledger.parent / file.name)

        return Fault("moved away", move, put_back, lasts_s, refuses=False)

    return _course(folder, fault, lasts_s)


def _stopped(folder: Path, lasts_s: float) -> Outcome:
    if server_programs() is None:
        raise CannotBeDone("PostgreSQL is not installed (apt: postgresql)")
    with PostgresServer() as server:

        def fault(_: RunningNode, lasts_s: float) -> Fault:
            return Fault("server stopped", server.stop, server.start, lasts_s)

        return _course(folder, fault, lasts_s, server.url)


CASES = (
    FaultCase(
        name="ledger-locked-and-away",
        fault="The files of SQLite are moved away for 30 s, it is locked by another process for 30 s, PostgreSQL is "
        "stopped for 30 s.",
        holds="Senders wait or get 0xA700, nothing acknowledged is lost, images are accepted again within 10 s, and "
        "all goes on by itself.",
        answers=("D5",),
        run=ledger_locked_and_away,
        rounds=3,
        rounds_in_tests=1,
    ),
)
