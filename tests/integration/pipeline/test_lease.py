"""A lease is renewed as long as the work lasts, but not for a lost job."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import structlog

from dicom_node.errors import StoreUnavailable
from dicom_node.pipeline import lease
from dicom_node.pipeline.attempt import Attempt
from dicom_node.pipeline.lease import lease_renewed
from dicom_node.store.clock import now_utc
from dicom_node.store.jobs import Jobs
from tests.integration.store.rows import WORKER, claim, queued_job
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def _renewed_often(monkeypatch):
    monkeypatch.setattr(lease, "_RENEWAL_S", 0.01)


def renews(attempt):
    return f"lease of job {attempt.claimed.id}" in {thread.name for thread in threading.enumerate()}


@pytest.fixture
def attempt(ledger):
    queued_job(ledger)
    return Attempt(claim(ledger, now_utc()))


def test_lease_and_progress_reach_the_ledger(ledger, attempt):
    with lease_renewed(ledger.jobs, attempt), attempt.stage("segment"):
        attempt.on_progress(0.25, "windows")
        wait_until(lambda: ledger.overview.job(attempt.claimed.id).stage == "windows")
        assert ledger.overview.job(attempt.claimed.id).progress == 0.25
        assert ledger.jobs.recover_stalled(WORKER, now_utc() + lease.LEASE / 2, 3) == (0, 0)
    assert not renews(attempt)


def test_brief_outage_of_the_ledger_ends_nothing(ledger, attempt):
    class Away(Jobs):
        asked = 0

        def renew_lease(self, *renewal):
            self.asked += 1
            if self.asked < 3:
                raise StoreUnavailable("the database is away")
            return super().renew_lease(*renewal)

    with structlog.testing.capture_logs() as log, lease_renewed(Away(ledger.database), attempt):
        attempt.on_progress(0.5, "later")
        wait_until(lambda: ledger.overview.job(attempt.claimed.id).stage == "later")
    assert [line["event"] for line in log] == ["lease.not_renewed"] * 2


def test_lease_of_a_lost_job_is_not_renewed(ledger, attempt):
    later = now_utc() + timedelta(minutes=5)
    assert ledger.jobs.recover_stalled(WORKER, later, 3) == (1, 0)
    with lease_renewed(ledger.jobs, attempt):
        wait_until(lambda: not renews(attempt))
