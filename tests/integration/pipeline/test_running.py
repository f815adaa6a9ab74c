"""Attempts as made by the node, with real workers, and every way in which an attempt can end."""

from __future__ import annotations

import errno
import os

import pytest
import structlog
import yaml
from sqlalchemy import update

from dicom_node.app.stores import open_store
from dicom_node.app.working import open_pipeline
from dicom_node.pipeline import outcomes
from dicom_node.receive.adopt import adopt_unclaimed
from dicom_node.route.rules_file import load_rules
from dicom_node.settings import load_settings
from dicom_node.standard.part10 import data_set_start
from dicom_node.store import spool
from dicom_node.store.clock import now_utc
from dicom_node.store.schema import job as job_table
from dicom_node.store.states import JobState
from dicom_node.work.pool import WorkerPool
from tests.support.received_series import as_received, flip_a_bit, receive
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
        self.names = revision.spool_names
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

    def is_due(self):
        """The waits of all jobs are over."""
        with self.ledger.database.write() as db:
            db.execute(update(job_table).values(not_before=None))

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
    whole = node.files[1].read_bytes()
    cut = whole[data_set_start(whole) : -20]  # its pixel data is cut off
    as_received(node.spool, node.ledger, node.names[1], cut)
    job, _ = node.run()
    assert job.state is JobState.REJECTED
    assert job.reason


def test_file_that_is_away_for_a_moment_costs_no_attempt(node):
    node = node(attempts=1)
    content = node.files[1].read_bytes()
    node.files[1].unlink()
    job, _ = node.run()
    assert (job.state, job.attempts, job.not_counted) == (JobState.QUEUED, 1, 1)
    assert job.reason == f"spool: reading {node.files[1].name}: ENOENT"
    node.files[1].write_bytes(content)
    node.is_due()
    assert node.run()[0].state is JobState.KEPT


def test_full_disk_is_waited_for_without_costing_attempts(node, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    node = node(attempts=1)
    with monkeypatch.context() as patch:
        patch.setattr(spool, "write_synced", full)
        for tried in range(1, 8):
            job, _ = node.run()
            assert (job.state, job.attempts, job.not_counted) == (JobState.QUEUED, tried, tried)
            assert "ENOSPC" in job.reason
            node.is_due()
    assert node.run()[0].state is JobState.KEPT


def test_image_that_changed_on_the_disk_is_never_processed(node):
    node = node()
    flip_a_bit(node.files[1])
    job, log = node.run()
    reason = f"the stored bytes of 1 of 4 images changed on the disk (first: {node.files[1].name}) (attempt 1)"
    assert (job.state, job.reason, job.results) == (JobState.FAILED, reason, ())
    assert node.ledger.overview.counts().instances["damaged"] == 1
    assert [line["state"] for line in log if line["event"] == "job"] == [JobState.FAILED]


def test_image_that_was_put_back_is_processed_on_request(node):
    node = node()
    flip_a_bit(node.files[1])
    node.run()
    assert node.ledger.jobs.retry(1, now_utc()) == "the job is queued again"
    assert node.run()[0].state is JobState.FAILED, "it is still damaged"
    flip_a_bit(node.files[1])
    assert node.ledger.jobs.retry(1, now_utc()) == "the job is queued again"
    assert node.run()[0].state is JobState.KEPT
    assert node.ledger.overview.counts().instances == {"current": 4, "replaced": 0, "damaged": 0, "purged": 0}


def test_image_that_changed_may_be_received_again(node):
    node = node()
    content = node.files[1].read_bytes()
    flip_a_bit(node.files[1])
    node.run()
    name = node.spool.new_name()
    node.spool.make_folder(node.spool.path(name).parent)
    node.spool.path(name).write_bytes(content)
    adopt_unclaimed(node.spool, node.ledger.arrivals, node.ledger.retention.claims, older_than_s=-1)
    pipeline = node.opened(node.settings)
    pipeline.completing.complete_due()
    pipeline.routing.route_complete()
    assert node.running.run_next_job()
    assert [job.state for job in node.ledger.overview.jobs(9)] == [JobState.KEPT, JobState.FAILED]
    assert node.ledger.overview.job(2).notes == (), "it is whole again"


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


def test_image_that_is_gone_for_a_day_may_be_received_again(node, monkeypatch):
    monkeypatch.setattr(outcomes, "MOST_WAITS", 0)
    node = node()
    node.files[1].unlink()
    job, _ = node.run()
    assert (job.state, job.reason.endswith("ENOENT; given up after a day (attempt 1)")) == (JobState.FAILED, True)
    assert node.ledger.overview.counts().instances == {"current": 3, "replaced": 0, "damaged": 1, "purged": 0}
