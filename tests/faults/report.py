"""``python -m tests.faults.report`` makes docs/reliability.md of record.json and faults.toml."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.faults import CASES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.faults.case import FaultCase

HERE = Path(__file__).resolve().parent
LIST = HERE / "faults.toml"
RECORD = HERE / "record.json"
PAGE = HERE.parents[1] / "docs" / "reliability.md"

GROUPS = {
    "R": "Receiving",
    "S": "Series",
    "J": "Jobs",
    "P": "Sending to the archive",
    "D": "Disk, database, clock",
    "F": "Floods and abuse of the protocol",
    "A": "Who gets in",
    "C": "Hostile and broken content",
    "I": "Models and supply chain",
    "M": "Marking of results",
    "K": "Privacy and audit",
    "W": "Web interface",
    "O": "Operation",
}

INTRODUCTION = """\
# Reliability: what is not lost, and what shows it

<!-- Made by python -m tests.faults.report of record.json and faults.toml in tests/faults; a test compares. -->

> **Research software. Not a medical device, not cleared for clinical use.**

**What the node guarantees.** When it answers a C-STORE with 0x0000, the image is on the disk as it was sent: its file
and the folder that names it are synced, and its row in the ledger is committed (SQLite with `synchronous=FULL`, or
PostgreSQL). It becomes part of a series that is closed, and the series gets a result, or a reason why not, which
`dicom-node jobs` shows. Every result waits until each of its destinations has taken it (0x0000, a warning, or "I have
it"), and is offered under the same UIDs as often as that takes, for seven days of elapsed time unless configured
otherwise. After that, or after three refusals, it is shown as FAILED, and kept until a person has looked. Killed
processes, power cuts, full disks, locked databases and archives that are away change nothing of this.

**What it does not guarantee.**

- Nothing is promised of an image that was not answered with 0x0000: the sender has it, and must send it again.
- There is one copy. A disk that is lost takes with it what came after the last [backup](operators/backup.md); the node
  does not replicate. A disk or virtual machine that says "synced" and did not write breaks every promise of this page.
- Nobody can know that a series is complete. The node decides by evidence; an image that comes later makes a new result,
  which names the old one.
- What an archive says it has taken is believed: Storage Commitment is not requested.
- An object may be *sent* more than once if an answer was lost, or after a restore. It then has the same UID.
- No time is promised. A result comes when the jobs before it are done.

[`dicom-node ledger check`](operators/ledger-check.md) shows on any node whether the guarantee holds.
"""

RECORDED = """\
## What was recorded

Faults brought about in real processes or, where it says so, in simulated histories, in their long form
([how](developers/faults.md)). `make test` does the same in a few rounds.

| case | what was done | what must hold | how often | what was seen | date, commit, machine |
|---|---|---|---|---|---|"""

ANSWERED = """\
## Every fault, and what shows that it is survived

Of {all} faults, {whole} are shown to be survived, {partly} in part, and {not_at_all} by nothing. *Shown by* names fault
cases (above) and tests, which `make test` runs; **not shown** says what neither of them does.
"""

UNCOVERED = """\
## What is not covered

Faults that nothing shows, because what they attack was not built or cannot be tested where the node is developed:
"""


@dataclass(frozen=True, slots=True)
class Fault:
    """A row of the list. ``cases`` are the fault cases that answer it, by their own account."""

    id: str
    fault: str
    holds: str
    tests: tuple[str, ...]
    missing: str
    cases: tuple[str, ...]

    @property
    def is_answered(self) -> bool:
        """Whether anything shows that the fault is survived, at least in part."""
        return bool(self.tests or self.cases)


def faults() -> tuple[Fault, ...]:
    """The list, in its order."""
    answered: dict[str, list[str]] = {}
    for case in CASES:
        for answer in case.answers:
            answered.setdefault(answer, []).append(case.name)
    rows = tomllib.loads(LIST.read_text(encoding="utf-8"))
    return tuple(
        Fault(
            name,
            row["fault"],
            row["holds"],
            tuple(row.get("tests", ())),
            row.get("missing", ""),
            tuple(answered.get(name, ())),
        )
        for name, row in rows.items()
    )


def page() -> str:
    """docs/reliability.md."""
    recorded = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    listed = faults()
    parts = [INTRODUCTION, "\n".join([RECORDED, *(_recorded(case, recorded.get(case.name)) for case in CASES)]) + "\n"]
    parts.append(ANSWERED.format(**_counts(listed)))
    for letter, title in GROUPS.items():
        parts.append("\n".join([f"### {title}\n", *(_row(row) for row in listed if row.id[0] == letter)]) + "\n")
    uncovered = [f"- **{row.id}** {row.fault} {row.missing}" for row in listed if not row.is_answered]
    parts.append("\n".join([UNCOVERED, *uncovered]) + "\n")
    return "\n".join(parts)


def _counts(listed: tuple[Fault, ...]) -> dict[str, int]:
    answered = [row for row in listed if row.is_answered]
    whole = sum(not row.missing for row in answered)
    return {
        "all": len(listed),
        "whole": whole,
        "partly": len(answered) - whole,
        "not_at_all": len(listed) - len(answered),
    }


def _recorded(case: FaultCase, entry: Mapping[str, Any] | None) -> str:
    cells = [f"`{case.name}`", case.fault, case.holds]
    if entry is None:
        cells += ["not yet recorded", "", ""]
    else:
        violated = " ".join(entry["violations"]) or "none"
        cells += [
            f"{_figures(entry['tried'])}; in {_duration(entry['seconds'])}",
            f"{_figures(entry['seen'])}; **violations: {violated}**",
            f"{entry['date']}, {entry['commit']}, {entry['machine']}",
        ]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _figures(figures: Mapping[str, float | int | str]) -> str:
    return "; ".join(f"{name}: {value if isinstance(value, str) else f'{value:,}'}" for name, value in figures.items())


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def _row(row: Fault) -> str:
    shown = "; ".join(_shown_by(row))
    lines = [f"- **{row.id}** {row.fault}", f"  - Must hold: {row.holds}"]
    if shown:
        lines.append(f"  - Shown by: {shown}")
    if row.missing:
        lines.append(f"  - **Not shown:** {row.missing}")
    return "\n".join(lines)


def _shown_by(row: Fault) -> Iterator[str]:
    yield from (f"[`{case}`](#what-was-recorded)" for case in row.cases)
    for test in row.tests:
        path, _, name = test.partition("::")
        yield f"[{name.removeprefix('test_').replace('_', ' ')}](../{path})"


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
