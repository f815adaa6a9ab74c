"""The invariant as a program: nothing acknowledged is lost, and everything is in exactly one legal state.

Every instance, series, job, result and delivery is put in one state, and the sum over all states must be what the
ledger counts. Files and rows must agree; with ``deep``, every file is read and hashed. Nothing is changed. The node
may run meanwhile: what depends on several rows is read at one moment, and a file is only missing if its row still
says that it must be there.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING

from dicom_node.errors import Stopping
from dicom_node.standard.part10 import HEAD_LENGTH, data_set_start
from dicom_node.store.clock import now_utc
from dicom_node.store.states import DeliveryState, JobState, RevisionState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime
    from pathlib import Path

    from dicom_node.store.consistency import (
        Consistency,
        Counted,
        DeliveryFacts,
        InstanceFacts,
        JobFacts,
        ResultFacts,
        RevisionFacts,
    )
    from dicom_node.store.spool import Spool

UNCLAIMED_AGE_S = 660.0
"""A file without a row is as old as that only if the sweep that records or removes it, every five minutes, does not
run: younger ones are what a killed process leaves.
"""
_PURGE_LASTS = timedelta(minutes=10)
"""From the mark in the ledger until the file is gone, at the latest by the sweep of unclaimed files."""
_LEASE_GRACE = timedelta(seconds=30)
"""After its lease has ended, until a sweep notices it."""
_MOST_EXAMPLES = 20
"""Per kind of violation; the rest is only counted."""
_NAMES_AT_ONCE = 500
_ENDED = (JobState.DELIVERED, JobState.KEPT, JobState.REJECTED, JobState.FAILED, JobState.SUPERSEDED)


class Kind(StrEnum):
    """The kinds of violation; ``docs/operators/ledger-check.md`` explains each."""

    COUNT = "count"
    INSTANCE_LOST = "instance.lost"
    INSTANCE_NOT_REPLACED = "instance.not_replaced"
    INSTANCE_TWO_STATES = "instance.two_states"
    SERIES_REVISIONS = "series.revisions"
    SERIES_MEMBERS = "series.members"
    SERIES_NO_JOB = "series.no_job"
    STATE_UNKNOWN = "state.unknown"
    JOB_LEASE = "job.lease"
    JOB_END = "job.end"
    JOB_DELIVERIES = "job.deliveries"
    RESULT_NO_DELIVERY = "result.no_delivery"
    RESULT_PURGED = "result.purged"
    DELIVERY_LEASE = "delivery.lease"
    DELIVERY_TIME = "delivery.time"
    FILE_MISSING = "file.missing"
    FILE_UNREADABLE = "file.unreadable"
    FILE_SIZE = "file.size"
    FILE_CHANGED = "file.changed"
    FILE_UNCLAIMED = "file.unclaimed"
    FILE_NOT_PURGED = "file.not_purged"


@dataclass(frozen=True, slots=True)
class Violation:
    """One example: ``subject`` is the row or the file, ``detail`` what was seen and what was expected."""

    kind: Kind
    subject: str
    detail: str


@dataclass(frozen=True, slots=True)
class LedgerReport:
    """The outcome of a check.

    ``states``: how many instances, series, revisions, jobs, results and deliveries are in which state.
    ``counted``: the same as the ledger counts them at once. ``duplicates``: C-STORE requests
    acknowledged for an instance that was there already. ``violations``: how many of each kind there are, of which
    ``examples`` has the first twenty.
    """

    checked_at: datetime
    seconds: float
    deep: bool
    states: Mapping[str, Mapping[str, int]]
    counted: Mapping[str, int]
    duplicates: int
    files: int
    file_bytes: int
    violations: Mapping[str, int]
    examples: tuple[Violation, ...]

    @property
    def is_sound(self) -> bool:
        """Whether the invariant holds."""
        return not self.violations


def check_ledger(
    rows: Consistency,
    spool: Spool,
    *,
    deep: bool = False,
    unclaimed_age_s: float = UNCLAIMED_AGE_S,
    is_stopping: Callable[[], bool] = lambda: False,
) -> LedgerReport:
    """Check the invariant; reads every row, looks at every file, and with ``deep`` reads it.

    Raises:
        StoreUnavailable: the ledger is unavailable.
        Stopping: ``is_stopping`` said so.
    """
    return _Check(rows, spool, deep=deep, unclaimed_age_s=unclaimed_age_s, is_stopping=is_stopping).run()


@dataclass(frozen=True, slots=True)
class _Expected:
    """What the row of a file says about it. ``has_head``: size and digest are those of the data set in it."""

    subject: str
    name: str
    size_bytes: int
    sha256: str
    has_head: bool


class _Check:
    def __init__(
        self, rows: Consistency, spool: Spool, *, deep: bool, unclaimed_age_s: float, is_stopping: Callable[[], bool]
    ) -> None:
        self._rows = rows
        self._spool = spool
        self._deep = deep
        self._unclaimed_age_s = unclaimed_age_s
        self._is_stopping = is_stopping
        self._states: dict[str, Counter[str]] = defaultdict(Counter)
        self._violations: Counter[str] = Counter()
        self._examples: list[Violation] = []
        self._files = self._file_bytes = 0

    def run(self) -> LedgerReport:
        started, checked_at = time.monotonic(), now_utc()
        counted = self._rows.counted()
        self._look_at_rows(counted)
        self._look_at_names()
        totals = self._compare_counts(counted, self._rows.counted())
        return LedgerReport(
            checked_at=checked_at,
            seconds=round(time.monotonic() - started, 3),
            deep=self._deep,
            states={kind: dict(sorted(states.items())) for kind, states in self._states.items()},
            counted=totals,
            duplicates=counted.duplicates,
            files=self._files,
            file_bytes=self._file_bytes,
            violations=dict(self._violations),
            examples=tuple(self._examples),
        )

    def _look_at_rows(self, counted: Counted) -> None:
        last = counted.last
        for instance in self._rows.instances(last["instances"]):
            self._count("instances", self._state_of_instance(instance))
        for revision in self._rows.revisions(last["revisions"]):
            if revision.revision == 1:
                self._count("series", "has revisions")
            self._count("revisions", self._state_of_revision(revision))
        for job in self._rows.jobs(last["jobs"]):
            self._count("jobs", self._state_of_job(job, now_utc()))
        for result in self._rows.results(last["results"]):
            self._count("results", self._state_of_result(result))
        for delivery in self._rows.deliveries(last["deliveries"]):
            self._count("deliveries", self._state_of_delivery(delivery, now_utc()))

    def _compare_counts(self, counted: Counted, afterwards: Counted) -> dict[str, int]:
        """Between both counts: on PostgreSQL, a row with a lower id may become visible after one with a higher id."""
        totals, most = counted.totals(), afterwards.totals()
        for kind, total in totals.items():
            found = self._states[kind].total()
            if not total <= found <= most[kind]:
                self._violate(Kind.COUNT, kind, f"{found} rows over all states, but {total} in the table")
        return totals

    # ---- rows

    def _state_of_instance(self, instance: InstanceFacts) -> str:
        subject = f"instance {instance.id}"
        for state, at in (("purged", instance.purged_at), ("damaged", instance.damaged_at)):
            if at is not None:
                if instance.current:
                    self._violate(Kind.INSTANCE_TWO_STATES, subject, f"it is both current and {state}")
                return state
        expected = _Expected(subject, instance.spool_name, instance.size_bytes, instance.dataset_sha256, has_head=True)
        self._look_at_file(expected)
        if not instance.current:
            if not (instance.is_replaced or self._rows.is_damaged_since(instance.id)):
                self._violate(Kind.INSTANCE_NOT_REPLACED, subject, "no current instance of its series has its UID")
            return "replaced"
        if instance.is_member:
            return "in a revision"
        if not instance.is_arriving:
            self._violate(Kind.INSTANCE_LOST, subject, "it is in no revision, and its series has no open one")
        return "arriving"

    def _state_of_revision(self, revision: RevisionFacts) -> str:
        subject = f"revision {revision.revision} of series {revision.series_instance_uid}"
        if revision.revision != 1 and not revision.has_previous:
            self._violate(Kind.SERIES_REVISIONS, subject, f"there is no revision {revision.revision - 1}")
        is_open = revision.state == RevisionState.OPEN
        if is_open and not revision.is_latest:
            self._violate(Kind.SERIES_REVISIONS, subject, "it is open, although a later one exists")
        # the members of an open one are not fixed, and it may be closed between the two statements
        elif not is_open and (members := self._rows.digest_of_members(revision.id)) != revision.bytes_digest:
            seen = "no members" if members is None else "other members than when it was closed"
            self._violate(Kind.SERIES_MEMBERS, subject, f"it is {revision.state} and has {seen}")
        if revision.state == RevisionState.ROUTED and not revision.has_job:
            self._violate(
                Kind.SERIES_NO_JOB, subject, "neither it nor an earlier revision with the same content has a job"
            )
        return self._known(revision.state, RevisionState, subject)

    def _state_of_job(self, job: JobFacts, now: datetime) -> str:
        subject = f"job {job.id}"
        if job.state == JobState.RUNNING:
            self._check_lease(Kind.JOB_LEASE, subject, job.claimed_by, job.lease_until, now)
        if job.state in _ENDED and job.ended_at is None:
            self._violate(Kind.JOB_END, subject, f"it is {job.state} but has no end time")
        wrong = _wrong_deliveries(job)
        if wrong:
            self._violate(Kind.JOB_DELIVERIES, subject, f"it is {job.state} and has {wrong}")
        return self._known(job.state, JobState, subject)

    def _state_of_result(self, result: ResultFacts) -> str:
        subject = f"result {result.id}"
        if not result.deliveries and result.job_state != JobState.KEPT:
            self._violate(Kind.RESULT_NO_DELIVERY, subject, f"its job is {result.job_state}, but it has no delivery")
        if result.purged_at is not None:
            if result.waiting:
                self._violate(
                    Kind.RESULT_PURGED, subject, f"its file was purged, but {result.waiting} deliveries are waiting"
                )
            return "purged"
        self._look_at_file(_Expected(subject, result.spool_name, result.size_bytes, result.sha256, has_head=False))
        if not result.deliveries:
            return "kept"
        return "owed" if result.waiting else "settled"

    def _state_of_delivery(self, delivery: DeliveryFacts, now: datetime) -> str:
        subject = f"delivery {delivery.id}"
        if delivery.state == DeliveryState.WAITING and delivery.claimed_by is not None:
            self._check_lease(Kind.DELIVERY_LEASE, subject, delivery.claimed_by, delivery.lease_until, now)
        if (delivery.state == DeliveryState.DELIVERED) != (delivery.delivered_at is not None):
            at = "no delivery time" if delivery.delivered_at is None else f"the delivery time {delivery.delivered_at}"
            self._violate(Kind.DELIVERY_TIME, subject, f"it is {delivery.state} with {at}")
        return self._known(delivery.state, DeliveryState, subject)

    def _check_lease(
        self, kind: Kind, subject: str, claimed_by: str | None, lease_until: datetime | None, now: datetime
    ) -> None:
        if lease_until is None or lease_until < now - _LEASE_GRACE:
            until = "is missing" if lease_until is None else f"ended at {lease_until.isoformat()}"
            self._violate(kind, subject, f"it is in progress, but the lease of {claimed_by} {until}")

    # ---- files

    def _look_at_file(self, expected: _Expected) -> None:
        try:
            path = self._spool.path(expected.name)
            size, digest = self._seen(path, has_head=expected.has_head)
        except FileNotFoundError:
            if self._rows.purged_at((expected.name,)).get(expected.name, "no row") is None:
                self._violate(Kind.FILE_MISSING, expected.subject, f"{expected.name} is not there")
            return
        except (OSError, ValueError) as error:
            self._violate(Kind.FILE_UNREADABLE, expected.subject, f"{expected.name}: {error}")
            return
        self._files += 1
        self._file_bytes += size
        if size != expected.size_bytes:
            what = f"{expected.name} has {size} bytes, expected {expected.size_bytes}"
            self._violate(Kind.FILE_SIZE, expected.subject, what)
        elif digest is not None and digest != expected.sha256:
            what = f"{expected.name} has SHA-256 {digest}, expected {expected.sha256}"
            self._violate(Kind.FILE_CHANGED, expected.subject, what)

    def _seen(self, path: Path, *, has_head: bool) -> tuple[int, str | None]:
        """Size in bytes, and with ``deep`` the SHA-256, of a file or of the data set in it."""
        if not (has_head or self._deep):
            return path.stat().st_size, None
        with path.open("rb") as file:
            start = data_set_start(file.read(HEAD_LENGTH)) if has_head else 0
            size = os.fstat(file.fileno()).st_size - start
            if not self._deep:
                return size, None
            file.seek(start)
            return size, hashlib.file_digest(file, "sha256").hexdigest()

    def _look_at_names(self) -> None:
        """Every file of the spool has a row, and none that was purged is still there."""
        names = self._spool.names(self._unclaimed_age_s)
        while some := tuple(islice(names, _NAMES_AT_ONCE)):
            self._step()
            known = self._rows.purged_at(some)
            for name in some:
                if name not in known:
                    self._look_at_unclaimed(name)
                elif (purged_at := known[name]) is not None and purged_at < now_utc() - _PURGE_LASTS:
                    self._violate(Kind.FILE_NOT_PURGED, name, f"it was purged at {purged_at.isoformat()}")

    def _look_at_unclaimed(self, name: str) -> None:
        """Another look: a sweep may have recorded or removed it meanwhile."""
        is_there = False
        with suppress(OSError):
            is_there = self._spool.path(name).exists()
        if is_there and not self._rows.purged_at((name,)):
            self._violate(
                Kind.FILE_UNCLAIMED, name, f"no row refers to it, and it is older than {self._unclaimed_age_s:g} s"
            )

    # ---- both

    def _known(self, state: str, states: type[StrEnum], subject: str) -> str:
        if state not in list(states):
            self._violate(Kind.STATE_UNKNOWN, subject, f"{state!r} is none of {', '.join(states)}")
        return state

    def _count(self, kind: str, state: str) -> None:
        self._step()
        self._states[kind][state] += 1

    def _step(self) -> None:
        if self._is_stopping():
            raise Stopping

    def _violate(self, kind: Kind, subject: str, detail: str) -> None:
        self._violations[kind] += 1
        if self._violations[kind] <= _MOST_EXAMPLES:
            self._examples.append(Violation(kind, subject, detail))


def _wrong_deliveries(job: JobFacts) -> str:
    """How the deliveries of a job contradict its state; "" if they don't."""
    if job.state == JobState.ENCODED:
        return "" if job.waiting else "no waiting delivery"
    if job.waiting:
        return f"{job.waiting} deliveries that wait"
    if job.state == JobState.DELIVERED:
        if job.failed:
            return f"{job.failed} failed deliveries"
        return "" if job.delivered or job.superseded else "no delivery"
    if job.state == JobState.KEPT and (job.delivered or job.failed or job.superseded):
        return "deliveries"
    return ""
