"""One machine: its clock, its disk, its processes, and where they are interrupted, all drawn from one seed.

One thread does everything. At any point of a process (before and after each durable operation, and in the middle of a
job or of a transfer) another process may take some steps, the process may be killed, or the power may fail.
"""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections import Counter
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from dicom_node.app.working import open_pipeline
from dicom_node.errors import StoreUnavailable
from dicom_node.operate.ledger_check import check_ledger
from dicom_node.receive import scp
from dicom_node.receive.adopt import adopt_unclaimed
from dicom_node.reconstruct.content import content_of
from dicom_node.standard.files import read_headers
from dicom_node.store.clock import Clock, now_utc
from dicom_node.store.ledger import Ledger
from dicom_node.store.spool import Spool
from dicom_node.store.states import JobState
from dicom_node.store.workers import WorkerName
from tests.simulation.disk import Platter, SimulatedDisk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from random import Random

    from dicom_node.operate.ledger_check import LedgerReport
    from dicom_node.route.rules import Rules
    from dicom_node.settings import Settings

START_NS = 1_772_352_000_000_000_000
"""2026-03-01 08:00 UTC."""
UNCLAIMED_AGE_S = 60.0
MOST_NESTED = 2
_SECOND_NS = 1_000_000_000
_NOTHING: Any = None
_FAULTS = (errno.ENOSPC, errno.EIO)


class Killed(BaseException):
    """A process was killed: not an Exception, because nothing in it may notice."""

    def __init__(self, process: Process) -> None:
        self.process = process


class PowerCut(BaseException):
    """All processes ended, and what was not synced is lost."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """What all histories have in common: settings, rules, and an empty ledger of the newest schema."""

    settings: Settings
    rules: Rules
    empty_ledger: Path
    engines: list[Any] = field(default_factory=list)


class World(Clock):
    """A machine with one data folder."""

    def __init__(self, draw: Random, folder: Path, common: Configuration) -> None:
        self.draw = draw
        self.common = common
        self.platter = Platter(folder / "spool")
        self.ledger_file = folder / "ledger.sqlite3"
        shutil.copyfile(common.empty_ledger, self.ledger_file)
        self.points: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.trace: list[str] = []
        """What happened, for people who look into a seed."""
        self.processes: list[Process] = []
        self.is_calm = False
        """Nothing goes wrong any more."""
        self.between: Callable[[Process], None] = lambda _: None
        """Lets other processes take a step."""
        self.nested = 0
        self._boot = self._pid = 0
        self._elapsed_ns = self._booted_ns = 0
        self._set_by_ns = 0
        self._crashes_left = draw.choice((0, 1, 2, 3, 5))
        self._interruption = draw.choice((0.0, 0.01, 0.04))
        self._points_until_crash = self._next_crash()
        self._ops_until_fault = 0

    # ---- the clock

    def now_ns(self) -> int:
        self._elapsed_ns += 1000
        return START_NS + self._elapsed_ns + self._set_by_ns

    def uptime_s(self) -> float:
        return (self._elapsed_ns - self._booted_ns) / _SECOND_NS

    def boot_id(self) -> str:
        return f"boot-{self._boot}"

    def pass_time(self, seconds: float) -> None:
        self._elapsed_ns += int(seconds * _SECOND_NS)

    def set_clock(self, by_s: float) -> None:
        self._set_by_ns += int(by_s * _SECOND_NS)

    def note(self, what: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{self._elapsed_ns / _SECOND_NS:10.3f} {'    ' * self.nested}{what}")

    def has_delivered(self, destination: str, sop_instance_uid: str) -> bool:
        """Whether the ledger says that a result is at a destination."""
        with closing(sqlite3.connect(self.ledger_file)) as db:
            found = db.execute(
                "SELECT 1 FROM delivery JOIN result ON result.id = delivery.result_id"
                " WHERE destination = ? AND sop_instance_uid = ? AND state = 'DELIVERED'",
                (destination, sop_instance_uid),
            )
            return found.fetchone() is not None

    # ---- the processes

    def new_name(self) -> WorkerName:
        self._pid += 1
        return WorkerName("sim", self.boot_id(), 1, self._pid, self._pid)

    def lives(self, name: WorkerName, seen_from: WorkerName) -> bool | None:
        """In place of looking at /proc."""
        if name.boot_id != seen_from.boot_id:
            return None
        return any(process.name == name and process.lives for process in self.processes)

    def step(self, process: Process, action: Callable[[], None]) -> None:
        """Have ``process`` do something, unless it dies in the middle."""
        self._ops_until_fault = 0 if self.is_calm or self.draw.random() > 0.12 else self.draw.randint(1, 12)
        with suppress(Killed, StoreUnavailable):  # after the latter, a sweep runs again
            action()

    def power_cut(self) -> None:
        """All processes are gone, and the machine starts again."""
        self.platter.lose_power(self.draw)
        for process in self.processes:
            process.end()
        self._boot += 1
        self._booted_ns = self._elapsed_ns
        self.pass_time(30)

    def point(self, process: Process, what: str, detail: str = "") -> int | None:
        """The process is at a durable operation: it may end here, or others may run; returns the errno of a fault."""
        if not process.lives:
            raise PowerCut if process.lost_power else Killed(process)
        self.points[what] += 1
        self.note(f"{process.role} {what} {detail}")
        if self.is_calm:
            return None
        self._points_until_crash -= 1
        if self._points_until_crash == 0:
            self._crash(process, what)
        if not process.is_writing and self.nested < MOST_NESTED and self.draw.random() < self._interruption:
            self.let_others_run(process)
        if what.startswith("before") and self._ops_until_fault:
            self._ops_until_fault -= 1
            if self._ops_until_fault == 0:
                self.ends[f"fault {what}"] += 1
                self.note("fault")
                return self.draw.choice(_FAULTS)
        return None

    def let_others_run(self, process: Process, how: Callable[[Process], None] | None = None) -> None:
        """Other processes take some steps while ``process`` is in the middle of something."""
        fault, self._ops_until_fault = self._ops_until_fault, 0
        self.nested += 1
        try:
            (how or self.between)(process)
        finally:
            self.nested -= 1
            self._ops_until_fault = fault
        if not process.lives:
            raise PowerCut

    def _crash(self, process: Process, what: str) -> None:
        self._points_until_crash = self._next_crash()
        if self.draw.random() < 0.5:
            self.kill(process, what)
        self.ends[f"power cut {what}"] += 1
        self.note(f"power cut {what} of {process.role}")
        for each in self.processes:
            each.end()
            each.lost_power = True
        raise PowerCut

    def kill(self, process: Process, when: str) -> None:
        """End one process; what it wrote stays."""
        self.ends[f"killed {when}"] += 1
        self.note(f"{process.role} is killed {when}")
        process.end()
        raise Killed(process)

    def _next_crash(self) -> int:
        if not self._crashes_left:
            return -1
        self._crashes_left -= 1
        return self.draw.randint(1, self.draw.choice((15, 60, 250)))


class Process:
    """A process of the node with its own spool and ledger objects."""

    def __init__(self, world: World, role: str) -> None:
        self.world, self.role = world, role
        self.name = world.new_name()
        self.lives, self.lost_power, self.is_writing, self.is_started = True, False, False, False
        self.began_s = 0.0
        """Uptime at which it began what it does: for longer than a lease, others may take it over."""
        world.processes.append(self)
        self.disk = SimulatedDisk(world.platter, world.now_ns, lambda what, detail: world.point(self, what, detail))
        self.spool = Spool(world.platter.root, disk=self.disk)
        self.ledger = Ledger(f"sqlite:///{world.ledger_file}", self.spool)
        self._watch(self.ledger)

    def start(self) -> None:
        """What it does first."""
        raise NotImplementedError

    def end(self) -> None:
        """It is dead from now on."""
        self.lives = False
        self.disk.unlock_all()

    def bury(self) -> None:
        """Free what it had."""
        self.disk.close_all()
        self.ledger.close()
        self.world.processes.remove(self)

    def _watch(self, ledger: Ledger) -> None:
        """A commit is a point of its own: one that returned survives, one that did not may have happened."""
        engine = ledger.database._engine
        if self.world.common.engines:  # statements are compiled once for all processes of all histories
            engine.dialect, engine._compiled_cache = self.world.common.engines[0]
        else:
            self.world.common.engines.append((engine.dialect, engine._compiled_cache))

        def execute(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if statement != "BEGIN IMMEDIATE":
                return
            fault = self.world.point(self, "before ledger change")
            if fault is not None:
                raise OperationalError("BEGIN IMMEDIATE", {}, sqlite3.OperationalError("database is locked"))
            self.is_writing = True

        def commit(connection: Any) -> None:
            if self.is_writing:
                fault = self.world.point(self, "before commit")
                if fault is not None:
                    raise OperationalError("COMMIT", {}, sqlite3.OperationalError("disk I/O error"))
                connection.connection.driver_connection.commit()
                self.is_writing = False
                self.world.point(self, "after commit")

        def rollback(_: Any) -> None:
            self.is_writing = False

        event.listen(engine, "before_cursor_execute", execute)
        event.listen(engine, "commit", commit)
        event.listen(engine, "rollback", rollback)


class Listening(Process):
    """``dicom-node listen`` behind the network."""

    def start(self) -> None:
        settings = self.world.common.settings
        self.ledger.arrivals.close_interrupted_associations(now_utc())
        self.spool.continue_order()
        disk: Any = SimpleNamespace(refuse_when_full=lambda: None)
        arrivals = self.ledger.arrivals
        self._node = scp._Node(settings, self.spool, arrivals, scp._Endings(arrivals), disk, frozenset())
        self._connections = scp._Connections(settings.receive, stop=_NOTHING)
        self.is_started = True

    def connect(self, calling_ae: str) -> scp._Connection:
        """An association as it is after it was accepted."""
        connection = scp._Connection(_NOTHING, "192.0.2.1", self._node, self._connections)
        connection.calling_ae = calling_ae
        return connection


class Working(Process):
    """``dicom-node work`` without its threads: each sweep is a step."""

    def start(self) -> None:
        common, reader = self.world.common, _Reader()
        self.pipeline = open_pipeline(common.settings, self.ledger, self.spool, common.rules, _NOTHING, reader)
        self.recover()
        self.adopt()
        self.is_started = True

    def complete_and_route(self) -> None:
        self.pipeline.completing.complete_due()
        self.pipeline.routing.route_complete()

    def run_job(self) -> None:
        self.pipeline.running.run_next_job()

    def deliver(self, destination: str) -> None:
        self.pipeline.delivering.deliver(destination)

    def recover(self) -> None:
        self.pipeline.running.recover_jobs()
        self.pipeline.delivering.recover()

    def deliver_all(self) -> None:
        for destination in self.world.common.settings.destinations:
            self.deliver(destination)

    def retry_failed(self) -> None:
        """A person tries everything again that is shown as failed."""
        for each in self.ledger.overview.jobs(1000):
            if each.state in (JobState.FAILED, JobState.REJECTED):
                self.ledger.jobs.retry(each.id, now_utc())

    def adopt(self) -> None:
        adopt_unclaimed(self.spool, self.ledger.arrivals, self.ledger.retention.claims, UNCLAIMED_AGE_S)

    def check(self) -> LedgerReport:
        return check_ledger(self.ledger.consistency, self.spool, deep=True)


class _Reader:
    """Reads headers and compares images in this process: what a broken file does is not simulated."""

    def read(self, paths: Sequence[Path], *, keep: bool = False) -> Any:
        return read_headers(paths)

    def content(self, path: Path, *, with_pixels: bool = True) -> Any:
        (instance,) = read_headers([path])
        return content_of(instance, with_pixels=with_pixels)


@contextmanager
def buried_at_end(world: World) -> Iterator[None]:
    try:
        yield
    finally:
        for process in list(world.processes):
            process.end()
            with suppress(BaseException):
                process.bury()
