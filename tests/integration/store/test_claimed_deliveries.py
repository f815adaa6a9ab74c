"""Two processes never send the same result at the same time, and only the one that has the claim records an answer."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest

from dicom_node.store.states import DeliveryState, JobState
from dicom_node.types import Completion
from tests.integration.store.rows import (
    DEAD,
    DECISION,
    IDENTITY,
    NOW,
    RUN,
    SERIES,
    WORKER,
    arrive,
    claim,
    claim_deliveries,
    complete,
    outcome,
    queued_job,
    some_results,
    state_of,
)

AFTER_THE_LEASE = NOW + timedelta(seconds=61)
ELSEWHERE = replace(WORKER, pid_namespace=1)


@pytest.fixture
def job_id(ledger):
    """A job with two results for ``pacs``."""
    made = queued_job(ledger)
    assert ledger.jobs.encoded(claim(ledger), some_results(("pacs",)), IDENTITY, RUN, {}, NOW)
    return made


def recover(ledger, at=NOW):
    return ledger.deliveries.recover_stalled(WORKER, at)


def shown(ledger, job_id):
    return {(each.state, each.attempts, each.claimed_by) for each in ledger.overview.job(job_id).deliveries}


def test_no_result_is_claimed_twice_by_competing_processes(ledger):
    numbers = range(10, 22)
    for number in numbers:
        arrive(ledger, 1, series=f"{SERIES}.{number}")
    for revision in ledger.arrivals.due_revisions(NOW):
        ledger.arrivals.complete(revision, Completion(complete=True, reason="regular"), NOW)
    for whole in ledger.routing.due_revisions():
        ledger.routing.route(whole, [DECISION], None, NOW)
        ledger.jobs.encoded(claim(ledger), some_results(("pacs",)), IDENTITY, RUN, {}, NOW)
    names, together = [replace(WORKER, pid=pid) for pid in range(4)], threading.Barrier(4)

    def claim_all(name):
        together.wait(30)
        mine = []
        while found := ledger.deliveries.claim("pacs", name, NOW, AFTER_THE_LEASE, 3, 0.0):
            mine += found
        return [each.id for each in mine]

    with ThreadPoolExecutor(4) as threads:
        claimed = [each for ids in threads.map(claim_all, names) for each in ids]
    assert len(claimed) == len(set(claimed)) == 2 * len(numbers)


def test_attempt_is_counted_when_it_is_claimed_and_kept_by_its_answer(ledger, job_id):
    claimed = claim_deliveries(ledger, "pacs")
    assert [(each.attempts, each.claimed_by, each.first_attempt_s) for each in claimed] == [(1, str(WORKER), 0.0)] * 2
    assert shown(ledger, job_id) == {(DeliveryState.WAITING, 1, str(WORKER))}
    assert ledger.deliveries.due("pacs", AFTER_THE_LEASE, 10) == ()
    for each in claimed:
        assert ledger.deliveries.record(each, outcome(each, delivered=False, retry=True), NOW, NOW)
    assert shown(ledger, job_id) == {(DeliveryState.WAITING, 1, None)}
    again = claim_deliveries(ledger, "pacs", AFTER_THE_LEASE, elapsed_s=61.0)
    assert [(each.attempts, each.first_attempt_s) for each in again] == [(2, 0.0)] * 2


@pytest.mark.parametrize(("worker", "at"), [(DEAD, NOW), (ELSEWHERE, AFTER_THE_LEASE), (WORKER, AFTER_THE_LEASE)])
def test_claims_of_a_dead_process_are_given_to_another(ledger, job_id, worker, at):
    old = claim_deliveries(ledger, "pacs", worker=worker)
    assert recover(ledger, at) == len(old) == 2
    new = claim_deliveries(ledger, "pacs", at)
    assert len(new) == 2
    assert not ledger.deliveries.record(old[0], outcome(old[0], delivered=False), None, at), "it is another's now"
    assert shown(ledger, job_id) == {(DeliveryState.WAITING, 2, str(WORKER))}
    for each in new:
        assert ledger.deliveries.record(each, outcome(each, delivered=True), None, at)
    assert state_of(ledger, job_id) is JobState.DELIVERED


def test_answer_counts_although_its_claim_was_freed(ledger, job_id):
    """The clock was set forward, or the machine slept: the sweep of the same process frees what is being sent."""
    first, second = claim_deliveries(ledger, "pacs")
    assert recover(ledger, AFTER_THE_LEASE) == 2
    assert ledger.deliveries.record(first, outcome(first, delivered=True), None, NOW)
    (again,) = claim_deliveries(ledger, "pacs", AFTER_THE_LEASE, worker=ELSEWHERE)
    assert again.id == second.id
    assert not ledger.deliveries.record(second, outcome(second, delivered=True), None, NOW), "it is another's now"


def test_claims_of_a_process_that_lives_or_may_live_are_left_alone(ledger, job_id):
    claimed = claim_deliveries(ledger, "pacs", worker=ELSEWHERE)
    assert recover(ledger) == 0
    assert ledger.deliveries.renew_lease(claimed, AFTER_THE_LEASE)
    assert recover(ledger, AFTER_THE_LEASE) == 0


def of_job(ledger, job_id):
    return ledger.overview.job(job_id).deliveries


def test_delivery_given_back_is_due_at_once_to_any_process(ledger, job_id):
    answered, open_still = claim_deliveries(ledger, "pacs")
    ledger.deliveries.record(answered, outcome(answered, delivered=True), None, NOW)
    ledger.deliveries.give_back((answered, open_still))
    assert [each.id for each in claim_deliveries(ledger, "pacs", worker=ELSEWHERE)] == [open_still.id]


def test_retry_at_a_persons_request_loses_no_answer_on_its_way(ledger, job_id):
    first, second = claim_deliveries(ledger, "pacs")
    assert ledger.jobs.retry(job_id, NOW) == "retrying 2 deliveries now"
    assert ledger.deliveries.due("pacs", NOW, 10) == (), "they are being sent"
    assert ledger.deliveries.record(first, outcome(first, delivered=True), None, NOW)
    assert ledger.deliveries.record(second, outcome(second, delivered=True), None, NOW)
    assert state_of(ledger, job_id) is JobState.DELIVERED


def test_result_superseded_on_its_way_counts_as_delivered_if_it_arrived(ledger, job_id):
    first, second = claim_deliveries(ledger, "pacs")
    arrive(ledger, 2)
    ledger.routing.route(complete(ledger), [DECISION], None, NOW)
    assert ledger.deliveries.record(first, outcome(first, delivered=True), None, NOW)
    assert not ledger.deliveries.record(second, outcome(second, delivered=False), None, NOW)
    assert {each.state for each in of_job(ledger, job_id)} == {DeliveryState.DELIVERED, DeliveryState.SUPERSEDED}
    assert recover(ledger, AFTER_THE_LEASE) == 0
