"""Listener threads that record at the same time share a transaction, and nothing else."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime

import pytest

from dicom_node.errors import StoreUnavailable
from dicom_node.store import arrivals
from dicom_node.store.ledger import Ledger
from dicom_node.store.spool import Spool
from dicom_node.types import Receipt, ReceivedInstance
from tests.integration.store.rows import NOW, arrive, refused
from tests.support.waiting import wait_until


@pytest.fixture
def ledger(tmp_path):
    opened = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite3'}", Spool(tmp_path / "spool"))
    yield opened
    opened.close()


def instance(number: int, copy: int = 0) -> ReceivedInstance:
    return ReceivedInstance(
        sop_instance_uid=f"1.2.{number}",
        sop_class_uid="1.2",
        series_instance_uid="1.2.3",
        study_instance_uid="1.2",
        transfer_syntax_uid="1.2",
        spool_name=f"{number}-{copy}",
        dataset_sha256=f"{number}",
        size_bytes=1,
        calling_ae="A",
        peer_address="127.0.0.1",
        association_id="a",
        received_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def record_at_once(ledger, instances):
    """Record all in one transaction: they queue behind a recording that is held up."""

    def record(received):
        try:
            return ledger.arrivals.record_instance(received)
        except (TypeError, StoreUnavailable) as error:
            return type(error)

    with ThreadPoolExecutor(len(instances)) as pool:
        with ledger.arrivals._recording:
            running = [pool.submit(record, received) for received in instances]
            while len(ledger.arrivals._arriving) < len(instances):
                time.sleep(0.001)
        return [future.result(20) for future in running]


def test_each_gets_its_own_receipt(ledger):
    receipts = record_at_once(ledger, [instance(number, copy) for number in range(5) for copy in range(3)])
    assert receipts.count(Receipt.NEW) == 5
    assert receipts.count(Receipt.DUPLICATE) == 10
    (revision,) = ledger.arrivals.due_revisions(datetime(2026, 1, 1, tzinfo=UTC))
    assert revision.evidence.instance_count == 5


def test_fault_of_one_does_not_affect_the_others(ledger):
    faulty = instance(99)
    object.__setattr__(faulty, "orientation", 7)
    assert record_at_once(ledger, [instance(1), faulty, instance(2)]) == [Receipt.NEW, TypeError, Receipt.NEW]


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_an_association_may_end_while_instances_of_two_series_are_recorded(url, tmp_path, monkeypatch):
    """SQLite has one writer at a time; on PostgreSQL each of two could lock a series that the other needs."""
    first, second = "1.2.840.1", "1.2.840.2"
    note_arrival, begun, ended = arrivals._note_arrival, threading.Event(), threading.Event()

    def note_slowly(*args):
        note_arrival(*args)
        begun.set()
        ended.wait(1)

    with closing(Ledger(url, Spool(tmp_path / "spool"))) as ledger, ThreadPoolExecutor(3) as threads:
        ledger.arrivals.association_opened("assoc-1", "PACS", "127.0.0.1", NOW)
        for series in (first, second):
            arrive(ledger, 1, series=series)
        monkeypatch.setattr(arrivals, "_note_arrival", note_slowly)
        recording = []
        with ledger.arrivals._recording:
            for series in (second, first):
                recording.append(threads.submit(arrive, ledger, 2, series=series))
                wait_until(lambda: len(ledger.arrivals._arriving) == len(recording))
        assert begun.wait(30)
        end = threads.submit(ledger.arrivals.association_closed, "assoc-1", NOW, aborted=False, refusals=[refused(9)])
        assert [each.result() for each in recording] == [Receipt.NEW, Receipt.NEW]
        end.result()


def test_locked_database_fails_all_of_them(ledger, monkeypatch):
    monkeypatch.setattr("dicom_node.store.database._BUSY_TIMEOUT_MS", 50)
    with ledger.database.write():
        assert record_at_once(ledger, [instance(1), instance(2)]) == [StoreUnavailable, StoreUnavailable]
    assert record_at_once(ledger, [instance(1), instance(2)]) == [Receipt.NEW, Receipt.NEW]
