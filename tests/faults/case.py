"""What a fault case is, and what a run of it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was tried and seen."""

    tried: Mapping[str, int]
    """Counts: rounds, acknowledged instances, silent connections."""
    seen: Mapping[str, float | int | str]
    """What was found: losses, seconds, megabytes."""
    violations: tuple[str, ...] = ()
    """A sentence for each thing that must hold and did not."""


class CannotBeDone(Exception):
    """This machine lacks what the case needs: rights, a compiler, a server."""


@dataclass(frozen=True, slots=True)
class FaultCase:
    """A fault that is brought about in real processes, and what must hold."""

    name: str
    fault: str
    """What is done, in a sentence."""
    holds: str
    """What must hold, with figures, in a sentence."""
    answers: tuple[str, ...]
    """The rows of faults.toml that it answers."""
    run: Callable[[Path, int], Outcome]
    """(an empty folder, the number of rounds) -> outcome"""
    rounds: int
    """Of the record."""
    rounds_in_tests: int = 1
    """Of ``make test``: few, for the same code."""
