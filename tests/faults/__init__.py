"""Real faults on real processes: the long form of what the tests show in a few rounds (docs/developers/faults.md).

A module holds the cases of one kind and lists them in its ``CASES``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.faults import (
    associations,
    destinations,
    disks,
    floods,
    histories,
    large_instances,
    ledgers,
    listener_kills,
    mutated_pdus,
    restore,
    unsynced,
    work_killed,
)

if TYPE_CHECKING:
    from tests.faults.case import FaultCase

CASES: tuple[FaultCase, ...] = (
    *histories.CASES,
    *listener_kills.CASES,
    *associations.CASES,
    *large_instances.CASES,
    *mutated_pdus.CASES,
    *floods.CASES,
    *restore.CASES,
    *work_killed.CASES,
    *disks.CASES,
    *unsynced.CASES,
    *ledgers.CASES,
    *destinations.CASES,
)
