"""A node of version 0.1.0 was stopped at work; the current code opens its ledger, and nothing is lost.

The rows are written in SQL for the schema of 0.1.0 (revision 0002), not with the current tables and states.
"""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta

import pytest
from alembic import command

from dicom_node.operate.ledger_check import Kind, check_ledger
from dicom_node.store.database import Database
from dicom_node.store.ledger import Ledger
from dicom_node.store.spool import Spool
from dicom_node.store.states import DeliveryState, JobState, RevisionState
from dicom_node.store.views import json_form
from dicom_node.types import Completion, Decision, Receipt, ReceivedInstance, ResultRequest, SegmentationForm
from tests.integration.store.rows import NOW, WORKER, outcome, unmigrated

SCHEMA_OF_0_1_0 = "0002"
DEVICE_UID = "2.25.314159265358979323846264338327950288419"
AS_WRITTEN = "2026-03-01 08:00:00.000000"
LEASE_UNTIL = "2026-03-01 08:01:00.000000"
AFTER_THE_LEASE = NOW + timedelta(seconds=61)
WANTED = {
    "segmentation": "auto",
    "split_by_group": False,
    "background": True,
    "structures": ["liver"],
    "report": True,
    "ibsi_codes": False,
    "shape": False,
    "contours": [],
    "capture": False,
    "document": False,
    "notice": False,
}
MODEL_IDENTITY = {
    "name": "tissue",
    "version": "1",
    "digest": "ab" * 32,
    "family": "Thresholding",
    "intended_use": "Research use only - not for clinical use",
}
JOBS = {
    1: ("queued", "QUEUED"),
    2: ("running", "RUNNING"),
    3: ("encoded", "ENCODED"),
    4: ("delivered", "DELIVERED"),
    5: ("rejected", "REJECTED"),
    6: ("failed", "FAILED"),
    7: ("superseded", "SUPERSEDED"),
    8: ("kept", "KEPT"),
}
SERIES = {
    name: f"1.2.840.{number}"
    for number, name in enumerate(("open", "complete", *(name for name, _ in JOBS.values())), start=10)
}


def insert(db, table, **values):
    columns, literals = ", ".join(f'"{name}"' for name in values), ", ".join(map(_literal, values.values()))
    db.exec_driver_sql(f"INSERT INTO {table} ({columns}) VALUES ({literals})")


def _literal(value):
    if value is None:
        return "NULL"
    if isinstance(value, bool | int | float):
        return str(value).lower()
    text = value if isinstance(value, str) else json.dumps(value)
    return "'" + text.replace("'", "''") + "'"


def sha256_of(series, number):
    return hashlib.sha256(f"{series} {number}".encode()).hexdigest()


def content_digest_of(series):
    return hashlib.sha256("\n".join(sorted(sha256_of(series, n) for n in (1, 2))).encode()).hexdigest()


def write_series(db, revision_id, series, state, revision=1):
    """Two instances and their revision."""
    whole = state != "OPEN"
    insert(
        db,
        "series_revision",
        id=revision_id,
        series_instance_uid=series,
        study_instance_uid="1.2.840.9",
        sending_ae="PACS",
        revision=revision,
        state=state,
        version=2,
        first_arrival=AS_WRITTEN,
        last_arrival=AS_WRITTEN,
        completed_at=AS_WRITTEN if whole else None,
        reason="regular" if whole else None,
        evidence={"instance_count": 2} if whole else None,
        content_digest=content_digest_of(series) if whole else None,
    )
    for number in (1, 2):
        insert(
            db,
            "instance",
            id=revision_id * 10 + number,
            sop_instance_uid=f"{series}.{number}",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            series_instance_uid=series,
            study_instance_uid="1.2.840.9",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            spool_name=f"20260301/08/{series}-{number}.dcm",
            dataset_sha256=sha256_of(series, number),
            size_bytes=100,
            calling_ae="PACS",
            peer_address="127.0.0.1",
            association_id="interrupted" if state == "OPEN" else "ended",
            received_at=AS_WRITTEN,
            position_mm=float(number),
            orientation=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
            instance_number=number,
            current=True,
            duplicates=0,
        )
        if whole:
            insert(db, "revision_instance", revision_id=revision_id, instance_id=revision_id * 10 + number)


def write_job(db, job_id, revision_id, state):
    """A KEPT job was DELIVERED in 0.1.0, with results that had no destination."""
    is_kept = state == "KEPT"
    state = "DELIVERED" if is_kept else state
    runs, ended = state == "RUNNING", state not in ("QUEUED", "RUNNING", "ENCODED")
    made = state in ("ENCODED", "DELIVERED", "FAILED")
    insert(
        db,
        "job",
        id=job_id,
        revision_id=revision_id,
        rule="ct",
        model="tissue",
        destinations={"pacs": WANTED, "archive": {}},
        priority=5,
        decision={"ct": [{"condition": "Modality equals CT", "seen": "CT", "held": True}]},
        state=state,
        reason="",
        attempts=0 if state == "QUEUED" else 1,
        claimed_by=None if state == "QUEUED" else "dicom-node/local",
        lease_until=LEASE_UNTIL if runs else None,
        created_at=AS_WRITTEN,
        started_at=None if state == "QUEUED" else AS_WRITTEN,
        ended_at=AS_WRITTEN if ended else None,
        progress=1.0 if made else 0.0,
        stage="segment" if runs else "",
        stage_seconds={"segment": 1.0} if made else None,
        model_identity=MODEL_IDENTITY if made else None,
    )
    if made:
        write_result(db, job_id, None if is_kept else {"ENCODED": "WAITING"}.get(state, state))


def write_result(db, job_id, state_at_pacs):
    """A SEG that the archive has and whose delivery to the PACS is in ``state_at_pacs``; None: without destinations."""
    insert(
        db,
        "result",
        id=job_id,
        job_id=job_id,
        kind="SEG",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.66.4",
        sop_instance_uid=f"2.25.{job_id}",
        series_instance_uid=f"2.25.{job_id}0",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        spool_name=f"20260301/08/result-{job_id}.dcm",
        sha256="0" * 64,
        size_bytes=7,
    )
    deliveries = (("pacs", state_at_pacs), ("archive", "DELIVERED")) if state_at_pacs else ()
    for number, (destination, state) in enumerate(deliveries):
        insert(
            db,
            "delivery",
            id=job_id * 10 + number,
            result_id=job_id,
            destination=destination,
            state=state,
            attempts=1,
            refusals=0,
            first_attempt_at=AS_WRITTEN,
            next_attempt_at=AS_WRITTEN if state == "WAITING" else None,
            delivered_at=AS_WRITTEN if state == "DELIVERED" else None,
            last_status=0 if state == "DELIVERED" else None,
            last_reason="",
        )


@pytest.fixture
def ledger(url, tmp_path):
    """The ledger of a 0.1.0 node, opened by the current code."""
    (tmp_path / "ledger.sqlite3").touch()
    database = Database(url)
    with database.write() as db:
        config = database._alembic()
        config.attributes["connection"] = db
        command.upgrade(config, SCHEMA_OF_0_1_0)
        if db.dialect.name == "postgresql":
            db.exec_driver_sql("SET TIME ZONE 'UTC'")
        insert(db, "installation", name="device_uid", value=DEVICE_UID)
        for name in ("ended", "interrupted"):
            insert(
                db,
                "association",
                id=name,
                calling_ae="PACS",
                peer_address="127.0.0.1",
                opened_at=AS_WRITTEN,
                closed_at=AS_WRITTEN if name == "ended" else None,
                aborted=False,
            )
        write_series(db, 101, SERIES["open"], "OPEN")
        write_series(db, 102, SERIES["complete"], "COMPLETE")
        for job_id, (name, state) in JOBS.items():
            write_series(db, job_id, SERIES[name], "ROUTED")
            write_job(db, job_id, job_id, state)
        if db.dialect.name == "postgresql":
            for table in ("instance", "series_revision", "job", "result", "delivery"):
                db.exec_driver_sql(f"SELECT setval('{table}_id_seq', (SELECT max(id) FROM {table}))")
    database.close()
    opened = Ledger(url, Spool(tmp_path / "spool"))
    yield opened
    opened.close()


def arrive(ledger, series, number, sha256):
    return ledger.arrivals.record_instance(
        ReceivedInstance(
            sop_instance_uid=f"{series}.{number}",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            series_instance_uid=series,
            study_instance_uid="1.2.840.9",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            spool_name=f"20260302/08/{series}-{number}-{sha256[:8]}.dcm",
            dataset_sha256=sha256,
            size_bytes=100,
            calling_ae="PACS",
            peer_address="127.0.0.1",
            association_id="later",
            received_at=NOW,
            position_mm=float(number),
            orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        )
    )


def test_every_row_is_kept_and_every_job_can_be_viewed(ledger):
    assert unmigrated(ledger) == []
    assert ledger.device_uid() == DEVICE_UID
    counts = ledger.overview.counts()
    assert counts.instances == {"current": 20, "replaced": 0, "damaged": 0, "purged": 0}
    assert counts.series == {RevisionState.COMPLETE: 1, RevisionState.OPEN: 1, RevisionState.ROUTED: 8}
    assert counts.jobs == dict.fromkeys(JobState, 1)
    assert counts.deliveries == {DeliveryState.DELIVERED: 4, DeliveryState.FAILED: 1, DeliveryState.WAITING: 1}
    for job_id, (name, state) in JOBS.items():
        shown = json_form(ledger.overview.job(job_id))
        assert (shown["state"], shown["series"]["series_instance_uid"]) == (state, SERIES[name])
        assert (shown["run_report"], shown["image_notes"], shown["created_at"]) == (None, [], NOW.isoformat())


def test_arriving_series_is_completed_with_its_late_instance(ledger):
    assert ledger.arrivals.close_interrupted_associations(NOW) == 1
    assert arrive(ledger, SERIES["open"], 2, sha256_of(SERIES["open"], 2)) is Receipt.DUPLICATE
    assert arrive(ledger, SERIES["open"], 3, "c" * 64) is Receipt.NEW
    (revision,) = ledger.arrivals.due_revisions(NOW)
    assert (revision.series_instance_uid, revision.evidence.instance_count) == (SERIES["open"], 3)
    assert ledger.arrivals.complete(revision, Completion(complete=True, reason="regular"), NOW)
    assert {whole.series_instance_uid for whole in ledger.routing.due_revisions()} == {
        SERIES["open"],
        SERIES["complete"],
    }


def test_waiting_and_running_jobs_run_again(ledger):
    now = AFTER_THE_LEASE
    assert ledger.jobs.recover_stalled(WORKER, NOW, 3) == (0, 0)
    assert ledger.jobs.recover_stalled(WORKER, now, 3) == (1, 0)
    claimed = [ledger.jobs.claim(WORKER, now, now + timedelta(seconds=60)) for _ in range(3)]
    assert [(job.id, job.attempt) for job in claimed[:2]] == [(1, 1), (2, 2)]
    assert claimed[2] is None
    for job in claimed[:2]:
        assert job.requests == {
            "pacs": ResultRequest(SegmentationForm.AUTO, structures=("liver",)),
            "archive": ResultRequest(),
        }
        assert len(job.revision.spool_names) == 2


def test_pending_deliveries_are_delivered(ledger, tmp_path):
    (due,) = ledger.deliveries.due("pacs", NOW, 10)
    assert due.instance.sop_instance_uid == "2.25.3"
    assert due.instance.path == tmp_path / "spool" / "20260301/08/result-3.dcm"
    assert ledger.deliveries.due("archive", NOW, 10) == ()
    ledger.deliveries.record(due, outcome(due, delivered=True), None, NOW)
    assert ledger.overview.job(3).state is JobState.DELIVERED


def test_delivered_results_are_known_as_earlier_results(ledger):
    assert arrive(ledger, SERIES["delivered"], 3, "c" * 64) is Receipt.NEW
    ledger.arrivals.close_interrupted_associations(NOW)
    for revision in ledger.arrivals.due_revisions(NOW):
        ledger.arrivals.complete(revision, Completion(complete=True, reason="regular"), NOW)
    (whole,) = [each for each in ledger.routing.due_revisions() if each.series_instance_uid == SERIES["delivered"]]
    assert whole.revision == 2
    held = ledger.results.earlier(whole, "tissue")
    assert {name: [each.sop_instance_uid for each in results] for name, results in held.items()} == {
        "pacs": ["2.25.4"],
        "archive": ["2.25.4"],
    }


def test_routed_content_is_not_routed_again(ledger):
    series = SERIES["delivered"]
    arrive(ledger, series, 1, "c" * 64)
    arrive(ledger, series, 1, sha256_of(series, 1))
    for revision in ledger.arrivals.due_revisions(NOW):
        ledger.arrivals.complete(revision, Completion(complete=True, reason="regular"), NOW)
    (again,) = [each for each in ledger.routing.due_revisions() if each.series_instance_uid == series]
    assert again.unchanged_since == 1
    assert ledger.routing.content_already_routed(again)


def test_newer_revision_supersedes_waiting_jobs(ledger):
    arrive(ledger, SERIES["encoded"], 3, "c" * 64)
    for revision in ledger.arrivals.due_revisions(NOW):
        ledger.arrivals.complete(revision, Completion(complete=True, reason="regular"), NOW)
    (whole,) = [each for each in ledger.routing.due_revisions() if each.series_instance_uid == SERIES["encoded"]]
    ledger.routing.route(whole, [Decision("ct", "tissue", {"pacs": ResultRequest()}, 5)], None, NOW)
    assert ledger.overview.job(3).state is JobState.SUPERSEDED
    assert ledger.deliveries.due("pacs", NOW, 10) == ()


def test_failed_and_rejected_jobs_can_be_tried_again(ledger):
    assert ledger.jobs.retry(5, NOW) == "the job is queued again"
    assert ledger.jobs.retry(6, NOW) == "retrying 1 delivery now"
    assert {due.instance.sop_instance_uid for due in ledger.deliveries.due("pacs", NOW, 10)} == {"2.25.3", "2.25.6"}


def test_files_of_the_node_are_still_claimed(ledger):
    names = {f"20260301/08/{series}-{number}.dcm" for series in SERIES.values() for number in (1, 2)}
    names |= {f"20260301/08/result-{job_id}.dcm" for job_id in (3, 4, 6, 8)}
    assert ledger.retention.claims(names) == dict.fromkeys(names, True)


def test_time_to_keep_and_to_give_up_begins_with_the_upgrade(ledger):
    now_s = 1000.0
    assert ledger.retention.purge_due(now_s, 0.0, NOW, 100) == ()
    purged = {name.split("/")[-1].split("-")[0] for name in ledger.retention.purge_due(now_s, 0.0, NOW, 100)}
    settled = {
        SERIES[name] for name, state in JOBS.values() if state in ("DELIVERED", "KEPT", "REJECTED", "SUPERSEDED")
    }
    assert purged - {"result"} == settled
    (pending,) = ledger.deliveries.claim("pacs", WORKER, NOW, AFTER_THE_LEASE, 10, now_s)
    assert (pending.attempts, pending.first_attempt_s) == (2, now_s)
    assert ledger.deliveries.recover_stalled(WORKER, AFTER_THE_LEASE + timedelta(seconds=1)) == 1


def test_upgraded_ledger_is_sound(ledger, tmp_path):
    ledger.jobs.recover_stalled(WORKER, AFTER_THE_LEASE, 3)
    report = check_ledger(ledger.consistency, Spool(tmp_path / "spool"))
    assert set(report.violations) == {Kind.FILE_MISSING}, "there never were files"
