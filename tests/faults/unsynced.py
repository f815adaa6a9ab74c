"""Power cuts of a real listener: of what it wrote to its disk, only what it had synced is left.

A shim records every change that the listener and its SQLite make, in their order, with the beginning and the end of
every sync (disk_shim.c). A power cut at any place in this record leaves what a sync that had ended covered, and of the
rest nothing, all, or some of it: so is the data folder made that the next start of the node finds.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from dicom_node.operate.ledger_check import check_ledger
from dicom_node.receive.adopt import adopt_unclaimed
from dicom_node.store.ledger import Ledger
from dicom_node.store.spool import Spool
from tests.faults.case import FaultCase, Outcome
from tests.faults.node import SUCCESS, RunningNode, Sent, image_of, kept_images, make_series
from tests.faults.shim import Shim
from tests.faults.surroundings import in_memory, without_log

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

Rest = Literal["none", "all", "some"]
"""How much is left of what was not synced."""
_RESTS: tuple[Rest, ...] = ("none", "all", "some")
_IMAGES = 12
_CUTS_PER_RECORDING, _CUTS_ON_LYING_DISK = 100, 3


@dataclass(frozen=True, slots=True)
class Change:
    """One record of the shim; ``kind`` is the first letter of write, truncate, create, rename, unlink, mkdir, and of
    the begin and the end of a sync.
    """

    kind: str
    offset: int
    path: str
    other: str
    content: bytes
    ends_at: int
    """In the record, in bytes."""


@dataclass(eq=False, slots=True)
class _File:
    """What was written to it, in order, and how many of these writes are durable."""

    is_folder: bool = False
    writes: list[Change] = field(default_factory=list)
    synced: int = 0


@dataclass(frozen=True, slots=True)
class _Naming:
    """A change of the names in a folder: ``gone`` is no more, ``path`` is ``file``."""

    gone: str | None
    path: str | None
    file: _File | None


class RecordedDisk:
    """The files below a folder, as they are and as a power cut would leave them.

    ``loses_names``: no sync of a folder has an effect, as on a disk that lies; for the proof that it is noticed.
    """

    def __init__(self, root: str, *, loses_names: bool = False) -> None:
        self._root = root
        self._loses_names = loses_names
        self._files: dict[str, _File] = {root: _File(is_folder=True)}
        self._namings: list[tuple[str, _Naming]] = []
        """With the folder of each."""
        self._durable_namings: Counter[str] = Counter()
        self._began: dict[int, tuple[str, _File, int]] = {}

    def apply(self, change: Change) -> None:
        """The next change."""
        match change.kind:
            case "c" | "m":
                self._name(_Naming(None, change.path, _File(is_folder=change.kind == "m")))
            case "r":
                self._name(_Naming(change.path, change.other, self._files[change.path]))
            case "u":
                self._name(_Naming(change.path, None, None))
            case "w" | "t" if change.path in self._files:  # or it was removed while it was open
                self._files[change.path].writes.append(change)
            case "b":
                if (file := self._files.get(change.path)) is not None:
                    count = self._count_in(change.path) if file.is_folder else len(file.writes)
                    self._began[change.offset] = (change.path, file, count)
            case "e":
                self._end_sync(change.offset)

    def _name(self, naming: _Naming) -> None:
        folder = (naming.path or naming.gone or "").rpartition("/")[0]
        self._namings.append((folder, naming))
        if naming.gone is not None:
            self._files.pop(naming.gone, None)
        if naming.path is not None and naming.file is not None:
            self._files[naming.path] = naming.file

    def _end_sync(self, number: int) -> None:
        path, file, count = self._began.pop(number, ("", None, 0))
        if file is None:
            return
        if not file.is_folder:
            file.synced = max(file.synced, count)
        elif not self._loses_names:
            self._durable_namings[path] = max(self._durable_namings[path], count)

    def _count_in(self, folder: str) -> int:
        return sum(each == folder for each, _ in self._namings)

    def cut(self, to: Path, rest: Rest, draw: random.Random) -> None:
        """Make the folder ``to`` what a power cut leaves."""
        names: dict[str, _File] = {self._root: self._files[self._root]}
        seen: Counter[str] = Counter()
        for folder, naming in self._namings:
            seen[folder] += 1
            if seen[folder] > self._durable_namings[folder] and not _is_left(rest, draw):
                continue
            if naming.gone is not None:
                names.pop(naming.gone, None)
            if naming.path is not None and naming.file is not None:
                names[naming.path] = naming.file
        to.mkdir(parents=True)
        for path, file in sorted(names.items()):
            if path == self._root or any(parent not in names for parent in _parents(path, self._root)):
                continue
            place = to / path[len(self._root) + 1 :]
            if file.is_folder:
                place.mkdir()
            else:
                place.write_bytes(_content(file, rest, draw))


def _is_left(rest: Rest, draw: random.Random) -> bool:
    return rest == "all" or (rest == "some" and draw.random() < 0.5)


def _parents(path: str, root: str) -> Iterator[str]:
    while (path := path.rpartition("/")[0]) != root:
        yield path


def _content(file: _File, rest: Rest, draw: random.Random) -> bytes:
    content = bytearray()
    for number, change in enumerate(file.writes):
        if number >= file.synced and not _is_left(rest, draw):
            continue
        if change.kind == "t":
            content = content[: change.offset].ljust(change.offset, b"\0")
        else:
            end = change.offset + len(change.content)
            content = content.ljust(end, b"\0")
            content[change.offset : end] = change.content
    return bytes(content)


def changes_of(record: Path) -> Iterator[Change]:
    """The records of the shim."""
    content, place = record.read_bytes(), 0
    while place < len(content):
        line_ends = content.index(b"\n", place)
        kind, *numbers = content[place:line_ends].decode().split()
        offset, length, first, second = map(int, numbers)
        length = length if kind == "w" else 0
        start = line_ends + 1
        place = start + first + second + length
        yield Change(
            kind,
            offset,
            content[start : start + first].decode(),
            content[start + first : start + first + second].decode(),
            content[start + first + second : place],
            place,
        )


def unsynced_writes_dropped(folder: Path, rounds: int) -> Outcome:
    """Receive, and cut the power at each answer and at random places; receive again for every hundred power cuts."""
    recordings = -(-rounds // _CUTS_PER_RECORDING)
    losses: list[str] = []
    tried: Counter[str] = Counter()
    for number in range(recordings):
        recorded = folder / str(number)
        recorded.mkdir()
        root, changes, answered = receive_recorded(recorded)
        cuts = min(_CUTS_PER_RECORDING, rounds - number * _CUTS_PER_RECORDING)
        losses += lost(root, changes, answered, cuts, seed=number)
        if not lost(root, changes, answered, _CUTS_ON_LYING_DISK, seed=number, loses_names=True):
            losses.append("names that no sync made durable were lost, and that was not noticed")
        tried["images acknowledged"] += len(answered)
        tried["changes recorded"] += len(changes)
    tried["power cuts"] = rounds
    return Outcome(tried, {"violations": len(losses)}, tuple(losses[:20]))


def receive_recorded(folder: Path) -> tuple[str, list[Change], list[tuple[int, Sent]]]:
    """A listener receives images on a disk that is recorded.

    Returns its data folder, the changes, and each acknowledged image with the length of the record at its answer.
    """
    shim, data = Shim.built(folder), folder / "node" / "data"
    answered: list[tuple[int, Sent]] = []
    series = make_series(folder / "ct", planes=_IMAGES, columns=16)
    with RunningNode(folder / "node", {}, None, shim.environment(data, is_recorded=True)) as node:
        node.start("listen")
        node.wait_for_listener()
        for instances in (series.instances[: _IMAGES // 2], series.instances[_IMAGES // 2 :], series.instances[:2]):
            told = node.told([image_of(each.path) for each in instances])
            answered += [(shim.record.stat().st_size, sent) for sent in told if sent.status == SUCCESS]
        node.kill("listen")
    return str(data), list(changes_of(shim.record)), answered


def lost(
    root: str,
    changes: Sequence[Change],
    answered: Sequence[tuple[int, Sent]],
    cuts: int,
    seed: int,
    *,
    loses_names: bool = False,
) -> list[str]:
    """Cut the power at ``cuts`` places of the record; what the next start finds lost or wrong."""
    draw, found = random.Random(seed), []
    first = answered[0][0]
    places = {ends_at for ends_at, _ in answered}
    later = [change.ends_at for change in changes if change.ends_at >= first and change.ends_at not in places]
    at = sorted(draw.sample(sorted(places), min(len(places), cuts)))
    at = sorted([*at, *draw.sample(later, min(len(later), max(cuts - len(at), 0)))])
    disk, waiting = RecordedDisk(root, loses_names=loses_names), list(at)
    with in_memory() as memory, without_log():
        for change in changes:
            while waiting and change.ends_at > waiting[0]:
                place = waiting.pop(0)
                rest = _RESTS[len(waiting) % len(_RESTS)]
                disk.cut(memory / "data", rest, draw)
                acknowledged = [sent for ends_at, sent in answered if ends_at <= place]
                found += [
                    f"power cut at {place}, {rest} of the rest left: {what}"
                    for what in _found_wrong(memory / "data", acknowledged)
                ]
                shutil.rmtree(memory / "data")
            disk.apply(change)
    return found


def _found_wrong(data: Path, acknowledged: Sequence[Sent]) -> list[str]:
    """What the next start of the node makes of its data folder."""
    spool = Spool(data / "spool")
    with closing(Ledger(f"sqlite:///{data / 'ledger.sqlite3'}", spool)) as ledger:
        adopt_unclaimed(spool, ledger.arrivals, ledger.retention.claims, older_than_s=-1)
        report = check_ledger(ledger.consistency, spool, deep=True)
        kept = kept_images(ledger)
    wrong = [f"{each.kind} {each.subject}: {each.detail}" for each in report.examples]
    wrong += [
        f"{sent.sop_instance_uid} was acknowledged and is not there"
        for sent in acknowledged
        if (sent.sop_instance_uid, sent.dataset_sha256) not in kept
    ]
    return wrong


CASES = (
    FaultCase(
        name="unsynced-writes-dropped",
        fault="Power cuts of a real listener with a real SQLite, at the moment of each answer and at any other: of all "
        "its writes and names, as a shim recorded them, what was synced is left, and none, all or some of the rest.",
        holds="Nothing acknowledged is lost, and the ledger is sound.",
        answers=("R2",),
        run=unsynced_writes_dropped,
        rounds=300,
        rounds_in_tests=20,
    ),
)
