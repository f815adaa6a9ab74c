"""``python -m tests.simulation --histories 10000``: simulate, and print a record of it as JSON."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from tests.simulation.history import configuration, run_history

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.simulation.history import Record

_SEEDS_AT_ONCE = 50
_MOST_SHOWN = 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--histories", type=int, default=1, help="how many, from --seed on")
    parser.add_argument("--seed", type=int, default=0, help="of the first; each history has one more")
    parser.add_argument("--processes", type=int, default=1, help="that share the work")
    asked = parser.parse_args()
    started = time.monotonic()
    total: Counter[str] = Counter()
    counted: dict[str, Counter[str]] = {"told": Counter(), "actions": Counter(), "ends": Counter(), "points": Counter()}
    violations: dict[int, str] = {}
    for record in records(range(asked.seed, asked.seed + asked.histories), asked.processes):
        total["histories"] += 1
        total["result objects at destinations"] += record.delivered
        counted["told"].update({told.name: count for told, count in record.told.items()})
        counted["actions"].update(record.actions)
        counted["ends"].update(record.ends)
        counted["points"].update(record.points)
        if record.violation:
            violations[record.seed] = record.violation
    shown = {
        "seeds": [asked.seed, asked.seed + asked.histories - 1],
        **total,
        **{name: dict(sorted(counts.items())) for name, counts in counted.items()},
        "crashes": sum(count for end, count in counted["ends"].items() if not end.startswith("fault")),
        "violations": len(violations),
        "violations_by_seed": dict(list(violations.items())[:_MOST_SHOWN]),
        "seconds": round(time.monotonic() - started, 1),
    }
    sys.stdout.write(f"{json.dumps(shown, indent=1)}\n")
    return 1 if violations else 0


def records(seeds: Sequence[int], processes: int) -> Iterator[Record]:
    parts = [seeds[first : first + _SEEDS_AT_ONCE] for first in range(0, len(seeds), _SEEDS_AT_ONCE)]
    if processes == 1:
        for part in parts:
            yield from _run(part)
        return
    with ProcessPoolExecutor(processes) as pool:
        for records in pool.map(_run, parts):
            yield from records


def _run(seeds: Sequence[int]) -> list[Record]:
    with configuration() as common:
        return [run_history(seed, common) for seed in seeds]


if __name__ == "__main__":
    sys.exit(main())
