"""What becomes of the work when the node is stopped, or its watcher is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from dicom_node.app import open_store
from dicom_node.demo.processes import free_port
from dicom_node.errors import WorkerLost
from dicom_node.pipeline import Pipeline
from dicom_node.route.rules import load_rules
from dicom_node.settings import load_settings
from dicom_node.store.spool import FileMeta
from tests.unit.reconstruct.synthetic import Stack, noise, write

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]


class EndlessWorker:
    """A model that never comes to an end unless it is closed."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self._closed = threading.Event()

    def segment(self, volume, on_progress):
        self.started.set()
        self._closed.wait()
        raise WorkerLost("its process was killed")

    def close(self) -> None:
        self._closed.set()


@pytest.fixture
def config(tmp_path):
    settings = {
        "node": {"data_folder": "data", "port": free_port()},
        "completion": {"regular_quiet_s": 0, "otherwise_quiet_s": 0},
        "models": {"tissue": {"kind": "tissue"}},
    }
    (tmp_path / "node.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "rules.yaml").write_text("rules: [{name: all, model: tissue, when: []}]")
    return tmp_path / "node.yaml"


@pytest.fixture
def worker():
    made = EndlessWorker()
    yield made
    made.close()


def receive(spool, ledger, folder):
    from dicom_node.receive.adopt import adopt_unclaimed  # noqa: PLC0415 - the shortest way from file to row

    folder.mkdir()
    for instance in write(folder, Stack(noise((4, 8, 8)))).instances:
        meta = instance.header.file_meta
        whole = instance.path.read_bytes()
        start = 144 + int(meta.FileMetaInformationGroupLength)
        spool.write_instance(
            FileMeta(meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID),
            whole[start:],
        )
    adopt_unclaimed(spool, ledger.arrivals, {}, older_than_s=-1)


def test_a_stopped_node_gives_its_job_back_at_once_and_without_an_attempt(config, worker, tmp_path):
    settings = load_settings(config)
    spool, ledger = open_store(settings)
    receive(spool, ledger, tmp_path / "ct")
    pipeline = Pipeline(
        settings, ledger, spool, load_rules(settings.rules_file, settings), {"tissue": worker}, "2.25.1"
    )
    pipeline.complete_series()
    pipeline.route_series()
    running = threading.Thread(target=pipeline.run_next_job)
    running.start()
    assert worker.started.wait(30)
    pipeline.stop()
    running.join(10)
    assert not running.is_alive()
    (job,) = ledger.overview.jobs(1)
    assert (job["state"], job["attempts"]) == ("QUEUED", 0)
    ledger.close()


def wait_for(condition: Callable[[], bool], limit_s: float = 30) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def children_of(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_no_process_of_the_node_outlives_a_killed_watcher(config, tmp_path):
    with (tmp_path / "log").open("wb") as log:
        node = subprocess.Popen(
            [sys.executable, "-m", "dicom_node.cli", "--config", str(config), "serve"], cwd=ROOT, stdout=log, stderr=log
        )
    children: list[int] = []
    try:
        wait_for(lambda: "listener.started" in (tmp_path / "log").read_text())
        wait_for(lambda: "work.started" in (tmp_path / "log").read_text())
        children = children_of(node.pid)
        assert len(children) == 2
        node.kill()
        node.wait()
        wait_for(lambda: not any(is_alive(child) for child in children))
    finally:
        node.kill()
        node.wait()
        for child in children:
            if is_alive(child):
                os.kill(child, signal.SIGKILL)
