"""One history from one seed: what senders, processes, archives and the clock do until all is quiet, and the audit."""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
import sys
import tempfile
import traceback
import uuid
from collections import Counter
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar
from unittest.mock import patch

import structlog
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.pipeline import delivering, lease, running
from dicom_node.route.rules_file import load_rules
from dicom_node.settings import load_settings
from dicom_node.standard.part10 import HEAD_LENGTH, data_set_start
from dicom_node.store import clock
from dicom_node.store.database import Database
from dicom_node.store.ledger import Ledger
from dicom_node.store.spool import Spool
from dicom_node.store.workers import WorkerName
from dicom_node.types import EncodedResult, ResultKind
from inference.types import ModelIdentity
from tests.simulation.auditor import Auditor, Told, Violation
from tests.simulation.images import Image
from tests.simulation.peers import Archive, Sender
from tests.simulation.world import (
    MOST_NESTED,
    Configuration,
    Listening,
    PowerCut,
    Process,
    Working,
    World,
    buried_at_end,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from dicom_node.pipeline.job import JobCase

_NODE = """
node: {{ae_title: NODE, data_folder: {folder}}}
sources: [{{ae_title: CT1}}, {{ae_title: CT2}}]
models: {{tissue: {{kind: tissue}}}}
destinations:
  pacs: {{host: 192.0.2.2, port: 104, ae_title: PACS}}
  archive: {{host: 192.0.2.3, port: 104, ae_title: ARCHIVE}}
"""
_RULES = "rules: [{name: all, model: tissue, when: [], destinations: [pacs, archive]}]"
_WORKERS = 2
_CALM_ROUNDS, _CALM_STEPS, _CALM_ROUND_S = 60, 20, 700.0
_PAUSES_S = (1.0, 8.0, 70.0, 400.0, 2000.0)
_CLOCK_STEPS_S = (-7200.0, -30.0, 30.0, 7200.0)
_SHAPE = SimpleNamespace(source=SimpleNamespace(geometry=SimpleNamespace(shape_zyx=(4, 6, 7))))
_LABELS = SimpleNamespace(model=ModelIdentity("tissue", "1", "0" * 64, "Thresholding"), run=None, names_by_label={})
_FINDINGS: Any = SimpleNamespace(segmentation=_LABELS, ct=_SHAPE, notes=(), notes_on_images=())
_Kind = TypeVar("_Kind", "Listening", "Working")


@dataclass(slots=True)
class Record:
    """What happened in a history."""

    seed: int
    violation: str = ""
    told: Counter[Told] = field(default_factory=Counter)
    points: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)
    delivered: int = 0
    trace: list[str] = field(default_factory=list)


@contextmanager
def configuration() -> Iterator[Configuration]:
    """What all histories have in common."""
    with _folder() as folder:
        (folder / "node.yaml").write_text(_NODE.format(folder=folder / "data"))
        (folder / "rules.yaml").write_text(_RULES)
        settings = load_settings(folder / "node.yaml")
        empty = folder / "empty.sqlite3"
        ledger = Ledger(f"sqlite:///{empty}", Spool(folder / "spool"))
        ledger.device_uid()
        ledger.close()
        yield Configuration(settings, load_rules(settings.rules_file, settings), empty)


def run_history(seed: int, common: Configuration) -> Record:
    """Simulate the history of ``seed``, the same every time."""
    record = Record(seed)
    with _folder() as folder:
        world = World(random.Random(seed), folder, common)
        history = _History(world, record)
        with _replaced(world, history), buried_at_end(world):
            try:
                history.run()
            except Violation as violation:
                record.violation = str(violation)
            except Exception as error:  # noqa: BLE001 - a step that production code does not expect to fail
                record.violation = f"{type(error).__name__}: {error}"
    record.points, record.ends, record.told = world.points, world.ends, history.auditor.told
    if record.violation:
        record.trace = world.trace
    record.delivered = sum(len(archive.objects) for archive in history.archives.values())
    return record


class _History:
    def __init__(self, world: World, record: Record) -> None:
        self.world, self._record = world, record
        self._draw = world.draw
        self.auditor = Auditor(world)
        self.archives = {name: Archive(name, world) for name in ("pacs", "archive")}
        self.crashes: list[str] = []
        """What the log says of exceptions that nobody expected."""
        self._senders = [Sender(ae, world, self.auditor, self._plan(ae)) for ae in ("CT1", "CT2")]
        self._roles: dict[str, Process] = {}
        self._active: list[Process] = []
        """The process that runs now, after those that are in the middle of something."""
        world.between = self._between

    def run(self) -> None:
        for _ in range(self._draw.randint(25, 70)):
            ends = self.world.ends.total()
            try:
                self._act()
            except PowerCut:
                self.world.power_cut()
            if self.world.ends.total() != ends:
                self.auditor.nothing_is_lost()
        self.world.is_calm = True
        self._come_to_rest()
        worker = self._worker(0)
        assert worker is not None
        self.auditor.all_is_done(self.archives, worker.check())
        if self.crashes:
            raise Violation(self.crashes[0])

    @property
    def active(self) -> Process:
        return self._active[-1]

    # ---- what happens

    def _plan(self, ae_title: str) -> list[list[Image]]:
        """A series, parts of which come again, late, or changed; both senders may have the same one."""
        draw = self._draw
        series = draw.choice((1, 2)) if ae_title == "CT1" else draw.choice((2, 3))
        images = [Image(series, number) for number in range(draw.randint(1, 3))]
        plan = [list(images)]
        for _ in range(draw.randint(0, 3)):
            match draw.choice(("again", "late", "name", "pixels")):
                case "again":
                    plan.append(list(images))
                case "late":
                    images.append(Image(series, len(images)))
                    plan.append(images[-1:])
                case "name":
                    images = [replace(image, name=image.name + 1) for image in images]
                    plan.append(list(images))
                case "pixels":
                    place = draw.randrange(len(images))
                    images[place] = replace(images[place], pixels=images[place].pixels + 1)
                    plan.append([images[place]])
        return plan

    def _act(self) -> None:
        actions: dict[str, tuple[int, Callable[[], None]]] = {
            "send": (10, self._send),
            "work": (10, lambda: self._work(self._draw.randrange(_WORKERS))),
            "time": (4, lambda: self.world.pass_time(self._draw.choice(_PAUSES_S))),
            "clock": (1, lambda: self.world.set_clock(self._draw.choice(_CLOCK_STEPS_S))),
            "restart": (1, self._restart),
        }
        name = self._draw.choices(list(actions), [weight for weight, _ in actions.values()])[0]
        self._record.actions[name] += 1
        self.world.note(f"-- {name}")
        actions[name][1]()

    def _send(self) -> None:
        senders = [sender for sender in self._senders if not sender.is_done]
        listener = self._listening()
        if listener is not None and senders:
            sender = self._draw.choice(senders)
            self._step(listener, lambda: sender.step(listener))

    def _work(self, place: int) -> None:
        worker = self._worker(place)
        if worker is not None:
            duties = [worker.complete_and_route, worker.run_job, worker.run_job, worker.recover, worker.adopt]
            duties += [lambda name=name: worker.deliver(name) for name in self.archives]
            self._step(worker, self._draw.choice(duties))

    def _restart(self) -> None:
        if self._roles:
            self._draw.choice(list(self._roles.values())).end()

    def _between(self, _: Process) -> None:
        """While a process is in the middle of something, others go on, perhaps for longer than its lease."""
        if self._draw.random() < 0.3:
            self.world.pass_time(self._draw.choice((5.0, 100.0)))
        for _ in range(self._draw.randint(1, 4)):
            free = [place for place in range(_WORKERS) if self._roles.get(f"work {place}") not in self._active]
            may_send = self._roles.get("listen") not in self._active
            if free and (not may_send or self._draw.random() < 0.7):
                self._work(self._draw.choice(free))
            elif may_send:
                self._send()

    def _come_to_rest(self) -> None:
        """Nothing fails any more: what is not done after hours is lost."""
        for _ in range(_CALM_ROUNDS):
            for _ in range(_CALM_STEPS):
                self._send()
            for place in range(_WORKERS):
                worker = self._worker(place)
                assert worker is not None
                for duty in (
                    worker.recover,
                    worker.adopt,
                    worker.complete_and_route,
                    worker.run_job,
                    worker.run_job,
                    worker.deliver_all,
                    worker.retry_failed,
                ):
                    self._step(worker, duty)
            if all(sender.is_done for sender in self._senders) and self._is_quiet():
                self.world.pass_time(_CALM_ROUND_S)  # what was refused is old enough to be removed now
                self._step(worker, worker.adopt)
                if self._is_quiet():
                    return
            self.world.pass_time(_CALM_ROUND_S)
        unsent = [image for sender in self._senders for image in sender.unsent]
        raise Violation(f"not at rest after {_CALM_ROUNDS * _CALM_ROUND_S:g} s: {self._unfinished()}, unsent {unsent}")

    def _is_quiet(self) -> bool:
        return not self._unfinished()

    def _unfinished(self) -> list[tuple[str, ...]]:
        with sqlite3.connect(self.world.ledger_file) as db:
            found = db.execute(
                "SELECT 'revision', state, '' FROM series_revision WHERE state != 'ROUTED' UNION ALL "
                "SELECT 'job', state, reason FROM job WHERE state IN ('QUEUED', 'RUNNING', 'ENCODED') UNION ALL "
                "SELECT 'delivery', state, last_reason FROM delivery WHERE state = 'WAITING'"
            ).fetchall()
        db.close()
        return found

    # ---- the processes

    def _step(self, process: Process, action: Callable[[], None]) -> None:
        self.world.note(f"{process.role}: {getattr(action, '__name__', '')}")
        self._active.append(process)
        process.began_s = self.world.uptime_s()
        try:
            self.world.step(process, action)
        finally:
            self._active.pop()

    def _listening(self) -> Listening | None:
        return self._living("listen", Listening)

    def _worker(self, place: int) -> Working | None:
        return self._living(f"work {place}", Working)

    def _living(self, role: str, kind: type[_Kind]) -> _Kind | None:
        """The process with a role, started if there is none; None if it dies at once, or is only just starting."""
        process: Any = self._roles.get(role)
        if process is not None and process.lives:
            return process if process.is_started else None
        if process is not None:
            process.bury()
        process = self._roles[role] = kind(self.world, role)
        self._step(process, process.start)
        if not process.is_started:
            process.end()
        return process if process.lives else None

    # ---- in place of the network and the models

    def send(self, destination: Any, _ae: str, results: Any, on_outcome: Any) -> None:
        """In place of :func:`dicom_node.deliver.scu.send`."""
        archive = next(each for each in self.archives.values() if each.name.upper() == destination.ae_title)
        archive.take(results, on_outcome, self._pause, self.active)

    def analyse(self, case: JobCase) -> None:
        """In place of :func:`dicom_node.analysis.analyse`: results that name exactly what they were made of."""
        with case.stage("read"):
            series = case.read()
        self._pause()
        if not self.world.is_calm and self._draw.random() < 0.05:
            raise MemoryError
        inputs = sorted([str(each.header.SOPInstanceUID), _digest(each.path)] for each in series.instances)
        requests, context = case.requests(), case.context()
        facts = {
            "series": series.series_instance_uid,
            "revision": context.revision,
            "inputs": inputs,
            "attempt": case._claimed.attempt,
        }
        wanted = [(ResultKind.SEGMENTATION, tuple(requests)), *((ResultKind.REPORT, (name,)) for name in requests)]
        with case.encoding():
            case.keep(_FINDINGS, (_result(facts, context.content_digest, *each) for each in wanted))

    def _pause(self) -> None:
        """In the middle of a job or a transfer: others go on; the process is held up for longer than its lease; or
        it is killed.
        """
        world, draw, process = self.world, self._draw, self.active
        if world.is_calm:
            return
        if draw.random() < (0.35 if world.nested else 0.03):
            world.kill(process, "at work")
        if world.nested < MOST_NESTED:
            match draw.choices(("nothing", "others", "held up"), (35, 25, 40))[0]:
                case "others":
                    world.let_others_run(process)
                case "held up":
                    world.pass_time(100.0)
                    world.let_others_run(process, self._take_over)

    def _take_over(self, held_up: Process) -> None:
        """Another process does what ``held_up`` has lost."""
        for place in range(_WORKERS):
            worker = self._worker(place) if self._roles.get(f"work {place}") not in self._active else None
            if worker is not None:
                what = worker.run_job if self._draw.random() < 0.8 else worker.deliver_all
                for duty in (worker.recover, what):
                    if worker.lives:
                        self._step(worker, duty)


def _digest(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha256(content[data_set_start(content[:HEAD_LENGTH]) :]).hexdigest()


def _result(facts: Mapping[str, Any], digest: str, kind: ResultKind, destinations: tuple[str, ...]) -> EncodedResult:
    """A result whose UIDs derive from its content, as those of the node do."""
    key = json.dumps([facts["series"], facts["revision"], digest, kind, destinations])
    uid = f"2.25.{int(hashlib.sha256(key.encode()).hexdigest()[:24], 16)}"
    content = json.dumps({**facts, "kind": kind}).encode()
    return EncodedResult(kind, "1.2.3", uid, f"{uid}.1", ExplicitVRLittleEndian, content, destinations)


@contextmanager
def _replaced(world: World, history: _History) -> Iterator[None]:
    """What is not simulated by the disk: clock, names, leases, network, models, and the log."""

    def renewed(*_: object, **__: object) -> AbstractContextManager[None]:
        return nullcontext()  # who is held up for longer than a lease loses it

    def lives(name: WorkerName, seen_from: WorkerName) -> bool | None:
        return world.lives(name, seen_from)

    def note_crash(_logger: object, _method: str, line: dict[str, Any]) -> dict[str, Any]:
        world.note(f"log: {line['event']} {line.get('reason', '')}")
        if "exc_info" in line:
            error = line["exc_info"] if isinstance(line["exc_info"], BaseException) else sys.exc_info()[1]
            history.crashes.append(f"{line['event']}: {''.join(traceback.format_exception(error))}")
        raise structlog.DropEvent

    known = structlog.get_config()
    with ExitStack() as stack:
        stack.enter_context(clock.told_by(world))
        for patched in (
            patch.object(uuid, "uuid4", lambda: uuid.UUID(int=world.draw.getrandbits(128), version=4)),
            patch.object(WorkerName, "own", lambda: history.active.name),
            patch.object(WorkerName, "lives", lives),
            patch.object(Database, "upgrade", lambda _: None),
            patch.object(lease, "renewed", renewed),
            patch.object(delivering, "renewed", renewed),
            patch.object(delivering, "random", SimpleNamespace(random=world.draw.random)),
            patch.object(delivering, "send", history.send),
            patch.object(running, "analyse", history.analyse),
        ):
            stack.enter_context(patched)
        structlog.configure(processors=[note_crash], cache_logger_on_first_use=False)
        stack.callback(structlog.configure, **known)
        yield


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder in memory, if there is one: what a real disk keeps is not asked for."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)
