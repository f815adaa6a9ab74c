"""Results are durable and recorded, or leave nothing behind."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
import structlog

from dicom_node.analysis import Ct, measured
from dicom_node.errors import EncodingError
from dicom_node.pipeline.attempt import Attempt
from dicom_node.pipeline.results import Installation, ResultStore
from dicom_node.store.states import JobState
from dicom_node.types import EncodedResult, ResultKind
from inference.types import Geometry, Segmentation, Volume
from tests.integration.store.rows import IDENTITY, NOW, RUN, WORKER, claim, queued_job


@pytest.fixture
def store(ledger, spool):
    return ResultStore(ledger.jobs, ledger.results, spool, Installation("node-1", "2.25.1"))


@pytest.fixture
def findings():
    geometry = Geometry((2, 2, 2), np.eye(4))
    volume = Volume(np.zeros((2, 2, 2), np.int16), geometry)
    labels = Segmentation(np.ones((2, 2, 2), np.uint8), geometry, {1: "liver"}, IDENTITY, RUN)
    return measured(Ct(volume, volume, notes=("no voxel is below 0 HU",)), labels, with_shape=False)


def encoded(number):
    return EncodedResult(
        ResultKind.REPORT, "1.2.3", f"2.25.{number}", "2.25.9", "1.2.840.10008.1.2.1", b"DICM", ("pacs",)
    )


def two_results():
    yield encoded(1)
    yield encoded(2)


def test_results_are_recorded_with_what_ran(ledger, store, findings, spool):
    job_id = queued_job(ledger)
    attempt = Attempt(claim(ledger))
    stored = store.keep(attempt, findings, two_results())
    assert [spool.path(name).read_bytes() for _, name in stored] == [b"DICM", b"DICM"]
    job = ledger.overview.job(job_id)
    assert (job.state, job.model_identity, job.run_report) == (JobState.ENCODED, IDENTITY, RUN)
    assert job.image_notes == ("no voxel is below 0 HU",)
    assert list(job.stage_seconds) == ["encode", "store"]
    assert [result.sop_instance_uid for result in job.results] == ["2.25.1", "2.25.2"]


def lose(ledger):
    """Let a claim's lease expire and another worker claim the same job."""
    lost = claim(ledger)
    later = NOW + timedelta(minutes=5)
    assert ledger.jobs.recover_stalled(WORKER, later, 3) == (1, 0)
    return lost, claim(ledger, later)


def test_results_of_a_lost_job_are_discarded(ledger, store, findings, result_files):
    job_id = queued_job(ledger)
    lost, current = lose(ledger)
    assert store.keep(Attempt(lost), findings, two_results()) is None
    assert (result_files(), ledger.overview.job(job_id).state) == ([], JobState.RUNNING)
    assert len(store.keep(Attempt(current), findings, two_results())) == 2
    assert len(result_files()) == 2


def test_incomplete_results_leave_nothing_behind(ledger, store, findings, result_files):
    def one_and_no_more():
        yield encoded(1)
        raise EncodingError("the SEG did not read back equal")

    job_id = queued_job(ledger)
    with pytest.raises(EncodingError):
        store.keep(Attempt(claim(ledger)), findings, one_and_no_more())
    assert (result_files(), ledger.overview.job(job_id).results) == ([], ())


def test_the_log_line_of_a_job_says_what_ran(ledger, findings):
    queued_job(ledger)
    attempt = Attempt(claim(ledger))
    with attempt.stage("segment"):
        attempt.on_progress(0.5, "windows")
    with structlog.testing.capture_logs() as log:
        attempt.log(JobState.ENCODED, "", [], findings)
        attempt.log(JobState.FAILED, "no", [])
    whole, bare = log
    assert (
        whole.items()
        >= {
            "event": "job",
            "attempt": 1,
            "state": "ENCODED",
            "model": "tissue",
            "model_version": "1",
            "model_digest": "ab" * 32,
            "backend": "numpy 2.3.4",
            "device": "CPU",
            "precision": "float32",
            "notes": ["no voxel is below 0 HU", "fell back to the CPU"],
            "engine_seconds": {"infer": 1.5},
            "shape_zyx": [2, 2, 2],
        }.items()
    )
    assert list(whole["stage_seconds"]) == ["segment"]
    assert bare.keys() == whole.keys()
    assert (bare["backend"], bare["notes"], bare["engine_seconds"], bare["shape_zyx"]) == (None, [], {}, None)
