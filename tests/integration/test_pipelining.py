"""Several jobs in progress at once: what overlaps, what is bounded, and what happens to the others if one fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import structlog
import yaml

import dicom_node.encode.run
import dicom_node.pipeline.outcomes
from dicom_node.app.stores import open_store
from dicom_node.app.working import open_pipeline
from dicom_node.route.rules_file import load_rules
from dicom_node.settings import load_settings
from dicom_node.store.states import JobState
from dicom_node.work.pool import WorkerPool
from tests.support.received_series import receive
from tests.support.scripted_worker import Script
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
ENDED = (JobState.KEPT, JobState.FAILED, JobState.REJECTED)


@pytest.fixture
def script(tmp_path, monkeypatch):
    return Script(tmp_path / "script", monkeypatch)


class Node:
    """The rooms after the spool, with series already received: the HU of each series is its number."""

    def __init__(self, folder, series, **work):
        self.config = folder / "node.yaml"
        settings = {
            "node": {"data_folder": "data"},
            "completion": {"regular_quiet_s": 0, "otherwise_quiet_s": 0},
            "models": {"tissue": {"kind": "tissue"}},
            "work": {"heartbeat_limit_s": 20, "job_limit_s": 60, **work},
        }
        self.config.write_text(yaml.safe_dump(settings))
        (folder / "rules.yaml").write_text("rules: [{name: all, model: tissue, when: []}]")
        self.settings = load_settings(self.config)
        self.spool, self.ledger = open_store(self.settings)
        self.numbers = {receive(self.spool, self.ledger, folder / f"ct{n}", n): n for n in range(1, series + 1)}
        self.pipeline = open_pipeline(
            self.settings,
            self.ledger,
            self.spool,
            load_rules(self.settings.rules_file, self.settings),
            WorkerPool(self.settings.models, self.settings.work),
        )
        self.pipeline.completing.complete_due()
        self.pipeline.routing.route_complete()
        self._runners = ThreadPoolExecutor(self.settings.work.jobs_at_once)
        self._stop = threading.Event()

    def run(self):
        """Run jobs like the work process, in threads of this process."""
        for _ in range(self.settings.work.jobs_at_once):
            self._runners.submit(self._run)

    def _run(self):
        while not self._stop.is_set():
            self.pipeline.running.run_next_job(0.01)

    def jobs(self):
        """(state, attempts) by series number."""
        found = self.ledger.overview.jobs(50)
        return {self.numbers[job.series_instance_uid]: (job.state, job.attempts) for job in found}

    def states(self):
        return sorted(state for state, _ in self.jobs().values())

    def wait_for(self, wanted):
        wait_until(wanted, otherwise=lambda: self.ledger.overview.jobs(50))

    def wait_for_all(self):
        self.wait_for(lambda: all(state in ENDED for state in self.states()))

    def close(self):
        self._stop.set()
        self.pipeline.running.stop()
        self._runners.shutdown()
        self.ledger.close()


@pytest.fixture
def make_node(tmp_path):
    made = []

    def make(series, **work):
        made.append(Node(tmp_path, series, **work))
        return made[-1]

    yield make
    for node in made:
        node.close()


def test_preparation_inference_and_encoding_of_different_jobs_overlap(make_node, script, monkeypatch):
    node = make_node(5)
    may_encode = threading.Event()
    encoding = []

    def encode(reconstruction, *rest):
        encoding.append(int(reconstruction.source.voxels_zyx[0, 0, 0]))
        assert may_encode.wait(60)
        return original(reconstruction, *rest)

    original = dicom_node.encode.run.encode_in_turn
    monkeypatch.setattr(dicom_node.encode.run, "encode_in_turn", encode)
    script.hold("infer 1")
    script.hold("infer 2")
    with structlog.testing.capture_logs() as log:
        node.run()
        script.wait_for("infer 1 begins")
        script.wait_for("prepare 2 ends")  # read and reconstructed, as well
        assert "infer 1 ends" not in script.events()
        assert node.states() == [JobState.QUEUED] * 3 + [JobState.RUNNING] * 2
        script.release("infer 1")
        script.wait_for("infer 2 begins")
        script.wait_for("prepare 3 ends")
        node.wait_for(lambda: encoding == [1])
        assert node.states() == [JobState.QUEUED] * 2 + [JobState.RUNNING] * 3
        script.release("infer 2")
        may_encode.set()
        node.wait_for_all()
    assert encoding == [1, 2, 3, 4, 5]
    assert node.jobs() == dict.fromkeys(range(1, 6), (JobState.KEPT, 1))
    for line in (line for line in log if line["event"] == "job"):
        assert list(line["stage_seconds"]) == [
            "read", "reconstruct", "reuse", "prepare", "wait", "segment", "measure", "encode", "store",
        ]  # fmt: skip
        assert abs(sum(line["stage_seconds"].values()) - line["seconds"]) < 1


def test_limit_of_one_job_runs_them_one_after_another(make_node, script):
    node = make_node(2, jobs_at_once=1)
    node.run()
    node.wait_for_all()
    assert script.events()[2:] == [
        f"{step} {number} {end}" for number in (1, 2) for step in ("prepare", "infer") for end in ("begins", "ends")
    ]


def test_job_that_kills_its_worker_fails_without_failing_others(make_node, script, monkeypatch):
    monkeypatch.setattr(dicom_node.pipeline.outcomes, "FIRST_PAUSE", timedelta(seconds=0.05))
    node = make_node(3)
    script.fail("infer 1", "always kill")
    script.hold("infer 1")
    script.hold("prepare 2")
    node.run()
    script.wait_for("infer 1 begins")
    script.wait_for("prepare 2 begins")
    script.release("infer 1")  # the second job is lost with it
    node.wait_for(lambda: node.jobs()[2] != (JobState.RUNNING, 1))
    script.release("prepare 2")
    node.wait_for_all()
    assert node.jobs() == {1: (JobState.FAILED, 3), 2: (JobState.KEPT, 2), 3: (JobState.KEPT, 1)}
    (failed,) = [job for job in node.ledger.overview.jobs(5) if job.state is JobState.FAILED]
    assert "signal SIGKILL" in failed.reason
    assert "lack of memory" in failed.reason


def test_repeated_job_runs_alone(make_node, script, monkeypatch):
    monkeypatch.setattr(dicom_node.pipeline.outcomes, "FIRST_PAUSE", timedelta())
    node = make_node(4)
    script.fail("prepare 1", "kill")
    script.hold("infer 1")
    node.run()
    script.wait_for("infer 1 begins")
    intake = node.pipeline.running._means.places.intake
    wait_until(lambda: len(intake._queue) == node.settings.work.jobs_at_once)  # the others wait to be claimed
    script.release("infer 1")
    node.wait_for_all()
    assert node.jobs() == {1: (JobState.KEPT, 2), **dict.fromkeys((2, 3, 4), (JobState.KEPT, 1))}
    events = script.events()
    again = events.index("prepare 1 ends") - 1
    assert events[again : again + 4] == ["prepare 1 begins", "prepare 1 ends", "infer 1 begins", "infer 1 ends"]


def test_running_out_of_memory_once_costs_an_attempt_but_no_job(make_node, script, monkeypatch):
    monkeypatch.setattr(dicom_node.pipeline.outcomes, "FIRST_PAUSE", timedelta(seconds=0.05))
    node = make_node(2)
    script.fail("infer 1", "memory")
    node.run()
    node.wait_for_all()
    assert node.jobs() == {1: (JobState.KEPT, 2), 2: (JobState.KEPT, 1)}


def work_process(node):
    command = [sys.executable, "-m", "dicom_node.cli", "--config", str(node.config), "work"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_sigkill_with_several_jobs_in_progress_loses_none_and_makes_each_result_once(make_node, script):
    node = make_node(4)
    script.hold("infer 1")
    first = work_process(node)
    try:
        script.wait_for("infer 1 begins")
        script.wait_for("prepare 2 ends")
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    assert node.states() == [JobState.QUEUED] * 2 + [JobState.RUNNING] * 2
    script.release("infer 1")
    second = work_process(node)
    try:
        node.wait_for_all()
    finally:
        second.terminate()
        second.wait(30)
    assert node.jobs() == {number: (JobState.KEPT, 2 if number < 3 else 1) for number in (1, 2, 3, 4)}
    kinds = [sorted(result.kind for result in node.ledger.overview.job(n).results) for n in (1, 2, 3, 4)]
    assert len(kinds) == 4
    assert all(one == kinds[0] and len(set(one)) == 2 for one in kinds)
