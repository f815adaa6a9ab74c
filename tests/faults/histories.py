"""Histories on a simulated disk, clock and network (docs/developers/simulation.md), in numbers."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

from tests.faults.case import FaultCase, Outcome
from tests.simulation.__main__ import records
from tests.simulation.auditor import Told

if TYPE_CHECKING:
    from pathlib import Path

FIRST_SEED = 1_000_000


def simulated(_: Path, rounds: int) -> Outcome:
    """Run ``rounds`` histories, each from a seed of its own."""
    ends: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    violations = []
    for record in records(range(FIRST_SEED, FIRST_SEED + rounds), os.cpu_count() or 1):
        tried["histories"] += 1
        tried["acknowledged instances"] += record.told[Told.STORED]
        tried["result objects at destinations"] += record.delivered
        ends.update(record.ends)
        if record.violation:
            violations.append(f"seed {record.seed}: {record.violation}")
    return Outcome(tried, {"interruptions": sum(ends.values()), "violations": len(violations)}, tuple(violations))


CASES = (
    FaultCase(
        name="simulated-histories",
        fault="A crash, a power cut, an error of the disk or of the ledger, or a long stop before and after every "
        "durable step, while senders send, repeat and change images and archives refuse, lose answers and are away.",
        holds="Nothing acknowledged is lost, nothing refused is used, every result arrives once.",
        answers=("R1", "R2", "R3", "R4", "J1", "J3", "D1", "O5"),
        run=simulated,
        rounds=10_000,
        rounds_in_tests=20,
    ),
)
