"""A node in real processes, as a fault case starts them, kills them and asks them; and the images that it sends."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import yaml
from pydicom import dcmread
from pydicom.filereader import read_file_meta_info
from sqlalchemy import select

from dicom_node.app.stores import open_store_to_read
from dicom_node.errors import NetworkError, StoreUnavailable
from dicom_node.network.requestor import Association, OutgoingFile, Peer
from dicom_node.operate.ledger_check import check_ledger
from dicom_node.settings import load_settings
from dicom_node.standard.part10 import data_set_start
from dicom_node.store.database import Database
from dicom_node.store.overview import Overview
from dicom_node.store.schema import instance
from tests.support.ct_series import Stack, write
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from dicom_node.store.ledger import Ledger
    from dicom_node.store.spool import Spool
    from dicom_node.types import Series

AE_TITLE, SENDER = "NODE", "SENDER"
SUCCESS, OUT_OF_RESOURCES = 0x0000, 0xA700
_START_LIMIT_S = 120.0
_STOP_LIMIT_S = 60.0
_CHILDREN = {"dicom_node.reading.child": "reader", "dicom_node.work.worker": "worker"}


class Sent(NamedTuple):
    """One image that was offered; ``status`` is None where the association ended without an answer."""

    sop_instance_uid: str
    dataset_sha256: str
    status: int | None


class RunningNode:
    """A node with a folder, a configuration and processes of its own; a context manager that ends them.

    Args:
        folder: of its configuration and logs, and of its data unless ``settings`` say otherwise.
        destinations: the ports of the archives, by name.
        settings: changes of single sections of the configuration.
        environment: of its processes.
    """

    def __init__(
        self,
        folder: Path,
        destinations: Mapping[str, int],
        settings: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.config = folder / "node.yaml"
        self._environment = dict(environment or {})
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        chosen: dict[str, Any] = {
            "node": {"ae_title": AE_TITLE, "port": self.port, "data_folder": "data"},
            "receive": {"minimum_free_disk_bytes": 0},
            "sources": [{"ae_title": SENDER}],
            "destinations": {
                name: {
                    "host": "127.0.0.1",
                    "port": port,
                    "ae_title": name.upper()[:16],
                    "connect_timeout_s": 5,
                    "response_timeout_s": 30,
                }
                for name, port in destinations.items()
            },
            "completion": {"regular_quiet_s": 0.5, "otherwise_quiet_s": 2},
            "models": {"tissue": {"kind": "tissue"}},
            "work": {"threads": 1},
            "delivery": {"first_retry_s": 1, "longest_retry_s": 2},
            "operate": {"sweep_s": 0.2, "disk_stop_percent": 100, "disk_resume_percent": 100, "ledger_check": "off"},
        }
        for section, values in (settings or {}).items():
            is_section = isinstance(values, dict) and isinstance(chosen.get(section), dict)
            chosen[section] = chosen[section] | values if is_section else values
        rule = {"name": "all", "model": "tissue", "when": [], "destinations": sorted(destinations)}
        self.config.write_text(yaml.safe_dump(chosen))
        (folder / "rules.yaml").write_text(yaml.safe_dump({"rules": [rule]}))
        self.settings = load_settings(self.config)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for role in list(self._processes):
            self.stop(role)

    # ---- processes

    def start(self, role: str) -> subprocess.Popen[bytes]:
        """Start ``dicom-node serve``, ``listen`` or ``work``."""
        command = [sys.executable, "-m", "dicom_node.cli", "--config", str(self.config), role]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **self._environment}
        with (self.folder / f"{role}-{time.monotonic_ns()}.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        self._processes[role] = process
        return process

    def stop(self, role: str) -> None:
        """End a process with SIGTERM, and with SIGKILL if it does not end in time."""
        process = self._processes.pop(role)
        process.terminate()
        try:
            process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self, role: str) -> None:
        """End a process with SIGKILL; its children end with it."""
        process = self._processes.pop(role)
        process.kill()
        process.wait()

    def ends_of(self, name: str) -> int:
        """How often a supervisor found that ``listen`` or ``work`` had died."""
        return sum(line["event"] == "process.died" and line["name"] == name for line in self.log_lines())

    def children(self) -> dict[str, list[int]]:
        """The PIDs of the ``reader`` and ``worker`` children of the work process."""
        found: dict[str, list[int]] = {"reader": [], "worker": []}
        parents = {process.pid for process in self._processes.values()}
        for _ in range(2):  # those of `work`, which may be a child of `serve`
            for pid, parent, command in _running():
                if parent in parents:
                    parents.add(pid)
                    for module, kind in _CHILDREN.items():
                        if module in command and pid not in found[kind]:
                            found[kind].append(pid)
        return found

    def wait_for_listener(self) -> float:
        """Wait until images are accepted; returns how long it took, in seconds."""
        started = time.monotonic()
        wait_for(self._answers_echo, _START_LIMIT_S, "the listener answers", every_s=0.2)
        return time.monotonic() - started

    def _answers_echo(self) -> bool:
        try:
            with Association(self._peer(2.0), SENDER, [("1.2.840.10008.1.1", "1.2.840.10008.1.2")]) as association:
                return association.echo() == SUCCESS
        except NetworkError:
            return False

    def log_lines(self) -> list[dict[str, Any]]:
        """What all processes logged, in the order of their starts."""
        lines = []
        for path in sorted(self.folder.glob("*.log"), key=lambda each: each.stat().st_ctime_ns):
            for text in path.read_text(errors="replace").splitlines():
                with suppress(ValueError):
                    line = json.loads(text)
                    if isinstance(line, dict) and "event" in line:
                        lines.append(line)
        return lines

    # ---- what it receives and has

    def send(self, series: Series | Sequence[Path], answer_limit_s: float = 60.0) -> list[Sent]:
        """Send images on one association; each with its status."""
        return self.offer([image_of(path) for path in _paths(series)], answer_limit_s)

    def offer(self, images: Sequence[Image], answer_limit_s: float = 60.0) -> list[Sent]:
        """Send images on one association; those that were not reached have no status either."""
        return list(self.told(images, answer_limit_s))

    def told(self, images: Sequence[Image], answer_limit_s: float = 60.0) -> Iterator[Sent]:
        """Send images on one association; each with its status as soon as that is there."""
        reached = 0
        offers = sorted({(image.file.sop_class_uid, image.file.transfer_syntax_uid) for image in images})
        try:
            with Association(self._peer(answer_limit_s), SENDER, offers) as association:
                for image in images:
                    sent = image.told(association.store(image.file))
                    reached += 1
                    yield sent
        except NetworkError:
            pass
        yield from (image.told(None) for image in images[reached:])

    def _peer(self, answer_limit_s: float) -> Peer:
        return Peer(AE_TITLE, "127.0.0.1", self.port, 5.0, answer_limit_s, 131072)

    def read_ledger(self) -> tuple[Spool, Ledger]:
        """Its spool and ledger, to look at only."""
        return open_store_to_read(self.settings)

    def jobs(self) -> list[Any]:
        """Its jobs; none while the ledger can't be read."""
        with closing(Database(self.settings.effective_ledger_url, read_only=True)) as database:
            try:
                return list(Overview(database).jobs(1000))
            except StoreUnavailable:
                return []

    def wait_for_jobs(self, count: int, states: Iterable[str] = ("DELIVERED",), limit_s: float = 180.0) -> None:
        """Wait until there are ``count`` jobs in one of ``states``."""
        wanted = set(states)

        def are_there() -> bool:
            return sum(job.state in wanted for job in self.jobs()) >= count

        wait_for(are_there, limit_s, f"{count} jobs are {sorted(wanted)}", self.described, every_s=0.2)

    def described(self) -> str:
        """Its jobs and the last warnings in its log."""
        jobs = "; ".join(f"job {job.id} {job.state} {job.reason}" for job in self.jobs())
        last = [line for line in self.log_lines() if line.get("level") in ("warning", "error")][-5:]
        return f"{jobs}; log: {last}"

    def faults(self, acknowledged: Iterable[Sent]) -> list[str]:
        """What is wrong with its ledger and spool, and which of the ``acknowledged`` images it does not have."""
        spool, ledger = self.read_ledger()
        try:
            report = check_ledger(ledger.consistency, spool, deep=True)
            found = [f"ledger check: {each.kind} {each.subject}: {each.detail}" for each in report.examples]
            kept = kept_images(ledger)
        finally:
            ledger.close()
        found += [
            f"{each.sop_instance_uid} was acknowledged and is not there"
            for each in acknowledged
            if each.status == SUCCESS and (each.sop_instance_uid, each.dataset_sha256) not in kept
        ]
        return found

    def partial_files(self) -> list[str]:
        """Files under their final names in the spool that are not whole."""
        return [path.name for path in self.settings.spool_folder.rglob("*.dcm") if not _is_whole(path)]


class Image(NamedTuple):
    """An image to send."""

    file: OutgoingFile
    dataset_sha256: str

    def told(self, status: int | None) -> Sent:
        """With its answer."""
        return Sent(self.file.sop_instance_uid, self.dataset_sha256, status)


def image_of(path: Path) -> Image:
    """The image in a Part 10 file, with the digest of its data set."""
    meta = read_file_meta_info(path)
    file = OutgoingFile(
        path,
        str(meta.MediaStorageSOPClassUID),
        str(meta.MediaStorageSOPInstanceUID),
        str(meta.TransferSyntaxUID),
    )
    return Image(file, dataset_digest(path))


def dataset_digest(path: Path) -> str:
    """SHA-256 of the data set in a Part 10 file."""
    content = path.read_bytes()
    return hashlib.sha256(content[data_set_start(content[:1024]) :]).hexdigest()


def make_series(folder: Path, planes: int = 8, columns: int = 48) -> Series:
    """Write a small CT of a body: a cylinder of soft tissue with a bone in it."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[:columns, :columns] - columns / 2 + 0.5
    hu_yx = np.where(x**2 + y**2 < (columns * 0.4) ** 2, 40, -1000)
    hu_yx[(x - columns * 0.15) ** 2 + y**2 < (columns * 0.1) ** 2] = 400
    stored = np.repeat((hu_yx + 1024).astype(np.uint16)[None], planes, axis=0)
    spacing_mm = 300.0 / columns
    return write(
        folder, Stack(stored, step_mm=(0.0, 0.0, 5.0), row_spacing_mm=spacing_mm, column_spacing_mm=spacing_mm)
    )


def wait_for(
    condition: Callable[[], object],
    limit_s: float,
    what: str,
    otherwise: Callable[[], object] | None = None,
    every_s: float = 0.002,
) -> None:
    """Wait until ``condition`` holds.

    Raises:
        TooLate: it does not within the limit, which is generous: something is wrong.
    """
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            raise TooLate(f"not within {limit_s:g} s: {what}{f' ({otherwise()})' if otherwise else ''}")
        time.sleep(every_s)


class TooLate(Exception):
    """Something that must happen by itself did not."""


def kill(pid: int, child: str) -> bool:
    """Send SIGKILL to a ``reader`` or ``worker``; whether the process was still there."""
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_text()
        if any(module in command for module, kind in _CHILDREN.items() if kind == child):
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def _running() -> Iterable[tuple[int, int, str]]:
    """PID, parent and command line of every process."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            yield int(folder.name), parent, (folder / "cmdline").read_text().replace("\0", " ")


def _is_whole(path: Path) -> bool:
    try:
        read = dcmread(path)
    except FileNotFoundError:  # removed meanwhile
        return True
    except Exception:  # noqa: BLE001 - whatever pydicom makes of half a file
        return False
    return read.get("Modality") != "CT" or len(read.get("PixelData", b"")) == 2 * read.Rows * read.Columns


def _paths(series: Series | Sequence[Path]) -> list[Path]:
    instances = getattr(series, "instances", None)
    return list(series) if instances is None else [each.path for each in instances]


def kept_images(ledger: Ledger) -> set[tuple[str, str]]:
    """UID and digest of the data set of every image that a ledger has."""
    with ledger.database.read() as db:
        rows = db.execute(select(instance.c.sop_instance_uid, instance.c.dataset_sha256)).all()
    return {(row.sop_instance_uid, row.dataset_sha256) for row in rows}
