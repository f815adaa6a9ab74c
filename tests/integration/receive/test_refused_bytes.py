"""What a sender was told is not stored never takes the place of what it sent afterwards."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from sqlalchemy import select

from dicom_node.receive.adopt import Adoption, adopt_unclaimed
from dicom_node.store.clock import now_utc
from dicom_node.store.schema import refusal, series_revision
from dicom_node.types import Completion
from tests.support.sent_slices import ct_slice, dataset_bytes, encoded
from tests.support.waiting import wait_until

from .peer import Peer, pdu, pdv_command, pdv_data, store_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom import Dataset

    from .conftest import Node

SERIES = "1.2.3.4"
SLICES = 6
LONG_AGO_S = 3600


@contextmanager
def locked_ledger(node: Node) -> Iterator[None]:
    """Another program holds the write lock of SQLite."""
    other = sqlite3.connect(node.root.parent / "ledger.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def series(description: str) -> list[Dataset]:
    """The same series each time, but for its description."""
    slices = [ct_slice(number, SERIES) for number in range(SLICES)]
    for number, each in enumerate(slices):
        each.SOPInstanceUID = each.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{number}"
        each.SeriesDescription = description
    return slices


def send(peer: Peer, dataset: Dataset) -> int:
    """Send one instance; the status."""
    peer.send(pdv_command(1, store_command(CTImageStorage, dataset.SOPInstanceUID)))
    peer.send(pdv_data(1, encoded(dataset, ExplicitVRLittleEndian), last=True))
    return peer.status()


def store(node: Node, datasets: list[Dataset], while_sent: AbstractContextManager | None = None) -> list[int]:
    """Send on one association and release it; the statuses. The ledger knows the association before ``while_sent``."""
    peer = Peer(node.port)
    assert send(peer, ct_slice(1, series_uid="1.2.3.9")) == 0
    with while_sent or nullcontext():
        statuses = [send(peer, each) for each in datasets]
    peer.send(pdu(5, bytes(4)))
    assert peer.read_pdu()[0] == 6
    peer.close()
    wait_until(lambda: not node.listener._connections.all())
    return statuses


def age(node: Node) -> None:
    """Everything in the spool was written an hour ago, the older files before the newer ones."""
    for number, path in enumerate(sorted(node.root.rglob("*.*"), key=lambda path: path.stat().st_mtime_ns)):
        os.utime(path, (time.time() - LONG_AGO_S + number,) * 2)


def adopt(node: Node) -> Adoption:
    age(node)
    return adopt_unclaimed(node.spool, node.ledger.arrivals, node.ledger.retention.claims, older_than_s=60)


def descriptions(node: Node) -> list[bool]:
    """For each current instance, whether its bytes are those of the corrected series."""
    names, _ = node.ledger.arrivals.current_instances(SERIES)
    return [b"corrected" in dataset_bytes(node.spool.path(name)) for name in names]


def revisions(node: Node) -> list[str]:
    states = select(series_revision.c.state).where(series_revision.c.series_instance_uid == SERIES)
    with node.ledger.database.read() as db:
        return list(db.execute(states).scalars())


def complete(node: Node) -> None:
    due = node.ledger.arrivals.due_revisions(now_utc())
    (revision,) = (each for each in due if each.series_instance_uid == SERIES)
    assert node.ledger.arrivals.complete(revision, Completion(complete=True, reason="by the test"), now_utc())


@pytest.fixture
def quick_node(start_node, monkeypatch) -> Node:
    """A node that waits for its ledger for a moment only."""
    monkeypatch.setattr("dicom_node.store.database._BUSY_TIMEOUT_MS", 50)
    return start_node()


@pytest.mark.parametrize("resent", [SLICES, 3], ids=["all", "half"])
def test_refused_bytes_never_win_over_a_corrected_series(quick_node, resent):
    node = quick_node
    assert store(node, series("wrong"), locked_ledger(node)) == [0xA700] * SLICES
    assert store(node, series("corrected")[:resent]) == [0] * resent
    complete(node)
    assert adopt(node) == Adoption(adopted=0, removed=SLICES)
    assert descriptions(node) == [True] * resent
    assert revisions(node) == ["COMPLETE"]
    assert node.files() == {row.spool_name for row in node.rows()}


def test_correction_that_was_refused_while_the_ledger_was_locked_is_taken_when_it_comes_again(quick_node):
    node = quick_node
    assert store(node, series("first")) == [0] * SLICES
    assert store(node, series("corrected"), locked_ledger(node)) == [0xA700] * SLICES
    assert store(node, series("corrected")) == [0] * SLICES
    assert descriptions(node) == [True] * SLICES


@pytest.mark.parametrize("clock", ["right", "set back"])
def test_files_whose_refusal_could_not_be_marked_are_kept_but_never_win(quick_node, monkeypatch, clock):
    node = quick_node

    def disk_is_full(*_):
        raise OSError(errno.ENOSPC, "")

    with monkeypatch.context() as full, structlog.testing.capture_logs() as log:
        full.setattr(Path, "touch", disk_is_full)
        assert store(node, series("wrong"), locked_ledger(node)) == [0xA700] * SLICES
    assert [line["event"] for line in log].count("instance.refusal_not_marked") == SLICES
    if clock == "set back":
        monkeypatch.setattr("dicom_node.store.spool.now_ns", lambda: 10**15)
    assert store(node, series("corrected")) == [0] * SLICES
    complete(node)
    assert adopt(node) == Adoption(adopted=SLICES, removed=0)
    assert descriptions(node) == [True] * SLICES
    assert revisions(node) == ["COMPLETE"]
    current = [row.current for row in node.rows() if row.series_instance_uid == SERIES]
    assert current == [True] * SLICES + [False] * SLICES
    node.assert_consistent()
    assert adopt(node) == Adoption(adopted=0, removed=0)


def test_refused_instance_that_was_recorded_all_the_same_is_kept(quick_node, monkeypatch):
    """The connection to the database breaks after its COMMIT."""
    node = quick_node
    record = node.ledger.arrivals.record_instance

    def break_off(received):
        receipt = record(received)
        if received.series_instance_uid == SERIES:
            raise OSError("the answer to COMMIT was lost")
        return receipt

    monkeypatch.setattr(node.ledger.arrivals, "record_instance", break_off)
    assert store(node, series("wrong")) == [0xA700] * SLICES
    monkeypatch.undo()
    assert adopt(node) == Adoption(adopted=0, removed=0)
    node.assert_consistent()
    assert store(node, series("corrected")) == [0] * SLICES
    assert adopt(node) == Adoption(adopted=0, removed=0)
    assert descriptions(node) == [True] * SLICES
    node.assert_consistent()


def test_marks_are_left_until_a_commit_cannot_be_under_way(quick_node):
    node = quick_node
    store(node, series("wrong"), locked_ledger(node))
    files = node.files()
    assert len(files) == 1 + 2 * SLICES
    adopted = adopt_unclaimed(node.spool, node.ledger.arrivals, node.ledger.retention.claims, older_than_s=0)
    assert adopted == Adoption(adopted=0, removed=0)
    assert node.files() == files


def refused_of(node: Node) -> list[str]:
    """The SOP Instance UIDs of the refusals that the ledger knows."""
    with node.ledger.database.read() as db:
        return list(db.execute(select(refusal.c.sop_instance_uid)).scalars())


@pytest.mark.parametrize("has_stored", [True, False])
def test_refusals_are_known_although_the_ledger_was_away_to_the_end_of_the_association(
    start_node, monkeypatch, has_stored
):
    """They are the evidence that the series is not whole, and a ledger that is away is what causes most of them."""
    monkeypatch.setattr("dicom_node.store.database._BUSY_TIMEOUT_MS", 50)
    monkeypatch.setattr("dicom_node.receive.scp._TELL_AGAIN_S", 0.05)
    node, (stored, refused) = start_node(), series("first")[:2]
    peer = Peer(node.port)
    if has_stored:
        assert send(peer, stored) == 0
    with locked_ledger(node), structlog.testing.capture_logs() as log:
        assert send(peer, refused) == 0xA700
        peer.send(pdu(5, bytes(4)))
        assert peer.read_pdu()[0] == 6
        wait_until(lambda: not node.listener._connections.all())
        assert refused_of(node) == []
    peer.close()
    assert "association.close_not_recorded" in [line["event"] for line in log]
    wait_until(lambda: refused_of(node) == [refused.SOPInstanceUID])
    ((closed_at, aborted),) = [(row.closed_at, row.aborted) for row in node.associations()]
    assert (closed_at is not None, aborted) == (True, False)
    if has_stored:
        (revision,) = node.ledger.arrivals.due_revisions(now_utc())
        assert revision.evidence.refused_instances == 1


def test_association_whose_end_fails_unexpectedly_keeps_no_place(start_node):
    """Here, an older ledger was put in place of the one that knew the association."""
    node = start_node(maximum_associations=1)
    peer, (first, second) = Peer(node.port), series("first")[:2]
    assert send(peer, first) == 0
    second.SeriesInstanceUID = "not a UID"
    assert send(peer, second) == 0xA900
    with contextlib.closing(sqlite3.connect(node.root.parent / "ledger.sqlite3")) as db, db:
        db.execute("DELETE FROM association")
    with structlog.testing.capture_logs() as log:
        peer.close()
        wait_until(lambda: not node.listener._connections.all())
    assert "association.crashed" in [line["event"] for line in log]
    Peer(node.port).close()
