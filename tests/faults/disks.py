"""Disks that are full, read-only or failing, under the spool, the ledger or both."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from tests.faults.archive import Archive
from tests.faults.case import CannotBeDone, FaultCase, Outcome
from tests.faults.node import (
    OUT_OF_RESOURCES,
    SUCCESS,
    Image,
    RunningNode,
    Sent,
    TooLate,
    image_of,
    make_series,
    wait_for,
)
from tests.faults.shim import Shim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_AGAIN_LIMIT_S = 10.0
"""After the fault is over, images must be accepted within this time."""
_FAULT_S = 6.0
_DELIVERED_LIMIT_S = 180.0
_DISK_BYTES = 24 * 2**20
_PAUSE_S = 0.2
_REFUSED_LIMIT_S = 60.0


@dataclass
class Course:
    """What happened to one node under one fault after the other."""

    answers: dict[int | None, int] = field(default_factory=dict)
    acknowledged: list[Sent] = field(default_factory=list)
    again_s: float = 0.0
    violations: list[str] = field(default_factory=list)

    def note(self, sent: list[Sent]) -> None:
        for each in sent:
            self.answers[each.status] = self.answers.get(each.status, 0) + 1
            if each.status == SUCCESS:
                self.acknowledged.append(each)

    @property
    def refused(self) -> int:
        return self.answers.get(OUT_OF_RESOURCES, 0)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, and how it begins and ends. ``refuses``: images can't be received meanwhile."""

    what: str
    begin: Callable[[], object]
    end: Callable[[], object]
    lasts_s: float = _FAULT_S
    refuses: bool = True


def under_fault(node: RunningNode, folder: Path, course: Course, fault: Fault) -> None:
    """One series arrives right before the fault, another during it; afterwards both must end in results.

    Whatever is refused must be refused with 0xA700, jobs must wait, and images must be accepted soon after the fault.
    """
    what = fault.what
    before = len(node.jobs())
    early, late = (make_series(folder / name) for name in ("early", "late"))
    course.note(node.send(early))
    fault.begin()
    try:
        sending = Sender(node, [image_of(each.path) for each in late.instances])
        sending.start()
        ends = time.monotonic() + fault.lasts_s
        while time.monotonic() < ends or (fault.refuses and not sending.was_refused):
            time.sleep(_PAUSE_S)
            if time.monotonic() > ends + _REFUSED_LIMIT_S:
                course.violations.append(f"{what}: nothing was refused")
                break
        if bad := [job.reason for job in node.jobs() if job.state in ("FAILED", "REJECTED")]:
            course.violations.append(f"{what}: a job did not wait: {bad[0]}")
        if partial := node.partial_files():
            course.violations.append(f"{what}: {len(partial)} partial files, such as {partial[0]}")
    finally:
        fault.end()
        ended = time.monotonic()
    sending.join()
    course.note(sending.told)
    if fault.refuses:
        again_s = sending.accepted_again - ended
        course.again_s = max(course.again_s, again_s)
        if again_s > _AGAIN_LIMIT_S:
            course.violations.append(f"{what}: accepted again after {again_s:.1f} s")
    try:
        node.wait_for_jobs(before + 2, limit_s=_DELIVERED_LIMIT_S)
    except TooLate as too_late:
        course.violations.append(f"{what}: {too_late}")


class Sender(threading.Thread):
    """Sends images until all are acknowledged, one association after the other."""

    def __init__(self, node: RunningNode, images: list[Image]) -> None:
        super().__init__(name="sender")
        self._node, self._waiting = node, images
        self.told: list[Sent] = []
        self.was_refused = False
        self.accepted_again = math.inf
        """When the first image was accepted after one had been refused (monotonic)."""

    def run(self) -> None:
        ends = time.monotonic() + 180
        while self._waiting and time.monotonic() < ends:
            sent = self._node.offer(self._waiting)
            self.told += sent
            accepted = {each.sop_instance_uid for each in sent if each.status == SUCCESS}
            if self.was_refused and accepted and math.isinf(self.accepted_again):
                self.accepted_again = time.monotonic()
            self.was_refused = self.was_refused or len(accepted) < len(sent)
            self._waiting = [image for image in self._waiting if image.file.sop_instance_uid not in accepted]
            time.sleep(_PAUSE_S)


def outcome(
    node: RunningNode, archive: Archive, course: Course, tried: dict[str, int], seen: dict[str, float | int | str]
) -> Outcome:
    """What must hold at the end, of all faults together."""
    wrong = [*course.violations, *node.faults(course.acknowledged)]
    others = {status: count for status, count in course.answers.items() if status not in (SUCCESS, OUT_OF_RESOURCES)}
    if others:
        wrong.append(
            f"answers other than 0000 and A700: { {_named(status): count for status, count in others.items()} }"
        )
    jobs = node.jobs()
    if any(job.state != "DELIVERED" for job in jobs):
        wrong.append(f"jobs at the end: {[f'{job.state} {job.reason}' for job in jobs if job.state != 'DELIVERED']}")
    several = sum(len(digests) > 1 for digests in archive.digests.values())
    if several:
        wrong.append(f"{several} results arrived with different bytes")
    tried = {**tried, "images acknowledged": len(course.acknowledged), "images refused": course.refused}
    waits = sum(line["state"] == "QUEUED" for line in node.log_lines() if line["event"] == "job")
    found = {"accepted again after s": round(course.again_s, 2), "times that a job waited": waits, **seen}
    return Outcome(tried, found, tuple(wrong))


def _named(status: int | None) -> str:
    return "none" if status is None else f"{status:04X}"


# ---- small file systems


def disk_full(folder: Path, rounds: int) -> Outcome:
    """The spool, the ledger, or both on a small file system that fills up; at last the spool's is read-only."""
    faults = (("both", "full"), ("spool", "full"), ("ledger", "full"), ("spool", "read-only"))
    outcomes = [_on_small_disk(folder / str(number), *faults[number % len(faults)]) for number in range(rounds)]
    tried = {"faults": rounds}
    for name in ("images acknowledged", "images refused"):
        tried[name] = sum(each.tried[name] for each in outcomes)
    seen: dict[str, float | int | str] = {
        "accepted again after s": max(float(each.seen["accepted again after s"]) for each in outcomes),
        "times that a job waited": sum(int(each.seen["times that a job waited"]) for each in outcomes),
    }
    return Outcome(tried, seen, tuple(violation for each in outcomes for violation in each.violations))


def _on_small_disk(folder: Path, what: str, how: str) -> Outcome:
    data, archive, course = folder / "node" / "data", Archive(), Course()
    small = {"spool": data / "spool", "ledger": folder / "ledger", "both": data}[what]
    settings = {"ledger_url": f"sqlite:///{small / 'ledger.sqlite3'}"} if what == "ledger" else {}
    with (
        small_file_system(small),
        archive.serving() as port,
        RunningNode(folder / "node", {"archive": port}, settings) as node,
    ):
        node.start("serve")
        node.wait_for_listener()
        course.note(node.send(make_series(folder / "first")))
        node.wait_for_jobs(1, limit_s=_DELIVERED_LIMIT_S)
        ballast = small / "ballast"
        full = Fault(f"{what} full", lambda: _fill(ballast), ballast.unlink)
        read_only = Fault(f"{what} read-only", lambda: _remount(small, "ro"), lambda: _remount(small, "rw"))
        under_fault(node, folder, course, full if how == "full" else read_only)
        return outcome(node, archive, course, {}, {})


@contextmanager
def small_file_system(folder: Path) -> Iterator[None]:
    """A file system in memory at ``folder``, with room for a few series.

    Raises:
        CannotBeDone: none can be mounted here.
    """
    folder.mkdir(parents=True)
    if os.geteuid() != 0 or shutil.which("mount") is None:
        raise CannotBeDone("mounting a small file system needs root")
    options = f"size={_DISK_BYTES},mode=0700"
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False
    ).returncode:
        raise CannotBeDone("no tmpfs can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True, capture_output=True)


def _fill(ballast: Path) -> None:
    """Take all room that is left, to the last byte."""
    with ballast.open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def _remount(folder: Path, mode: str) -> None:
    """As an error of the file system does it; it waits for files that are just being written."""
    command = ["mount", "-o", f"remount,{mode}", folder]
    wait_for(lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0, 60, f"remounted {mode}")


# ---- failing disks

_FAILING = (
    ("spool", "write"),
    ("ledger", "fsync"),
    ("spool", "read"),
    ("spool", "fsync"),
    ("spool", "open"),
    ("spool", "rename"),
    ("ledger", "write"),
)
_ERRORS = ("EIO", "EROFS", "EDQUOT")


def disk_error(folder: Path, rounds: int) -> Outcome:
    """Every operation on the spool and on the ledger fails for some seconds, one after the other."""
    archive, course, shim = Archive(), Course(), Shim.built(folder)
    environment = shim.environment(folder / "node" / "data")
    with archive.serving() as port, RunningNode(folder / "node", {"archive": port}, None, environment) as node:
        node.start("serve")
        node.wait_for_listener()
        course.note(node.send(make_series(folder / "first")))
        node.wait_for_jobs(1, limit_s=_DELIVERED_LIMIT_S)
        for number in range(rounds):
            where, operation = _FAILING[number % len(_FAILING)]
            error = _ERRORS[number // len(_FAILING) % len(_ERRORS)]
            fault = Fault(
                f"{error} from {operation} of the {where}",
                partial(shim.fail, where, operation, error),
                shim.recover,
                refuses=operation != "read",
            )
            under_fault(node, folder / f"round{number}", course, fault)
        return outcome(node, archive, course, {"faults": rounds}, {"errors injected": shim.injected()})


CASES = (
    FaultCase(
        name="disk-full",
        fault="The spool, the ledger, or both on a file system in memory that is filled to the last byte; at last that "
        "of the spool becomes read-only.",
        holds="Every refusal is 0xA700, no partial file is visible, nothing acknowledged is lost, jobs wait, and "
        "images are accepted again within 10 s after there is space.",
        answers=("D1", "D4", "D5"),
        run=disk_full,
        rounds=4,
        rounds_in_tests=1,
    ),
    FaultCase(
        name="disk-error",
        fault="EIO, EROFS and EDQUOT from every kind of system call on the files of the spool and the ledger, through "
        "a shim between the processes and their C library.",
        holds="As for disk-full.",
        answers=("D4",),
        run=disk_error,
        rounds=len(_FAILING),
        rounds_in_tests=1,
    ),
)
