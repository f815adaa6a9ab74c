"""Archives that are down, silent, slow or refuse: what becomes of each result, and that each arrives once."""

from __future__ import annotations

import math
import socket
import struct
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pydicom.uid import ComprehensiveSRStorage, ImplicitVRLittleEndian
from sqlalchemy import func, select

from dicom_node.app.stores import open_store
from dicom_node.deliver.abilities import Abilities
from dicom_node.operate.alarms import Kind, alarms_of
from dicom_node.pipeline.delivering import Delivering
from dicom_node.settings import AlarmSettings, DeliverySettings
from dicom_node.store import clock
from dicom_node.store.clock import Clock, now_utc
from dicom_node.store.ledger import Ledger
from dicom_node.store.schema import delivery
from dicom_node.store.spool import Spool
from dicom_node.store.states import DeliveryState, JobState
from dicom_node.store.workers import WorkerName
from dicom_node.types import Completion, Decision, EncodedResult, ResultKind, ResultRequest
from inference.types import ModelIdentity
from tests.faults.archive import CLASSES, STORED, SYNTAXES, Archive
from tests.faults.case import FaultCase, Outcome
from tests.faults.node import RunningNode, TooLate, wait_for
from tests.faults.surroundings import in_memory, without_log
from tests.support.dicom_peers import destination, make_result, raw_peer
from tests.support.ports import free_port
from tests.support.received_series import receive

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from dicom_node.types import ResultInstance

_DELIVERED, _RETRIED, _REFUSED = "delivered", "retried", "failed"
_RESULTS = 4
"""For each destination: three segmentations and a report. The second one meets the fault of a single instance."""
_SILENCE_S = 8.0
_LONGER_S, _SHORTER_S = _SILENCE_S + 1.0, _SILENCE_S / 3
_LIMIT_S = 180.0
_IDENTITY = ModelIdentity("tissue", "1", "0" * 64, "Thresholding")


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What an archive does at first, and what must become of each of its four results then."""

    name: str
    becomes: tuple[str, ...]
    serving: Callable[[int, Archive, str], Any]
    """(port, archive, SOP Instance UID of the second result) -> a context manager that serves"""


# ---- what happens to the second instance, while the others are stored


def _status(status: int, becomes: str, *, stores: bool = False) -> Behaviour:
    def answer(archive: Archive, event: Any) -> int:
        if stores:
            archive.keep(event)
        return status

    return Behaviour(f"status {status:04X}", _second(becomes), _at_second(answer))


def _second(becomes: str, then: str = _DELIVERED) -> tuple[str, ...]:
    return (_DELIVERED, becomes, *[then] * (_RESULTS - 2))


def _at_second(answer: Callable[[Archive, Any], int]) -> Callable[[int, Archive, str], Any]:
    def serving(port: int, archive: Archive, second: str) -> Any:
        def take(event: Any) -> int:
            is_second = event.request.AffectedSOPInstanceUID == second
            return answer(archive, event) if is_second else archive.keep(event)

        return archive.serving(port, take)

    return serving


def _abort(_: Archive, event: Any) -> int:
    event.assoc.abort()
    return STORED


def _store_and_abort(archive: Archive, event: Any) -> int:
    archive.keep(event)
    return _abort(archive, event)


def _answer_late(archive: Archive, event: Any) -> int:
    time.sleep(_LONGER_S)
    return archive.keep(event)


def _answer_slowly(archive: Archive, event: Any) -> int:
    time.sleep(_SHORTER_S)
    return archive.keep(event)


# ---- what happens to the association


def _instead(name: str, becomes: str, reply: Callable[[socket.socket], object]) -> Behaviour:
    """Something else than DICOM happens on every connection."""

    def serving(port: int, _: Archive, __: str) -> Any:
        return raw_peer(reply, port)

    return Behaviour(name, (becomes,) * _RESULTS, serving)


def _sending(answer: bytes) -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    return serve


def _answering(name: str, becomes: str, answer: bytes) -> Behaviour:
    return _instead(name, becomes, _sending(answer))


def _rejection(result: int, source: int, reason: int) -> Behaviour:
    """A-ASSOCIATE-RJ (PS3.8 table 9-21): result 1 is permanent, 2 transient."""
    answer = struct.pack(">BxIxBBB", 3, 4, result, source, reason)
    return _answering(f"rejection {result}/{source}/{reason}", _REFUSED if result == 1 else _RETRIED, answer)


def _aborted(source: int, reason: int) -> Behaviour:
    """A-ABORT (PS3.8 table 9-26) in place of an answer to the request."""
    return _answering(f"abort {source}/{reason}", _RETRIED, struct.pack(">BxIxxBB", 7, 4, source, reason))


def _reset(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _stay_silent(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def _nothing(*_: object) -> Any:
    return nullcontext()


def _only(classes: Sequence[str] = CLASSES, syntaxes: Sequence[str] = SYNTAXES) -> Callable[[int, Archive, str], Any]:
    return lambda port, archive, _: archive.serving(port, classes=classes, syntaxes=syntaxes)


BEHAVIOURS: tuple[Behaviour, ...] = (
    # one of each kind first: these are the short form
    _status(0xA700, _RETRIED),
    _status(0xA900, _REFUSED),
    _status(0xB007, _DELIVERED, stores=True),
    _rejection(1, 1, 3),
    _rejection(2, 3, 2),
    Behaviour("abort at instance 2", _second(_RETRIED, _RETRIED), _at_second(_abort)),
    Behaviour("answer to instance 2 lost", _second(_RETRIED, _RETRIED), _at_second(_store_and_abort)),
    Behaviour("answer to instance 2 late", _second(_RETRIED, _RETRIED), _at_second(_answer_late)),
    _instead("silent", _RETRIED, _stay_silent),
    Behaviour("port closed", (_RETRIED,) * _RESULTS, _nothing),
    Behaviour("only reports", (*[_REFUSED] * 3, _DELIVERED), _only([ComprehensiveSRStorage])),
    _status(0x0111, _DELIVERED, stores=True),
    # the rest
    _status(0xB000, _DELIVERED, stores=True),
    _status(0xB006, _DELIVERED, stores=True),
    _status(0xA701, _RETRIED),
    _status(0xA7FF, _RETRIED),
    _status(0x0110, _RETRIED),
    _status(0x0210, _RETRIED),
    _status(0x0213, _RETRIED),
    _status(0xA9FF, _REFUSED),
    _status(0xC000, _REFUSED),
    _status(0xC211, _REFUSED),
    _status(0xCFFF, _REFUSED),
    _status(0x0117, _REFUSED),
    _status(0x0122, _REFUSED),
    _status(0x0124, _REFUSED),
    _status(0xFE00, _REFUSED),
    *(_rejection(1, 1, reason) for reason in (1, 2, 7)),
    *(_rejection(1, 2, reason) for reason in (1, 2)),
    *(_rejection(2, source, reason) for source, reason in ((1, 1), (2, 1), (3, 1))),
    _aborted(0, 0),
    *(_aborted(2, reason) for reason in (0, 1, 2, 4, 5, 6)),
    Behaviour("slow answers", (_DELIVERED,) * _RESULTS, _at_second(_answer_slowly)),
    Behaviour("no context accepted", (_REFUSED,) * _RESULTS, _only([])),
    Behaviour("only implicit VR", (_DELIVERED,) * _RESULTS, _only(syntaxes=[ImplicitVRLittleEndian])),
    _instead("connection reset", _RETRIED, _reset),
    _answering("closed without an answer", _RETRIED, b""),
    _answering("another protocol", _RETRIED, b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    _answering("malformed answer", _RETRIED, b"\x02\x00\x00\x00\x00\x0a" + b"\xff" * 10),
)


def statuses(folder: Path, rounds: int) -> Outcome:
    """One destination for each of the first ``rounds`` behaviours, at the same time; then all behave."""
    behaviours = BEHAVIOURS[:rounds]
    ports = {f"d{number}": free_port() for number in range(len(behaviours))}
    times = {"connect_timeout_s": _SILENCE_S, "response_timeout_s": _SILENCE_S}
    host = {"host": "127.0.0.1", "ae_title": "ARCHIVE", **times}
    changes = {
        "destinations": {name: {**host, "port": port} for name, port in ports.items()},
        "delivery": {"first_retry_s": 1, "longest_retry_s": 2, "refused_attempts": 1},
    }
    archives = {name: Archive() for name in ports}
    violations: list[str] = []
    with RunningNode(folder / "node", ports, changes) as node, ExitStack() as stack:
        results = _prepared(node, folder)
        with ExitStack() as faulty:
            for (name, port), behaviour in zip(ports.items(), behaviours, strict=True):
                second = results[name][1].sop_instance_uid
                faulty.enter_context(behaviour.serving(port, archives[name], second))
            node.start("work")
            first = _first_outcomes(node, results)
        for name, behaviour in zip(ports, behaviours, strict=True):
            became = tuple(first[name, result.sop_instance_uid] for result in results[name])
            if became != behaviour.becomes:
                violations.append(f"{behaviour.name}: {became}, expected {behaviour.becomes}")
        arrived = {name: dict(archive.times) for name, archive in archives.items()}
        for name, port in ports.items():
            stack.enter_context(archives[name].serving(port))
        violations += _after_recovery(node, len(behaviours))
        violations += node.faults(())
    for name, behaviour in zip(ports, behaviours, strict=True):
        violations += _copies(behaviour.name, archives[name], results[name], first, name, arrived[name])
    counts = {kind: sum(outcome == kind for outcome in first.values()) for kind in (_DELIVERED, _RETRIED, _REFUSED)}
    seen = {f"{kind} at first": count for kind, count in counts.items()}
    return Outcome({"behaviours": len(behaviours), "results": len(first)}, seen, tuple(violations))


def _prepared(node: RunningNode, folder: Path) -> dict[str, list[ResultInstance]]:
    """Give each destination a job whose results are encoded, and wait for their delivery."""
    spool, ledger = open_store(node.settings)
    names = sorted(node.settings.destinations, key=lambda name: int(name[1:]))
    receive(spool, ledger, folder / "ct", 1)
    decisions = [Decision(name, "tissue", {name: ResultRequest()}, 0) for name in names]
    results = _encoded(spool, ledger, folder, decisions)
    ledger.close()
    return results


def _encoded(
    spool: Spool, ledger: Ledger, folder: Path, decisions: Sequence[Decision]
) -> dict[str, list[ResultInstance]]:
    """Route the received series to ``decisions`` and encode four results for each; by the name of the rule."""
    (revision,) = ledger.arrivals.due_revisions(now_utc() + timedelta(days=1))
    assert ledger.arrivals.complete(revision, Completion(complete=True, reason="as prepared"), now_utc())
    (whole,) = ledger.routing.due_revisions()
    ledger.routing.route(whole, decisions, None, now_utc())
    made: dict[str, list[ResultInstance]] = {}
    for number, decision in enumerate(decisions):
        claimed = ledger.jobs.claim(WorkerName.own(), now_utc(), now_utc() + timedelta(hours=1))
        assert claimed is not None
        (name,) = claimed.requests
        files = [
            make_result(
                folder,
                number * _RESULTS + place,
                kind=ResultKind.REPORT if place == _RESULTS - 1 else ResultKind.SEGMENTATION,
                megabytes=0.004,
            )
            for place in range(_RESULTS)
        ]
        stored = spool.write_results(
            EncodedResult(
                each.kind, each.sop_class_uid, each.sop_instance_uid, each.series_instance_uid,
                each.transfer_syntax_uid, each.path.read_bytes(), (name,),
            )
            for each in files
        )  # fmt: skip
        for each in files:
            each.path.unlink()
        assert ledger.jobs.encoded(claimed, stored, _IDENTITY, None, {}, now_utc())
        made[decision.rule or ""] = [instance for instance, _ in stored]
    return made


def _first_outcomes(node: RunningNode, results: Mapping[str, Sequence[ResultInstance]]) -> dict[tuple[str, str], str]:
    """What the log says of the first attempt for each result."""
    wanted = {(name, result.sop_instance_uid) for name, own in results.items() for result in own}

    def found() -> dict[tuple[str, str], str]:
        outcomes: dict[tuple[str, str], str] = {}
        for line in node.log_lines():
            if line["event"] == "delivery":
                other = _REFUSED if line["next_attempt_at"] is None else _RETRIED
                key = (line["destination"], line["sop_instance"])
                outcomes.setdefault(key, _DELIVERED if line["delivered"] else other)
        return outcomes

    wait_for(lambda: found().keys() >= wanted, _LIMIT_S, "each result was offered once", every_s=0.3)
    return found()


def _after_recovery(node: RunningNode, count: int) -> list[str]:
    """What waits goes out by itself, and what failed when a person asks for it; what did not."""
    _, ledger = open_store(node.settings)
    try:

        def none_waits() -> bool:
            return all(job.state in (JobState.DELIVERED, JobState.FAILED) for job in ledger.overview.jobs(1000))

        wait_for(none_waits, _LIMIT_S, "no result waits", every_s=0.3)
        for job in ledger.overview.jobs(1000):
            if job.state == JobState.FAILED:
                ledger.jobs.retry(job.id, now_utc())
        wait_for(none_waits, _LIMIT_S, "no result waits after the failed ones were tried again", every_s=0.3)
        delivered = sum(job.state == JobState.DELIVERED for job in ledger.overview.jobs(1000))
    except TooLate as late:
        return [str(late)]
    finally:
        ledger.close()
    return [] if delivered == count else [f"{delivered} of {count} jobs are DELIVERED"]


def _copies(
    behaviour: str,
    archive: Archive,
    results: Sequence[ResultInstance],
    first: Mapping[tuple[str, str], str],
    name: str,
    arrived: Mapping[str, int],
) -> list[str]:
    """Whether an archive has each result, as one object, and got none again of which the node knew."""
    wrong = []
    for number, result in enumerate(results, 1):
        uid = result.sop_instance_uid
        if len(archive.digests[uid]) != 1:
            wrong.append(f"{behaviour}: {len(archive.digests[uid])} objects with the UID of result {number}")
        if first[name, uid] == _DELIVERED and archive.times[uid] != arrived[uid]:
            wrong.append(f"{behaviour}: result {number} was sent again after it was delivered")
    if len(archive.digests) != len(results):
        wrong.append(f"{behaviour}: {len(archive.digests)} objects instead of {len(results)}")
    return wrong


# ---- an archive that is away for days

_AWAY_S = 72 * 3600.0
_AHEAD_NS = 60 * 1_000_000_000
"""Files get their times from the machine, and nothing may arrive in the future."""
_SWEEP_S, _SPARSE_SWEEP_S, _CLOSELY_S = 60.0, 300.0, 1800.0
"""Sweeps are simulated closely in the first half hour, and in between only as often as attempts are seldom."""
_RETURN_LIMIT_S = 1800.0
_ALARM_LIMIT_S = 15 * 60 + 2 * _SWEEP_S
_WAYS_TO_BE_AWAY: tuple[bytes | None, ...] = (None, struct.pack(">BxIxBBB", 3, 4, 2, 3, 2), b"")
"""One after the other: its port is closed; it rejects associations transiently (PS3.8 table 9-21); it hangs up."""


class _SimulatedClock(Clock):
    """Time passes when it is told to."""

    def __init__(self) -> None:
        self.passed_s = 0.0
        self._booted_s = 0.0
        self._boots = 0
        self._started_ns = time.time_ns() + _AHEAD_NS

    def now_ns(self) -> int:
        return self._started_ns + int(self.passed_s * 1e9)

    def uptime_s(self) -> float:
        return self.passed_s - self._booted_s

    def boot_id(self) -> str:
        return f"boot-{self._boots}"

    def restart(self) -> None:
        """The machine starts again."""
        self._booted_s, self._boots = self.passed_s, self._boots + 1


class _Delivery:
    """What delivers the results of a node to one destination, on a ledger in memory."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder, self._port = folder, port
        self.spool = Spool(folder / "spool")
        self.ledger = Ledger(f"sqlite:///{folder / 'ledger.sqlite3'}", self.spool)
        abilities, worker = Abilities("NODE"), WorkerName.own()
        jobs, elapsed = self.ledger.jobs, self.ledger.elapsed
        self._delivering = Delivering(
            self.ledger.deliveries,
            elapsed,
            {"pacs": destination(port)},
            DeliverySettings(),
            abilities,
            "NODE",
            worker,
            jobs,
            3,
        )

    def started_again(self) -> _Delivery:
        """As it is after a restart of the machine."""
        self.ledger.close()
        return _Delivery(self._folder, self._port)

    def sweep(self) -> None:
        self._delivering.recover()
        self._delivering.deliver("pacs")

    def attempts(self) -> int:
        with self.ledger.database.read() as db:
            return int(db.execute(select(func.sum(delivery.c.attempts))).scalar_one())

    def states(self) -> dict[str, int]:
        with self.ledger.database.read() as db:
            rows = db.execute(select(delivery.c.state, func.count().label("count")).group_by(delivery.c.state)).all()
        return {str(row.state): row.count for row in rows}

    def is_alarmed(self) -> bool:
        facts = self.ledger.alarms.facts(now_utc())
        return any(
            alarm.kind is Kind.DESTINATION_AWAY
            for alarm in alarms_of(facts, None, AlarmSettings(), ["pacs"], now_utc())
        )


def away(_: Path, rounds: int) -> Outcome:
    """An archive is away for 72 hours while ``rounds`` results wait for it, and the machine restarts each day."""
    port, archive, told = free_port(), Archive(), _SimulatedClock()
    alarm_s = math.inf
    with in_memory() as folder, clock.told_by(told), without_log():
        room = _Delivery(folder, port)
        receive(room.spool, room.ledger, folder / "ct", 1)
        rules = [Decision(f"rule {number}", "tissue", {"pacs": ResultRequest()}, 0) for number in range(rounds // 4)]
        _encoded(room.spool, room.ledger, folder, rules)
        for answer in _WAYS_TO_BE_AWAY:
            with raw_peer(_sending(answer), port) if answer is not None else nullcontext():
                end_s = told.passed_s + _AWAY_S / len(_WAYS_TO_BE_AWAY)
                while told.passed_s < end_s:
                    room.sweep()
                    if math.isinf(alarm_s) and room.is_alarmed():
                        alarm_s = told.passed_s
                    told.passed_s += _SWEEP_S if told.passed_s < _CLOSELY_S else _SPARSE_SWEEP_S
            told.restart()
            room = room.started_again()
        attempts, states_before, returned_s = room.attempts(), room.states(), told.passed_s
        with archive.serving(port):
            while room.states().get(DeliveryState.WAITING) and told.passed_s < returned_s + 86400:
                room.sweep()
                told.passed_s += _SWEEP_S
        drained_s, states = told.passed_s - returned_s, room.states()
        room.ledger.close()
    results = rounds // 4 * _RESULTS
    lost, twice = results - len(archive.digests), sum(times > 1 for times in archive.times.values())
    broken = (
        (lost or twice, f"{lost} results are not there, {twice} came more than once"),
        (states_before != {DeliveryState.WAITING: results}, f"deliveries before the return: {states_before}"),
        (states != {DeliveryState.DELIVERED: results}, f"deliveries at the end: {states}"),
        (drained_s > _RETURN_LIMIT_S, f"the last result arrived {drained_s:g} s after the return"),
        (alarm_s > _ALARM_LIMIT_S, f"alarm after {alarm_s:g} s"),
    )
    return Outcome(
        {"results": results, "simulated hours": round(_AWAY_S / 3600), "attempts while away": attempts},
        {"lost": lost, "twice": twice, "simulated s until all arrived": drained_s, "alarm after s": alarm_s},
        tuple(text for is_broken, text in broken if is_broken),
    )


CASES = (
    FaultCase(
        name="destination-statuses",
        fault="Archives answer with every status and every rejection, abort, are silent, slow, or lose an answer.",
        holds="Each result is delivered, tried again, or shown as FAILED as its answer says; the others go on; "
        "afterwards each archive has each result once.",
        answers=("P2", "P3", "P4", "P5"),
        run=statuses,
        rounds=len(BEHAVIOURS),
        rounds_in_tests=12,
    ),
    FaultCase(
        name="destination-away-72-hours",
        fault="An archive is away for 72 simulated hours (port closed, busy, hanging up) while 500 results wait, and "
        "the machine restarts.",
        holds="0 lost, 0 twice, an alarm within 15 minutes, and all delivered within 30 minutes of its return.",
        answers=("P1",),
        run=away,
        rounds=500,
        rounds_in_tests=8,
    ),
)
