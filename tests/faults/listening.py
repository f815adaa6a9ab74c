"""A node in processes of its own, senders that remember what they were told, and what is left in spool and ledger."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom.sop_class import Verification
from sqlalchemy import select

from dicom_node.operate.ledger_check import UNCLAIMED_AGE_S, check_ledger
from dicom_node.receive.adopt import Adoption, adopt_unclaimed
from dicom_node.settings import load_settings
from dicom_node.store.ledger import Ledger
from dicom_node.store.schema import association, instance
from dicom_node.store.spool import Spool
from tests.integration.receive.peer import Peer, echo_command, pdu, pdv_command, pdv_data, store_command
from tests.support.ports import free_port
from tests.support.sent_slices import ct_slice, dataset_digest, encoded

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Row

ROOT = Path(__file__).resolve().parents[2]
SENDER, NODE = "SENDER", "NODE"
LIMIT_S = 120.0
"""Only reached if something hangs: a loaded machine needs many seconds to start a process."""
_LOOK_AGAIN_S = 0.005
_LARGEST_FRAGMENT = 16 * 1024
_SOP_UID, _SERIES_UID = "1.2.3.999999999999", "1.2.4.999999999999"
_FIRST = 10**11
_CRASHES = ("association.crashed", "reception.crashed", "listener.no_thread", "listener.accept_failed", "Traceback")


class Node:
    """The node of one folder: its configuration and its processes."""

    def __init__(
        self, folder: Path, sources: Sequence[dict[str, object]] = ({"ae_title": SENDER},), **receive: float
    ) -> None:
        """``receive``: settings of the listener, besides those that keep the case apart from the machine's disk."""
        folder.mkdir()
        self.port = free_port()
        self.config, self.log = folder / "node.yaml", folder / "log"
        settings = {
            "node": {"ae_title": NODE, "port": self.port, "data_folder": str(folder / "data")},
            "receive": {"minimum_free_disk_bytes": 0, **receive},
            "operate": {"disk_stop_percent": 100, "disk_resume_percent": 100},
            "sources": list(sources),
            "models": {"tissue": {"kind": "tissue"}},
        }
        self.config.write_text(yaml.safe_dump(settings))
        nothing = {"name": "nothing", "model": "tissue", "when": [{"attribute": "Modality", "equals": "NONE"}]}
        (folder / "rules.yaml").write_text(yaml.safe_dump({"rules": [nothing]}))
        self.settings = load_settings(self.config)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, command: str = "listen") -> float:
        """Start ``dicom-node listen`` or ``serve``; returns the seconds until it answers a C-ECHO."""
        begun = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dicom_node.cli", "--config", str(self.config), command],
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        self.wait_until_accepting()
        return time.monotonic() - begun

    def wait_until_accepting(self) -> None:
        """Wait until a C-ECHO is answered."""
        ends = time.monotonic() + LIMIT_S
        while not self.answers():
            if self._running().poll() is not None or time.monotonic() > ends:
                raise AssertionError(f"the node does not accept associations: {self.log.read_text()[-2000:]}")
            time.sleep(_LOOK_AGAIN_S)

    def answers(self) -> bool:
        """Whether a C-ECHO is answered now."""
        try:
            echo(self.port)
        except (OSError, AssertionError):
            return False
        return True

    def kill(self) -> None:
        """SIGKILL for the process that was started."""
        self._running().kill()
        self._running().wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self._running().terminate()
        return self._running().wait(LIMIT_S)

    def listener(self) -> int:
        """The PID of the listener."""
        of_listener = [pid for pid in self._with_children() if b"listen" in _command_line(pid).split(b"\0")]
        return of_listener[0]

    def kill_all(self) -> None:
        """SIGKILL for everything that still runs; for the end of a case, however it ends."""
        if self.process is not None and self.process.poll() is None:
            for pid in reversed(self._with_children()):
                os.kill(pid, signal.SIGKILL)
            self.process.wait()

    def memory_mb(self, what: str = "VmRSS") -> float:
        """Of the listener; ``what``: VmRSS, or VmHWM for the most that it ever had."""
        return _memory_mb(self.listener(), what)

    def crashes(self) -> list[str]:
        """Lines of the log that only a defect of the node writes."""
        return [line[:300] for line in self.log.read_text().splitlines() if any(each in line for each in _CRASHES)]

    def _running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None
        return self.process

    def _with_children(self) -> list[int]:
        pid = self._running().pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _memory_mb(pid: int, what: str) -> float:
    (line,) = (each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith(f"{what}:"))
    return int(line.split()[1]) * 1024 / 1e6


# ---- peers


def echo(port: int, calling: str = SENDER) -> float:
    """The seconds of a C-ECHO on an association of its own, from the connection to the release.

    Raises:
        OSError, AssertionError: it is not answered.
    """
    begun = time.monotonic()
    peer = Peer(port, calling=calling, classes=(Verification,))
    try:
        peer.send(pdv_command(1, echo_command()))
        assert peer.status() == 0
        peer.send(pdu(5, bytes(4)))
        assert peer.read_pdu()[0] == 6
    finally:
        peer.close()
    return time.monotonic() - begun


class Echoes(threading.Thread):
    """A C-ECHO after the other, each on an association of its own, until it is stopped."""

    def __init__(self, port: int, pause_s: float) -> None:
        super().__init__(daemon=True)
        self.seconds: list[float] = []
        self.failures: list[str] = []
        self._port, self._pause_s = port, pause_s
        self._stopped = threading.Event()

    def run(self) -> None:
        while True:
            try:
                self.seconds.append(echo(self._port))
            except (OSError, AssertionError) as error:
                self.failures.append(f"C-ECHO {len(self.seconds)} failed: {error!r}")
            if self._stopped.wait(self._pause_s):
                return

    def stop(self) -> None:
        self._stopped.set()
        self.join(LIMIT_S)


@dataclass
class Told:
    """What senders sent whole, by SOP Instance UID and SHA-256, and of which they were told that it is stored."""

    sent: set[tuple[str, str]] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)

    def add(self, others: Iterable[Told]) -> None:
        """Take over what other senders know."""
        for other in others:
            self.sent |= other.sent
            self.acknowledged |= other.acknowledged


class Slices:
    """CT slices without end, each with a SOP Instance UID and a first pixel of its own; for any number of threads."""

    def __init__(self, rows: int = 64) -> None:
        dataset = ct_slice(1, _SERIES_UID, rows)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = _SOP_UID
        dataset.PixelData = _SOP_UID.encode() + dataset.PixelData[len(_SOP_UID) :]
        self._template = encoded(dataset, ExplicitVRLittleEndian)
        self._numbers = itertools.count(_FIRST)
        self.pixels_at = len(self._template) - len(dataset.PixelData)

    def next(self, series: int) -> tuple[str, bytes]:
        """The SOP Instance UID and the data set of the next slice, in a series of this number."""
        uid = f"1.2.3.{next(self._numbers)}"
        series_uid = f"1.2.4.{_FIRST + series}"
        dataset = self._template.replace(_SOP_UID.encode(), uid.encode())
        return uid, dataset.replace(_SERIES_UID.encode(), series_uid.encode())


def store(peer: Peer, uid: str, dataset: bytes) -> int:
    """The status of a C-STORE."""
    peer.send(pdv_command(1, store_command(CTImageStorage, uid)) + in_pdus(dataset))
    return peer.status()


def in_pdus(dataset: bytes, *, whole: bool = True) -> bytes:
    """A data set in P-DATA-TF PDUs; without its last fragment unless it is ``whole``."""
    starts = range(0, len(dataset), _LARGEST_FRAGMENT)
    return b"".join(pdv_data(1, dataset[k : k + _LARGEST_FRAGMENT], last=whole and k == starts[-1]) for k in starts)


class Sender(threading.Thread):
    """Sends new slices of one series until the connection breaks or it is stopped."""

    def __init__(self, port: int, slices: Slices, series: int) -> None:
        super().__init__(daemon=True)
        self.told, self.refused = Told(), 0
        self._port, self._slices, self._series = port, slices, series
        self._stopped = threading.Event()

    def run(self) -> None:
        try:
            peer = Peer(self._port)
            while not self._stopped.is_set():
                uid, dataset = self._slices.next(self._series)
                self.told.sent.add((uid, hashlib.sha256(dataset).hexdigest()))
                if store(peer, uid, dataset) == 0:
                    self.told.acknowledged.add(uid)
                else:
                    self.refused += 1
            peer.close()
        except (OSError, AssertionError):
            return

    def stop(self) -> None:
        """End after the instance that is being sent."""
        self._stopped.set()
        self.join(LIMIT_S)


# ---- what is left


@dataclass(frozen=True)
class Left:
    """What spool and ledger have, against what senders know."""

    rows: int
    lost: tuple[str, ...]
    """Acknowledged, and without a row or a file."""
    other_bytes: tuple[str, ...]
    """Rows, or files with a row, whose bytes nobody sent for that SOP Instance."""
    half: tuple[str, ...]
    """Files under a final name, without a row, whose bytes nobody sent whole."""
    unsound: tuple[str, ...]
    """What ``ledger check --deep`` finds."""

    def violations(self) -> list[str]:
        """A sentence for each."""
        return [
            *(f"{each} was acknowledged and is lost" for each in self.lost),
            *(f"{each} has bytes that nobody sent" for each in self.other_bytes),
            *(f"{each} is visible and no instance that was sent" for each in self.half),
            *(f"ledger check: {each}" for each in self.unsound),
        ]


def left(node: Node, told: Told, *, unclaimed_age_s: float = UNCLAIMED_AGE_S) -> Left:
    """Compare every row and every file with what the senders know, and run the check of the ledger."""
    spool, ledger = _opened(node)
    with closing(ledger):
        report = check_ledger(ledger.consistency, spool, deep=True, unclaimed_age_s=unclaimed_age_s)
        with ledger.database.read() as db:
            rows = db.execute(select(instance)).all()
    in_files = {name: dataset_digest(spool.path(name)) for name in spool.names(older_than_s=0)}
    by_name = {row.spool_name: row for row in rows}
    known = {row.sop_instance_uid for row in rows if in_files.get(row.spool_name) == row.dataset_sha256}
    digests = {digest for _, digest in told.sent}
    return Left(
        rows=len(rows),
        lost=tuple(sorted(told.acknowledged - known)),
        other_bytes=tuple(
            row.spool_name
            for row in rows
            if (row.sop_instance_uid, row.dataset_sha256) not in told.sent
            or in_files.get(row.spool_name) != row.dataset_sha256
        ),
        half=tuple(name for name, digest in in_files.items() if name not in by_name and digest not in digests),
        unsound=tuple(f"{each.kind} {each.subject}: {each.detail}" for each in report.examples),
    )


def adopt_now(node: Node) -> Adoption:
    """The sweep of files without a row, of any age; the listener is stopped."""
    spool, ledger = _opened(node)
    with closing(ledger):
        return adopt_unclaimed(spool, ledger.arrivals, ledger.retention.claims, older_than_s=0)


def partial_files(node: Node) -> int:
    """How many temporary files are in the spool."""
    return len(list(node.settings.spool_folder.rglob("*.part")))


def recorded_associations(node: Node) -> Sequence[Row[Any]]:
    """The associations that the ledger knows."""
    _, ledger = _opened(node)
    with closing(ledger), ledger.database.read() as db:
        return db.execute(select(association)).all()


def current_instances(node: Node) -> list[tuple[Row[Any], Path]]:
    """The rows of the current instances, and their files."""
    spool, ledger = _opened(node)
    with closing(ledger), ledger.database.read() as db:
        rows = db.execute(select(instance).where(instance.c.current)).all()
    return [(row, spool.path(row.spool_name)) for row in rows]


def _opened(node: Node) -> tuple[Spool, Ledger]:
    spool = Spool(node.settings.spool_folder)
    return spool, Ledger(node.settings.effective_ledger_url, spool)


def percentile(values: Sequence[float], percent: int) -> float:
    """Of at least two values."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
