"""What a destination is offered, and how its responses are recorded."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta

import pytest
import structlog
from sqlalchemy import update

from dicom_node.deliver.abilities import Abilities
from dicom_node.errors import StoreUnavailable
from dicom_node.pipeline import delivering as module
from dicom_node.pipeline.delivering import Asking, Delivering
from dicom_node.settings import DeliverySettings
from dicom_node.store.clock import Moment, now_utc
from dicom_node.store.deliveries import Deliveries
from dicom_node.store.schema import delivery
from dicom_node.store.states import DeliveryState, JobState
from dicom_node.types import Completion, Decision, EncodedResult, ResultRequest, SegmentationForm
from tests.integration.store.rows import DEAD, IDENTITY, RUN, WORKER, arrive, claim, claim_deliveries
from tests.support.dicom_peers import destination, make_result, scripted_pacs
from tests.support.ports import free_port
from tests.support.received_series import flip_a_bit
from tests.support.waiting import wait_until

POLICY = DeliverySettings(first_retry_s=3600, longest_retry_s=3600, refused_attempts=3)


@pytest.fixture
def encode(ledger, spool, tmp_path):
    """Give a claimed job one result for ``pacs``, by its number."""

    def make(claimed, number):
        made = make_result(tmp_path, number)
        content = EncodedResult(
            made.kind, made.sop_class_uid, made.sop_instance_uid, made.series_instance_uid,
            made.transfer_syntax_uid, made.path.read_bytes(), ("pacs",),
        )  # fmt: skip
        assert ledger.jobs.encoded(claimed, spool.write_results([content]), IDENTITY, RUN, {}, now_utc())

    return make


@pytest.fixture
def encoded(ledger, encode):
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
            encode(claim(ledger, now_utc()), number)
        return jobs

    return make


def delivering(ledger, deliveries=None, worker=WORKER, **destinations):
    deliveries = deliveries or ledger.deliveries
    return Delivering(
        deliveries, ledger.elapsed, destinations, POLICY, Abilities("NODE"), "NODE", worker, ledger.jobs, 3
    )


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


def test_two_processes_send_each_result_once(ledger, encoded):
    jobs = encoded(*range(1, 9))
    with scripted_pacs() as (port, stored):
        rooms = [delivering(ledger, worker=replace(WORKER, pid=pid), pacs=destination(port)) for pid in (1, 2)]
        sending = [threading.Thread(target=room.deliver, args=("pacs",)) for room in rooms]
        for thread in sending:
            thread.start()
        for thread in sending:
            thread.join()
    assert len(stored) == len(jobs)
    assert {ledger.overview.job(job).state for job in jobs} == {JobState.DELIVERED}


def test_delivery_of_a_killed_process_is_made_by_another(ledger, encoded):
    (job,) = encoded(1)
    claim_deliveries(ledger, "pacs", now_utc(), worker=DEAD)
    with scripted_pacs() as (port, stored), structlog.testing.capture_logs() as log:
        room = delivering(ledger, pacs=destination(port))
        room.deliver("pacs")
        assert stored == []
        room.recover()
        room.deliver("pacs")
    assert [line["deliveries"] for line in log if line["event"] == "deliveries.recovered"] == [1]
    assert (len(stored), of_job(ledger, job).attempts) == (1, 2)
    assert ledger.overview.job(job).state is JobState.DELIVERED


def test_claim_is_renewed_during_a_long_transfer(ledger, encoded, monkeypatch):
    monkeypatch.setattr(module, "_RENEWAL_S", 0.01)
    (job,) = encoded(1)

    def lease():
        return of_job(ledger, job).lease_until

    def renewed_twice(_event, _count):
        for _ in range(2):
            before = lease()
            wait_until(lambda before=before: lease() > before)
        return 0x0000

    with scripted_pacs(renewed_twice) as (port, _):
        delivering(ledger, pacs=destination(port, response_timeout_s=60)).deliver("pacs")
    assert (of_job(ledger, job).state, lease()) == (DeliveryState.DELIVERED, None)


def test_answer_that_cannot_be_recorded_leaves_its_delivery_due(ledger, encoded):
    (job,) = encoded(1)

    class Away(Deliveries):
        def record(self, *_):
            raise StoreUnavailable("the database is away")

    away = Away(ledger.database, ledger.deliveries._spool)
    with scripted_pacs() as (port, stored):
        room = delivering(ledger, away, pacs=destination(port))
        with pytest.raises(StoreUnavailable):
            room.deliver("pacs")
        assert of_job(ledger, job).claimed_by is None
        delivering(ledger, pacs=destination(port)).deliver("pacs")
    assert len(stored) == 2
    assert ledger.overview.job(job).state is JobState.DELIVERED


def result_file(ledger, spool, job):
    (result,) = ledger.overview.job(job).results
    return spool.path(result.spool_name)


def test_damaged_result_is_not_sent_but_made_again(ledger, spool, encoded):
    job, other = encoded(1, 2)
    flip_a_bit(result_file(ledger, spool, job))
    with scripted_pacs() as (port, stored), structlog.testing.capture_logs() as log:
        delivering(ledger, pacs=destination(port)).deliver("pacs")
    assert len(stored) == 1
    assert [ledger.overview.job(each).state for each in (job, other)] == [JobState.QUEUED, JobState.DELIVERED]
    assert [line["is_made_again"] for line in log if line["event"] == "result.damaged"] == [True]


def test_results_made_again_are_sent_to_those_that_lack_them(ledger, encode, spool, encoded):
    (job,) = encoded(1)
    flip_a_bit(result_file(ledger, spool, job))
    with scripted_pacs() as (port, stored):
        room = delivering(ledger, pacs=destination(port))
        room.deliver("pacs")
        encode(claim(ledger, now_utc()), 1)
        assert (ledger.overview.job(job).state, len(ledger.overview.job(job).results)) == (JobState.ENCODED, 1)
        room.deliver("pacs")
    assert len(stored) == 1
    assert ledger.overview.job(job).state is JobState.DELIVERED
    assert of_job(ledger, job).attempts == 2


def test_damage_without_end_is_shown_to_a_person(ledger, encode, spool, encoded):
    (job,) = encoded(1)
    with scripted_pacs() as (port, stored):
        room = delivering(ledger, pacs=destination(port))
        for _ in range(2):
            flip_a_bit(result_file(ledger, spool, job))
            room.deliver("pacs")
            encode(claim(ledger, now_utc()), 1)
        flip_a_bit(result_file(ledger, spool, job))
        room.deliver("pacs")
    assert stored == []
    assert (ledger.overview.job(job).state, of_job(ledger, job).state) == (JobState.FAILED, DeliveryState.FAILED)
    assert of_job(ledger, job).last_reason == "the stored result changed on the disk"


def test_result_that_is_away_for_a_moment_is_sent_later(ledger, spool, encoded):
    (job,) = encoded(1)
    file = result_file(ledger, spool, job)
    content = file.read_bytes()
    file.unlink()
    with scripted_pacs() as (port, stored):
        room = delivering(ledger, pacs=destination(port))
        room.deliver("pacs")
        found = of_job(ledger, job)
        assert (found.state, found.refusals, found.last_reason.endswith("No such file or directory")) == (
            DeliveryState.WAITING,
            0,
            True,
        )
        file.write_bytes(content)
        assert ledger.jobs.retry(job, now_utc()) == "retrying 1 delivery now"
        room.deliver("pacs")
    assert len(stored) == 1


def test_result_that_is_gone_is_made_again_at_the_third_attempt(ledger, spool, encode, encoded):
    (job,) = encoded(1)
    result_file(ledger, spool, job).unlink()
    with scripted_pacs() as (port, stored):
        room = delivering(ledger, pacs=destination(port))
        for _ in range(2):
            room.deliver("pacs")
            assert ledger.overview.job(job).state is JobState.ENCODED
            is_due(ledger)
        room.deliver("pacs")
        assert ledger.overview.job(job).state is JobState.QUEUED
        encode(claim(ledger, now_utc()), 1)
        room.deliver("pacs")
    assert len(stored) == 1
    assert ledger.overview.job(job).state is JobState.DELIVERED


def test_results_of_a_spool_that_is_away_are_waited_for(ledger, spool, encoded, tmp_path):
    (job,) = encoded(1)
    (tmp_path / "spool").rename(tmp_path / "away")
    (tmp_path / "spool").mkdir()
    with scripted_pacs() as (port, stored):
        room = delivering(ledger, pacs=destination(port))
        for _ in range(4):
            room.deliver("pacs")
            is_due(ledger)
        assert (ledger.overview.job(job).state, stored) == (JobState.ENCODED, [])
        (tmp_path / "spool").rmdir()
        (tmp_path / "away").rename(tmp_path / "spool")
        room.deliver("pacs")
    assert ledger.overview.job(job).state is JobState.DELIVERED


def is_due(ledger):
    with ledger.database.write() as db:
        db.execute(update(delivery).values(next_attempt_at=now_utc()))


def test_sender_that_lost_its_claim_leaves_the_rest_to_the_other(ledger, encoded):
    encoded(1, 2, 3)
    other = replace(WORKER, pid=2)

    def lose(_event, count):
        if count == 1:  # as if the transfer had taken longer than the lease
            ledger.deliveries.recover_stalled(other, now_utc() + timedelta(minutes=5))
            claim_deliveries(ledger, "pacs", now_utc(), worker=other)
        return 0x0000

    with scripted_pacs(lose) as (port, stored), structlog.testing.capture_logs() as log:
        delivering(ledger, pacs=destination(port)).deliver("pacs")
    assert len(stored) == 1
    assert [line["deliveries"] for line in log if line["event"] == "deliveries.lost"] == [3]


def test_superseded_result_does_not_end_the_transfer(ledger, encoded):
    encoded(1, 2, 3)

    def supersede(_event, count):
        if count == 1:
            with ledger.database.write() as db:
                db.execute(update(delivery).where(delivery.c.id == 1).values(state=DeliveryState.SUPERSEDED))
        return 0xA700 if count == 1 else 0x0000

    with scripted_pacs(supersede) as (port, stored):
        delivering(ledger, pacs=destination(port)).deliver("pacs")
    assert len(stored) == 3


def test_clock_that_jumps_by_years_gives_nothing_up(ledger, encoded, monkeypatch):
    (job,) = encoded(1)
    room = delivering(ledger, pacs=destination(free_port()))
    start, years = Moment.now(), timedelta(days=3650)
    for at, passed_s, state in (
        (start.at, 0.0, DeliveryState.WAITING),
        (start.at + years, 60.0, DeliveryState.WAITING),
        (start.at, 120.0, DeliveryState.WAITING),  # it is set right: the next attempt is not in ten years
        (start.at + timedelta(hours=2), 8 * 86400.0, DeliveryState.FAILED),
    ):
        moment = Moment(at, start.boot_id, start.uptime_s + passed_s)
        monkeypatch.setattr(module.Moment, "now", lambda moment=moment: moment)
        room.deliver("pacs")
        assert of_job(ledger, job).state is state
    assert of_job(ledger, job).attempts == 4
