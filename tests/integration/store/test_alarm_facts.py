"""What alarms are decided from, and which were raised, as the ledger has it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from dicom_node.store.alarms import Death, Standing
from tests.integration.store.rows import (
    DECISION,
    IDENTITY,
    NOW,
    RUN,
    WORKER,
    arrive,
    claim,
    complete,
    outcome,
    some_results,
)

LATER = NOW + timedelta(hours=1)


def queue_job(ledger, series, decision=DECISION, at=NOW):
    arrive(ledger, 1, series=series, at=at)
    (job,) = ledger.routing.route(complete(ledger, at), [decision], None, at)
    return job


def test_new_ledger_has_nothing_to_report(ledger):
    facts = ledger.alarms.facts(NOW)
    assert (facts.queued, facts.queued_since, facts.undelivered, facts.failed_jobs) == (0, None, (), 0)
    assert (facts.deaths, facts.violations, ledger.alarms.standing()) == ((), {}, ())


def test_queue_is_as_old_as_its_oldest_job_also_if_that_is_put_off_again_and_again(ledger):
    queue_job(ledger, "1.2.840.1", replace(DECISION, priority=-1000), NOW - timedelta(days=3))
    queue_job(ledger, "1.2.840.2", at=NOW)
    queue_job(ledger, "1.2.840.3", at=LATER)
    assert ledger.jobs.put_back(claim(ledger), "the disk is full", LATER)
    facts = ledger.alarms.facts(NOW)
    assert (facts.queued, facts.queued_since) == (2, NOW)


def test_job_that_is_tried_again_on_request_waits_since_then(ledger):
    job = queue_job(ledger, "1.2.840.1")
    assert ledger.jobs.failed(claim(ledger), "as a test", NOW)
    assert ledger.jobs.retry(job, LATER) == "the job is queued again"
    assert ledger.alarms.facts(LATER).queued_since == LATER
    queue_job(ledger, "1.2.840.2", at=NOW)
    assert ledger.alarms.facts(LATER).queued_since == NOW


def test_job_whose_results_are_made_again_waits_since_then(ledger):
    job = queue_job(ledger, "1.2.840.1")
    assert ledger.jobs.encoded(claim(ledger), some_results(), IDENTITY, RUN, {}, NOW)
    assert ledger.jobs.encode_again(job, 3, LATER)
    assert ledger.alarms.facts(LATER).queued_since == LATER


def test_failed_jobs_are_counted(ledger):
    for number in range(3):
        queue_job(ledger, f"1.2.840.{number + 1}")
    for end in (ledger.jobs.failed, ledger.jobs.failed, ledger.jobs.rejected):
        assert end(claim(ledger), "as a test", NOW)
    assert ledger.alarms.facts(NOW).failed_jobs == 2
    assert ledger.alarms.facts(NOW + timedelta(days=1)).failed_jobs == 2
    assert ledger.alarms.facts(NOW + timedelta(days=1, seconds=1)).failed_jobs == 0, "it is known by now"
    assert ledger.alarms.facts(NOW - timedelta(days=1)).failed_jobs == 2
    assert ledger.alarms.facts(NOW - timedelta(days=400)).failed_jobs == 0, "the clock was set back since"


def test_failed_job_that_a_later_revision_replaced_is_not_counted(ledger):
    queue_job(ledger, "1.2.840.1")
    ledger.jobs.failed(claim(ledger), "as a test", NOW)
    assert ledger.alarms.facts(NOW).failed_jobs == 1
    arrive(ledger, 2, series="1.2.840.1")
    ledger.routing.route(complete(ledger), [DECISION], None, NOW)
    assert ledger.alarms.facts(NOW).failed_jobs == 0


def test_results_wait_by_destination_with_what_it_answered(ledger):
    queue_job(ledger, "1.2.840.1")
    ledger.jobs.encoded(claim(ledger), some_results(("pacs", "archive")), IDENTITY, RUN, {}, NOW)
    untouched = {each.destination: each for each in ledger.alarms.facts(NOW).undelivered}
    assert {name: (each.waiting, each.attempted, each.since) for name, each in untouched.items()} == {
        "archive": (2, 0, None),
        "pacs": (2, 0, None),
    }
    away, *_ = ledger.deliveries.claim("pacs", WORKER, NOW, LATER, 1, 0.0)
    ledger.deliveries.record(away, replace(outcome(away, delivered=False, retry=True), status=None), LATER, NOW)
    refused, *_ = ledger.deliveries.claim("archive", WORKER, LATER, LATER, 1, 0.0)
    ledger.deliveries.record(refused, outcome(refused, delivered=False), LATER, NOW)
    archive, pacs = ledger.alarms.facts(NOW).undelivered
    assert (archive.waiting, archive.attempted, archive.answered, archive.since) == (2, 1, 1, LATER)
    assert (pacs.waiting, pacs.attempted, pacs.answered, pacs.since) == (2, 1, 0, NOW)


def test_last_deaths_and_the_last_check_are_kept(ledger):
    for number in range(25):
        ledger.alarms.record_death("work", NOW + timedelta(seconds=number))
    ledger.alarms.record_check({"file.missing": 3})
    facts = ledger.alarms.facts(NOW)
    assert facts.deaths == tuple(Death("work", NOW + timedelta(seconds=number)) for number in range(5, 25))
    assert facts.violations == {"file.missing": 3}
    ledger.alarms.record_check({})
    assert ledger.alarms.facts(NOW).violations == {}


@pytest.fixture
def alarm():
    return Standing("disk", "", "full", NOW)


def test_alarm_is_kept_until_every_channel_knows_that_it_is_over(ledger, alarm):
    ledger.alarms.change(lambda _: (alarm,))
    for channel in ("mail", "webhook", "mail"):
        ledger.alarms.told(channel, [alarm], [], NOW)
    (standing,) = ledger.alarms.standing()
    assert standing == replace(alarm, told=("mail", "webhook"))
    over = replace(standing, cleared_at=LATER)
    ledger.alarms.change(lambda _: (over,))
    ledger.alarms.told("mail", [], [over], LATER)
    assert ledger.alarms.standing() == (replace(over, told=("webhook",)),)
    ledger.alarms.told("webhook", [], [over], LATER)
    assert ledger.alarms.standing() == ()


def test_alarm_that_was_over_before_it_was_told_is_taken_back(ledger, alarm):
    ledger.alarms.told("mail", [alarm], [], LATER)
    assert ledger.alarms.standing() == (replace(alarm, cleared_at=LATER, told=("mail",)),)


def test_alarm_that_was_raised_again_while_its_end_was_told_is_new_to_the_channel(ledger, alarm):
    raised_again = replace(alarm, since=LATER, told=("mail",))
    ledger.alarms.change(lambda _: (raised_again,))
    ledger.alarms.told("mail", [], [replace(alarm, cleared_at=NOW)], LATER)
    assert ledger.alarms.standing() == (replace(raised_again, told=()),)


def test_alarms_do_not_touch_what_else_is_kept_of_the_installation(ledger, alarm):
    device = ledger.device_uid()
    ledger.alarms.change(lambda _: (alarm,))
    ledger.alarms.record_death("listen", NOW)
    assert ledger.device_uid() == device
