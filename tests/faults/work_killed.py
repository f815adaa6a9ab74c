"""SIGKILL of the work process, its children and its supervisor, at every state of a series, its job and its results."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dicom_node.types import ResultKind
from tests.faults.archive import Archive
from tests.faults.case import FaultCase, Outcome
from tests.faults.node import (
    SUCCESS,
    Image,
    RunningNode,
    Sent,
    TooLate,
    dataset_digest,
    image_of,
    kill,
    make_series,
    wait_for,
)

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from dicom_node.types import Series

MOMENTS = ("arriving", "complete", "queued", "running", "encoded", "sending", "half delivered", "delivered")
"""States of a series in their order, as the ledger shows them from outside."""
_RANDOM = "random"
_PROCESSES = ("work", "worker", "reader", "serve")
_FIRST = (("work", "running"), ("worker", "running"), ("work", "sending"))
_STORE_S = 0.03
"""For one result; otherwise nothing could be seen of the transfer."""
_SEEN_LIMIT_S = 120.0
_DELIVERED_LIMIT_S = 180.0


@dataclass(frozen=True, slots=True)
class _Kill:
    """What is killed, and when."""

    process: str
    moment: str


def _plan(rounds: int, draw: random.Random) -> list[_Kill]:
    """Every process at every moment, and the rest at random ones; those of the supervisor last.

    A supervisor that dies while images arrive ends their association: that is a case of receiving, with two jobs.
    """
    all_kills = [
        (process, moment)
        for moment in MOMENTS
        for process in _PROCESSES
        if (process, moment) not in {*_FIRST, ("serve", "arriving")}
    ]
    chosen = [_Kill(*each) for each in (*_FIRST, *all_kills)][:rounds]
    chosen += [_Kill(draw.choice(_PROCESSES[:-1]), _RANDOM) for _ in range(rounds - len(chosen))]
    return sorted(chosen, key=lambda each: each.process == "serve")


def work_killed(folder: Path, rounds: int) -> Outcome:
    """One series in each round; it must end with its results in the archive, whatever is killed."""
    draw, archive, kills = random.Random(12), Archive(), Counter[str]()
    violations: list[str] = []

    def keep_slowly(event: Any) -> int:
        time.sleep(_STORE_S)
        return archive.keep(event)

    with archive.serving(answer=keep_slowly) as port, RunningNode(folder / "node", {"archive": port}) as node:
        roles: tuple[str, ...] = ()
        sent: list[Sent] = []
        for number, planned in enumerate(_plan(rounds, draw)):
            needed = ("serve",) if planned.process == "serve" else ("listen", "work")
            if roles != needed:
                for role in roles:
                    node.stop(role)
                roles = needed
                for role in roles:
                    node.start(role)
                node.wait_for_listener()
            series = make_series(folder / f"ct{number}")
            try:
                sent += _round(node, planned, series, kills, draw)
            except TooLate as late:
                violations.append(f"{planned.process} killed while {planned.moment}: {late}")
                break
        violations += node.faults(sent)
        violations += _wrong_results(node, archive)
    return Outcome(
        {"series": rounds, "images acknowledged": len(sent), "kills": kills.total()},
        dict(sorted(kills.items())),
        tuple(violations),
    )


def _round(node: RunningNode, planned: _Kill, series: Series, kills: Counter[str], draw: random.Random) -> list[Sent]:
    """Send a series, kill when its moment has come, start again what a supervisor would, and wait for the results."""
    told: dict[str, Sent] = {}
    images = [image_of(each.path) for each in series.instances]
    sending = threading.Thread(target=lambda: _send(node, images, told), name="sender")
    children = node.children()
    sending.start()
    try:
        with closing(_Watch(node.settings.ledger_file, series.series_instance_uid)) as watch:
            if planned.moment == _RANDOM:
                time.sleep(draw.uniform(0.0, 4.0))
            else:
                wait_for(lambda: watch.has_reached(planned.moment), _SEEN_LIMIT_S, planned.moment, watch.moment)
                if planned.moment == "running":
                    time.sleep(draw.uniform(0.0, 0.5))
            moment = watch.moment()
            if _killed(node, planned.process, children):
                kills[f"{planned.process} killed while {moment}"] += 1
            if planned.process in ("work", "serve"):
                node.start(planned.process)
            wait_for(
                lambda: watch.moment() == "delivered", _DELIVERED_LIMIT_S, "the series is delivered", node.described
            )
    finally:
        sending.join()
    return list(told.values())


def _killed(node: RunningNode, process: str, children: dict[str, list[int]]) -> bool:
    if process in ("work", "serve"):
        node.kill(process)
        return True
    found = [pid for pid in children[process] if kill(pid, process)]
    return bool(found or [pid for pid in node.children()[process] if kill(pid, process)])


def _send(node: RunningNode, images: list[Image], told: dict[str, Sent]) -> None:
    """Send until everything is acknowledged, as a modality does."""
    waiting = images
    for _ in range(100):
        for sent in node.offer(waiting):
            if sent.status == SUCCESS:
                told[sent.sop_instance_uid] = sent
        waiting = [image for image in images if image.file.sop_instance_uid not in told]
        if not waiting:
            return
        time.sleep(0.3)


class _Watch:
    """The ledger, read from outside."""

    def __init__(self, ledger_file: Path, series_instance_uid: str) -> None:
        self._db = sqlite3.connect(f"file:{ledger_file}?mode=ro", uri=True, isolation_level=None, timeout=10)
        self._series = series_instance_uid

    def close(self) -> None:
        self._db.close()

    def moment(self) -> str:
        """Where the series is: one of MOMENTS, "" before its first image, or another state of a job."""
        revisions = self._rows(
            "SELECT id, state FROM series_revision WHERE series_instance_uid = ? ORDER BY revision DESC", self._series
        )
        if not revisions:
            return ""
        number, state = revisions[0]
        if state != "ROUTED":
            return {"OPEN": "arriving", "COMPLETE": "complete"}[state]
        jobs = self._rows("SELECT id, state FROM job WHERE revision_id = ?", number)
        if not jobs:
            return "complete"
        job, state = jobs[0]
        if state != "ENCODED":
            return str(state).lower()
        deliveries = self._rows(
            "SELECT delivery.state, claimed_by FROM delivery JOIN result ON result.id = result_id WHERE job_id = ?", job
        )
        if any(state == "DELIVERED" for state, _ in deliveries):
            return "half delivered"
        return "sending" if any(claimant for _, claimant in deliveries) else "encoded"

    def has_reached(self, wanted: str) -> bool:
        moment = self.moment()
        return moment != "" and (moment not in MOMENTS or MOMENTS.index(moment) >= MOMENTS.index(wanted))

    def _rows(self, query: str, value: object) -> list[tuple[Any, ...]]:
        return self._db.execute(query, (value,)).fetchall()


def _wrong_results(node: RunningNode, archive: Archive) -> list[str]:
    """Whether each series has one job, and the archive has exactly its results, byte for byte."""
    wrong, expected = [], set()
    spool, ledger = node.read_ledger()
    with closing(ledger):
        jobs = ledger.overview.jobs(10_000)
        for uid, count in Counter(job.series_instance_uid for job in jobs).items():
            if count != 1:
                wrong.append(f"series {uid} has {count} jobs")
        sizes = Counter[int]()
        for job in jobs:
            results = ledger.overview.job(job.id).results
            sizes[len(results)] += 1
            for result in results:
                expected.add(result.sop_instance_uid)
                digest = dataset_digest(spool.path(result.spool_name))
                if result.kind is ResultKind.NOTICE or archive.digests.get(result.sop_instance_uid) != {digest}:
                    wrong.append(
                        f"job {job.id}: {result.kind} {result.sop_instance_uid} is not at the archive as it is here"
                    )
    if len(sizes) > 1:
        wrong.append(f"jobs have different numbers of results: {dict(sizes)}")
    if extra := set(archive.digests) - expected:
        wrong.append(f"{len(extra)} objects at the archive are of no job")
    return wrong


CASES = (
    FaultCase(
        name="work-killed",
        fault="SIGKILL of work, of its inference child, its reading child and its supervisor, as soon as the ledger "
        "shows each state of a series, its job and its results, and at random moments.",
        holds="Every series ends with one job and one set of results at the archive, which gets nothing else; nobody "
        "has to help.",
        answers=("J1", "O5"),
        run=work_killed,
        rounds=36,
        rounds_in_tests=2,
    ),
)
