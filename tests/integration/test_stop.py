"""What happens to running work when the node is stopped or its supervisor is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from dicom_node.app.stores import open_store
from dicom_node.app.working import open_pipeline
from dicom_node.route.rules_file import load_rules
from dicom_node.settings import load_settings
from dicom_node.store.states import JobState
from dicom_node.work.pool import WorkerPool
from tests.support.ports import free_port
from tests.support.received_series import receive
from tests.support.scripted_worker import Script
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


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


def test_stopped_node_gives_its_jobs_back_at_once_without_costing_an_attempt(config, tmp_path, monkeypatch):
    script = Script(tmp_path / "script", monkeypatch)
    script.hold("infer 1")
    settings = load_settings(config)
    spool, ledger = open_store(settings)
    for number in (1, 2, 3):
        receive(spool, ledger, tmp_path / f"ct{number}", number)
    workers = WorkerPool(settings.models, settings.work)
    pipeline = open_pipeline(settings, ledger, spool, load_rules(settings.rules_file, settings), workers)
    pipeline.completing.complete_due()
    pipeline.routing.route_complete()
    running = [threading.Thread(target=pipeline.running.run_next_job) for _ in range(3)]
    for thread in running:
        thread.start()
    script.wait_for("infer 1 begins")
    script.wait_for("prepare 2 ends")
    pipeline.running.stop()
    for thread in running:
        thread.join(10)
        assert not thread.is_alive()
    assert [(job.state, job.attempts) for job in ledger.overview.jobs(5)] == [(JobState.QUEUED, 0)] * 3
    ledger.close()


@pytest.mark.parametrize("how", ["stopped", "killed", "killed and stopped"])
@pytest.mark.parametrize("step", ["load tissue", "prepare 1", "infer 1"])
def test_lost_worker_costs_an_attempt_and_a_stop_none_at_every_step(config, tmp_path, monkeypatch, step, how):
    script = Script(tmp_path / "script", monkeypatch)
    script.hold(step)
    settings = load_settings(config)
    spool, ledger = open_store(settings)
    receive(spool, ledger, tmp_path / "ct", 1)
    workers = WorkerPool(settings.models, settings.work)
    pipeline = open_pipeline(settings, ledger, spool, load_rules(settings.rules_file, settings), workers)
    pipeline.completing.complete_due()
    pipeline.routing.route_complete()
    running = threading.Thread(target=pipeline.running.run_next_job)
    running.start()
    script.wait_for(f"{step} begins")
    if "killed" in how:
        os.kill(workers._residents["tissue"].worker.process_id, signal.SIGKILL)
    if "stopped" in how:
        pipeline.running.stop()
    running.join(30)
    assert not running.is_alive()
    workers.close()
    (job,) = ledger.overview.jobs(5)
    assert (job.state, job.attempts) == (JobState.QUEUED, 0 if "stopped" in how else 1)
    assert ("signal SIGKILL" in job.reason) == (how == "killed")
    ledger.close()


def children_of(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def serving(config, log):
    """A node that has started, and its two children."""
    with log.open("wb") as output:
        node = subprocess.Popen(
            [sys.executable, "-m", "dicom_node.cli", "--config", str(config), "serve"],
            cwd=ROOT,
            stdout=output,
            stderr=output,
        )
    children: list[int] = []
    try:
        wait_until(lambda: "listener.started" in log.read_text(), otherwise=log.read_text)
        wait_until(lambda: "work.started" in log.read_text(), otherwise=log.read_text)
        children += children_of(node.pid)
        assert len(children) == 2
        yield node, children
    finally:
        node.terminate()
        node.wait(60)
        for child in children:
            if is_alive(child):
                os.kill(child, signal.SIGKILL)


def test_no_process_of_the_node_outlives_a_killed_supervisor_and_the_next_one_starts_at_once(config, tmp_path):
    with serving(config, tmp_path / "first") as (node, children):
        node.kill()
        node.wait()
        with serving(config, tmp_path / "second") as (_, others):
            assert not any(is_alive(child) for child in children)
            assert not set(children) & set(others)
        assert "process.died" not in (tmp_path / "second").read_text()
