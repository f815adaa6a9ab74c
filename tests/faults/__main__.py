"""``python -m tests.faults``: bring about every fault in its long form, and record what was seen.

Everything stays on loopback and in a temporary folder. The record (record.json) is committed. Exit code 1 if anything
that must hold did not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults import CASES
from tests.faults.case import CannotBeDone

if TYPE_CHECKING:
    from tests.faults.case import FaultCase

RECORD = Path(__file__).with_name("record.json")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="names; all if none is given")
    parser.add_argument("--rounds", type=int, help="instead of each case's own number; such a run is not recorded")
    parser.add_argument("--list", action="store_true", help="show the cases")
    asked = parser.parse_args()
    if unknown := set(asked.cases) - {case.name for case in CASES}:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; --list shows all")
    chosen = [case for case in CASES if not asked.cases or case.name in asked.cases]
    if asked.list:
        for case in chosen:
            sys.stdout.write(f"{case.name}: {case.fault}\n")
        return 0
    failed = False
    for number, case in enumerate(chosen, 1):
        sys.stdout.write(f"[{number}/{len(chosen)}] {case.name}: {case.fault}\n")
        try:
            entry = run(case, asked.rounds or case.rounds)
        except CannotBeDone as why:
            sys.stdout.write(f"not done: {why}\n")
            continue
        failed = failed or bool(entry["violations"])
        sys.stdout.write(f"{json.dumps(entry, indent=1)}\n")
        sys.stdout.flush()
        if asked.rounds is None:
            record(case, entry)
    return 1 if failed else 0


def run(case: FaultCase, rounds: int) -> dict[str, object]:
    """The outcome, with what ran it."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        outcome = case.run(Path(folder), rounds)
    return {
        "tried": dict(outcome.tried),
        "seen": dict(outcome.seen),
        "violations": list(outcome.violations),
        "rounds": rounds,
        "seconds": round(time.monotonic() - started, 1),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _git("rev-parse", "--short", "HEAD")
        + ("+" if _git("status", "--porcelain", "--", "dicom_node") else ""),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}, pydicom {version('pydicom')}",
    }


def record(case: FaultCase, entry: dict[str, object]) -> None:
    """Replace the case's entry in the record."""
    entries = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    entries[case.name] = entry
    RECORD.write_text(json.dumps(dict(sorted(entries.items())), indent=1) + "\n")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
