"""Attempts as made by the node, with real workers, and every way in which an attempt can end."""

from __future__ import annotations

import pytest
import structlog
import yaml

from dicom_node.app.stores import open_store
from dicom_node.app.working import open_pipeline
from dicom_node.route.rules_file import load_rules
from dicom_node.settings import load_settings
from dicom_node.store.states import JobState
from dicom_node.work.pool import WorkerPool
from tests.support.received_series import receive
from tests.support.scripted_worker import Script


class Node:
    """A node with one routed series of 4 planes; ``files`` are the series' files."""

    def __init__(self, folder, **work):
        settings = {
            "node": {"data_folder": "data"},
            "completion": {"regular_quiet_s": 0, "otherwise_quiet_s": 0},
            "models": {"tissue": {"kind": "tissue"}},
            "work": work,
        }
        (folder / "node.yaml").write_text(yaml.safe_dump(settings))
        (folder / "rules.yaml").write_text("rules: [{name: all, model: tissue, when: []}]")
        self.settings = load_settings(folder / "node.yaml")
        self.spool, self.ledger = open_store(self.settings)
        receive(self.spool, self.ledger, folder / "ct", 1)
        self.workers = WorkerPool(self.settings.models, self.settings.work)
        self._rules = load_rules(self.settings.rules_file, self.settings)
        pipeline = self.opened(self.settings)
        pipeline.completing.complete_due()
        (revision,) = self.ledger.routing.due_revisions()
        self.files = [self.spool.path(name) for name in revision.spool_names]
        pipeline.routing.route_complete()
        self.running = pipeline.running

    def opened(self, settings):
        return open_pipeline(settings, self.ledger, self.spool, self._rules, self.workers)

    def run(self):
        """Run one attempt; return the job afterwards, and the log."""
        with structlog.testing.capture_logs() as log:
            assert self.running.run_next_job()
        return self.job(), log

    def job(self):
        (row,) = self.ledger.overview.jobs(2)
        return self.ledger.overview.job(row.id)

    def close(self):
        self.workers.close()
        self.ledger.close()


@pytest.fixture
def node(tmp_path):
    made = []

    def make(**work):
        made.append(Node(tmp_path, **work))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_log_and_ledger_say_what_ran_for_a_job(node):
    job, log = node().run()
    assert job.state is JobState.KEPT
    (line,) = [line for line in log if line["event"] == "job"]
    run = job.run_report
    assert run.backend.startswith("numpy ")
    assert (line["backend"], line["device"], line["precision"]) == (run.backend, "CPU", run.precision)
    assert line["engine_seconds"].keys() == run.stage_seconds.keys()
    assert "Test^One" not in str(log)


def test_absence_of_jobs_is_reported(node):
    node = node()
    node.run()
    assert not node.running.run_next_job()


def test_images_that_do_not_form_a_volume_are_rejected(node):
    node = node()
    node.files[1].write_bytes(node.files[1].read_bytes()[:-20])  # its pixel data is cut off
    job, _ = node.run()
    assert job.state is JobState.REJECTED
    assert job.reason


def test_missing_file_is_tried_again(node):
    node = node()
    node.files[1].unlink()
    job, _ = node.run()
    assert (job.state, job.attempts) == (JobState.QUEUED, 1)


def test_model_no_longer_configured_fails_the_job(node):
    node = node()
    node.running = node.opened(node.settings.model_copy(update={"models": {}})).running
    job, _ = node.run()
    assert (job.state, job.reason) == (JobState.FAILED, "model 'tissue' is no longer configured (attempt 1)")


def test_refusal_by_the_model_fails_the_job_and_the_worker_stays(node, tmp_path, monkeypatch):
    Script(tmp_path / "script", monkeypatch).fail("infer 1", "refuse")
    node = node()
    job, _ = node.run()
    assert (job.state, "the script says no" in job.reason) == (JobState.FAILED, True)
    assert node.workers.state()["residents_mib"].keys() == {"tissue"}


def test_the_last_attempt_fails_the_job(node, tmp_path, monkeypatch):
    Script(tmp_path / "script", monkeypatch).fail("infer 1", "kill")
    job, _ = node(attempts=1).run()
    assert (job.state, "SIGKILL" in job.reason) == (JobState.FAILED, True)


def test_internal_error_is_logged_with_its_place_and_without_values(node, monkeypatch):
    def fail(_case):
        raise ValueError("Doe^John")

    monkeypatch.setattr("dicom_node.pipeline.running.analyse", fail)
    job, log = node().run()
    reason = f"unexpected error (ValueError); see the log of job {job.id} (attempt 1)"
    assert (job.state, job.reason) == (JobState.FAILED, reason)
    assert [line["event"] for line in log] == ["job.crashed", "job"]
    assert "Doe" not in str(log[1])


def test_stopped_node_claims_no_job(node):
    node = node()
    node.running.stop()
    assert not node.running.run_next_job()
    assert (node.job().state, node.job().attempts) == (JobState.QUEUED, 0)
