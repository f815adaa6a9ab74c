"""The drill of docs/operators/backup.md: its own commands, taken from the page, on a node that is working."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import random
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml
from pydicom import dcmread
from pydicom.uid import Comprehensive3DSRStorage, CTImageStorage, ExplicitVRLittleEndian, SegmentationStorage
from sqlalchemy import select

from dicom_node.app.stores import open_store_to_read
from dicom_node.demo.pacs import Peer as PacsPeer
from dicom_node.settings import load_settings
from dicom_node.store.schema import instance
from dicom_node.store.states import DeliveryState, JobState
from tests.acceptance.conftest import SCANNER_AE, RunningNode
from tests.faults.case import CannotBeDone, FaultCase, Outcome
from tests.integration.receive.peer import Peer, association_request, pdu, pdv_command, pdv_data, store_command
from tests.support.ct_series import Stack, write
from tests.support.dicom_peers import scripted_pacs
from tests.support.ports import free_port
from tests.support.postgresql import PostgresServer, fresh_schema, server_programs
from tests.support.sent_slices import dataset_digest, encoded
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom import Dataset

    from dicom_node.store.ledger import Ledger
    from dicom_node.store.views import JobView

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operators" / "backup.md"
RESULTS = (SegmentationStorage, Comprehensive3DSRStorage)
BEFORE = 2
"""Series that are delivered to the archive before the backup, and wait for the other destination."""
DURING = 8
"""Series that are sent at most while the backup is made and until the node is lost."""
PLANES = 6
BETWEEN_INSTANCES_S = 0.1
MOST_S = 4.0
"""From the first image that is sent meanwhile to the backup, and from its end to the loss."""
LONGEST_S = 600.0
"""For the node to start, or to end its jobs, on a machine that has other things to do."""
AS_IF_LATER_S = 3600.0
"""A restore comes later than the crash: by then, ledger check takes a file without a row for a violation."""
SOME_FILES_VANISHED = 24
"""Exit code of rsync, see its manual; the page says when it is in order."""


@dataclass
class Scanner:
    """Sends series, and knows what was acknowledged: the digest of the data set by SOP Instance UID."""

    port: int
    acknowledged: dict[str, str] = field(default_factory=dict)
    sent: set[str] = field(default_factory=set)

    def send(self, series: list[Dataset]) -> None:
        """One association. Raises OSError or AssertionError where it ends."""
        peer = Peer(self.port, associated=False)
        with closing(peer):
            peer.send(association_request(SCANNER_AE, "TESTNODE"))
            assert peer.read_pdu()[0] == 2
            for dataset in series:
                data = encoded(dataset, ExplicitVRLittleEndian)
                self.sent.add(dataset.SOPInstanceUID)
                peer.send(pdv_command(1, store_command(CTImageStorage, dataset.SOPInstanceUID)))
                peer.send(pdv_data(1, data, last=True))
                if peer.status() == 0:
                    self.acknowledged[dataset.SOPInstanceUID] = hashlib.sha256(data).hexdigest()
                time.sleep(BETWEEN_INSTANCES_S)
            peer.send(pdu(5, bytes(4)))
            assert peer.read_pdu()[0] == 6

    def send_until_lost(self, many: list[list[Dataset]]) -> None:
        """Send one series after another until the node is gone."""
        with suppress(OSError, AssertionError):
            for series in many:
                self.send(series)


class Drill:
    """A node with two destinations, of which ``late`` is away until the node was restored."""

    def __init__(self, folder: Path, seed: int, postgresql_url: str | None) -> None:
        self.folder = folder
        self.moments = random.Random(seed)
        self.postgresql_url = postgresql_url
        self.tried: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.violations: list[str] = []
        self.late_port = free_port()

    def run(self) -> None:
        """From the first image to the check after everything was delivered."""
        with ExitStack() as at_the_end:
            archive_port, self.archive = at_the_end.enter_context(scripted_pacs(classes=RESULTS))
            self._set_up({"archive": PacsPeer("PACS", archive_port), "late": PacsPeer("PACS", self.late_port)})
            at_the_end.callback(self.node.stop)
            self.node.start(LONGEST_S)
            self._before_the_backup()
            sending = threading.Thread(target=self.scanner.send_until_lost, args=(self.during,))
            sending.start()
            time.sleep(self.moments.uniform(0, MOST_S))
            before = dict(self.scanner.acknowledged)
            self._run_page("Back up", between_s=self.moments.uniform(0, 1))
            during = dict(self.scanner.acknowledged)
            time.sleep(self.moments.uniform(0, MOST_S))
            self._lose()
            sending.join()
            self.tried["acknowledged before the backup"] += len(before)
            self.seen["acknowledged during the backup"] += len(during) - len(before)
            self.seen["acknowledged after the backup"] += len(self.scanner.acknowledged) - len(during)
            self._run_page("Restore")
            self._check_restored(before)
            _, self.late = at_the_end.enter_context(scripted_pacs(port=self.late_port, classes=RESULTS))
            self.node.start(LONGEST_S)
            for series in [self.before[0], *self.during]:
                if self.scanner.sent.intersection(dataset.SOPInstanceUID for dataset in series):
                    self.scanner.send(series)
            wait_until(self._all_is_delivered, LONGEST_S, self._log_end)
            self._check_outcome(before)

    def _set_up(self, destinations: dict[str, PacsPeer]) -> None:
        self.data, self.backup, self.etc = (self.folder / name for name in ("data", "backup", "etc"))
        for name in ("backup", "ct"):
            (self.folder / name).mkdir(parents=True)
        self.node = RunningNode(self.etc, destinations)
        settings = yaml.safe_load(self.node.config.read_text())
        settings["node"]["data_folder"] = str(self.data)
        settings["ledger_url"] = self.postgresql_url
        self.node.config.write_text(yaml.safe_dump(settings))
        self.scanner = Scanner(self.node.peer.port)
        made = [ct_series(self.folder / "ct" / str(number), number) for number in range(BEFORE + DURING)]
        self.before, self.during = made[:BEFORE], made[BEFORE:]

    def _log_end(self) -> str:
        lines = [line for line in self.node.log_text().splitlines() if '"event": "delivery"' not in line]
        return "\n".join(lines[-40:])

    def _ledger(self) -> closing[Ledger]:
        return closing(open_store_to_read(load_settings(self.node.config))[1])

    def _before_the_backup(self) -> None:
        for series in self.before:
            self.scanner.send(series)

        def delivered_to_the_archive() -> bool:
            with self._ledger() as ledger:
                jobs = [ledger.overview.job(each.id) for each in ledger.overview.jobs(50)]
            found = [[(uid, state) for uid, name, state in deliveries(job) if name == "archive"] for job in jobs]
            self.delivered_before = {uid for each in found for uid, _ in each}
            return len(jobs) == BEFORE and all(each and all(is_done(state) for _, state in each) for each in found)

        wait_until(delivered_to_the_archive, LONGEST_S, self._log_end)

    def _run_page(self, section: str, between_s: float = 0.0) -> None:
        """Run the commands of a section of the page, with the folders and the account of this drill.

        ``between_s``: the pause after each, as copying takes it with more than a few images.
        """
        for command in self._commands(section):
            done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, timeout=LONGEST_S)
            vanished = command.startswith("rsync") and done.returncode == SOME_FILES_VANISHED
            self.seen["copies during which files vanished"] += vanished
            if done.returncode and not vanished:
                raise AssertionError(f"{command}: exit code {done.returncode}: {done.stderr}")
            time.sleep(between_s)

    def _commands(self, section: str) -> Iterator[str]:
        own = pwd.getpwuid(os.getuid())
        of_another_database = "pg_" if self.postgresql_url is None else "sqlite3"
        replaced = {
            "/var/lib/dicom-node": str(self.data),
            "/etc/dicom-node": str(self.etc),
            "/backup": str(self.backup),
            "-o dicom-node -g dicom-node": f"-o {own.pw_uid} -g {own.pw_gid}",
            "dicom-node:": f"{own.pw_name}:",
            "postgresql://dicom_node@localhost/dicom_node": (self.postgresql_url or "").replace("+psycopg", ""),
        }
        for command in commands_of(PAGE.read_text(encoding="utf-8"), section):
            if of_another_database not in command:
                # one pass: a folder of the drill may contain the name of another
                yield re.sub("|".join(map(re.escape, replaced)), lambda found: replaced[found[0]], command)

    def _lose(self) -> None:
        self.node.kill()
        shutil.rmtree(self.data)
        self.etc.rename(self.folder / "etc.lost")
        if self.postgresql_url is not None:
            fresh_schema(self.postgresql_url)
        for path in (self.etc, self.data):
            assert not path.exists()

    def _check_restored(self, before: dict[str, str]) -> None:
        """What ledger check finds is what was received or made after the copy of the ledger, and nothing else."""
        spool = self.data / "spool"
        long_ago = time.time() - AS_IF_LATER_S
        files = {path.relative_to(spool).as_posix(): path for path in spool.rglob("*.dcm")}
        for path in spool.rglob("*"):
            os.utime(path, (long_ago, long_ago))
        with self._ledger() as ledger:
            jobs = [ledger.overview.job(each.id) for each in ledger.overview.jobs(500)]
            with ledger.database.read() as db:
                rows = {row.spool_name: row for row in db.execute(select(instance))}
        results = {result.spool_name for job in jobs for result in job.results}
        without_row = {name: path for name, path in files.items() if name not in rows and name not in results}
        checked = self.node.ask("ledger", "check", "--deep", "--json")
        found = json.loads(checked.stdout)["violations"]
        under_way = {
            "job.lease": sum(job.state == JobState.RUNNING for job in jobs),
            "delivery.lease": sum(each.claimed_by is not None for job in jobs for each in job.deliveries),
        }
        # of those under way, the ones whose lease has ended meanwhile
        of_leases = {kind: found.pop(kind, 0) for kind in under_way}
        expected = {"file.unclaimed": len(without_row)} if without_row else {}
        if found != expected or any(of_leases[kind] > number for kind, number in under_way.items()):
            self.violations.append(f"ledger check after the restore: {found} and {of_leases}, expected {expected}")
        self.seen["jobs under way in the backup"] += under_way["job.lease"]
        self.seen["deliveries under way in the backup"] += under_way["delivery.lease"]
        headers = [dcmread(path, stop_before_pixels=True) for path in without_row.values()]
        received = {str(each.SOPInstanceUID) for each in headers if each.Modality == "CT"}
        self.seen["images without a row after the restore"] += len(received)
        self.seen["results without a row after the restore"] += len(headers) - len(received)
        if wrong := received & set(before):
            self.violations.append(f"{len(wrong)} images acknowledged before the backup have no row")
        if wrong := received - self.scanner.sent:
            self.violations.append(f"{len(wrong)} files have no row, and nobody sent them")
        self._check_images(before, {row.sop_instance_uid: files.get(name) for name, row in rows.items()})

    def _check_images(self, wanted: dict[str, str], files: dict[str, Path | None]) -> None:
        kept = {uid: dataset_digest(path) for uid in wanted if (path := files.get(uid)) is not None and path.exists()}
        lost = sum(kept.get(uid) != digest for uid, digest in wanted.items())
        self.seen["images lost"] += lost
        if lost:
            self.violations.append(f"{lost} of {len(wanted)} acknowledged images are not there as they were sent")

    def _all_is_delivered(self) -> bool:
        """Whether the newest revision of each series that was sent is; a part of a series may have been rejected."""
        with self._ledger() as ledger:
            jobs = ledger.overview.jobs(500)
            series = ledger.overview.counts().series
        newest = {job.series_instance_uid: job.state for job in sorted(jobs, key=lambda job: job.revision)}
        sent = [each for each in (*self.before, *self.during) if each[0].SOPInstanceUID in self.scanner.sent]
        return set(series) == {"ROUTED"} and newest == dict.fromkeys(
            (each[0].SeriesInstanceUID for each in sent), JobState.DELIVERED
        )

    def _check_outcome(self, before: dict[str, str]) -> None:
        with self._ledger() as ledger:
            jobs = [ledger.overview.job(each.id) for each in ledger.overview.jobs(500)]
            with ledger.database.read() as db:
                current = {
                    row.sop_instance_uid: self.data / "spool" / row.spool_name
                    for row in db.execute(select(instance).where(instance.c.current))
                }
        self._check_images({**before, **self.scanner.acknowledged}, current)
        newest = {job.series.series_instance_uid: job for job in sorted(jobs, key=lambda job: job.series.revision)}
        counts = {job.series.evidence["instance_count"] for job in newest.values()}
        if counts != {PLANES}:
            self.violations.append(f"the newest results are of {sorted(counts)} images of {PLANES}")
        told = {name: Counter(str(event.request.AffectedSOPInstanceUID) for event, _ in stored)
                for name, stored in (("archive", self.archive), ("late", self.late))}  # fmt: skip
        for name, times in told.items():
            delivered = {uid for job in jobs for uid, to, state in deliveries(job) if to == name and is_done(state)}
            if lost := delivered - set(times):
                self.violations.append(f"{len(lost)} results count as delivered to {name}, which did not get them")
        self.tried["results that waited"] += len(self.delivered_before)
        waited = [told["late"][uid] for uid in self.delivered_before]
        if waited.count(1) != len(waited):
            self.violations.append(f"the destination that was away got results this often: {sorted(waited)}")
        for name, uids in (("late", told["late"]), ("archive", self.delivered_before)):
            twice = [uid for uid in uids if told[name][uid] != 1]
            self.seen["results sent twice that the backup knew"] += len(twice)
            if twice:
                self.violations.append(f"{len(twice)} results were sent to {name} again")
        self.seen["results sent again that the backup did not know"] += sum(
            times > 1 for uid, times in told["archive"].items() if uid not in self.delivered_before
        )
        self.seen["results that only the archive knows"] += len(set(told["archive"]) - set(told["late"]))
        first = self.before[0][0].SeriesInstanceUID
        if (number := sum(job.series.series_instance_uid == first for job in jobs)) != 1:
            self.violations.append(f"a series that the node had, sent again, has {number} jobs")
        checked = self.node.ask("ledger", "check", "--deep", "--json")
        if checked.returncode:
            self.violations.append(f"ledger check at the end: {checked.stdout}{checked.stderr}")


def ct_series(folder: Path, number: int) -> list[Dataset]:
    """A series of soft tissue, by position."""
    folder.mkdir()
    values = np.full((PLANES, 16, 16), 1024 + 30 + number, np.uint16)
    return [dcmread(each.path) for each in write(folder, Stack(values)).instances]


def deliveries(job: JobView) -> list[tuple[str, str, DeliveryState]]:
    """(SOP Instance UID, destination, state) of each delivery of a job."""
    uids = {result.id: result.sop_instance_uid for result in job.results}
    return [(uids[each.result_id], each.destination, each.state) for each in job.deliveries]


def is_done(state: DeliveryState) -> bool:
    return state == DeliveryState.DELIVERED


def commands_of(page: str, section: str) -> list[str]:
    """The lines of the code blocks of a section."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## )", page, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^ *```\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines()]


def backup_and_restore(folder: Path, rounds: int) -> Outcome:
    """``rounds`` drills, every second one with PostgreSQL where it is installed."""
    if missing := [program for program in ("sqlite3", "rsync") if shutil.which(program) is None]:
        raise CannotBeDone(f"{' and '.join(missing)} not installed (apt: sqlite3 rsync)")
    tried: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    violations: list[str] = []
    with ExitStack() as at_the_end:
        url = at_the_end.enter_context(PostgresServer()).url if rounds > 1 and server_programs() else None
        for number in range(rounds):
            on_postgresql = url is not None and number % 2 == 1
            drill = Drill(folder / str(number), number, url if on_postgresql else None)
            drill.run()
            if on_postgresql:
                fresh_schema(url)
            tried += drill.tried
            tried["rounds with PostgreSQL" if on_postgresql else "rounds with SQLite"] += 1
            seen.update(drill.seen)
            violations += [f"round {number}: {violation}" for violation in drill.violations]
    return Outcome(tried, seen, tuple(violations))


CASES = (
    FaultCase(
        name="backup-and-restore",
        fault="A backup is made by the commands of the page while the node receives, segments and delivers, one "
        "destination is away, and then all processes are killed and data, ledger and configuration are deleted.",
        holds="Restored by the commands of the page, ledger check finds only what came after the copy of the ledger; "
        "every image acknowledged before the backup is there, waiting results are delivered once, results that were "
        "delivered are not sent again, and what came later is made up for by sending it again.",
        answers=("D6", "D9"),
        run=backup_and_restore,
        rounds=20,
    ),
)
