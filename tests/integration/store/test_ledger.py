"""The ledger on both databases: every transition of the state diagram, and those that must not exist."""

from __future__ import annotations

import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest
from alembic import command
from sqlalchemy import select

from dicom_node.errors import ConfigurationError, StoreUnavailable
from dicom_node.route.requests import NOTICE_ALONE
from dicom_node.store import deliveries, jobs
from dicom_node.store.ledger import Ledger
from dicom_node.store.schema import job
from dicom_node.store.spool import Spool
from dicom_node.store.states import JobState
from dicom_node.types import (
    Completion,
    Decision,
    Receipt,
    ReceivedInstance,
    ResultKind,
    ResultRequest,
)
from tests.integration.store.rows import (
    DEAD,
    DECISION,
    IDENTITY,
    NOW,
    REQUESTS,
    RUN,
    SERIES,
    WORKER,
    arrive,
    claim,
    claim_deliveries,
    complete,
    deliver,
    outcome,
    purge,
    queued_job,
    some_results,
    state_of,
    unmigrated,
)


def test_migrated_tables_are_the_tables_of_the_code(ledger):
    assert unmigrated(ledger) == []


def test_sqlite_ledger_that_is_away_is_not_made_anew_and_used_again_when_it_is_back(tmp_path):
    file, away = tmp_path / "ledger.sqlite3", tmp_path / "away"
    away.mkdir()
    opened = Ledger(f"sqlite:///{file}", Spool(tmp_path / "spool"))
    job_id = queued_job(opened)
    opened.database.close()  # open connections go on with the files wherever they are
    for each in tmp_path.glob("ledger.sqlite3*"):
        each.rename(away / each.name)
    with pytest.raises(StoreUnavailable):
        claim(opened)
    assert list(tmp_path.glob("ledger.sqlite3*")) == []
    for each in away.iterdir():
        each.rename(tmp_path / each.name)
    assert claim(opened).id == job_id
    opened.close()


def test_requests_of_destinations_are_stored_with_the_job(ledger):
    queued_job(ledger)
    assert claim(ledger).requests == REQUESTS


def test_jobs_of_a_ledger_with_destination_names_only_get_the_default(url, ledger, tmp_path):
    job_id = queued_job(ledger)
    with ledger.database.write() as db:
        config = ledger.database._alembic()
        config.attributes["connection"] = db
        command.downgrade(config, "0001")
        assert db.execute(select(job.c.destinations).where(job.c.id == job_id)).scalar_one() == ["pacs", "archive"]
    reopened = Ledger(url, Spool(tmp_path / "spool"))
    assert claim(reopened).requests == {"archive": ResultRequest(), "pacs": ResultRequest()}
    reopened.close()


def test_a_job_shows_the_report_of_its_run(ledger):
    job_id = queued_job(ledger)
    ledger.jobs.encoded(claim(ledger), some_results(), IDENTITY, RUN, {"segment": 2.0}, NOW)
    assert ledger.overview.job(job_id).run_report == RUN


def test_segmentation_without_a_run_has_no_report(ledger):
    job_id = queued_job(ledger)
    ledger.jobs.encoded(claim(ledger), some_results(), IDENTITY, None, {}, NOW)
    assert ledger.overview.job(job_id).run_report is None


def test_each_result_goes_to_the_destinations_that_asked_for_it(ledger):
    job_id = queued_job(ledger)
    (seg, name), (sr, other) = some_results()
    results = [(replace(seg, destinations=("archive",)), name), (replace(sr, destinations=()), other)]
    ledger.jobs.encoded(claim(ledger), results, IDENTITY, RUN, {}, NOW)
    assert ledger.deliveries.due("pacs", NOW, 10) == ()
    (due,) = ledger.deliveries.due("archive", NOW, 10)
    assert due.instance.sop_instance_uid == seg.sop_instance_uid
    ledger.deliveries.record(due, outcome(due, delivered=True), None, NOW)
    assert state_of(ledger, job_id) == JobState.DELIVERED


def a_notice(uid="2.25.1", destinations=("pacs",)):
    (notice, _), _ = some_results(destinations)
    return [(replace(notice, kind=ResultKind.NOTICE, sop_instance_uid=uid), "results/notice")]


@pytest.mark.parametrize("end", ["rejected", "failed"])
def test_sending_a_notice_leaves_the_job_unchanged(ledger, end):
    job_id = queued_job(ledger)
    assert getattr(ledger.jobs, end)(claim(ledger), "no HU", NOW, a_notice())
    (due,) = ledger.deliveries.due("pacs", NOW, 10)
    assert due.instance.kind is ResultKind.NOTICE
    ledger.deliveries.record(due, outcome(due, delivered=True), None, NOW)
    assert state_of(ledger, job_id) == end.upper()


def test_rejected_series_is_kept_until_its_notice_is_sent(ledger):
    queued_job(ledger)
    ledger.jobs.rejected(claim(ledger), "no HU", NOW, a_notice())
    assert purge(ledger) == ()
    (due,) = ledger.deliveries.due("pacs", NOW, 10)
    ledger.deliveries.record(due, outcome(due, delivered=True), None, NOW)
    assert "results/notice" in purge(ledger)


def test_retry_withdraws_the_notice_and_queues_the_job(ledger):
    job_id = queued_job(ledger)
    ledger.jobs.failed(claim(ledger), "no HU", NOW, a_notice())
    assert ledger.jobs.retry(job_id, NOW) == "the job is queued again"
    assert ledger.deliveries.due("pacs", NOW, 10) == ()
    assert state_of(ledger, job_id) == JobState.QUEUED


def test_lost_lease_writes_no_notice(ledger):
    queued_job(ledger)
    old = claim(ledger)
    ledger.jobs.put_back(old, "again", NOW)
    claim(ledger)
    assert not ledger.jobs.failed(old, "no HU", NOW, a_notice())
    assert ledger.deliveries.due("pacs", NOW, 10) == ()


def test_ledger_of_a_newer_version_is_refused_with_its_revision(url, ledger, tmp_path):
    with ledger.database.write() as db:
        db.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigurationError, match="9999"):
        Ledger(url, Spool(tmp_path / "spool"))


def test_identical_resend_changes_nothing_and_changed_bytes_replace(ledger):
    assert arrive(ledger, 1) is Receipt.NEW
    whole = complete(ledger)
    ledger.routing.route(whole, [DECISION], None, NOW)
    assert arrive(ledger, 1, at=NOW + timedelta(seconds=1)) is Receipt.DUPLICATE
    assert ledger.arrivals.due_revisions(NOW) == ()
    assert arrive(ledger, 1, content="b", at=NOW + timedelta(seconds=2)) is Receipt.REPLACEMENT
    (reopened,) = ledger.arrivals.due_revisions(NOW)
    assert (reopened.revision, reopened.evidence.instance_count) == (2, 1)
    assert ledger.overview.counts().instances["replaced"] == 1


def test_same_sop_instance_uid_in_two_series_is_kept_twice(ledger):
    arrive(ledger, 1)
    other = replace(_received_of(SERIES + ".7"), sop_instance_uid=f"{SERIES}.1")
    assert ledger.arrivals.record_instance(other) is Receipt.NEW
    assert ledger.overview.counts().instances["current"] == 2


def _received_of(series):
    return ReceivedInstance(
        sop_instance_uid=f"{series}.1",
        sop_class_uid="1.2",
        series_instance_uid=series,
        study_instance_uid="1.3",
        transfer_syntax_uid="1.2.840.10008.1.2",
        spool_name=series,
        dataset_sha256="f" * 64,
        size_bytes=1,
        calling_ae="PACS",
        peer_address="127.0.0.1",
        association_id="assoc-1",
        received_at=NOW,
    )


def test_arrival_between_evidence_and_verdict_cancels_the_verdict(ledger):
    arrive(ledger, 1)
    (seen,) = ledger.arrivals.due_revisions(NOW)
    arrive(ledger, 2)
    assert not ledger.arrivals.complete(seen, Completion(complete=True, reason="regular"), NOW)
    assert not ledger.arrivals.postpone(seen, NOW + timedelta(hours=1))
    (now_seen,) = ledger.arrivals.due_revisions(NOW)
    assert now_seen.evidence.instance_count == 2


def test_complete_revision_records_how_many_more_the_sender_counts(ledger):
    arrive(ledger, 1)
    (revision,) = ledger.arrivals.due_revisions(NOW)
    ledger.arrivals.set_expected_count(revision, 5)
    assert complete(ledger).missing_instances == 4
    arrive(ledger, 2, series="1.2.840.77")
    (other,) = ledger.arrivals.due_revisions(NOW)
    assert ledger.arrivals.complete(other, Completion(complete=True, reason="quiet"), NOW)
    assert [whole.missing_instances for whole in ledger.routing.due_revisions()] == [4, 0]


def test_open_associations_are_evidence_and_their_end_changes_it(ledger):
    ledger.arrivals.association_opened("assoc-1", "PACS", "127.0.0.1", NOW)
    arrive(ledger, 1)
    (waiting,) = ledger.arrivals.due_revisions(NOW)
    assert waiting.evidence.open_associations == 1
    assert ledger.arrivals.postpone(waiting, NOW + timedelta(hours=1))
    assert ledger.arrivals.due_revisions(NOW) == ()
    ledger.arrivals.association_closed("assoc-1", NOW, aborted=False)
    (again,) = ledger.arrivals.due_revisions(NOW)
    assert again.evidence.open_associations == 0


def test_associations_of_a_killed_listener_are_closed_at_its_start(ledger):
    ledger.arrivals.association_opened("assoc-1", "PACS", "127.0.0.1", NOW)
    arrive(ledger, 1)
    assert ledger.arrivals.close_interrupted_associations(NOW) == 1
    (revision,) = ledger.arrivals.due_revisions(NOW)
    assert revision.evidence.open_associations == 0


def test_aborted_association_is_evidence_until_a_later_one_is_released(ledger):
    def broken_off():
        (revision,) = ledger.arrivals.due_revisions(NOW)
        return revision.evidence.aborted_associations

    ledger.arrivals.association_opened("assoc-1", "PACS", "127.0.0.1", NOW)
    ledger.arrivals.association_opened("assoc-2", "PACS", "127.0.0.1", NOW)
    arrive(ledger, 1)
    arrive(ledger, 2, association="assoc-2")
    ledger.arrivals.association_closed("assoc-1", NOW + timedelta(seconds=1), aborted=True)
    ledger.arrivals.association_closed("assoc-2", NOW + timedelta(seconds=2), aborted=False)
    assert broken_off() == 1, "opened before the other was aborted: its instances have not been sent again"
    ledger.arrivals.association_opened("assoc-3", "PACS", "127.0.0.1", NOW + timedelta(seconds=3))
    arrive(ledger, 3, association="assoc-3")
    assert broken_off() == 1
    ledger.arrivals.association_closed("assoc-3", NOW + timedelta(seconds=4), aborted=False)
    assert broken_off() == 0


def test_instance_arriving_while_the_verdict_is_written_opens_the_next_revision(ledger):
    if ledger.database._engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    arrive(ledger, 1)
    with ThreadPoolExecutor(1) as listener:
        with ledger.database.write() as db:
            db.exec_driver_sql("UPDATE series_revision SET state = 'COMPLETE', version = version + 1")
            late = listener.submit(arrive, ledger, 2)
            wait_until_blocked(ledger)
        assert late.result(10) is Receipt.NEW
    (opened,) = ledger.arrivals.due_revisions(NOW)
    assert (opened.revision, opened.evidence.instance_count) == (2, 2)


def wait_until_blocked(ledger):
    """Wait until a session of the PostgreSQL server waits for the lock of another."""
    for _ in range(200):
        with ledger.database.read() as db:
            waiting = db.exec_driver_sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            if waiting.scalar_one():
                return
        time.sleep(0.05)
    pytest.fail("no session waits")


def test_late_instance_supersedes_waiting_jobs_and_unsent_results(ledger):
    first = queued_job(ledger)
    claimed = claim(ledger)
    assert ledger.jobs.encoded(claimed, some_results(), IDENTITY, RUN, {"segment": 1.0}, NOW)
    arrive(ledger, 2)
    whole = complete(ledger)
    (second,) = ledger.routing.route(whole, [DECISION], None, NOW)
    assert state_of(ledger, first) == JobState.SUPERSEDED
    assert ledger.deliveries.due("pacs", NOW, 10) == ()
    assert claim(ledger).id == second


def held(ledger, whole, model=DECISION.model):
    """SOP Instance UIDs that each destination holds according to the results of ``whole``."""
    found = ledger.results.earlier(whole, model)
    return {name: [each.sop_instance_uid for each in results] for name, results in found.items()}


def test_new_revision_knows_what_each_destination_accepted_of_the_previous_one(ledger):
    queued_job(ledger)
    ledger.jobs.encoded(claim(ledger), some_results(), IDENTITY, RUN, {}, NOW)
    deliver(ledger, "pacs")
    arrive(ledger, 2)
    whole = complete(ledger)
    ledger.routing.route(whole, [DECISION], None, NOW)
    assert held(ledger, whole) == {"pacs": ["2.25.1", "2.25.2"]}
    assert {each.revision for each in ledger.results.earlier(whole, DECISION.model)["pacs"]} == {1}
    assert held(ledger, whole, "another model") == {}


def test_destination_holds_what_it_accepted_last(ledger):
    queued_job(ledger)
    ledger.jobs.encoded(claim(ledger), some_results(), IDENTITY, RUN, {}, NOW)
    deliver(ledger, "pacs")
    arrive(ledger, 2)
    ledger.routing.route(complete(ledger), [DECISION], None, NOW)
    ledger.jobs.rejected(claim(ledger), "a slice is missing", NOW, a_notice("2.25.77", ("pacs", "archive")))
    deliver(ledger, "pacs")
    arrive(ledger, 3)
    whole = complete(ledger)
    assert held(ledger, whole) == {"pacs": ["2.25.1", "2.25.77"]}


def test_results_without_a_destination_are_known_too(ledger):
    queued_job(ledger)
    ledger.jobs.encoded(claim(ledger), some_results(destinations=()), IDENTITY, RUN, {}, NOW)
    arrive(ledger, 2)
    assert held(ledger, complete(ledger)) == {None: ["2.25.1", "2.25.2"]}


def test_restored_content_replaces_the_later_results_and_its_own_first_results(ledger):
    queued_job(ledger)
    ledger.jobs.encoded(claim(ledger), some_results(("pacs",)), IDENTITY, RUN, {}, NOW)
    deliver(ledger, "pacs")
    arrive(ledger, 1, content="b")
    ledger.routing.route(complete(ledger), [DECISION], None, NOW)
    ledger.jobs.rejected(claim(ledger), "a slice is missing", NOW, a_notice("2.25.77", ("pacs",)))
    deliver(ledger, "pacs")
    arrive(ledger, 1, content="a", at=NOW + timedelta(seconds=1))
    back = complete(ledger, NOW + timedelta(seconds=1))
    assert (back.revision, back.unchanged_since) == (3, 3)
    assert held(ledger, back) == {"pacs": ["2.25.1", "2.25.77"]}  # the notice replaced only the report


def test_result_superseded_while_being_sent_counts_as_delivered(ledger):
    queued_job(ledger)
    ledger.jobs.encoded(claim(ledger), some_results(("pacs",)), IDENTITY, RUN, {}, NOW)
    first, second = ledger.deliveries.due("pacs", NOW, 10)
    arrive(ledger, 2)
    whole = complete(ledger)
    ledger.routing.route(whole, [DECISION], None, NOW)
    ledger.deliveries.record(first, outcome(first, delivered=True), None, NOW)
    ledger.deliveries.record(second, outcome(second, delivered=False), NOW, NOW)
    assert held(ledger, whole) == {"pacs": ["2.25.1"]}
    assert ledger.deliveries.due("pacs", NOW, 10) == ()


def test_notice_sent_twice_is_held_once(ledger):
    job_id = queued_job(ledger)
    for _ in range(2):
        ledger.jobs.failed(claim(ledger), "no HU", NOW, a_notice("2.25.77"))
        deliver(ledger, "pacs")
        assert ledger.jobs.retry(job_id, NOW) == "the job is queued again"
    assert held(ledger, claim(ledger).revision) == {"pacs": ["2.25.77"]}


def test_unsent_notice_does_not_fail_the_job_that_succeeds_later(ledger):
    job_id = queued_job(ledger)
    ledger.jobs.failed(claim(ledger), "no HU", NOW, a_notice())
    (notice,) = ledger.deliveries.due("pacs", NOW, 10)
    ledger.deliveries.record(notice, outcome(notice, delivered=False), None, NOW)
    assert ledger.jobs.retry(job_id, NOW) == "the job is queued again"
    ledger.jobs.encoded(claim(ledger), some_results(("pacs",)), IDENTITY, RUN, {}, NOW)
    deliver(ledger, "pacs")
    assert state_of(ledger, job_id) == JobState.DELIVERED


REFUSAL = Decision("perfusion", None, {"pacs": NOTICE_ALONE}, 0, {}, "no HU")


def test_refused_series_is_rejected_with_its_notices_and_routed_again_without_them(ledger):
    arrive(ledger, 1)
    whole = complete(ledger)
    (refused,) = ledger.routing.route(whole, [REFUSAL], None, NOW, a_notice("2.25.77", ("pacs",)))
    assert state_of(ledger, refused) == JobState.REJECTED
    (due,) = ledger.deliveries.due("pacs", NOW, 10)
    assert (due.job_id, due.instance.sop_instance_uid) == (refused, "2.25.77")
    assert purge(ledger) == ()
    assert ledger.jobs.retry(refused, NOW) == "the series is routed again"
    assert ledger.deliveries.due("pacs", NOW, 10) == ()


def test_results_of_any_model_replace_a_notice_of_refusal(ledger):
    arrive(ledger, 1)
    ledger.routing.route(complete(ledger), [REFUSAL], None, NOW, a_notice("2.25.77", ("pacs",)))
    deliver(ledger, "pacs")
    arrive(ledger, 2)
    assert held(ledger, complete(ledger)) == {"pacs": ["2.25.77"]}


def test_refusal_replaces_the_results_of_every_model(ledger):
    queued_job(ledger)
    ledger.jobs.encoded(claim(ledger), some_results(("pacs",)), IDENTITY, RUN, {}, NOW)
    deliver(ledger, "pacs")
    arrive(ledger, 2)
    assert held(ledger, complete(ledger), None) == {"pacs": ["2.25.1", "2.25.2"]}


def test_results_replaced_by_a_newer_revision_are_not_tried_again(ledger):
    first = queued_job(ledger)
    ledger.jobs.failed(claim(ledger), "the model said no", NOW)
    arrive(ledger, 2)
    whole = complete(ledger)
    assert ledger.jobs.retry(first, NOW) == "the job is queued again"
    (second,) = ledger.routing.route(whole, [DECISION], None, NOW)
    assert state_of(ledger, first) == JobState.SUPERSEDED
    ledger.jobs.failed(claim(ledger), "the model said no", NOW)
    assert ledger.jobs.retry(first, NOW) is None
    assert ledger.jobs.retry(second, NOW) == "the job is queued again"


def test_deliveries_replaced_by_a_newer_revision_stay_unsent(ledger):
    first = queued_job(ledger)
    ledger.jobs.encoded(claim(ledger), some_results(), IDENTITY, RUN, {}, NOW)
    for due in ledger.deliveries.due("pacs", NOW, 10):
        ledger.deliveries.record(due, outcome(due, delivered=False), None, NOW)
    arrive(ledger, 2)
    ledger.routing.route(complete(ledger), [DECISION], None, NOW)
    assert ledger.jobs.retry(first, NOW) is None
    assert ledger.deliveries.due("pacs", NOW, 10) == ()


def test_job_given_back_has_used_no_attempt(ledger):
    job_id = queued_job(ledger)
    for _ in range(5):
        assert ledger.jobs.give_back(claim(ledger), "the node was stopped")
    assert ledger.overview.job(job_id).attempts == 0
    assert claim(ledger).attempt == 1


def test_running_job_of_an_old_revision_cannot_write(ledger):
    queued_job(ledger)
    claimed = claim(ledger)
    arrive(ledger, 2)
    ledger.routing.route(complete(ledger), [DECISION], None, NOW)
    assert not ledger.jobs.renew_lease(claimed, NOW, 0.5, "segment")
    assert not ledger.jobs.encoded(claimed, some_results(), IDENTITY, RUN, {}, NOW)
    assert ledger.overview.counts().deliveries == {}


def test_worker_that_lost_its_lease_is_fenced_off(ledger):
    queued_job(ledger)
    old = claim(ledger, lease_s=-1)
    assert ledger.jobs.recover_stalled(WORKER, NOW, attempts_limit=3) == (1, 0)
    new = claim(ledger)
    assert (old.attempt, new.attempt) == (1, 2)
    assert not ledger.jobs.encoded(old, some_results(), IDENTITY, RUN, {}, NOW)
    assert ledger.jobs.encoded(new, some_results(), IDENTITY, RUN, {}, NOW)
    assert len(ledger.deliveries.due("pacs", NOW, 10)) == 2


def test_series_that_always_fails_ends_in_failed_after_its_attempts(ledger):
    job_id = queued_job(ledger)
    for _ in range(2):
        claim(ledger, lease_s=-1, worker=DEAD)
        ledger.jobs.recover_stalled(WORKER, NOW, attempts_limit=2)
    assert state_of(ledger, job_id) == JobState.FAILED
    assert "2 times" in ledger.overview.job(job_id).reason
    assert claim(ledger) is None


def test_job_put_back_waits_and_urgent_jobs_go_first(ledger):
    queued_job(ledger)
    slow = claim(ledger)
    assert ledger.jobs.put_back(slow, "worker lost", NOW + timedelta(minutes=1))
    assert claim(ledger) is None
    arrive(ledger, 1, series=SERIES + ".2")
    (urgent,) = ledger.routing.route(complete(ledger), [replace(DECISION, priority=50)], None, NOW)
    later = NOW + timedelta(minutes=2)
    assert claim(ledger, at=later).id == urgent
    assert claim(ledger, at=later).id == slow.id


@pytest.mark.parametrize("unchecked", [True, False])
def test_job_records_whether_its_rule_accepts_any_scale_of_values(ledger, unchecked):
    job_id = queued_job(ledger, replace(DECISION, unchecked_hu=unchecked))
    assert claim(ledger).unchecked_hu is unchecked
    assert ledger.overview.job(job_id).unchecked_hu is unchecked


def test_series_without_a_rule_is_rejected_with_its_reason_and_can_be_routed_again(ledger):
    arrive(ledger, 1)
    (job_id,) = ledger.routing.route(complete(ledger), [Decision(None, None, {}, 0)], None, NOW)
    shown = ledger.overview.job(job_id)
    assert (shown.state, shown.reason) == (JobState.REJECTED, "no rules are configured")
    assert ledger.jobs.retry(job_id, NOW) == "the series is routed again"
    assert len(ledger.routing.due_revisions()) == 1


def test_job_whose_results_nobody_asked_for_is_kept(ledger):
    job_id = queued_job(ledger)
    ledger.jobs.encoded(claim(ledger), some_results(()), IDENTITY, RUN, {}, NOW)
    shown = ledger.overview.job(job_id)
    assert (shown.state, shown.ended_at, len(shown.results)) == (JobState.KEPT, NOW, 2)
    assert shown.reason == "no destination requested these results"
    assert ledger.jobs.retry(job_id, NOW) is None
    assert len(purge(ledger)) == 3


def test_job_is_delivered_when_every_destination_has_everything(ledger):
    job_id = queued_job(ledger)
    ledger.jobs.encoded(claim(ledger), some_results(), IDENTITY, RUN, {}, NOW)
    for destination in ("pacs", "archive"):
        for one in claim_deliveries(ledger, destination):
            assert state_of(ledger, job_id) == JobState.ENCODED
            ledger.deliveries.record(one, outcome(one, delivered=True), None, NOW)
    assert state_of(ledger, job_id) == JobState.DELIVERED


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_last_two_responses_may_arrive_at_once(ledger, monkeypatch):
    """SQLite has one writer at a time; on PostgreSQL two writers do not yet see each other's changes."""
    job_id = queued_job(ledger)
    ledger.jobs.encoded(claim(ledger), some_results()[:1], IDENTITY, RUN, {}, NOW)
    both = [ledger.deliveries.due(name, NOW, 10)[0] for name in ("pacs", "archive")]
    settle, others = deliveries.settle_job, threading.Barrier(2)

    def settle_together(*args):
        with suppress(threading.BrokenBarrierError):  # the other thread waits for this one to end
            others.wait(1)
        settle(*args)

    monkeypatch.setattr(deliveries, "settle_job", settle_together)
    with ThreadPoolExecutor(2) as threads:
        answers = [
            threads.submit(ledger.deliveries.record, due, outcome(due, delivered=True), None, NOW) for due in both
        ]
        for answer in answers:
            answer.result()
    assert state_of(ledger, job_id) == JobState.DELIVERED


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_results_written_while_a_newer_revision_is_routed_are_not_sent(ledger, monkeypatch):
    first = queued_job(ledger)
    claimed = claim(ledger)
    arrive(ledger, 2)
    whole = complete(ledger)
    insert_result, begun, routed = jobs.insert_result, threading.Event(), threading.Event()

    def insert_slowly(*args):
        insert_result(*args)
        begun.set()
        routed.wait(1)

    monkeypatch.setattr(jobs, "insert_result", insert_slowly)
    with ThreadPoolExecutor(1) as threads:
        encoded = threads.submit(ledger.jobs.encoded, claimed, some_results(), IDENTITY, RUN, {}, NOW)
        assert begun.wait(30)
        ledger.routing.route(whole, [DECISION], None, NOW)
        routed.set()
        encoded.result()
    assert state_of(ledger, first) == JobState.SUPERSEDED
    assert ledger.deliveries.due("pacs", NOW, 10) == ()


def test_abandoned_delivery_fails_the_job_and_retry_sends_only_that_delivery(ledger):
    job_id = queued_job(ledger, replace(DECISION, requests={"pacs": ResultRequest()}))
    ledger.jobs.encoded(claim(ledger), some_results(("pacs",)), IDENTITY, RUN, {}, NOW)
    good, bad = ledger.deliveries.due("pacs", NOW, 10)
    ledger.deliveries.record(good, outcome(good, delivered=True), None, NOW)
    later = NOW + timedelta(minutes=1)
    ledger.deliveries.record(bad, outcome(bad, delivered=False, retry=True), later, NOW)
    assert [d.id for d in ledger.deliveries.due("pacs", later, 10)] == [bad.id]
    ledger.deliveries.record(bad, outcome(bad, delivered=False), None, later)
    assert state_of(ledger, job_id) == JobState.FAILED
    assert ledger.jobs.retry(job_id, later) == "retrying 1 delivery now"
    assert [d.id for d in ledger.deliveries.due("pacs", later, 10)] == [bad.id]
    assert state_of(ledger, job_id) == JobState.ENCODED


def test_retention_never_removes_what_is_still_to_be_sent(ledger):
    job_id = queued_job(ledger, replace(DECISION, requests={"pacs": ResultRequest()}))
    ledger.jobs.encoded(claim(ledger), some_results(("pacs",)), IDENTITY, RUN, {}, NOW)
    future = NOW + timedelta(days=30)
    assert purge(ledger) == ()
    for due in ledger.deliveries.due("pacs", NOW, 10):
        ledger.deliveries.record(due, outcome(due, delivered=True), None, NOW)
    assert [ledger.retention.purge_due(now_s, 10.0, future, 100) for now_s in (7.0, 16.9)] == [(), ()]
    purged = ledger.retention.purge_due(17.0, 10.0, future, 100)
    assert set(purged) == {"results/1", "results/2", f"{SERIES}-1-a-{NOW.timestamp()}"}
    assert ledger.retention.claims({*purged, "unknown"}) == dict.fromkeys(purged, False)
    assert arrive(ledger, 1, at=future) is Receipt.NEW
    again = complete(ledger, future)
    assert not ledger.routing.content_already_routed(again)
    assert again.unchanged_since == 1
    assert state_of(ledger, job_id) == JobState.DELIVERED


def test_search_for_expired_series_does_not_block_arrivals(url, ledger, tmp_path, monkeypatch):
    queued_job(ledger)
    monkeypatch.setattr("dicom_node.store.database._BUSY_TIMEOUT_MS", 200)
    listener = Ledger(url, Spool(tmp_path / "spool"))
    with listener.database.write() as writing:
        assert ledger.retention.purge_due(0.0, 0.0, NOW, 100) == ()
        assert writing.closed is False
    listener.close()


def test_unchanged_content_is_not_routed_twice(ledger):
    queued_job(ledger)
    arrive(ledger, 1, content="b")
    arrive(ledger, 1, content="a", at=NOW + timedelta(seconds=1))
    assert ledger.routing.content_already_routed(complete(ledger))


def test_no_job_is_claimed_twice_by_competing_threads(ledger):
    for n in range(12):
        arrive(ledger, 1, series=f"{SERIES}.{n + 10}")
    for revision in ledger.arrivals.due_revisions(NOW):
        ledger.arrivals.complete(revision, Completion(complete=True, reason="regular"), NOW)
    for whole in ledger.routing.due_revisions():
        ledger.routing.route(whole, [DECISION], None, NOW)
    with ThreadPoolExecutor(4) as pool:
        claimed = [job.id for job in pool.map(lambda _: claim(ledger), range(20)) if job is not None]
    assert len(claimed) == 12
    assert len(set(claimed)) == 12


def test_installation_keeps_its_device_uid(url, ledger, tmp_path):
    other = Ledger(url, Spool(tmp_path / "spool"))
    assert other.device_uid() == ledger.device_uid()
    other.close()


def test_locked_database_is_a_named_error_and_nothing_is_half_written(tmp_path, monkeypatch):
    monkeypatch.setattr("dicom_node.store.database._BUSY_TIMEOUT_MS", 200)
    path = tmp_path / "ledger.sqlite3"
    ledger = Ledger(f"sqlite:///{path}", Spool(tmp_path / "spool"))
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreUnavailable, match="locked"):
        arrive(ledger, 1)
    holder.execute("ROLLBACK")
    assert ledger.overview.counts().instances["current"] == 0
    assert arrive(ledger, 1) is Receipt.NEW
    holder.close()
