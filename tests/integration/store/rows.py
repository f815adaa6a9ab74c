"""Rows of a ledger for tests: an arriving series, its job, its results and the destinations' responses."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from dicom_node.store.schema import metadata
from dicom_node.store.workers import WorkerName
from dicom_node.types import (
    Completion,
    Decision,
    DeliveryOutcome,
    ReceivedInstance,
    Refusal,
    ResultInstance,
    ResultKind,
    ResultRequest,
    SegmentationForm,
)
from inference.types import ModelIdentity, RunNote, RunReport

NOW = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
SERIES = "1.2.840.1"
WORKER = WorkerName.own()
DEAD = replace(WORKER, started_ticks=WORKER.started_ticks - 1)
"""A process that had the PID of this one before."""
IDENTITY = ModelIdentity("tissue", "1", "ab" * 32, "Thresholding")
RUN = RunReport(
    "numpy 2.3.4", "CPU", "float32", (RunNote("fell back to the CPU", changes_answer=True),), {"infer": 1.5}
)
REQUESTS = {
    "pacs": ResultRequest(),
    "archive": ResultRequest(SegmentationForm.AUTO, structures=("liver",), notice=True),
}
DECISION = Decision(rule="ct", model="tissue", requests=REQUESTS, priority=5)


def arrive(
    ledger,
    number,
    content="a",
    association="assoc-1",
    at=NOW,
    series=SERIES,
    place=None,
    pixels=None,
    direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    syntax="1.2.840.10008.1.2.1",
    sender="PACS",
    name=None,
    retrieved_by="",
):
    """``place``, in mm along the normal, defaults to ``number`` and is unknown without a ``direction``; ``pixels``
    is used as the digest of the pixels. An instance without an ``association`` was found in the spool.
    """
    return ledger.arrivals.record_instance(
        ReceivedInstance(
            sop_instance_uid=f"{series}.{number}",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            series_instance_uid=series,
            study_instance_uid="1.2.840.9",
            transfer_syntax_uid=syntax,
            spool_name=name or f"{series}-{number}-{content}-{at.timestamp()}",
            dataset_sha256=f"{content}{number}".ljust(64, "0"),
            size_bytes=100,
            calling_ae=sender,
            peer_address="127.0.0.1",
            association_id=association,
            received_at=at,
            position_mm=None if direction is None else float(number if place is None else place),
            orientation=direction,
            instance_number=number,
            pixels_sha256=pixels,
            retrieved_by=retrieved_by,
        )
    )


def refused(number, series=SERIES, status=0xA700, content=None, at=NOW):
    """An instance of ``series`` that was not stored; with ``series`` None its series is unknown."""
    return Refusal(
        sop_instance_uid=f"{SERIES}.{number}",
        series_instance_uid=series,
        dataset_sha256=None if content is None else f"{content}{number}".ljust(64, "0"),
        status=status,
        reason="",
        refused_at=at,
    )


def complete(ledger, at=NOW):
    (revision,) = ledger.arrivals.due_revisions(at)
    assert ledger.arrivals.complete(revision, Completion(complete=True, reason="regular"), at)
    (whole,) = ledger.routing.due_revisions()
    return whole


def queued_job(ledger, decision=DECISION, at=NOW):
    arrive(ledger, 1, at=at)
    whole = complete(ledger, at)
    (job_id,) = ledger.routing.route(whole, [decision], None, at)
    return job_id


def claim(ledger, at=NOW, lease_s=60, worker=WORKER):
    return ledger.jobs.claim(worker, at, at + timedelta(seconds=lease_s))


def some_results(destinations=("pacs", "archive")):
    return [
        (
            ResultInstance(
                kind=kind,
                sop_class_uid="1.2.3",
                sop_instance_uid=f"2.25.{n}",
                series_instance_uid=f"2.25.9{n}",
                transfer_syntax_uid="1.2.840.10008.1.2.1",
                path=Path("/nowhere"),
                sha256="0" * 64,
                size_bytes=7,
                destinations=destinations,
            ),
            f"results/{n}",
        )
        for n, kind in enumerate((ResultKind.SEGMENTATION, ResultKind.REPORT), 1)
    ]


def state_of(ledger, job_id):
    return ledger.overview.job(job_id).state


def claim_deliveries(ledger, destination, at=NOW, lease_s=60, worker=WORKER, elapsed_s=0.0):
    return ledger.deliveries.claim(destination, worker, at, at + timedelta(seconds=lease_s), 10, elapsed_s)


def deliver(ledger, destination, at=NOW):
    for due in claim_deliveries(ledger, destination, at):
        assert ledger.deliveries.record(due, outcome(due, delivered=True), None, at)


def purge(ledger, limit=100):
    """Purge what is settled: found so, and found so again."""
    assert ledger.retention.purge_due(0.0, 0.0, NOW, limit) == ()
    return ledger.retention.purge_due(0.0, 0.0, NOW, limit)


def outcome(due, *, delivered, retry=False):
    return DeliveryOutcome(due.instance.sop_instance_uid, delivered, retry, 0 if delivered else 0xC000, "said so")


def unmigrated(ledger):
    """Differences between the tables in schema.py and the migrated database; any means that a migration is missing."""
    with ledger.database.read() as connection:
        return compare_metadata(MigrationContext.configure(connection), metadata)
