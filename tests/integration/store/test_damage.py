"""An instance whose stored bytes changed counts as refused until it is received again or put back."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from dicom_node.store.states import DeliveryState, JobState
from dicom_node.types import Receipt
from tests.integration.store.rows import (
    DECISION,
    IDENTITY,
    NOW,
    RUN,
    arrive,
    claim,
    claim_deliveries,
    complete,
    deliver,
    outcome,
    queued_job,
    some_results,
    state_of,
)

LATER = NOW + timedelta(minutes=1)


@pytest.fixture
def damaged(ledger):
    """A job on three instances, of which the second was found damaged."""
    for number in (1, 2, 3):
        arrive(ledger, number)
    whole = complete(ledger)
    (job_id,) = ledger.routing.route(whole, [DECISION], None, NOW)
    ledger.jobs.note_damage([whole.files[1].spool_name], NOW)
    ledger.jobs.failed(claim(ledger), "damaged", NOW)
    return job_id


def counted(ledger):
    return ledger.overview.counts().instances


def test_it_is_received_again_as_a_new_instance_and_the_series_runs_again(ledger, damaged):
    assert counted(ledger) == {"current": 2, "replaced": 0, "damaged": 1, "purged": 0}
    assert arrive(ledger, 2, at=LATER, association="assoc-2") is Receipt.NEW
    (revision,) = ledger.arrivals.due_revisions(LATER)
    assert (revision.evidence.instance_count, revision.evidence.refused_instances) == (3, 1)
    ledger.arrivals.association_opened("assoc-2", "PACS", "127.0.0.1", LATER)
    ledger.arrivals.association_closed("assoc-2", LATER, aborted=False)
    (revision,) = ledger.arrivals.due_revisions(LATER)
    assert revision.evidence.refused_instances == 0
    again = complete(ledger, LATER)
    assert not ledger.routing.content_already_routed(again), "nothing was made of these images"
    assert ledger.jobs.retry(damaged, LATER) is None, "its image has been received again"


def test_series_that_continues_without_it_is_not_whole(ledger, damaged):
    arrive(ledger, 4, at=LATER)
    (revision,) = ledger.arrivals.due_revisions(LATER)
    assert (revision.evidence.instance_count, revision.evidence.refused_instances) == (3, 1)


def test_it_is_trusted_again_at_a_persons_request(ledger, damaged):
    assert ledger.jobs.retry(damaged, LATER) == "the job is queued again"
    assert counted(ledger) == {"current": 3, "replaced": 0, "damaged": 0, "purged": 0}
    arrive(ledger, 4, at=LATER)
    (revision,) = ledger.arrivals.due_revisions(LATER)
    assert revision.evidence.refused_instances == 0


def test_it_is_not_trusted_again_beside_the_one_that_was_received_since(ledger, damaged):
    arrive(ledger, 2, at=LATER)
    assert ledger.jobs.retry(damaged, LATER) is None
    assert counted(ledger) == {"current": 3, "replaced": 0, "damaged": 1, "purged": 0}


def test_noted_twice_it_is_refused_once(ledger, damaged):
    name = claim_of(ledger, damaged)
    ledger.jobs.note_damage([name], LATER)
    arrive(ledger, 4, at=LATER)
    (revision,) = ledger.arrivals.due_revisions(LATER)
    assert revision.evidence.refused_instances == 1


def claim_of(ledger, job_id):
    ledger.jobs.retry(job_id, LATER)
    name = claim(ledger, LATER).revision.files[1].spool_name
    ledger.jobs.note_damage([name], LATER)
    return name


def test_damaged_results_are_made_again_and_what_was_delivered_stays_delivered(ledger):
    job_id = queued_job(ledger)
    ledger.jobs.encoded(claim(ledger), some_results(), IDENTITY, RUN, {}, NOW)
    deliver(ledger, "archive")
    first, second = claim_deliveries(ledger, "pacs")
    ledger.deliveries.record(first, outcome(first, delivered=True), None, NOW)
    assert ledger.deliveries.holds(second)
    assert ledger.jobs.encode_again(job_id, 3, NOW)
    assert not ledger.deliveries.holds(second)
    assert ledger.jobs.encode_again(job_id, 3, NOW), "it is known already"
    assert state_of(ledger, job_id) is JobState.QUEUED
    assert set(ledger.retention.claims(["results/1", "results/2"]).values()) == {False}
    made = [(replace(each, sha256="1" * 64), f"again/{name}") for each, name in some_results()]
    again = claim(ledger, LATER)
    assert again.counted == 2
    assert ledger.jobs.encoded(again, made, IDENTITY, RUN, {}, LATER)
    shown = ledger.overview.job(job_id)
    assert [(each.spool_name, each.sha256) for each in shown.results] == [
        ("again/results/1", "1" * 64),
        ("again/results/2", "1" * 64),
    ]
    assert not ledger.deliveries.holds(second), "it is of the file before"
    assert not ledger.deliveries.record(second, outcome(second, delivered=False), None, LATER)
    assert [each.instance.sop_instance_uid for each in claim_deliveries(ledger, "pacs", LATER)] == ["2.25.2"]
    assert {each.state for each in shown.deliveries if each.destination == "archive"} == {DeliveryState.DELIVERED}


def test_results_made_again_for_nobody_end_the_job(ledger):
    job_id = queued_job(ledger)
    ledger.jobs.encoded(claim(ledger), some_results(("pacs",)), IDENTITY, RUN, {}, NOW)
    sending = claim_deliveries(ledger, "pacs")
    assert ledger.jobs.encode_again(job_id, 3, NOW)
    for each in sending:
        assert ledger.deliveries.record(each, outcome(each, delivered=True), None, NOW)
    ledger.jobs.encoded(claim(ledger), some_results(("pacs",)), IDENTITY, RUN, {}, LATER)
    assert state_of(ledger, job_id) is JobState.DELIVERED


@pytest.mark.parametrize("limit", [1, 3])
def test_results_are_not_made_again_without_attempts_or_images(ledger, limit):
    job_id = queued_job(ledger)
    claimed = claim(ledger)
    ledger.jobs.encoded(claimed, some_results(), IDENTITY, RUN, {}, NOW)
    if limit > 1:
        ledger.jobs.note_damage(claimed.revision.spool_names, NOW)
    assert not ledger.jobs.encode_again(job_id, limit, NOW)
    assert state_of(ledger, job_id) is JobState.ENCODED


def given_up_and_damaged(ledger):
    """A job that makes its results again, because of the archive, after the PACS refused them for good."""
    job_id = queued_job(ledger)
    ledger.jobs.encoded(claim(ledger), some_results(), IDENTITY, RUN, {}, NOW)
    for each in claim_deliveries(ledger, "pacs"):
        ledger.deliveries.record(each, outcome(each, delivered=False), None, NOW)
    assert ledger.jobs.encode_again(job_id, 3, NOW)
    return job_id


def test_retry_leaves_a_job_alone_that_makes_its_results_again(ledger):
    job_id = given_up_and_damaged(ledger)
    assert ledger.jobs.retry(job_id, NOW) is None
    claimed = claim(ledger)
    assert ledger.jobs.retry(job_id, NOW) is None
    assert ledger.jobs.encoded(claimed, some_results(), IDENTITY, RUN, {}, NOW)
    deliver(ledger, "archive")
    assert state_of(ledger, job_id) is JobState.FAILED
    assert ledger.jobs.retry(job_id, NOW) == "retrying 2 deliveries now"
    deliver(ledger, "pacs")
    assert state_of(ledger, job_id) is JobState.DELIVERED


def test_retry_makes_results_again_whose_files_are_gone(ledger):
    job_id = given_up_and_damaged(ledger)
    ledger.jobs.failed(claim(ledger), "no device", NOW)
    assert ledger.jobs.retry(job_id, NOW) == "the job is queued again"
    ledger.jobs.encoded(claim(ledger), some_results(), IDENTITY, RUN, {}, NOW)
    deliver(ledger, "archive")
    deliver(ledger, "pacs")
    assert state_of(ledger, job_id) is JobState.DELIVERED


def test_retry_gives_a_job_the_attempts_to_make_damaged_results_again(ledger):
    job_id = queued_job(ledger)
    ledger.jobs.encoded(claim(ledger), some_results(("pacs",)), IDENTITY, RUN, {}, NOW)
    assert not ledger.jobs.encode_again(job_id, 1, NOW)
    for each in claim_deliveries(ledger, "pacs"):
        ledger.deliveries.record(each, outcome(each, delivered=False), None, NOW)
    assert ledger.jobs.retry(job_id, NOW) == "retrying 2 deliveries now"
    assert ledger.jobs.encode_again(job_id, 1, NOW)
    again = claim(ledger)
    assert (again.attempt, again.counted) == (2, 1)
