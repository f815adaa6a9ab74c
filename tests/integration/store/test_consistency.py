"""The rows for the check of the invariant, on both databases; and a ledger that is opened only to be read."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import insert

from dicom_node.errors import ConfigurationError, StoreUnavailable
from dicom_node.operate.ledger_check import Kind, check_ledger
from dicom_node.store import consistency
from dicom_node.store.consistency import DeliveryFacts, InstanceFacts, JobFacts, ResultFacts, RevisionFacts
from dicom_node.store.database import Database
from dicom_node.store.ledger import Ledger
from dicom_node.store.schema import delivery
from dicom_node.store.spool import Spool
from dicom_node.store.states import DeliveryState
from tests.integration.store.rows import (
    DECISION,
    IDENTITY,
    NOW,
    RUN,
    SERIES,
    WORKER,
    arrive,
    claim,
    complete,
    deliver,
    queued_job,
    some_results,
)


@pytest.fixture
def rows(ledger, monkeypatch):
    """A ledger with a delivered job and a late image, and the rows of which two are read at once."""
    monkeypatch.setattr(consistency, "_AT_ONCE", 2)
    for number in (2, 3):
        arrive(ledger, number)
    queued_job(ledger)
    ledger.jobs.encoded(claim(ledger), some_results(("pacs",)), IDENTITY, RUN, {}, NOW)
    deliver(ledger, "pacs")
    arrive(ledger, 3, content="b")
    arrive(ledger, 2, at=NOW + timedelta(seconds=1))  # a duplicate
    return ledger.consistency


def test_rows_have_what_their_states_depend_on(rows):
    counted = rows.counted()
    assert (counted.instances, counted.duplicates, counted.series, counted.revisions) == (4, 1, 1, 2)
    assert (counted.jobs, counted.results, counted.deliveries) == (1, 2, 2)
    instances = {
        (each.spool_name.split("-")[1], each.current, each.is_member, each.is_arriving, each.is_replaced)
        for each in rows.instances(counted.last["instances"])
    }
    assert instances == {
        ("1", True, True, True, False),
        ("2", True, True, True, False),
        ("3", False, True, True, True),
        ("3", True, False, True, False),
    }
    first, second = rows.revisions(counted.last["revisions"])
    assert (first.revision, first.state, first.is_latest, first.has_previous, first.has_job) == (
        1, "ROUTED", False, False, True,
    )  # fmt: skip
    assert rows.digest_of_members(first.id) == first.bytes_digest
    assert (second.state, second.is_latest, second.has_previous, second.has_job) == ("OPEN", True, True, False)
    assert rows.digest_of_members(second.id) is None
    (job,) = rows.jobs(counted.last["jobs"])
    assert job == JobFacts(job.id, "DELIVERED", str(WORKER), None, NOW, waiting=0, failed=0, delivered=2, superseded=0)
    results = list(rows.results(counted.last["results"]))
    assert [(each.job_state, each.deliveries, each.waiting, each.purged_at) for each in results] == [
        ("DELIVERED", 1, 0, None)
    ] * 2
    deliveries = list(rows.deliveries(counted.last["deliveries"]))
    assert {(each.destination, each.state, each.delivered_at) for each in deliveries} == {("pacs", "DELIVERED", NOW)}


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        ("instances", InstanceFacts),
        ("revisions", RevisionFacts),
        ("jobs", JobFacts),
        ("results", ResultFacts),
        ("deliveries", DeliveryFacts),
    ],
)
def test_rows_are_read_up_to_an_id_in_turn(rows, ledger, read, kind):
    last = rows.counted().last[read]
    assert {type(each) for each in getattr(rows, read)(last)} == {kind}
    assert list(getattr(rows, read)(0)) == []
    arrive(ledger, 9, series=f"{SERIES}.9")
    ledger.routing.route(complete_other(ledger), [DECISION], None, NOW)
    ledger.jobs.encoded(claim(ledger), some_results(("pacs",)), IDENTITY, RUN, {}, NOW)
    ids = [each.id for each in getattr(rows, read)(last)]
    assert ids == sorted(set(ids))
    assert ids[-1] == last < rows.counted().last[read]


def complete_other(ledger):
    for revision in ledger.arrivals.due_revisions(NOW + timedelta(days=1)):
        if revision.series_instance_uid == SERIES:
            ledger.arrivals.postpone(revision, NOW + timedelta(days=2))
    return complete(ledger)


def test_a_revision_without_a_job_of_its_own_is_answered_by_one_of_the_same_content(ledger):
    queued_job(ledger)
    arrive(ledger, 1, content="b")
    whole = complete(ledger)
    has_job = {each.revision: each.has_job for each in ledger.consistency.revisions(10**6)}
    assert has_job == {1: True, 2: False}
    first = next(ledger.consistency.revisions(10**6))
    ledger.routing.has_content(replace(whole), first.bytes_digest)
    assert all(each.has_job for each in ledger.consistency.revisions(10**6))


def test_ledger_opened_to_be_read_changes_nothing(url, ledger, tmp_path):
    arrive(ledger, 1)
    opened = Ledger(url, Spool(tmp_path / "spool"), read_only=True)
    assert opened.consistency.counted().instances == 1
    if url.startswith("sqlite"):
        with pytest.raises(StoreUnavailable):
            arrive(opened, 2)
    else:
        with pytest.raises(StoreUnavailable), opened.database.read() as db:
            db.exec_driver_sql("DELETE FROM revision_instance")
    opened.close()
    assert ledger.consistency.counted().instances == 1


def test_ledger_of_another_version_is_not_read(url, ledger, tmp_path):
    with ledger.database.write() as db:
        db.exec_driver_sql("UPDATE alembic_version SET version_num = '0009'")
    with pytest.raises(ConfigurationError, match="has schema 0009, and this version needs"):
        Ledger(url, Spool(tmp_path / "spool"), read_only=True)
    database = Database(url, read_only=True)
    with pytest.raises(ConfigurationError):
        database.check_schema()
    database.close()


def test_missing_ledger_is_not_created(tmp_path):
    file = tmp_path / "a folder" / "ledger 100%.sqlite3"
    file.parent.mkdir()
    database = Database(f"sqlite:///{file}".replace("%", "%25"), read_only=True)
    with pytest.raises(StoreUnavailable, match="unable to open"):
        database.check_schema()
    assert not list(file.parent.iterdir())
    made = Database(f"sqlite:///{file}".replace("%", "%25"))
    made.upgrade()
    made.close()
    assert file.exists()
    database.check_schema()
    database.close()


def test_instance_whose_newer_bytes_are_damaged_is_replaced_by_them(ledger):
    queued_job(ledger)
    arrive(ledger, 1, content="b")
    first, second = ledger.consistency.instances(10**6)
    assert not ledger.consistency.is_damaged_since(first.id)
    ledger.jobs.note_damage([second.spool_name], NOW)
    first, second = ledger.consistency.instances(10**6)
    assert (first.is_replaced, ledger.consistency.is_damaged_since(first.id)) == (False, True)
    assert not ledger.consistency.is_damaged_since(second.id)


def test_row_that_becomes_visible_after_the_count_is_no_violation(ledger, url, tmp_path, monkeypatch):
    if url.startswith("sqlite"):
        pytest.skip("ids are given in the order in which transactions are committed")
    queued_job(ledger)
    ledger.jobs.encoded(claim(ledger), some_results(("pacs",)), IDENTITY, RUN, {}, NOW)
    deliver(ledger, "pacs")
    counted, late = ledger.consistency.counted, ExitStack()

    def commit_after_counting():
        found = counted()
        late.close()
        return found

    monkeypatch.setattr(ledger.consistency, "counted", commit_after_counting)
    add_delivery(late.enter_context(ledger.database.write()), "late")
    with ledger.database.write() as db:
        add_delivery(db, "early")
    report = check_ledger(ledger.consistency, Spool(tmp_path / "spool"))
    assert (report.counted["deliveries"], report.states["deliveries"]) == (3, {DeliveryState.DELIVERED: 4})
    assert Kind.COUNT not in report.violations


def add_delivery(db, destination):
    done = {"state": DeliveryState.DELIVERED, "delivered_at": NOW, "attempts": 1, "refusals": 0, "last_reason": ""}
    db.execute(insert(delivery).values(result_id=1, destination=destination, **done))
