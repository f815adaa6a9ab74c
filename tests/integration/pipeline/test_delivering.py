"""What a destination is offered, and how its responses are recorded."""

from __future__ import annotations

import pytest
import structlog

from dicom_node.deliver.abilities import Abilities
from dicom_node.pipeline.delivering import Asking, Delivering
from dicom_node.settings import DeliverySettings
from dicom_node.store.clock import now_utc
from dicom_node.store.states import DeliveryState, JobState
from dicom_node.types import Completion, Decision, EncodedResult, ResultRequest, SegmentationForm
from tests.integration.store.rows import IDENTITY, RUN, arrive, claim
from tests.support.dicom_peers import destination, make_result, scripted_pacs
from tests.support.ports import free_port

POLICY = DeliverySettings(first_retry_s=3600, longest_retry_s=3600, refused_attempts=3)


@pytest.fixture
def encoded(ledger, spool, tmp_path):
    """Jobs with one result each for ``pacs``, of different series; ``encoded(1, 1)`` gives both the same instance."""

    def make(*numbers):
        jobs = []
        for place, number in enumerate(numbers):
            arrive(ledger, 1, series=f"1.2.840.{place}")
            (revision,) = ledger.arrivals.due_revisions(now_utc())
            assert ledger.arrivals.complete(revision, Completion(complete=True, reason="test"), now_utc())
            (whole,) = ledger.routing.due_revisions()
            decision = Decision("all", "tissue", {"pacs": ResultRequest()}, 0)
            jobs += ledger.routing.route(whole, [decision], None, now_utc())
            made = make_result(tmp_path, number)
            content = EncodedResult(
                made.kind, made.sop_class_uid, made.sop_instance_uid, made.series_instance_uid,
                made.transfer_syntax_uid, made.path.read_bytes(), ("pacs",),
            )  # fmt: skip
            stored = spool.write_results([content])
            assert ledger.jobs.encoded(claim(ledger, now_utc()), stored, IDENTITY, RUN, {}, now_utc())
        return jobs

    return make


def delivering(ledger, **destinations):
    return Delivering(ledger.deliveries, destinations, POLICY, Abilities("NODE"), "NODE")


def of_job(ledger, job_id):
    (found,) = ledger.overview.job(job_id).deliveries
    return found


def test_instance_of_two_jobs_is_sent_once_and_recorded_twice(ledger, encoded):
    jobs = encoded(1, 1, 2)
    with scripted_pacs() as (port, stored), structlog.testing.capture_logs() as log:
        delivering(ledger, pacs=destination(port)).deliver("pacs")
    assert len(stored) == 2
    assert [ledger.overview.job(job).state for job in jobs] == [JobState.DELIVERED] * 3
    assert sorted(line["job"] for line in log if line["event"] == "delivery") == jobs


def test_unreachable_destination_is_tried_again_later(ledger, encoded):
    (job,) = encoded(1)
    room = delivering(ledger, pacs=destination(free_port()))
    before = now_utc()
    room.deliver("pacs")
    found = of_job(ledger, job)
    assert (found.state, found.attempts, found.refusals) == (DeliveryState.WAITING, 1, 0)
    assert found.next_attempt_at > before
    room.deliver("pacs")  # nothing is due
    assert of_job(ledger, job).attempts == 1


def test_refusal_is_counted_as_a_refusal(ledger, encoded):
    (job,) = encoded(1)
    with scripted_pacs(lambda _event, _count: 0xC000) as (port, _), structlog.testing.capture_logs() as log:
        delivering(ledger, pacs=destination(port)).deliver("pacs")
    found = of_job(ledger, job)
    assert (found.state, found.refusals, found.last_status) == (DeliveryState.WAITING, 1, 0xC000)
    (line,) = [line for line in log if line["event"] == "delivery"]
    assert (line["status"], line["delivered"]) == ("0xC000", False)


def test_results_for_a_destination_that_is_no_longer_configured_wait(ledger, encoded):
    (job,) = encoded(1)
    delivering(ledger).deliver("pacs")
    assert (of_job(ledger, job).state, of_job(ledger, job).attempts) == (DeliveryState.WAITING, 0)


def test_only_a_destination_that_accepts_label_maps_gets_one_automatically():
    auto, binary = ResultRequest(SegmentationForm.AUTO), ResultRequest()
    labelmap = "1.2.840.10008.5.1.4.1.1.66.7"
    with scripted_pacs(classes=(labelmap,)) as (new, _), scripted_pacs() as (old, _):
        asking = Asking({"new": destination(new), "old": destination(old)}, Abilities("NODE"))
        answered = asking.answered({"new": auto, "old": auto, "unknown": auto, "plain": binary})
    assert {name: request.segmentation for name, request in answered.items()} == {
        "new": SegmentationForm.LABELMAP,
        "old": SegmentationForm.BINARY,
        "unknown": SegmentationForm.BINARY,
        "plain": SegmentationForm.BINARY,
    }
    assert answered["plain"] is binary


def test_viewer_on_orthanc_shows_binary_only_where_frames_end_on_a_byte():
    viewers = {"ohif": destination(1, viewer="ohif_on_orthanc"), "other": destination(1)}
    asking = Asking(viewers, Abilities("NODE"))
    for form, shown in {"binary": 480, "both": 500, "labelmap": 500, "none": 500}.items():
        requests = dict.fromkeys([*viewers, "unknown"], ResultRequest(SegmentationForm(form)))
        assert asking.not_showing(requests, shown) == ()
    assert asking.not_showing(dict.fromkeys([*viewers, "unknown"], ResultRequest()), 500) == ("ohif",)
