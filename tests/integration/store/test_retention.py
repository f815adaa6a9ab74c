"""Retention deletes the files of series that are no longer needed, and nothing else; rows are kept for ever."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, insert, select

from dicom_node.operate.housekeeping import purge_expired
from dicom_node.receive.adopt import adopt_unclaimed
from dicom_node.settings import OperateSettings
from dicom_node.standard.part10 import FileMeta
from dicom_node.store import retention
from dicom_node.store.clock import Moment
from dicom_node.store.ledger import Ledger
from dicom_node.store.schema import delivery, instance, job, metadata, result, revision_instance, series_revision
from dicom_node.store.spool import Spool
from dicom_node.store.states import DeliveryState, JobState, RevisionState
from tests.integration.store.rows import (
    IDENTITY,
    NOW,
    RUN,
    SERIES,
    WORKER,
    arrive,
    claim,
    complete,
    deliver,
    purge,
    queued_job,
    some_results,
)
from tests.support.received_series import write_instance

TIMES = st.sampled_from([NOW - timedelta(days=1), NOW - timedelta(microseconds=1), NOW, NOW + timedelta(days=1)])
OPEN_JOBS = (JobState.QUEUED, JobState.RUNNING, JobState.ENCODED)
TABLES = (instance, series_revision, revision_instance, job, result, delivery)


@dataclass(frozen=True)
class AJob:
    state: JobState
    changed_at: object
    deliveries: list[DeliveryState]

    @property
    def ended_at(self):
        return None if self.state in OPEN_JOBS else self.changed_at


@dataclass(frozen=True)
class ARevision:
    state: RevisionState
    last_arrival: object
    jobs: list[AJob]


JOBS = st.builds(AJob, st.sampled_from(JobState), TIMES, st.lists(st.sampled_from(DeliveryState), max_size=2))
OLD_JOBS = st.builds(
    AJob,
    st.sampled_from([JobState.DELIVERED, JobState.KEPT, JobState.REJECTED, JobState.SUPERSEDED]),
    st.just(NOW - timedelta(days=1)),
    st.lists(st.sampled_from([DeliveryState.DELIVERED, DeliveryState.FAILED, DeliveryState.SUPERSEDED]), max_size=2),
)
REVISIONS = st.builds(ARevision, st.sampled_from(RevisionState), TIMES, st.lists(JOBS, max_size=2))
OLD_REVISIONS = st.builds(
    ARevision, st.just(RevisionState.ROUTED), st.just(NOW - timedelta(days=1)), st.lists(OLD_JOBS, max_size=2)
)
SERIES_OF_A_NODE = st.lists(
    st.one_of(st.lists(REVISIONS, min_size=1, max_size=2), st.lists(OLD_REVISIONS, min_size=1, max_size=2)),
    max_size=4,
)


def reasons_to_keep(revisions):
    """Why the files of a series with these revisions must be kept, stated independently of the code under test."""
    for revision in revisions:
        if revision.state is not RevisionState.ROUTED:
            yield "it is arriving, or was not put before the rules yet"
        for each in revision.jobs:
            if each.state in OPEN_JOBS:
                yield "a job needs its images, or its results were not sent"
            elif each.state is JobState.FAILED:
                yield "a person must look"
            if DeliveryState.WAITING in each.deliveries:
                yield "a destination waits for a result"


def write(db, number, revisions):
    """Write the rows of one series; return the spool names of everything that belongs to it."""
    uid, names = f"{SERIES}.{number}", []
    for index, revision in enumerate(revisions, start=1):
        # a late instance replaces that of the previous revision
        names.append(f"{uid}/{index}.dcm")
        instance_id = insert_row(
            db,
            instance,
            sop_instance_uid=f"{uid}.1",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            series_instance_uid=uid,
            study_instance_uid="1.2.840.9",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            spool_name=names[-1],
            dataset_sha256="a" * 64,
            size_bytes=1,
            calling_ae="PACS",
            peer_address="127.0.0.1",
            association_id="one",
            received_at=revision.last_arrival,
            current=index == len(revisions),
        )
        revision_id = insert_row(
            db,
            series_revision,
            series_instance_uid=uid,
            study_instance_uid="1.2.840.9",
            sending_ae="PACS",
            revision=index,
            state=revision.state,
            version=1,
            first_arrival=revision.last_arrival,
            last_arrival=revision.last_arrival,
        )
        db.execute(insert(revision_instance).values(revision_id=revision_id, instance_id=instance_id))
        for each in revision.jobs:
            names += write_job(db, uid, revision_id, each)
    return names


def write_job(db, uid, revision_id, made):
    job_id = insert_row(
        db,
        job,
        revision_id=revision_id,
        destinations={},
        priority=0,
        decision={},
        state=made.state,
        attempts=1,
        created_at=made.changed_at,
        ended_at=made.ended_at,
    )
    names = []
    for number, state in enumerate(made.deliveries):
        names.append(f"{uid}/result-{job_id}-{number}.dcm")
        result_id = insert_row(
            db,
            result,
            job_id=job_id,
            kind="SEG",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.66.4",
            sop_instance_uid=f"2.25.{job_id}{number}",
            series_instance_uid=f"2.25.{job_id}",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            spool_name=names[-1],
            sha256="0" * 64,
            size_bytes=1,
        )
        insert_row(db, delivery, result_id=result_id, destination="pacs", state=state)
    return names


def insert_row(db, table, **values):
    return db.execute(insert(table).values(**values)).inserted_primary_key[0]


def row_counts(ledger):
    with ledger.database.read() as db:
        return [db.execute(select(func.count()).select_from(table)).scalar_one() for table in TABLES]


@pytest.fixture(scope="module")
def one_ledger(tmp_path_factory):
    """One ledger for all examples, which empty it first: creating one takes longer than an example."""
    folder = tmp_path_factory.mktemp("retention")
    opened = Ledger(f"sqlite:///{folder / 'ledger.sqlite3'}", Spool(folder / "spool"))
    yield opened
    opened.close()


@settings(max_examples=150, deadline=None)
@given(SERIES_OF_A_NODE)
def test_exactly_the_series_without_a_reason_to_keep_them_are_deleted_completely(one_ledger, node):
    ledger = one_ledger
    with ledger.database.write() as db:
        for table in reversed(metadata.sorted_tables):
            db.execute(delete(table))
        names = [write(db, number, revisions) for number, revisions in enumerate(node)]
    rows = row_counts(ledger)
    kept = {name for revisions, own in zip(node, names, strict=True) if any(reasons_to_keep(revisions)) for name in own}
    everything = {name for own in names for name in own}
    purged = purge(ledger, 1000)
    assert len(purged) == len(set(purged))
    assert set(purged) == everything - kept
    assert ledger.retention.claims(everything) == {name: name in kept for name in everything}
    assert row_counts(ledger) == rows
    assert ledger.retention.purge_due(0.0, 0.0, NOW, 1000) == ()


def after(seconds):
    """The same boot so many seconds later; the clock stands still."""
    return Moment(NOW, "boot", float(seconds))


def spooled(spool, number):
    """Write a received instance to the disk; return its spool name."""
    meta = FileMeta("1.2.840.10008.5.1.4.1.1.2", f"1.2.3.{number}", "1.2.840.10008.1.2.1")
    return write_instance(spool, meta, bytes(100)).spool_name


def write_settled(ledger, spool, number, state=JobState.DELIVERED):
    """A series with one job that ended a day ago, and one file on the disk."""
    yesterday = NOW - timedelta(days=1)
    name = spooled(spool, number)
    with ledger.database.write() as db:
        write(db, number, [ARevision(RevisionState.ROUTED, yesterday, [AJob(state, yesterday, [])])])
        db.execute(instance.update().where(instance.c.spool_name == f"{SERIES}.{number}/1.dcm").values(spool_name=name))
    return name


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool")


def test_files_of_expired_series_are_deleted_and_others_kept(ledger, spool):
    gone = [write_settled(ledger, spool, number) for number in (1, 2)]
    stays = write_settled(ledger, spool, 3, JobState.FAILED)
    days = OperateSettings(retention_days=1)
    assert [purge_expired(ledger, spool, days, after(s)) for s in (0, 86399)] == [0, 0], "a second short of a day"
    assert all(spool.path(name).exists() for name in (*gone, stays))
    assert purge_expired(ledger, spool, days, after(86400)) == 2
    assert not any(spool.path(name).exists() for name in gone)
    assert spool.path(stays).exists()


def test_missing_file_does_not_prevent_deletion_of_the_others(ledger, spool):
    names = [write_settled(ledger, spool, number) for number in (1, 2)]
    spool.path(names[0]).unlink()
    assert [purge_expired(ledger, spool, OperateSettings(retention_days=1), after(s)) for s in (0, 86400)] == [0, 2]
    assert not spool.path(names[1]).exists()


def test_files_left_by_a_crash_between_mark_and_deletion_are_swept_as_unclaimed(ledger, spool):
    name, kept = write_settled(ledger, spool, 1), write_settled(ledger, spool, 2, JobState.FAILED)
    assert purge(ledger) == (name,)
    assert spool.path(name).exists()
    adopt_unclaimed(spool, ledger.arrivals, ledger.retention.claims, older_than_s=0)
    assert not spool.path(name).exists()
    assert spool.path(kept).exists()


def test_each_purge_deletes_whole_series_until_it_has_freed_enough(ledger, spool):
    names = {write_settled(ledger, spool, number) for number in range(5)}
    first = purge(ledger, 2)
    assert len(first) == 2
    rest = ledger.retention.purge_due(0.0, 0.0, NOW, 1000)
    assert {*first, *rest} == names


def test_instance_arriving_between_search_and_mark_saves_its_series(ledger, spool, monkeypatch):
    name = write_settled(ledger, spool, 1)
    assert ledger.retention.purge_due(0.0, 0.0, NOW, 1000) == ()
    settled_version = retention._settled_version

    def then_an_instance_arrives(db, uid):
        settled = settled_version(db, uid)
        monkeypatch.undo()
        arrive(ledger, 2, series=uid)
        return settled

    monkeypatch.setattr(retention, "_settled_version", then_an_instance_arrives)
    assert ledger.retention.purge_due(0.0, 0.0, NOW, 1000) == ()
    assert ledger.retention.claims([name])[name]


def test_purged_instance_may_arrive_again_as_a_new_instance(ledger):
    queued_job(ledger, at=NOW)
    ledger.jobs.encoded(claim(ledger), some_results(("pacs",)), IDENTITY, RUN, {}, NOW)
    deliver(ledger, "pacs")
    later = NOW + timedelta(days=30)
    assert purge(ledger)
    arrive(ledger, 1, at=later)
    assert complete(ledger, later).revision == 2
    assert purge(ledger) == (), "it has not been routed yet"


def test_job_whose_images_were_deleted_is_not_tried_again(ledger):
    job_id = queued_job(ledger)
    ledger.jobs.rejected(ledger.jobs.claim(WORKER, NOW, NOW), "too few slices", NOW)
    later = NOW + timedelta(days=30)
    assert purge(ledger)
    assert ledger.jobs.retry(job_id, later) is None
    assert ledger.overview.job(job_id).state is JobState.REJECTED


@pytest.mark.parametrize("years", [10, -10])
def test_clock_that_is_set_deletes_nothing(ledger, spool, years):
    name = write_settled(ledger, spool, 1)
    week = OperateSettings(retention_days=7)
    assert purge_expired(ledger, spool, week, after(0)) == 0
    set_to = NOW + timedelta(days=365 * years)
    assert purge_expired(ledger, spool, week, replace(after(60), at=set_to)) == 0
    assert purge_expired(ledger, spool, week, Moment(set_to, "next boot", 5.0)) == 0
    assert spool.path(name).exists()
    assert purge_expired(ledger, spool, week, Moment(NOW, "next boot", 7 * 86400.0)) == 1


def test_time_begins_again_with_whatever_happens_to_the_series(ledger, spool):
    write_settled(ledger, spool, 1)
    day = OperateSettings(retention_days=1)
    assert purge_expired(ledger, spool, day, after(0)) == 0
    with ledger.database.write() as db:
        db.execute(job.update().values(ended_at=NOW))
    assert purge_expired(ledger, spool, day, after(86400)) == 0
    assert purge_expired(ledger, spool, day, after(2 * 86400 - 1)) == 0
    assert purge_expired(ledger, spool, day, after(2 * 86400)) == 1
