"""What must hold, seen from outside: the auditor knows only what senders were told and what destinations received."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter, defaultdict
from enum import Enum, auto
from typing import TYPE_CHECKING

from dicom_node.standard.part10 import HEAD_LENGTH, data_set_start

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dicom_node.operate.ledger_check import LedgerReport
    from tests.simulation.images import Image
    from tests.simulation.peers import Archive
    from tests.simulation.world import World

_Key = tuple[str, str]


class Told(Enum):
    """What the sender of an image knows."""

    NOTHING = auto()
    STORED = auto()
    REFUSED = auto()


class Violation(BaseException):
    """Something was lost, or is there twice; not an Exception, so that no production code handles it."""


class Auditor:
    """Keeps what each sender was told, and compares."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._sent: dict[_Key, list[tuple[Image, Told]]] = defaultdict(list)
        self.told: Counter[Told] = Counter()

    def sends(self, image: Image) -> None:
        """A sender begins; whatever happens, it may be stored now."""
        self._sent[image.key].append((image, Told.NOTHING))
        self.told[Told.NOTHING] += 1

    def answered(self, image: Image, *, stored: bool) -> None:
        """The answer arrived."""
        told = Told.STORED if stored else Told.REFUSED
        self._sent[image.key][-1] = (image, told)
        self.told[Told.NOTHING] -= 1
        self.told[told] += 1

    def nothing_is_lost(self) -> None:
        """Of each instance there is what was acknowledged last, or what came after it without an answer; at any time.

        Raises:
            Violation: it is not so.
        """
        rows: dict[_Key, list[tuple[str, str, int]]] = defaultdict(list)
        with sqlite3.connect(self._world.ledger_file) as db:
            for series, uid, digest, name, current in db.execute(
                "SELECT series_instance_uid, sop_instance_uid, dataset_sha256, spool_name, current FROM instance"
            ):
                rows[series, uid].append((digest, name, current))
        db.close()
        for key, sent in self._sent.items():
            self._check_instance(key, sent, rows[key])

    def _check_instance(self, key: _Key, sent: list[tuple[Image, Told]], rows: list[tuple[str, str, int]]) -> None:
        for image, told in sent:
            if told is Told.STORED:
                names = [name for digest, name, _ in rows if digest == image.sha256]
                _hold(names, f"{key[1]}: acknowledged bytes have no row")
                _hold(
                    any(self._digest(name) == image.sha256 for name in names),
                    f"{key[1]}: acknowledged bytes are not in their file",
                )
        acknowledged = [place for place, (_, told) in enumerate(sent) if told is Told.STORED]
        first = acknowledged[-1] if acknowledged else 0
        allowed = {image.sha256 for image, told in sent[first:] if told is not Told.REFUSED}
        current = [digest for digest, _, is_current in rows if is_current]
        _hold(len(current) <= 1, f"{key[1]}: {len(current)} current rows")
        _hold(
            set(current) <= allowed and (current or not acknowledged),
            f"{key[1]}: the current bytes are not those that were acknowledged last",
        )

    def _digest(self, spool_name: str) -> str | None:
        try:
            content = (self._world.platter.root / spool_name).read_bytes()
            return hashlib.sha256(content[data_set_start(content[:HEAD_LENGTH]) :]).hexdigest()
        except (OSError, ValueError):
            return None

    def all_is_done(self, archives: Mapping[str, Archive], report: LedgerReport) -> None:
        """At the end: the results of the newest content of each series are everywhere once, and the ledger is sound.

        Raises:
            Violation: it is not so.
        """
        self.nothing_is_lost()
        _hold(report.is_sound, f"ledger check: {[(v.kind, v.subject, v.detail) for v in report.examples]}")
        for series, inputs in self._current_inputs():
            for name, archive in archives.items():
                self._check_results(series, inputs, name, archive)
        self._check_attempts()

    def _current_inputs(self) -> Iterator[tuple[str, list[list[str]]]]:
        with sqlite3.connect(self._world.ledger_file) as db:
            found: dict[str, list[list[str]]] = defaultdict(list)
            for series, uid, digest in db.execute(
                "SELECT series_instance_uid, sop_instance_uid, dataset_sha256 FROM instance WHERE current"
                " ORDER BY sop_instance_uid"
            ):
                found[series].append([uid, digest])
        db.close()
        yield from found.items()

    def _check_results(self, series: str, inputs: list[list[str]], name: str, archive: Archive) -> None:
        held = [json.loads(content) for content in archive.objects.values()]
        of_series = [each for each in held if each["series"] == series]
        _hold(of_series, f"{name} has no result of {series}")
        newest = max(each["revision"] for each in of_series)
        kinds = Counter((each["revision"], each["kind"]) for each in of_series)
        _hold(set(kinds.values()) == {1}, f"{name} has results of {series} more than once: {kinds}")
        for each in of_series:
            if each["revision"] == newest:
                _hold(each["inputs"] == inputs, f"{name}: the newest result of {series} is not of its newest content")

    def _check_attempts(self) -> None:
        """A worker that lost its job writes nothing: the results are those of the attempt that was counted last."""
        with sqlite3.connect(self._world.ledger_file) as db:
            rows = db.execute(
                "SELECT job.id, job.attempts, result.spool_name FROM result JOIN job ON job.id = result.job_id"
            ).fetchall()
        db.close()
        for job, attempts, name in rows:
            made = json.loads((self._world.platter.root / name).read_bytes())["attempt"]
            _hold(made == attempts, f"job {job}: the results are of attempt {made}, and {attempts} were counted")


def _hold(condition: object, otherwise: str) -> None:
    if not condition:
        raise Violation(otherwise)
