"""A job whose worker died is queued again: at once where this can be known, otherwise when its lease ends."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

from dicom_node.store.ledger import Ledger
from dicom_node.store.spool import Spool
from dicom_node.store.states import JobState
from dicom_node.store.workers import WorkerName
from dicom_node.types import Completion
from tests.integration.store.rows import (
    DEAD,
    DECISION,
    NOW,
    SERIES,
    WORKER,
    arrive,
    claim,
    queued_job,
    state_of,
)

LATER = NOW + timedelta(seconds=30)
AFTER_THE_LEASE = NOW + timedelta(seconds=61)
OTHER_MACHINE = replace(WORKER, boot_id="4cf1a0d6-8a5e-4b8c-9a0f-6d3c1b2a7e55")
CLAIM_AND_WAIT = """
import sys
from datetime import datetime, timedelta
from pathlib import Path
from dicom_node.store.ledger import Ledger
from dicom_node.store.spool import Spool
from dicom_node.store.workers import WorkerName

url, spool, at = sys.argv[1:]
now = datetime.fromisoformat(at)
claimed = Ledger(url, Spool(Path(spool))).jobs.claim(WorkerName.own(), now, now + timedelta(seconds=60))
print(claimed.id, flush=True)
sys.stdin.read()
"""


@contextmanager
def working_process(url, spool):
    """A process that has claimed the next job and stays alive."""
    command = [sys.executable, "-c", CLAIM_AND_WAIT, url, str(spool), NOW.isoformat()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def recover(ledger, now=LATER, worker=WORKER, attempts_limit=3):
    return ledger.jobs.recover_stalled(worker, now, attempts_limit)


def queued_jobs(ledger, number):
    """Queue jobs for that many series."""
    for n in range(number):
        arrive(ledger, 1, series=f"{SERIES}.{n}")
    for revision in ledger.arrivals.due_revisions(NOW):
        ledger.arrivals.complete(revision, Completion(complete=True, reason="regular"), NOW)
    return [ledger.routing.route(whole, [DECISION], None, NOW)[0] for whole in ledger.routing.due_revisions()]


def test_only_the_job_of_a_killed_worker_is_recovered_at_once(url, ledger, tmp_path):
    queued_jobs(ledger, 2)
    spool = tmp_path / "spool"
    with working_process(url, spool) as (killed, lost), working_process(url, spool) as (_, kept):
        killed.kill()
        killed.wait()
        assert recover(ledger) == (1, 0)
        assert (state_of(ledger, lost), state_of(ledger, kept)) == (JobState.QUEUED, JobState.RUNNING)
        assert claim(ledger).id == lost
        assert recover(ledger) == (0, 0)


def test_job_that_kills_its_worker_every_time_ends_in_failed(url, ledger, tmp_path):
    job_id = queued_job(ledger)
    for expected in ((1, 0), (0, 1)):
        with working_process(url, tmp_path / "spool") as (worker, _):
            worker.kill()
            worker.wait()
            assert recover(ledger, attempts_limit=2) == expected
    assert state_of(ledger, job_id) is JobState.FAILED


def test_two_machines_never_take_each_others_jobs(url, ledger, tmp_path):
    """Both have the default station name and the same PIDs."""
    here, there = queued_jobs(ledger, 2)
    other = Ledger(url, Spool(tmp_path / "other"))
    assert claim(ledger).id == here
    assert claim(other, worker=OTHER_MACHINE).id == there
    assert (recover(ledger), recover(other, worker=OTHER_MACHINE)) == ((0, 0), (0, 0))
    other.close()
    assert (state_of(ledger, here), state_of(ledger, there)) == (JobState.RUNNING, JobState.RUNNING)


def test_job_of_another_machine_waits_for_the_end_of_its_lease(ledger):
    job_id = queued_job(ledger)
    claim(ledger, worker=replace(OTHER_MACHINE, pid=1, started_ticks=0))
    assert recover(ledger) == (0, 0)
    assert recover(ledger, AFTER_THE_LEASE) == (1, 0)
    assert state_of(ledger, job_id) is JobState.QUEUED


def test_reuse_of_a_dead_workers_pid_does_not_prevent_recovery(ledger):
    queued_job(ledger)
    claim(ledger, worker=replace(WORKER, started_ticks=WORKER.started_ticks - 1))
    assert recover(ledger) == (1, 0)


def test_worker_name_is_shown_with_its_job(ledger):
    job_id = queued_job(ledger)
    claim(ledger)
    assert WorkerName.parse(ledger.overview.job(job_id).claimed_by) == WORKER


def test_lease_that_a_living_worker_did_not_renew_costs_no_attempt(ledger):
    """A machine with too much to do, or a clock that was set: the job is sound."""
    job_id = queued_job(ledger)
    for attempt in range(1, 6):
        claimed = claim(ledger)
        assert (claimed.attempt, claimed.counted) == (attempt, 1)
        assert recover(ledger, AFTER_THE_LEASE, attempts_limit=2) == (1, 0)
    assert not ledger.jobs.failed(claimed, "too late", NOW), "its lease was lost"
    assert (state_of(ledger, job_id), ledger.overview.job(job_id).not_counted) == (JobState.QUEUED, 5)
    claim(ledger, worker=DEAD)
    assert recover(ledger, attempts_limit=1) == (0, 1)
