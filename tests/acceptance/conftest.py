"""The whole node as a subprocess, and real peers: Orthanc as PACS, DCMTK's storescu as scanner."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from dicom_node.app.stores import open_store
from dicom_node.demo.pacs import OrthancPacs, Peer
from dicom_node.demo.processes import Program
from dicom_node.operate.ledger_check import check_ledger
from dicom_node.settings import load_settings
from dicom_node.store.spool import Spool
from dicom_node.store.views import json_form
from tests.support.ports import free_port

if TYPE_CHECKING:
    from dicom_node.operate.ledger_check import LedgerReport
    from dicom_node.store.ledger import Ledger

SCANNER_AE = "SCANNER"
DEMO_MODEL = Path(__file__).resolve().parents[2] / "config" / "models" / "phantom_demo_104"


class RunningNode:
    """A node with its own folder, configuration and port, controlled through its commands."""

    def __init__(self, folder: Path, destinations: dict[str, Peer], model: str = "tissue") -> None:
        self.folder = folder
        self.peer = Peer("TESTNODE", free_port())
        self.config = folder / "node.yaml"
        self._program: Program | None = None
        self._ledger: Ledger | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._write_configuration(destinations, model)

    def _write_configuration(self, destinations, model):
        settings = {
            "node": {"ae_title": self.peer.ae_title, "port": self.peer.port, "data_folder": "data"},
            "receive": {"minimum_free_disk_bytes": 1024**2},
            "sources": [{"ae_title": SCANNER_AE}, {"ae_title": "DEMOPACS"}],
            "destinations": {
                name: {
                    "host": "127.0.0.1",
                    "port": peer.port,
                    "ae_title": peer.ae_title,
                    "connect_timeout_s": 2,
                    "response_timeout_s": 30,
                }
                for name, peer in destinations.items()
            },
            "completion": {"regular_quiet_s": 1, "otherwise_quiet_s": 3},
            "models": {
                "tissue": {"kind": "tissue"},
                "demo": {"kind": "nnunet", "package": str(DEMO_MODEL)},
            },
            "work": {"heartbeat_limit_s": 60},
            "delivery": {"first_retry_s": 1, "longest_retry_s": 2},
            "operate": {"sweep_s": 0.3, "disk_stop_percent": 100, "disk_resume_percent": 100},
        }
        rules = {
            "rules": [
                {
                    "name": "ct",
                    "when": [{"attribute": "Modality", "equals": "CT"}],
                    "model": model,
                    "destinations": sorted(destinations),
                }
            ]
        }
        self.config.write_text(yaml.safe_dump(settings))
        (self.folder / "rules.yaml").write_text(yaml.safe_dump(rules))

    @property
    def log(self) -> Path:
        return self.folder / "node.log"

    def start(self, limit_s: float = 60) -> None:
        command = [sys.executable, "-m", "dicom_node.cli", "--config", str(self.config), "serve"]
        log = self.folder / f"node-{time.monotonic_ns()}.log"
        self._program = Program("the node", command, log, {"OMP_NUM_THREADS": "2"})
        self._program.wait_for_port(self.peer.port, limit_s)

    def kill(self) -> None:
        """Kill every process of the node at once with SIGKILL, including the worker."""
        assert self._program is not None
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        self._program.stop()
        self._program = None

    def processes(self) -> list[int]:
        """All processes with this node's command line, and their descendants."""
        assert self._program is not None
        children: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
        found, waiting = [], [self._program.process_id]
        while waiting:
            pid = waiting.pop()
            found.append(pid)
            waiting += children.get(pid, [])
        return found

    def stop(self) -> None:
        if self._program is not None:
            self._program.stop()
            self._program = None

    def close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()

    def ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of the node's commands."""
        command = [sys.executable, "-m", "dicom_node.cli", "--config", str(self.config), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    def ledger(self) -> Ledger:
        """The node's ledger, opened in this process: polling it needs no new process each time."""
        if self._ledger is None:
            _, self._ledger = open_store(load_settings(self.config))
        return self._ledger

    def checked(self) -> LedgerReport:
        """Whether anything is lost, by the rows and by the bytes of every file."""
        settings = load_settings(self.config)
        return check_ledger(self.ledger().consistency, Spool(settings.spool_folder, read_only=True), deep=True)

    def jobs(self) -> list[dict]:
        return [json_form(row) for row in self.ledger().overview.jobs(50)]

    def job(self, number: int) -> dict:
        return json_form(self.ledger().overview.job(number))

    def wait_for(self, wanted, limit_s: float = 120) -> dict:
        """Wait for the first job for which ``wanted(job)`` is true."""
        end = time.monotonic() + limit_s
        jobs = []
        while time.monotonic() < end:
            jobs = self.jobs()
            for job in jobs:
                if wanted(job):
                    return job
            time.sleep(0.2)
        pytest.fail(f"no such job after {limit_s} s; jobs: {json.dumps(jobs, indent=1)}\n{self.log_text()[-3000:]}")

    def wait_for_state(self, series_uid: str, state: str, revision: int = 1, limit_s: float = 120) -> dict:
        return self.wait_for(
            lambda job: (job["series_instance_uid"], job["state"], job["revision"]) == (series_uid, state, revision),
            limit_s,
        )

    def log_text(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("node-*.log")))

    def send(self, files: list[Path], *options: str, sender: str = SCANNER_AE) -> subprocess.CompletedProcess[str]:
        """Send files over one association with DCMTK's storescu."""
        command = [
            "storescu",
            "-v",
            *options,
            "-aet",
            sender,
            "-aec",
            self.peer.ae_title,
            "127.0.0.1",
            str(self.peer.port),
            *map(str, files),
        ]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, "TCP_NODELAY": "1"}
        )


@pytest.fixture
def orthanc(tmp_path):
    program = shutil.which("Orthanc", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("Orthanc is not installed (apt: orthanc)")
    with OrthancPacs(program, tmp_path / "orthanc", Peer("TESTNODE", free_port())) as pacs:
        yield pacs


@pytest.fixture
def make_node(tmp_path):
    made = []

    def make(destinations, model="tissue"):
        node = RunningNode(tmp_path / f"node{len(made)}", destinations, model)
        made.append(node)
        return node

    yield make
    for node in made:
        node.stop()
    reports = [node.checked() for node in made]
    for node in made:
        node.close()
    assert [report.examples for report in reports if not report.is_sound] == []


@pytest.fixture(autouse=True)
def _dcmtk():
    if shutil.which("storescu") is None:
        pytest.skip("DCMTK is not installed (apt: dcmtk)")
